"""Iterative masked decoding (paper 4.2): the whole loop is one compiled program.

Each step predicts every masked token, draws a code for each, scores the draws, and reveals as many as the plan says;
a token that is given or revealed never changes again.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import ConfigError, DecodeConfig, require
from maskgil_jax.decoding.guidance import guidance_scales, guided_logits, guided_runs, progress
from maskgil_jax.decoding.sampling import draw, image_keys, typed_key
from maskgil_jax.schedules import reveal_counts


def decode(generator, condition, key, cfg: DecodeConfig, tokens_bl=None, grid: tuple[int, int] | None = None):
    """Fills the masked tokens of a batch of canvases in `cfg.steps` network calls.

    Compiled once per configuration, grid and batch shape; new labels, keys or weights reuse the program. An image
    depends on its own key, condition and given tokens only, not on the batch, its place in it or the devices.

    Args:
      generator: a pytree with `generator(tokens_bl, condition, grid=(h, w)) -> logits_blv`, `null_condition(condition)`
        and `cfg.codebook_size`, `cfg.mask_id`, `cfg.grid`.
      condition: pytree of arrays with a leading batch axis (`models.condition`).
      key: one key, from which image i gets `fold_in(key, i)`, or an array of b keys, one per image.
      cfg: how to sample; static.
      tokens_bl: int (b, h * w) in raster order, `mask_id` where a token is to be made, any number of them per image.
        Default: everything masked.
      grid: (rows, columns) of the canvas. Default: the generator's training grid.

    Returns:
      int32 (b, h * w) without `mask_id`.

    Raises:
      ValueError: sizes of condition, key, tokens and grid do not belong together.
    """
    grid = _check(generator, condition, key, tokens_bl, grid)
    return _decode(generator, condition, key, tokens_bl, cfg, grid, trajectory=False)


def decode_steps(generator, condition, key, cfg: DecodeConfig, tokens_bl=None, grid: tuple[int, int] | None = None):
    """As `decode`, but returns the canvas after every step: int32 (steps, b, h * w), `mask_id` where still masked."""
    grid = _check(generator, condition, key, tokens_bl, grid)
    return _decode(generator, condition, key, tokens_bl, cfg, grid, trajectory=True)


def confidence(logits_blv, picks_bl, noise_bl=None, weight=0.0):
    """log p of the picked codes, plus `weight` times `noise_bl` (Gumbel) if given: float32 (b, l).

    The logits are those before top-k and top-p: after them the few codes left would all look certain.
    """
    picked_bl = jnp.take_along_axis(logits_blv, picks_bl[..., None], axis=-1)[..., 0]
    log_prob_bl = picked_bl - jax.nn.logsumexp(logits_blv, axis=-1)
    return log_prob_bl if noise_bl is None else log_prob_bl + weight * noise_bl


def reveal(tokens_bl, picks_bl, scores_bl, count_b, mask_id: int):
    """Puts the `count_b` best-scored picks of each image in place of masks (all masks if there are fewer).

    Equal scores go to the earlier position, so exactly `count_b` tokens change; others stay as they are.
    """
    masked_bl = tokens_bl == mask_id
    # Broken weights give NaN; ranking it last keeps the promise that the last step leaves no mask.
    scores_bl = jnp.where(masked_bl & ~jnp.isnan(scores_bl), scores_bl, -jnp.inf)
    last_b1 = jnp.clip(count_b - 1, 0, tokens_bl.shape[1] - 1)[:, None]
    threshold_b1 = -jnp.take_along_axis(jnp.sort(-scores_bl, axis=-1), last_b1, axis=-1)
    above_bl = scores_bl > threshold_b1
    tied_bl = masked_bl & (scores_bl == threshold_b1)
    room_b1 = count_b[:, None] - above_bl.sum(axis=-1, keepdims=True)
    chosen_bl = above_bl | (tied_bl & (jnp.cumsum(tied_bl, axis=-1) <= room_b1))
    return jnp.where(chosen_bl, picks_bl, tokens_bl)


@functools.partial(jax.jit, static_argnames=("cfg", "grid", "trajectory"))
def _decode(generator, condition, key, tokens_bl, cfg: DecodeConfig, grid, trajectory: bool):
    b, l, mask_id = _batch(condition), math.prod(grid), generator.cfg.mask_id
    if tokens_bl is None:
        tokens_bl = jnp.full((b, l), mask_id, jnp.int32)
        counts_bt = jnp.tile(reveal_counts(cfg.plan, cfg.schedule, cfg.steps, l), (b, 1))
    else:
        tokens_bl = tokens_bl.astype(jnp.int32)
        counts_bt = reveal_counts(cfg.plan, cfg.schedule, cfg.steps, (tokens_bl == mask_id).sum(axis=-1), max_masked=l)
    return fill(generator, condition, image_keys(key, b), tokens_bl, counts_bt, cfg, grid, trajectory)


def fill(generator, condition, key_b, tokens_bl, counts_bt, cfg: DecodeConfig, grid: tuple[int, int], trajectory: bool = False):
    """The loop itself, to be called under jit: reveals `counts_bt[:, i]` tokens (b, steps) of each image at step i.

    Returns the last canvas, or with `trajectory` the canvas after every step (steps, b, l).
    """
    mask_id, scales = generator.cfg.mask_id, guidance_scales(cfg)
    folded = jax.vmap(jax.random.fold_in, (0, None))

    def step(i, carry, guided: bool):
        tokens_bl, canvases = carry
        scale = jnp.asarray(scales)[i] if guided else None
        logits_blv = guided_logits(generator, tokens_bl, condition, scale, grid)
        if cfg.temperature > 0:
            logits_blv = logits_blv / cfg.temperature
        picks_bl = draw(folded(key_b, 2 * i), logits_blv, cfg)
        scores_bl = _scores(folded(key_b, 2 * i + 1), logits_blv, picks_bl, i, cfg)
        tokens_bl = reveal(tokens_bl, picks_bl, scores_bl, counts_bt[:, i], mask_id)
        return tokens_bl, (canvases.at[i].set(tokens_bl) if trajectory else None)

    carry = (tokens_bl, jnp.zeros((cfg.steps, *tokens_bl.shape), jnp.int32) if trajectory else None)
    for first, end, guided in guided_runs(scales):
        carry = jax.lax.fori_loop(first, end, functools.partial(step, guided=guided), carry)
    return carry[1] if trajectory else carry[0]


def _scores(key_b, logits_blv, picks_bl, i, cfg: DecodeConfig):
    """Float32 (b, l): the higher, the sooner a token is revealed."""
    b, l = picks_bl.shape
    if cfg.order == "raster":
        return jnp.tile(-jnp.arange(l, dtype=jnp.float32), (b, 1))
    if cfg.order == "random":
        return jax.vmap(lambda key: jax.random.uniform(key, (l,)))(key_b)
    weights = (cfg.choice_temperature * (1 - progress(cfg.steps))).astype(np.float32)
    if not weights.any():
        return confidence(logits_blv, picks_bl)
    noise_bl = jax.vmap(lambda key: jax.random.gumbel(key, (l,)))(key_b)
    return confidence(logits_blv, picks_bl, noise_bl, jnp.asarray(weights)[i])


def _batch(condition) -> int:
    return jax.tree.leaves(condition)[0].shape[0]


def _check(generator, condition, key, tokens_bl, grid) -> tuple[int, int]:
    """Compares the sizes of all inputs before anything is traced; returns the grid as a tuple."""
    grid = tuple(int(side) for side in (generator.cfg.grid if grid is None else grid))
    require(len(grid) == 2 and min(grid) >= 1, f"grid: expected (rows, columns), both at least 1, got {grid}")
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(condition)}
    if len(sizes) != 1 or sizes in ({()}, {(0,)}):
        raise ConfigError(f"condition: expected arrays with one common batch size of at least 1, got leading sizes {sizes}")
    b = _batch(condition)
    key_shape = jax.eval_shape(typed_key, key).shape
    require(key_shape in ((), (b,)), f"key: expected one key or one per image, {(b,)}, got keys of shape {key_shape}")
    if tokens_bl is not None:
        l = math.prod(grid)
        if tokens_bl.shape != (b, l):
            raise ConfigError(
                f"tokens_bl: a batch of {b} on a {grid[0]}x{grid[1]} grid needs tokens of shape {(b, l)}, got {tokens_bl.shape}"
            )
        require(jnp.issubdtype(tokens_bl.dtype, jnp.integer), f"tokens_bl: expected whole numbers, got {tokens_bl.dtype}")
    return grid
