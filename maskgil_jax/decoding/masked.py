"""Iterative masked decoding (paper 4.2): the whole loop is one compiled program.

Each step predicts every masked token, draws a code for each, scores the draws, and reveals as many as the plan says;
a token that is given never changes, one that is revealed only where `remask` asks for it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from maskgil_jax.config import ConfigError, DecodeConfig, require
from maskgil_jax.decoding.guidance import guidance_scales, guided_logits, guided_runs, progress, ready
from maskgil_jax.decoding.orders import order_scores
from maskgil_jax.decoding.schedules import max_masked_per_step, remask_counts, remask_steps, reveal_counts
from maskgil_jax.decoding.token_sampling import draw, temperatures
from maskgil_jax.runtime.platform import map_batch, platform, prefer_sequential
from maskgil_jax.runtime.rng import fold_keys, image_keys, typed_key

# loop="auto" on a CPU: more steps take longer to compile one by one than they save, and so do fewer codes.
MAX_UNROLLED_STEPS, MIN_UNROLLED_CODES = 16, 4096


def decode(
    generator,
    condition,
    key,
    cfg: DecodeConfig,
    tokens_bl=None,
    grid: tuple[int, int] | None = None,
    on_step: Callable[[int, jax.Array], Any] | None = None,
):
    """Fills the masked tokens of a batch of canvases in `cfg.steps` network calls.

    Compiled once per configuration, grid and batch shape; new labels, keys or weights reuse the program. An image
    depends on its own key, condition and given tokens only, not on the batch, its place in it or the devices.

    Args:
      generator: a pytree with `generator(tokens_bl, condition, grid=(h, w)) -> logits_blv`, `null_condition(condition)`
        and `cfg.codebook_size`, `cfg.mask_id`, `cfg.grid`. If it also has `hidden(tokens_bl, condition, grid=) -> (b, l, d)`
        and `logits(hidden_bmd, at_bm) -> (b, m, v)`, an unrolled loop asks for logits only where tokens may be masked.
      condition: pytree of arrays with a leading batch axis (`models.condition`).
      key: one key, from which image i gets `fold_in(key, i)`, or an array of b keys, one per image.
      cfg: how to sample; static.
      tokens_bl: int (b, h * w) in raster order, `mask_id` where a token is to be made, any number of them per image; left
        as it is. Default: everything masked, made inside the program.
      grid: (rows, columns) of the canvas. Default: the generator's training grid.
      on_step: called as `on_step(step, tokens_bl)` after each step, 1 to `cfg.steps`, with the canvas so far, its to keep.
        The host then starts every step by itself, with one compiled program for all of them.

    Returns:
      int32 (b, h * w) without `mask_id`.

    Raises:
      ValueError: sizes of condition, key, tokens and grid do not belong together; `on_step` inside a jitted function.
    """
    grid = _check(generator, condition, key, tokens_bl, grid)
    steps = functools.partial(_decode, generator, condition, key, tokens_bl, cfg=cfg, grid=grid, trajectory=False)
    if on_step is None:
        return steps(None, None, None)[0]
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((generator, condition, key, tokens_bl)))
    require(not traced, "on_step: is called from the host, so decode must not stand inside a jitted function")
    canvas_bl = _own_canvas(generator, condition, tokens_bl, grid)
    layout = canvas_bl.sharding
    revealed_prob_bl = jnp.zeros(canvas_bl.shape, jnp.float32) if remembers(cfg) else None
    canvas_bl, revealed_prob_bl = jax.device_put((canvas_bl, revealed_prob_bl), layout)
    for i in range(cfg.steps):
        # Back in the layout of the first canvas, so that every step finds the program that is there already.
        canvas_bl, revealed_prob_bl = jax.device_put(steps(canvas_bl, revealed_prob_bl, _span(i, i + 1)), layout)
        on_step(i + 1, jnp.copy(canvas_bl))  # theirs to keep: the next step takes the memory of ours
    return canvas_bl


def decode_steps(generator, condition, key, cfg: DecodeConfig, tokens_bl=None, grid: tuple[int, int] | None = None):
    """As `decode`, but returns the canvas after every step: int32 (steps, b, h * w), `mask_id` where still masked."""
    grid = _check(generator, condition, key, tokens_bl, grid)
    return _decode(generator, condition, key, tokens_bl, None, None, None, cfg=cfg, grid=grid, trajectory=True)[0]


def remembers(cfg: DecodeConfig) -> bool:
    """Whether the loop must keep how sure each token was when it was revealed."""
    return cfg.remask is not None and cfg.remask_pick == "confidence"


def confidence(logits_blv, picks_bl, noise_bl=None, weight=0.0):
    """log p of the picked codes, plus `weight` times `noise_bl` (Gumbel) if given: float32 (b, l).

    The logits are those before top-k and top-p: after them the few codes left would all look certain.
    """
    picked_bl = jnp.take_along_axis(logits_blv, picks_bl[..., None], axis=-1)[..., 0]
    log_prob_bl = picked_bl - jax.nn.logsumexp(logits_blv, axis=-1)
    return log_prob_bl if noise_bl is None else log_prob_bl + weight * noise_bl


def topk_mask(allowed_bl, scores_bl, count_b):
    """The `count_b` best-scored of each image's allowed places (all of them if there are fewer): bool (b, l).

    Equal scores go to the earlier position, so exactly `count_b` are true.
    """
    # Broken weights give NaN; ranking it last keeps the promise that the last step leaves no mask.
    scores_bl = jnp.where(allowed_bl & ~jnp.isnan(scores_bl), scores_bl, -jnp.inf)
    last_b1 = jnp.clip(count_b - 1, 0, scores_bl.shape[1] - 1)[:, None]
    threshold_b1 = -jnp.take_along_axis(jnp.sort(-scores_bl, axis=-1), last_b1, axis=-1)
    above_bl = scores_bl > threshold_b1
    tied_bl = allowed_bl & (scores_bl == threshold_b1)
    room_b1 = count_b[:, None] - above_bl.sum(axis=-1, keepdims=True)
    return above_bl | (tied_bl & (jnp.cumsum(tied_bl, axis=-1) <= room_b1))


def reveal(tokens_bl, picks_bl, scores_bl, count_b, mask_id: int):
    """Puts the `count_b` best-scored picks of each image in place of masks (`topk_mask`); other tokens stay as they are."""
    return jnp.where(topk_mask(tokens_bl == mask_id, scores_bl, count_b), picks_bl, tokens_bl)


@functools.partial(jax.jit, static_argnames=("cfg", "grid", "trajectory"), donate_argnames=("canvas_bl", "revealed_prob_bl"))
def _decode(
    generator, condition, key, tokens_bl, canvas_bl, revealed_prob_bl, span, *, cfg: DecodeConfig, grid, trajectory: bool
):
    """Steps span[0] to span[1] (None: all) on `canvas_bl`, which began as `tokens_bl` (None: everything masked).

    None for the canvas too: it begins here, so it needs no memory but that of the result. One that is given is
    written over, and so is `revealed_prob_bl`; `tokens_bl`, which may be the caller's, is not. Returns what `decode_loop` does.
    """
    b, l, mask_id = _batch(condition), math.prod(grid), generator.cfg.mask_id
    pause = remask_steps(cfg.steps, cfg.remask_from, cfg.remask_to) if cfg.remask_loop else (0, 0)
    plan = (cfg.plan, cfg.schedule, cfg.steps)
    if tokens_bl is None:
        tokens_bl = jnp.full((b, l), mask_id, jnp.int32)
        counts_bt = jnp.tile(reveal_counts(*plan, l, pause=pause), (b, 1))
    else:
        tokens_bl = tokens_bl.astype(jnp.int32)
        counts_bt = reveal_counts(*plan, (tokens_bl == mask_id).sum(axis=-1), max_masked=l, pause=pause)
    generator, max_masked_t = ready(generator), max_masked_per_step(*plan, l, pause)

    def steps(condition, key_b, tokens_bl, counts_bt, canvas_bl, revealed_prob_bl):
        part = LoopSlice(tokens_bl if canvas_bl is None else canvas_bl, revealed_prob_bl, span, max_masked_t)
        made, revealed_prob_bl = decode_loop(generator, condition, key_b, tokens_bl, counts_bt, cfg, grid, trajectory, part)
        return made.swapaxes(0, 1) if trajectory else made, revealed_prob_bl  # the batch first

    batch = condition, image_keys(key, b), tokens_bl, counts_bt, canvas_bl, revealed_prob_bl
    apart = prefer_sequential(condition, l) if cfg.batch_mode == "auto" else cfg.batch_mode == "map"
    made, revealed_prob_bl = map_batch(steps, *batch) if apart else steps(*batch)
    return made.swapaxes(0, 1) if trajectory else made, revealed_prob_bl


class LoopSlice(NamedTuple):
    """A stretch of the loop: what it begins with, its first step and its end, and `schedules.max_masked_per_step` of the plan.

    It begins with a canvas and, if the configuration `remembers`, how sure its tokens were (None: nothing is made yet). A
    span is an array, so that every part is the same program; None stands for all steps, a loop of fixed length.
    """

    canvas_bl: jax.Array
    revealed_prob_bl: Any
    span: Any
    max_masked_t: np.ndarray


def decode_loop(
    generator,
    condition,
    key_b,
    tokens_bl,
    counts_bt,
    cfg: DecodeConfig,
    grid: tuple[int, int],
    trajectory: bool = False,
    part: LoopSlice | None = None,
):
    """The loop itself, under jit, of a generator that is `ready`: reveals `counts_bt[:, i]` tokens of each image at step i.

    With `cfg.remask` that is the number on balance: what is hidden again is revealed on top. Returns the last canvas, or
    with `trajectory` the canvas after every step (steps, b, l); and how sure its tokens were, or None unless the
    configuration `remembers`. `part`: only some of the steps; default all.
    """
    each_step, mask_id = unrolled(cfg, generator.cfg.codebook_size), generator.cfg.mask_id
    scales, heat = guidance_scales(cfg), temperatures(cfg)
    l, queue_bl = tokens_bl.shape[1], None
    if cfg.order not in ("confidence", "random"):
        queue_bl = order_scores(cfg.order, fold_keys(key_b, 3 * cfg.steps), grid)
    if cfg.remask is not None:
        made_here_bl = tokens_bl == mask_id
        window = remask_steps(cfg.steps, cfg.remask_from, cfg.remask_to)
        remask_counts_bt = remask_counts(cfg.remask, cfg.remask_eta, counts_bt, l, window)
        counts_bt = counts_bt + remask_counts_bt

    def step(i, carry, guided: bool, left: int = l):
        tokens_bl, canvases, revealed_prob_bl = carry
        scale = jnp.asarray(scales)[i] if guided else None
        at_bm = jnp.argsort(tokens_bl != mask_id, axis=-1, stable=True)[:, :left] if left < l else None
        logits_bmv = guided_logits(generator, tokens_bl, condition, scale, grid, at_bm)
        if cfg.temperature > 0:
            logits_bmv = logits_bmv / (cfg.temperature if cfg.temperature_end is None else jnp.asarray(heat)[i])
        picks_bm = draw(fold_keys(key_b, 2 * i), logits_bmv, cfg, l, at_bm)
        scores_bl = queue_bl
        if cfg.order == "confidence" or remembers(cfg):
            log_prob_bl = _spread(confidence(logits_bmv, picks_bm), at_bm, l)
        if cfg.order == "confidence":
            scores_bl = log_prob_bl
        scores_bl = _with_noise(fold_keys(key_b, 2 * i + 1), scores_bl, l, i, cfg)
        after_bl = reveal(tokens_bl, _spread(picks_bm, at_bm, l), scores_bl, counts_bt[:, i], mask_id)
        if cfg.remask is not None:
            chance_bl = remask_scores(fold_keys(key_b, 2 * cfg.steps + i), l, revealed_prob_bl)
            hidden_bl = topk_mask(made_here_bl & (tokens_bl != mask_id), chance_bl, remask_counts_bt[:, i])
            after_bl = jnp.where(hidden_bl, mask_id, after_bl)
        if revealed_prob_bl is not None:
            revealed_prob_bl = jnp.where(tokens_bl == mask_id, jnp.exp(log_prob_bl), revealed_prob_bl)
        return after_bl, (canvases.at[i].set(after_bl) if trajectory else None), revealed_prob_bl

    canvas_bl, revealed_prob_bl, span = (tokens_bl, None, None) if part is None else part[:3]
    if remembers(cfg) and revealed_prob_bl is None:
        revealed_prob_bl = jnp.zeros(tokens_bl.shape, jnp.float32)
    carry = (canvas_bl, jnp.zeros((cfg.steps, *tokens_bl.shape), jnp.int32) if trajectory else None, revealed_prob_bl)
    for start, stop, guided in guided_runs(scales):
        if not each_step:
            low, high = (start, stop) if span is None else jnp.clip(span, start, stop)
            carry = jax.lax.fori_loop(low, high, functools.partial(step, guided=guided), carry)
            continue
        for i in range(start, stop):
            left = max(1, int(part.max_masked_t[i])) if part is not None and hasattr(generator, "hidden") else l
            now = functools.partial(step, i, guided=guided, left=left)
            carry = now(carry) if span is None else jax.lax.cond((span[0] <= i) & (i < span[1]), now, lambda c: c, carry)
    return carry[1] if trajectory else carry[0], carry[2]


def remask_scores(key_b, length: int, revealed_prob_bl=None):
    """Float32 (b, l): those with the highest numbers are hidden again. Evenly drawn without `revealed_prob_bl`.

    With it, the probability that each token had when it was revealed, the first one hidden is token k with probability
    exp(-sure_k) / sum of exp(-sure), ReMDM's weights; the next one likewise among the others.
    """
    if revealed_prob_bl is None:
        return jax.vmap(lambda key: jax.random.uniform(key, (length,)))(key_b)
    return jax.vmap(lambda key: jax.random.gumbel(key, (length,)))(key_b) - revealed_prob_bl


def unrolled(cfg: DecodeConfig, codes: int) -> bool:
    """What `cfg.loop` comes to on this platform, for a codebook of so many codes."""
    if cfg.loop != "auto":
        return cfg.loop == "unrolled"
    return platform() == "cpu" and cfg.steps <= MAX_UNROLLED_STEPS and codes >= MIN_UNROLLED_CODES


def _spread(values_bm, at_bm, length: int):
    """(b, m) values at positions `at_bm` -> (b, length), 0 elsewhere; with None they are complete already."""
    if at_bm is None:
        return values_bm
    empty_bl = jnp.zeros((len(values_bm), length), values_bm.dtype)
    return jnp.put_along_axis(empty_bl, at_bm, values_bm, axis=-1, inplace=False)


def _with_noise(key_b, scores_bl, length: int, i, cfg: DecodeConfig):
    """Float32 (b, l), the higher, the sooner a token is revealed: what the order says, and what chance adds."""
    if cfg.order == "random":
        return jax.vmap(lambda key: jax.random.uniform(key, (length,)))(key_b)
    weights = (cfg.choice_temperature * (1 - progress(cfg.steps))).astype(np.float32)
    if cfg.order != "confidence" or not weights.any():
        return scores_bl
    return scores_bl + jnp.asarray(weights)[i] * jax.vmap(lambda key: jax.random.gumbel(key, (length,)))(key_b)


def _own_canvas(generator, condition, tokens_bl, grid):
    """The canvas before the first step, an array that no caller has: the given tokens, or masks laid out as the condition."""
    if tokens_bl is not None:
        return jnp.array(tokens_bl, jnp.int32)
    leaf = jax.tree.leaves(condition)[0]
    canvas_bl = jnp.full((leaf.shape[0], math.prod(grid)), generator.cfg.mask_id, jnp.int32)
    if not isinstance(getattr(leaf, "sharding", None), NamedSharding):
        return canvas_bl
    return jax.device_put(canvas_bl, NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[:1])))


def _span(first: int, end: int):
    """Bounds of the loop as an argument of the program: any part of it is the same program."""
    return jax.device_put(np.array([first, end], np.int32))


def _batch(condition) -> int:
    return jax.tree.leaves(condition)[0].shape[0]


def _check(generator, condition, key, tokens_bl, grid) -> tuple[int, int]:
    """Compares the sizes of all inputs before anything is traced; returns the grid as a tuple."""
    grid = tuple(int(side) for side in (generator.cfg.grid if grid is None else grid))
    require(len(grid) == 2 and min(grid) >= 1, f"grid: expected (rows, columns), both at least 1, got {grid}")
    causal = getattr(generator.cfg, "causal", False)
    require(not causal, "generator: is causal, trained to write one token after the other: see decoding.causal")
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
