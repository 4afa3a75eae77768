"""The training objective: mask a random fraction of the tokens and predict them (paper 2.3, 4.3; MaskGIT)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maskgil_jax.config import choose, renamed, require
from maskgil_jax.decoding.schedules import mask_ratio
from maskgil_jax.runtime.rng import image_keys

MASKINGS = ("exact", "bernoulli")


@renamed(law="masking")
def corrupt(
    key: jax.Array,
    tokens_bl: jax.Array,
    schedule: str = "arccos",
    mask_id: int = 0,
    masking: str = "exact",
    valid_bl: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Masks a fraction gamma(r), r ~ U(0, 1) per image, of each image's tokens.

    tokens_bl: int32 (b, l). Returns (inputs_bl with `mask_id` at masked positions, mask_bl bool, True = masked).
    masking "exact": ceil(gamma(r) * l) positions, at least 1, chosen uniformly (MaskGIT). "bernoulli": each position
    independently with probability gamma(r), possibly none (the published MaskGIL code). valid_bl: which tokens are no
    padding; l is then the number of those of each image, and padding is never masked.
    """
    choose("masking", masking, MASKINGS)
    b, l = tokens_bl.shape
    keys_b2 = jax.vmap(jax.random.split)(image_keys(key, b))
    ratio_b = mask_ratio(schedule, jax.vmap(jax.random.uniform)(keys_b2[:, 0]))
    noise_bl = jax.vmap(lambda k: jax.random.uniform(k, (l,)))(keys_b2[:, 1])
    count_l: Any = l
    if valid_bl is not None:
        noise_bl, count_l = jnp.where(valid_bl, noise_bl, 2.0), valid_bl.sum(axis=-1)
    if masking == "bernoulli":
        mask_bl = noise_bl < ratio_b[:, None]
    else:
        count_b = jnp.clip(jnp.ceil(ratio_b * count_l).astype(jnp.int32), 1, count_l)
        rank_bl = jnp.argsort(jnp.argsort(noise_bl, axis=-1), axis=-1)
        mask_bl = rank_bl < count_b[:, None]
    return jnp.where(mask_bl, mask_id, tokens_bl), mask_bl


def drop_conditions(key: jax.Array, count: int, rate: float) -> jax.Array:
    """Which of `count` images lose their condition, with probability `rate` each: bool (count,)."""
    return jax.vmap(jax.random.uniform)(image_keys(key, count)) < rate


def token_losses(logits_blv: jax.Array, targets_bl: jax.Array, label_smoothing: float) -> jax.Array:
    """Cross-entropy per token in float32, the target distribution mixed with `label_smoothing` of the uniform one."""
    logits = logits_blv.astype(jnp.float32)
    norm_bl = jax.nn.logsumexp(logits, axis=-1)
    # One-hot sum instead of take_along_axis: XLA fuses it with the logsumexp, so the logits are read once.
    hit_bl = jnp.sum(jnp.where(_classes(logits) == targets_bl[..., None], logits, 0.0), axis=-1)
    loss_bl = norm_bl - (1.0 - label_smoothing) * hit_bl
    return loss_bl - label_smoothing * jnp.mean(logits, axis=-1) if label_smoothing else loss_bl


def best_class(logits_blv: jax.Array) -> jax.Array:
    """`argmax` over the last axis, the first of equals, as reductions that XLA fuses with those of the loss."""
    logits_blv, count = jax.lax.stop_gradient(logits_blv), float(logits_blv.shape[-1])
    top_bl1 = jnp.max(logits_blv, axis=-1, keepdims=True)
    first_bl = jnp.min(jnp.where(logits_blv == top_bl1, _classes(logits_blv).astype(jnp.float32), count), axis=-1)
    return first_bl.astype(jnp.int32)  # float32 until here, exact to 2^24: XLA fuses only reductions of one dtype


def _classes(logits_blv: jax.Array) -> jax.Array:
    """The number of its class at every logit."""
    return jax.lax.broadcasted_iota(jnp.int32, logits_blv.shape, logits_blv.ndim - 1)


