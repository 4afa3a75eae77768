"""Losses of tokenizer training: reconstruction, codebook, perceptual and adversarial terms (VQGAN;
values as in LlamaGen)."""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from maskgil_jax.config import choose
from maskgil_jax.config.training import ADVERSARIAL, VQLossConfig


def reconstruction_loss(images: jax.Array, reconstructed: jax.Array, cfg: VQLossConfig) -> jax.Array:
    """Weighted mean absolute and mean squared error over all pixels and channels."""
    chex.assert_equal_shape([images, reconstructed])
    error = images - reconstructed
    return cfg.l1 * jnp.mean(jnp.abs(error)) + cfg.l2 * jnp.mean(jnp.square(error))


def codebook_loss(losses: dict[str, jax.Array], cfg: VQLossConfig) -> jax.Array:
    """Weighted sum of the quantiser's losses (`Quantized.losses`)."""
    total = cfg.codebook * losses["codebook"] + cfg.commitment * losses["commitment"]
    return total + cfg.entropy * losses["entropy"] if cfg.entropy else total


def discriminator_loss(kind: str, real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """Mean loss of a discriminator whose logits should be high for real and low for reconstructed images."""
    choose("adversarial_kind", kind, ADVERSARIAL)
    if kind == "hinge":
        return 0.5 * (jnp.mean(jax.nn.relu(1.0 - real_logits)) + jnp.mean(jax.nn.relu(1.0 + fake_logits)))
    if kind == "non_saturating_swapped":
        real, fake = _swapped_cross_entropy(1.0, real_logits), _swapped_cross_entropy(0.0, fake_logits)
        return 0.5 * (jnp.mean(real) + jnp.mean(fake))
    return 0.5 * (jnp.mean(jax.nn.softplus(-real_logits)) + jnp.mean(jax.nn.softplus(fake_logits)))


def adversarial_loss(kind: str, fake_logits: jax.Array) -> jax.Array:
    """Mean loss of the tokenizer against a discriminator of the same kind."""
    choose("adversarial_kind", kind, ADVERSARIAL)
    if kind == "non_saturating":
        return jnp.mean(jax.nn.softplus(-fake_logits))
    if kind == "non_saturating_swapped":
        return jnp.mean(_swapped_cross_entropy(1.0, fake_logits))
    return -jnp.mean(fake_logits)


def _swapped_cross_entropy(label: float, logits: jax.Array) -> jax.Array:
    """Sigmoid cross-entropy with label and logit swapped, as LlamaGen's non-saturating losses compute it.

    It is linear in the logits, and constant for label 0: that discriminator gets no gradient from reconstructed images.
    """
    return jax.nn.softplus(jnp.asarray(label)) - label * logits


def adaptive_weight(
    reconstruction_of: Callable[[jax.Array], jax.Array],
    adversarial_of: Callable[[jax.Array], jax.Array],
    last_kernel: jax.Array,
) -> jax.Array:
    """|gradient of the reconstruction terms| / (|gradient of the adversarial term| + 1e-4), at most 1e4,
    without gradient.

    Both losses are functions of the kernel of the decoder's last convolution; its input is constant.
    """
    last_kernel = jax.lax.stop_gradient(last_kernel)
    reconstruction, adversarial = (jnp.linalg.norm(jax.grad(f)(last_kernel)) for f in (reconstruction_of, adversarial_of))
    return jax.lax.stop_gradient(jnp.clip(reconstruction / (adversarial + 1e-4), 0.0, 1e4))


def started(step: jax.Array | int, cfg: VQLossConfig) -> jax.Array:
    """1.0 from step `disc_start` on, 0.0 before."""
    return jnp.where(jnp.asarray(step) >= cfg.disc_start, 1.0, 0.0)


def tokenizer_loss(
    render: Callable[[jax.Array], jax.Array],
    last_kernel: jax.Array,
    images: jax.Array,
    losses: dict[str, jax.Array],
    cfg: VQLossConfig,
    *,
    perceptual: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    discriminate: Callable[[jax.Array], jax.Array] | None = None,
    step: jax.Array | int = 0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, metrics) of the tokenizer for images (b, H, W, 3) in [-1, 1].

    render: kernel of the decoder's last convolution -> reconstructed images. losses: `Quantized.losses`.
    perceptual: (images, reconstructed) -> distance per image (LPIPS), or None: term off.
    discriminate: images -> logits, or None: adversarial term off. step: see `VQLossConfig.disc_start`.
    """

    def reconstruction_terms(reconstructed):
        total = reconstruction_loss(images, reconstructed, cfg)
        if perceptual is not None and cfg.perceptual:
            total += cfg.perceptual * jnp.mean(perceptual(images, reconstructed))
        return total

    def adversarial_term(reconstructed):
        return adversarial_loss(cfg.adversarial_kind, discriminate(reconstructed))

    reconstructed = render(last_kernel)
    nll, codes = reconstruction_terms(reconstructed), codebook_loss(losses, cfg)
    metrics = {"reconstruction": nll, **losses}
    if discriminate is None or not cfg.adversarial:
        return nll + codes, metrics | {"loss": nll + codes}
    adversarial = adversarial_term(reconstructed)
    weight = cfg.adversarial * started(step, cfg)
    if cfg.adaptive:
        weight *= adaptive_weight(lambda k: reconstruction_terms(render(k)), lambda k: adversarial_term(render(k)), last_kernel)
    loss = nll + codes + weight * adversarial
    return loss, metrics | {"adversarial": adversarial, "adversarial_weight": weight, "loss": loss}
