"""Samples token ids from logits (top-k, top-p, Gumbel-max or inverse CDF), with one key per image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import DecodeConfig
from maskgil_jax.decoding.guidance import progress

_BLOCK = 128  # codes per block of the two-level inverse CDF
_ONE_BITS = 0x3F800000  # float32 1.0 as an integer


def temperatures(cfg: DecodeConfig) -> np.ndarray:
    """The temperature of each step, float32 (steps,): linear from `temperature` to `temperature_end` if that is
    given."""
    end = cfg.temperature if cfg.temperature_end is None else cfg.temperature_end
    return (cfg.temperature + (end - cfg.temperature) * progress(cfg.steps)).astype(np.float32)


def sample_tokens(key_b, logits_bmv, cfg: DecodeConfig, length: int | None = None, at_bm=None):
    """Codes int32 (b, m) from softmax(logits) after top-k and top-p, or the most likely ones if `cfg.temperature` is 0.

    With `at_bm` the logits are those of these positions out of `length`. Each position has its own random numbers, so
    its sample does not depend on which other positions are asked for.
    """
    if cfg.temperature == 0:
        return jnp.argmax(logits_bmv, axis=-1)
    logits_bmv = filter_logits(logits_bmv, cfg.top_k, cfg.top_p)
    # Not chosen by platform: a key gives the same image everywhere.
    sample_fn = gumbel_max if cfg.draw == "gumbel" else inverse_cdf
    return sample_fn(key_b, logits_bmv, length, at_bm)


def gumbel_max(key_b, logits_bmv, length: int | None = None, at_bm=None):
    """One sample per position by Gumbel-max: a random number for every code."""
    _, m, v = logits_bmv.shape
    noise_blv = jax.vmap(lambda key: jax.random.gumbel(key, (length or m, v)))(key_b)
    noise_bmv = noise_blv if at_bm is None else jnp.take_along_axis(noise_blv, at_bm[..., None], axis=1)
    return jnp.argmax(logits_bmv + noise_bmv, axis=-1)


def inverse_cdf(key_b, logits_bmv, length: int | None = None, at_bm=None):
    """One sample per position by inverse CDF: one random number picks a block of codes, another a code inside it.

    Sums of blocks take one pass over the codes; a cumulative sum over all of them takes many, and rounds more.
    """
    b, m, v = logits_bmv.shape
    blocks = -(-v // _BLOCK)
    padded_bmv = jnp.pad(logits_bmv, ((0, 0), (0, 0), (0, blocks * _BLOCK - v)), constant_values=-jnp.inf)
    weights_bmv = jnp.exp(padded_bmv - jnp.max(logits_bmv, axis=-1, keepdims=True))
    weights_bmnk = weights_bmv.reshape(b, m, blocks, _BLOCK)
    uniform_b2m = jax.vmap(lambda key: jax.random.uniform(key, (2, length or m)))(key_b)
    if at_bm is not None:
        uniform_b2m = jnp.take_along_axis(uniform_b2m, at_bm[:, None], axis=2)
    block_bm = _first_above(weights_bmnk.sum(axis=-1), uniform_b2m[:, 0])
    chosen_bmk = jnp.take_along_axis(weights_bmnk, block_bm[..., None, None], axis=2)[:, :, 0]
    return block_bm * _BLOCK + _first_above(chosen_bmk, uniform_b2m[:, 1])


def _first_above(weights_bln, uniform_bl):
    """Index of the first running sum above `uniform` times the total; never an index of weight 0."""
    # Parallel running sums may fall by a rounding error, so zero weights are taken out and the total is the largest
    # sum.
    sums_bln = jnp.where(weights_bln > 0, jnp.cumsum(weights_bln, axis=-1), 0)
    return jnp.argmax(sums_bln > uniform_bl[..., None] * jnp.max(sums_bln, axis=-1, keepdims=True), axis=-1)


def filter_logits(logits_blv, top_k: int | None = None, top_p: float | None = None):
    """Sets to -inf all but the `top_k` likeliest codes, then all but the smallest set holding `top_p` of what is left.

    Codes as likely as the last one kept are kept too. Nothing is sorted: the threshold is found by bisection.
    """
    if top_k is not None and top_k < logits_blv.shape[-1]:
        logits_blv = _threshold_filter(logits_blv, lambda probs, kept: jnp.sum(kept, axis=-1) >= top_k)
    if top_p is not None and top_p < 1:
        logits_blv = _threshold_filter(logits_blv, lambda probs, kept: jnp.sum(probs, axis=-1, where=kept) >= top_p)
    return logits_blv


def _threshold_filter(logits_blv, enough):
    """Keeps probabilities at or above the largest threshold that still keeps `enough(probs, kept)`."""
    probs_blv = jax.nn.softmax(logits_blv)
    # Non-negative floats are ordered as their bits are, so 30 halvings of the integer range find the exact value.
    bits_blv = jax.lax.bitcast_convert_type(probs_blv, jnp.int32)

    def halve(_, bounds):
        low_bl, high_bl = bounds
        middle_bl = low_bl + (high_bl - low_bl + 1) // 2
        ok_bl = enough(probs_blv, bits_blv >= middle_bl[..., None])
        return jnp.where(ok_bl, middle_bl, low_bl), jnp.where(ok_bl, high_bl, middle_bl - 1)

    low_bl = jnp.zeros_like(bits_blv[..., 0])
    threshold_bl, _ = jax.lax.fori_loop(0, _ONE_BITS.bit_length(), halve, (low_bl, low_bl + _ONE_BITS))
    return jnp.where(bits_blv >= threshold_bl[..., None], logits_blv, -jnp.inf)
