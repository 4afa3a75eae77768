"""Quantisation of latents: nearest code or signs, straight-through estimator, codebook losses."""

from __future__ import annotations

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

_SEARCH_ELEMENTS = 2**24  # distances held at once (64 MiB), whatever the codebook size
_LENGTH_EPS = 1e-12  # shortest vector that is still scaled to length 1


@flax.struct.dataclass
class Quantized:
    """What quantising latents gives.

    z_bhwd: the chosen codes' vectors, with the gradient of the latents passed straight through.
    codes_bhw: int32, 0..codebook_size-1.
    losses: float32 scalars without weights: `codebook` (moves codes to latents), `commitment` (moves latents to codes)
        and, if asked for, `entropy`.
    """

    z_bhwd: jax.Array
    codes_bhw: jax.Array
    losses: dict[str, jax.Array]


def unit_length(x: jax.Array) -> jax.Array:
    """Scales vectors along the last axis to length 1; shorter than 1e-12 are divided by 1e-12, so zero stays zero."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The root's gradient at 0 is infinite, so the guard must act before it.
    return x / jnp.sqrt(jnp.maximum(squared, _LENGTH_EPS**2))


def squared_distances(z_nd: jax.Array, codebook_kd: jax.Array) -> jax.Array:
    """Squared Euclidean distances (n, k) in float32 at the highest precision: lower precision flips codes."""
    products_nk = jnp.matmul(z_nd, codebook_kd.T, precision=jax.lax.Precision.HIGHEST)
    z_n1 = jnp.sum(jnp.square(z_nd), axis=-1, keepdims=True)
    codes_1k = jnp.sum(jnp.square(codebook_kd), axis=-1)[None]
    return z_n1 + codes_1k - 2.0 * products_nk


def nearest_codes(z_nd: jax.Array, codebook_kd: jax.Array, max_elements: int = _SEARCH_ELEMENTS) -> jax.Array:
    """Index (n,) int32 of the codebook row nearest to each vector; the lowest index wins ties. Carries no gradient.

    Works in float32 over blocks of vectors, so that no more than about `max_elements` distances exist at a time. The
    vector's own length is left out of them: equal for all codes, it would only push digits out of float32.
    """
    z_nd, codebook_kd = (jax.lax.stop_gradient(x).astype(jnp.float32) for x in (z_nd, codebook_kd))
    n, d = z_nd.shape
    block = max(1, min(n, max_elements // codebook_kd.shape[0]))

    halves_1k = 0.5 * jnp.sum(jnp.square(codebook_kd), axis=-1)[None]

    def search(block_nd):
        products_nk = jnp.matmul(block_nd, codebook_kd.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmin(halves_1k - products_nk, axis=-1).astype(jnp.int32)

    if block == n:
        return search(z_nd)
    blocks = math.ceil(n / block)
    padded = jnp.pad(z_nd, ((0, blocks * block - n), (0, 0))).reshape(blocks, block, d)
    return jax.lax.map(search, padded).reshape(-1)[:n]


def entropy_loss(z_nd: jax.Array, codebook_kd: jax.Array, temperature: float = 0.01) -> jax.Array:
    """Mean entropy of each latent's soft assignment minus the entropy of their average.

    The first term makes assignments confident, the second makes them use all codes.

    The assignment is softmax(-squared distance / temperature). Holds an (n, k) table: meant for training at moderate k.
    Source: MaskGIT and LlamaGen VQ training, whose 1e-5 inside both logarithms is kept.
    """
    logits_nk = -squared_distances(z_nd, codebook_kd) / temperature
    probabilities_nk = jax.nn.softmax(logits_nk, axis=-1)
    per_latent = -jnp.mean(jnp.sum(probabilities_nk * jax.nn.log_softmax(logits_nk + 1e-5, axis=-1), axis=-1))
    average_k = jnp.mean(probabilities_nk, axis=0)
    return per_latent + jnp.sum(average_k * jnp.log(average_k + 1e-5))


class VectorQuantizer(nnx.Module):
    """A learned codebook.

    With `l2_normalize`, latents and codes are put on the unit sphere at every use (the stored table is free), as in
    LlamaGen and ViT-VQGAN; without, plain Euclidean distance, as in taming and Chameleon.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        l2_normalize: bool,
        *,
        rngs: nnx.Rngs,
    ):
        self.l2_normalize = l2_normalize
        bound = 1.0 / codebook_size
        table_kd = jax.random.uniform(rngs.params(), (codebook_size, codebook_dim), jnp.float32, -bound, bound)
        self.embedding = nnx.Param(unit_length(table_kd) if l2_normalize else table_kd)

    def normalized(self, x: jax.Array) -> jax.Array:
        """Vectors (..., d) as they are compared: float32, of length 1 if this codebook is normalised."""
        x = x.astype(jnp.float32)
        return unit_length(x) if self.l2_normalize else x

    def vectors(self) -> jax.Array:
        """The code vectors (k, d) as they are compared and decoded."""
        return self.normalized(self.embedding[...])

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Vectors (..., d) of integer codes (...). A code outside the codebook is taken as the nearest valid one."""
        return self.vectors()[jnp.clip(codes, 0, self.embedding.shape[0] - 1)]

    def search(self, z_bhwd: jax.Array) -> jax.Array:
        """Nearest codes (b, h, w), int32, of latents (b, h, w, d)."""
        z_bhwd = self.normalized(z_bhwd)
        return nearest_codes(z_bhwd.reshape(-1, z_bhwd.shape[-1]), self.vectors()).reshape(z_bhwd.shape[:-1])

    def __call__(self, z_bhwd: jax.Array, *, entropy: bool = False) -> Quantized:
        """Replaces latents by their nearest codes; see `Quantized`. `entropy` adds that loss (an n x k table)."""
        codes_bhw = self.search(z_bhwd)
        z_bhwd, codebook_kd = self.normalized(z_bhwd), self.vectors()
        chosen_bhwd = codebook_kd[codes_bhw]
        fixed = jax.lax.stop_gradient
        losses = {
            "codebook": jnp.mean(jnp.square(chosen_bhwd - fixed(z_bhwd))),
            "commitment": jnp.mean(jnp.square(fixed(chosen_bhwd) - z_bhwd)),
        }
        if entropy:
            losses["entropy"] = entropy_loss(z_bhwd.reshape(-1, z_bhwd.shape[-1]), codebook_kd)
        return Quantized(z_bhwd + fixed(chosen_bhwd - z_bhwd), codes_bhw, losses)


def code_probabilities(z_nd: jax.Array, temperature: float) -> jax.Array:
    """Soft assignment (n, 2^d) of latents to the sign codes in {-1, 1}^d, column c being code c (bit i has weight 2^i).

    softmax(-squared distance / temperature) over the codes is a product over the channels: each bit is on with
    probability sigmoid(4 z / temperature).
    """
    logits_nd = 4.0 * z_nd.astype(jnp.float32) / temperature
    table = jnp.ones((z_nd.shape[0], 1), jnp.float32)
    for i in range(z_nd.shape[1]):
        off_n1, on_n1 = jax.nn.sigmoid(-logits_nd[:, i, None]), jax.nn.sigmoid(logits_nd[:, i, None])
        table = jnp.concatenate([table * off_n1, table * on_n1], axis=1)
    return table


def sign_entropies(z_nd: jax.Array, temperature: float = 0.01) -> tuple[jax.Array, jax.Array]:
    """(mean entropy of each latent's soft assignment to the sign codes, entropy of their average), float32 scalars.

    Exact without a table of n x 2^d: the first is a sum over channels; for the second, codes are split into two halves
    of their bits, and the average over latents is one product of two tables of n x 2^(d/2).
    Source: LFQ training of MAGVIT-v2 and Open-MAGVIT2, whose 1e-5 inside the second logarithm is kept.
    """
    z_nd = z_nd.astype(jnp.float32)
    logits_nd = 4.0 * z_nd / temperature
    on, off = jax.nn.sigmoid(logits_nd), jax.nn.sigmoid(-logits_nd)
    of_bits_nd = -on * jax.nn.log_sigmoid(logits_nd) - off * jax.nn.log_sigmoid(-logits_nd)
    half = z_nd.shape[1] // 2
    low_na, high_nc = (code_probabilities(part, temperature) for part in (z_nd[:, :half], z_nd[:, half:]))
    average_ca = jnp.matmul(high_nc.T, low_na, precision=jax.lax.Precision.HIGHEST) / z_nd.shape[0]
    return jnp.mean(jnp.sum(of_bits_nd, axis=-1)), -jnp.sum(average_ca * jnp.log(average_ca + 1e-5))


def split_codes(codes: jax.Array, widths: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Codes of sum(widths) bits -> sub-codes of `widths` bits each, lowest bits first: (9, 9)
    makes 262,144 codes 512 x 512.

    Open-MAGVIT2's generators predict such parts one after the other instead of one of 2^18 codes.
    """
    starts = [sum(widths[:i]) for i in range(len(widths))]
    return tuple((codes >> start) & (2**width - 1) for start, width in zip(starts, widths, strict=True))


def join_codes(parts: tuple[jax.Array, ...], widths: tuple[int, ...]) -> jax.Array:
    """Inverse of `split_codes`."""
    return functools.reduce(jnp.bitwise_or, (part << sum(widths[:i]) for i, part in enumerate(parts)))


class SignQuantizer(nnx.Module):
    """Lookup-free quantisation (LFQ): a latent's signs are its code.

    The 2^bits codes are the corners of a cube, not stored.

    A channel above 0 is bit 1 and decoded as 1, all others (0 too) bit 0 and -1; channel i has weight 2^i.
    Sources: Yu et al. 2023 (MAGVIT-v2); Open-MAGVIT2, whose comments say that the first bit is the highest: it is the
    lowest.
    """

    def __init__(self, bits: int):
        self.bits = bits

    def normalized(self, x: jax.Array) -> jax.Array:
        """Vectors (..., bits) as they are compared: float32."""
        return x.astype(jnp.float32)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Vectors (..., bits) of -1 and 1 of integer codes (...).

        A code outside the codebook becomes the nearest valid one.
        """
        codes = jnp.clip(codes, 0, 2**self.bits - 1)
        return jnp.stack([(codes >> i) & 1 for i in range(self.bits)], axis=-1).astype(jnp.float32) * 2.0 - 1.0

    def search(self, z_bhwd: jax.Array) -> jax.Array:
        """Codes (b, h, w), int32, of latents (b, h, w, bits)."""
        weights_d = jnp.left_shift(1, jnp.arange(self.bits, dtype=jnp.int32))
        return jnp.sum(jnp.where(z_bhwd > 0, weights_d.reshape(1, 1, 1, -1), 0), axis=-1, dtype=jnp.int32)

    def __call__(self, z_bhwd: jax.Array, *, entropy: bool = False) -> Quantized:
        """Replaces latents by their signs; see `Quantized`. The codebook's loss is 0, there being nothing to move.

        `entropy` adds the first of `sign_entropies` minus the second.
        """
        z_bhwd = self.normalized(z_bhwd)
        codes_bhw = self.search(z_bhwd)
        chosen_bhwd, fixed = self.lookup(codes_bhw), jax.lax.stop_gradient
        losses = {"codebook": jnp.zeros(()), "commitment": jnp.mean(jnp.square(chosen_bhwd - z_bhwd))}
        if entropy:
            per_latent, average = sign_entropies(z_bhwd.reshape(-1, self.bits))
            losses["entropy"] = per_latent - average
        return Quantized(z_bhwd + fixed(chosen_bhwd - z_bhwd), codes_bhw, losses)
