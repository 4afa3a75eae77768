"""Decoding with a causal (AR) network: one token after the other in raster order,
the whole loop one compiled program."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from maskgil_jax.config import CausalConfig, ConfigError, DecodeConfig, is_causal, require
from maskgil_jax.decoding.guidance import alternate, mix
from maskgil_jax.decoding.token_sampling import sample_tokens
from maskgil_jax.models.condition import batch_size
from maskgil_jax.models.generator import unstack_layers
from maskgil_jax.runtime.rng import fold_keys, image_keys, typed_key

# Folded into an image's key before its tokens' numbers, so that masked decoding with the same key draws independently.
_CAUSAL_DRAWS = 2**32 - 1


def decode_causal(
    generator,
    condition,
    key,
    cfg: CausalConfig,
    tokens_bn=None,
    grid: tuple[int, int] | None = None,
    end: int | None = None,
    kept_bl=None,
):
    """Samples the tokens of a batch of canvases in raster order, one network call a token.

    Keys and values of earlier positions are kept in a cache that the loop carries and updates in place. It holds
    `2 * rows * layers * positions * kv_heads * head_width * bytes of a number` bytes, where rows is the batch, or twice
    the batch with guidance, and positions are those of the condition and of all tokens but the last: 36 MiB an image
    for size B at 16x16 in float32 with guidance. Compiled once per configuration, grid, batch shape and number of given
    tokens. An image depends on its own key, condition and given tokens only.

    Args:
      generator: a pytree with `prefill(tokens_bn, condition, grid=)` and `step(token_b, cache, index, grid=)`, both
        returning (logits_bv, cache), `null_condition(condition)`, and `cfg.causal`, `cfg.grid`. The cache is a pytree
        whose leaves lead with the batch axis.
      condition: pytree of arrays with a leading batch axis (`models.condition`).
      key: one key, from which image i gets `fold_in(key, i)`, or an array of b keys, one per image.
      cfg: how to sample; static.
      tokens_bn: int (b, n), the first n tokens of every image in raster order, kept as they are: n is the same for the
        whole batch. Default: none given.
      grid: (rows, columns) of the canvas. Default: the generator's training grid.
      end: how many tokens there are in the end, given ones included. Default: rows * columns.
      kept_bl: int (b, end), tokens to keep instead of sampling, -1 where one is to be sampled: any number per image,
        anywhere after the first n. The network attends to a kept token from its position on, as to sampled ones.
        Default: none.

    Returns:
      int32 (b, end).

    Raises:
      ConfigError: the generator is not causal, or sizes of condition, key, tokens, grid and end disagree.
    """
    rows, columns = generator.cfg.grid if grid is None else grid
    grid = (int(rows), int(columns))
    require(min(grid) >= 1, f"grid: expected (rows, columns), both at least 1, got {grid}")
    check_causal(generator)
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(condition)}
    if len(sizes) != 1 or sizes in ({()}, {(0,)}):
        raise ConfigError(f"condition: expected arrays with one common batch size of at least 1, got leading sizes {sizes}")
    (b,) = sizes.pop()
    key_shape = jax.eval_shape(typed_key, key).shape
    require(key_shape in ((), (b,)), f"key: expected one key or one per image, {(b,)}, got keys of shape {key_shape}")
    count, n = math.prod(grid), 0
    if tokens_bn is not None:
        if tokens_bn.ndim != 2 or tokens_bn.shape[0] != b or not jnp.issubdtype(tokens_bn.dtype, jnp.integer):
            raise ConfigError(f"tokens_bn: expected whole numbers of shape ({b}, n), got {tokens_bn.dtype} {tokens_bn.shape}")
        n = tokens_bn.shape[1]
    end = count if end is None else end
    require(n <= end <= count, f"end: {n} tokens are given and the canvas has {count}, got {end}")
    if kept_bl is not None and (kept_bl.shape != (b, end) or not jnp.issubdtype(kept_bl.dtype, jnp.integer)):
        raise ConfigError(f"kept_bl: expected whole numbers of shape {(b, end)}, got {kept_bl.dtype} {kept_bl.shape}")
    return _decode_causal(generator, condition, key, tokens_bn, kept_bl, cfg, grid, end)


def check_causal(generator) -> None:
    """Raises a `ConfigError` for a network that was not trained on the next token."""
    if not is_causal(generator.cfg):
        raise ConfigError("generator: is not causal; decoding token by token needs a network trained with causal=true")


@functools.partial(jax.jit, static_argnames=("cfg", "grid", "end"))
def _decode_causal(generator, condition, key, tokens_bn, kept_bl, cfg: CausalConfig, grid, end: int):
    """Donates nothing: canvas and cache are allocated inside, and the arguments may be the caller's."""
    b = batch_size(condition)
    tokens_bn = jnp.zeros((b, 0), jnp.int32) if tokens_bn is None else tokens_bn.astype(jnp.int32)
    return causal_decode_loop(generator, condition, image_keys(key, b), tokens_bn, kept_bl, cfg, grid, end)