def masked_cross_entropy(
    logits_blv: jax.Array,
    targets_bl: jax.Array,
    mask_bl: jax.Array,
    label_smoothing: float = 0.1,
    unmasked_weight: float = 0.0,
    z_loss: float = 0.0,
    valid_bl: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy over masked tokens, the others counted with `unmasked_weight` (0: paper 2.3; 1:
    published code).

    Returns (loss, metrics): sums and counts from which `mean_metrics` makes masked and unmasked loss and accuracy, and
    which add up over parts of a batch; the loss is `loss_sum / weight_sum`. z_loss: weight of log(sum(exp(logits)))^2
    per token (PaLM), which bounds the logits; it is in the loss only, not in `masked_loss` and `unmasked_loss`.
    valid_bl: which tokens are no padding; padding, which is never masked, counts nowhere.
    """
    loss_bl = token_losses(logits_blv, targets_bl, label_smoothing)
    hit_bl = (best_class(logits_blv) == targets_bl).astype(jnp.float32)
    masked_bl = mask_bl.astype(jnp.float32)
    seen_bl = 1.0 - masked_bl if valid_bl is None else valid_bl - masked_bl
    weight_bl = masked_bl + unmasked_weight * seen_bl
    drift_bl = z_loss * jnp.square(jax.nn.logsumexp(logits_blv.astype(jnp.float32), axis=-1)) if z_loss else 0.0
    metrics = {
        "loss_sum": jnp.sum((loss_bl + drift_bl) * weight_bl),
        "weight_sum": jnp.sum(weight_bl),
        "masked_loss": jnp.sum(loss_bl * masked_bl),
        "masked_hits": jnp.sum(hit_bl * masked_bl),
        "masked": jnp.sum(masked_bl),
        "unmasked_loss": jnp.sum(loss_bl * seen_bl),
        "unmasked_hits": jnp.sum(hit_bl * seen_bl),
        "unmasked": jnp.sum(seen_bl),
    }
    return metrics["loss_sum"] / jnp.maximum(metrics["weight_sum"], 1e-8), metrics


def chunked_cross_entropy(
    logits_of: Callable[[jax.Array], jax.Array],
    hidden_bld: jax.Array,
    targets_bl: jax.Array,
    mask_bl: jax.Array,
    chunks: int,
    *options: float,
    valid_bl: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The sums of `masked_cross_entropy(logits_of(hidden_bld), targets_bl, mask_bl, *options)`,
    never holding all logits.

    The tokens of every image are taken in `chunks` equal parts, one after another, and the backward pass computes each
    part's logits again: memory falls by that factor for the price of one more product with the head. The batch axis
    stays whole, so it may be sharded. Raises a `ConfigError` if `chunks` does not divide the number of tokens.
    """

    def sums_of(rows):
        hidden, targets, mask, valid = rows
        return masked_cross_entropy(logits_of(hidden), targets, mask, *options, valid_bl=valid)[1]

    b, l = targets_bl.shape
    require(l % chunks == 0, f"objective.loss_chunks: {chunks} does not divide {l} tokens")
    parts = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(b, chunks, l // chunks, *x.shape[2:]), 1, 0),
        (hidden_bld, targets_bl, mask_bl, valid_bl),
    )
    shapes = jax.eval_shape(sums_of, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    step = jax.checkpoint(lambda carry, rows: (jax.tree.map(jnp.add, carry, sums_of(rows)), None))
    return jax.lax.scan(step, zeros, parts)[0]


def mean_metrics(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Readable means of the (summed) metrics of `masked_cross_entropy`."""
    masked, unmasked = jnp.maximum(sums["masked"], 1.0), jnp.maximum(sums["unmasked"], 1.0)
    return {
        "loss": sums["loss_sum"] / jnp.maximum(sums["weight_sum"], 1e-8),
        "masked_loss": sums["masked_loss"] / masked,
        "masked_accuracy": sums["masked_hits"] / masked,
        "unmasked_loss": sums["unmasked_loss"] / unmasked,
        "unmasked_accuracy": sums["unmasked_hits"] / unmasked,
    }