def causal_decode_loop(generator, condition, key_b, tokens_bn, kept_bl, cfg: CausalConfig, grid: tuple[int, int], end: int):
    """The loop, to be called under jit: the given tokens and those sampled or kept after them, int32 (b, end)."""
    b, n = tokens_bn.shape
    if end == n:
        return tokens_bn
    generator = unstack_layers(generator)
    sampling = DecodeConfig(temperature=cfg.temperature, top_k=cfg.top_k, top_p=cfg.top_p, draw=cfg.draw)
    key_b = fold_keys(key_b, _CAUSAL_DRAWS)
    guided, rows_bn = cfg.guidance != 1.0, tokens_bn
    if guided:  # the two rows of an image are neighbours, so a batch sharded over devices keeps its branches together
        condition = jax.tree.map(alternate, condition, generator.null_condition(condition))
        rows_bn = jnp.repeat(tokens_bn, 2, axis=0)

    def pick(i, logits_bv):
        logits_bv = logits_bv / cfg.temperature if cfg.temperature > 0 else logits_bv
        drawn_b = sample_tokens(fold_keys(key_b, i), logits_bv[:, None], sampling)[:, 0].astype(jnp.int32)
        return drawn_b if kept_bl is None else jnp.where(kept_bl[:, i] < 0, drawn_b, kept_bl[:, i].astype(jnp.int32))

    def step(i, carry, guided: bool):
        tokens_bl, logits_bv, cache = carry
        token_b = pick(i, logits_bv)
        logits_xv, cache = generator.step(jnp.repeat(token_b, 2) if guided else token_b, cache, i, grid=grid)
        return tokens_bl.at[:, i].set(token_b), _joined(logits_xv, cfg.guidance, guided), cache

    logits_xv, cache = generator.prefill(rows_bn, condition, grid=grid)
    tokens_bl = jnp.concatenate([tokens_bn, jnp.zeros((b, end - n), jnp.int32)], axis=1)
    carry, start = (tokens_bl, _joined(logits_xv, cfg.guidance, guided), cache), n
    if guided:
        start = end - 1 if cfg.cfg_interval is None else min(end - 1, n + cfg.cfg_interval + 1)
        carry = jax.lax.fori_loop(n, start, functools.partial(step, guided=True), carry)
    if start < end - 1:  # without guidance, or beyond its interval: one branch
        if guided:
            carry = (*carry[:2], jax.tree.map(lambda leaf: leaf[::2], carry[2]))
        carry = jax.lax.fori_loop(start, end - 1, functools.partial(step, guided=False), carry)
    tokens_bl, logits_bv, _ = carry
    return tokens_bl.at[:, end - 1].set(pick(end - 1, logits_bv))


def _joined(logits_xv, scale: float, guided: bool):
    """float32 logits (b, v) of alternating conditional and unconditional rows; without guidance the rows themselves."""
    logits_xv = logits_xv.astype(jnp.float32)
    return mix(logits_xv[::2], logits_xv[1::2], scale) if guided else logits_xv
