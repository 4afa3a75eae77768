"""Iterative masked decoding (paper 4.2): the whole loop is one compiled program.

Each step predicts every masked token, samples a code for each, scores the samples, and reveals as many as the plan
says. Given tokens never change; revealed ones change only where `remask` masks them again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from maskgil_jax.config import ConfigError, DecodeConfig, is_causal, require
from maskgil_jax.decoding.guidance import guidance_scales, guided_logits, guided_runs, progress
from maskgil_jax.decoding.orders import ORDERS, Order, order_scores
from maskgil_jax.decoding.schedules import max_masked_per_step, remask_counts, remask_steps, reveal_counts
from maskgil_jax.decoding.token_sampling import sample_tokens, temperatures
from maskgil_jax.models.condition import batch_size, check_sizes, sizes_of, valid_tokens
from maskgil_jax.models.generator import as_generator, unstack_layers
from maskgil_jax.runtime.platform import map_batch, platform, prefer_sequential
from maskgil_jax.runtime.rng import fold_keys, image_keys, typed_key

# loop="auto" on a CPU: more steps take longer to compile one by one than they save, and so do smaller codebooks.
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

    Compiled once per configuration, grid and batch shape; new conditions, keys or weights reuse the program. An image
    depends on its own key, condition and given tokens, not on the rest of the batch, its index in it or the devices.

    Args:
      generator: a `models.generator.Generator`; one that has only `cfg`, `__call__` and `null_condition` works too, but
        then an unrolled loop computes logits at all positions.
      condition: pytree of arrays with a leading batch axis (`models.condition`).
      key: one key, from which image i gets `fold_in(key, i)`, or an array of b keys, one per image.
      cfg: how to sample; static.
      tokens_bl: int (b, h * w) in raster order, `mask_id` where a token is to be sampled, any number of them per image;
        not donated. Default: everything masked, allocated inside the program.
      grid: (rows, columns) of the canvas. Default: the generator's training grid.
      on_step: called as `on_step(step, tokens_bl)` after each step, 1 to `cfg.steps`, with a copy of the current
        tokens. The host then starts every step, with one compiled program for all of them.

    Returns:
      int32 (b, h * w) without `mask_id`.

    Raises:
      ValueError: sizes of condition, key, tokens and grid disagree; `on_step` inside a jitted function.
    """
    grid = _check(generator, condition, key, tokens_bl, grid)
    steps = functools.partial(_decode, generator, condition, key, tokens_bl, cfg=cfg, grid=grid, trajectory=False)
    if on_step is None:
        return steps(None, None, None)[0]
    for step, canvas_bl in decode_stream(generator, condition, key, cfg, tokens_bl, grid):
        on_step(step, canvas_bl)
    return canvas_bl


def decode_stream(
    generator, condition, key, cfg: DecodeConfig, tokens_bl=None, grid: tuple[int, int] | None = None
) -> Iterator[tuple[int, jax.Array]]:
    """As `decode`, but yields (step, copy of the canvas) after each step, `cfg.skip_steps` + 1 to `cfg.steps`.

    The host starts every step, with one compiled program for all of them.
    """
    grid = _check(generator, condition, key, tokens_bl, grid)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((generator, condition, key, tokens_bl)))
    require(not traced, "on_step: is called from the host, so decode cannot be called inside a jitted function with it")
    steps = functools.partial(_decode, generator, condition, key, tokens_bl, cfg=cfg, grid=grid, trajectory=False)
    canvas_bl = _own_canvas(generator, condition, tokens_bl, grid)
    layout = canvas_bl.sharding
    revealed_prob_bl = jnp.zeros(canvas_bl.shape, jnp.float32) if keeps_probabilities(cfg) else None
    canvas_bl, revealed_prob_bl = jax.device_put((canvas_bl, revealed_prob_bl), layout)
    for i in range(cfg.skip_steps, cfg.steps):
        # The sharding of the first canvas again, so that every step reuses the compiled program.
        canvas_bl, revealed_prob_bl = jax.device_put(steps(canvas_bl, revealed_prob_bl, _step_range(i, i + 1)), layout)
        yield i + 1, jnp.copy(canvas_bl)  # a copy: the next step is given the memory of this canvas


def decode_steps(generator, condition, key, cfg: DecodeConfig, tokens_bl=None, grid: tuple[int, int] | None = None):
    """As `decode`, but returns the canvas after every step: int32 (steps, b, h * w), `mask_id` where still masked.

    Steps that are skipped are left out.
    """
    grid = _check(generator, condition, key, tokens_bl, grid)
    made = _decode(generator, condition, key, tokens_bl, None, None, None, cfg=cfg, grid=grid, trajectory=True)[0]
    return made[cfg.skip_steps :]


def keeps_probabilities(cfg: DecodeConfig) -> bool:
    """Whether the loop carries the probability that each token had when it was revealed."""
    return cfg.remask is not None and cfg.remask_pick == "confidence"


def confidence(logits_blv, picks_bl, noise_bl=None, weight=0.0):
    """log p of the sampled codes, plus `weight` times `noise_bl` (Gumbel) if given: float32 (b, l).

    The logits are those before top-k and top-p; the renormalised probabilities of the few codes left would all be near
    1.
    """
    picked_bl = jnp.take_along_axis(logits_blv, picks_bl[..., None], axis=-1)[..., 0]
    log_prob_bl = picked_bl - jax.nn.logsumexp(logits_blv, axis=-1)
    return log_prob_bl if noise_bl is None else log_prob_bl + weight * noise_bl


def topk_mask(allowed_bl, scores_bl, count_b):
    """True at the `count_b` highest scores among the allowed positions of each image (at all if there are fewer):
    bool (b, l).

    Of equal scores the earlier position comes first, so exactly `count_b` are true.
    """
    # NaN scores (of damaged weights) rank last, so that the last step still leaves no mask.
    scores_bl = jnp.where(allowed_bl & ~jnp.isnan(scores_bl), scores_bl, -jnp.inf)
    last_b1 = jnp.clip(count_b - 1, 0, scores_bl.shape[1] - 1)[:, None]
    threshold_b1 = -jnp.take_along_axis(jnp.sort(-scores_bl, axis=-1), last_b1, axis=-1)
    above_bl = scores_bl > threshold_b1
    tied_bl = allowed_bl & (scores_bl == threshold_b1)
    room_b1 = count_b[:, None] - above_bl.sum(axis=-1, keepdims=True)
    return above_bl | (tied_bl & (jnp.cumsum(tied_bl, axis=-1) <= room_b1))


def reveal(tokens_bl, picks_bl, scores_bl, count_b, mask_id: int):
    """Replaces the `count_b` masks of highest score in each image by their samples (`topk_mask`)."""
    return jnp.where(topk_mask(tokens_bl == mask_id, scores_bl, count_b), picks_bl, tokens_bl)


@functools.partial(jax.jit, static_argnames=("cfg", "grid", "trajectory"), donate_argnames=("canvas_bl", "revealed_prob_bl"))
def _decode(
    generator, condition, key, tokens_bl, canvas_bl, revealed_prob_bl, step_range, *, cfg: DecodeConfig, grid, trajectory: bool
):
    """Runs steps step_range[0] to step_range[1] (None: all) on `canvas_bl`,
    whose first state was `tokens_bl` (None: masked).

    With canvas_bl=None the canvas is made here, which needs no memory beside the result's. A given canvas and
    `revealed_prob_bl` are donated; `tokens_bl`, which may be the caller's, is not. Returns what `decode_loop` does.
    """
    b, l, mask_id = batch_size(condition), math.prod(grid), generator.cfg.mask_id
    hold_steps = remask_steps(cfg.steps, cfg.remask_from, cfg.remask_to) if cfg.remask_loop else (0, 0)
    plan = (cfg.plan, cfg.schedule, cfg.steps)
    valid_bl = valid_tokens(condition, l)
    if valid_bl is not None:  # padding is a given token, so that plans count the tokens of each image
        tokens_bl = jnp.where(valid_bl, mask_id if tokens_bl is None else tokens_bl, 0)
    if tokens_bl is None:
        tokens_bl = jnp.full((b, l), mask_id, jnp.int32)
        counts_bt = jnp.tile(reveal_counts(*plan, l, hold_steps=hold_steps, skip_steps=cfg.skip_steps), (b, 1))
    else:
        tokens_bl = tokens_bl.astype(jnp.int32)
        masked_b = (tokens_bl == mask_id).sum(axis=-1)
        counts_bt = reveal_counts(*plan, masked_b, l, hold_steps, cfg.skip_steps, canvas=l)
    generator = unstack_layers(as_generator(generator))
    max_masked_t = max_masked_per_step(*plan, l, hold_steps, cfg.skip_steps)

    def steps(condition, key_b, tokens_bl, counts_bt, canvas_bl, revealed_prob_bl):
        part = LoopSlice(tokens_bl if canvas_bl is None else canvas_bl, revealed_prob_bl, step_range, max_masked_t)
        made, revealed_prob_bl = decode_loop(generator, condition, key_b, tokens_bl, counts_bt, cfg, grid, trajectory, part)
        return made.swapaxes(0, 1) if trajectory else made, revealed_prob_bl  # batch axis first

    batch = condition, image_keys(key, b), tokens_bl, counts_bt, canvas_bl, revealed_prob_bl
    sequential = prefer_sequential(condition, l) if cfg.batch_mode == "auto" else cfg.batch_mode == "map"
    made, revealed_prob_bl = map_batch(steps, *batch) if sequential else steps(*batch)
    return made.swapaxes(0, 1) if trajectory else made, revealed_prob_bl


class LoopSlice(NamedTuple):
    """Some of the steps of the loop: the canvas they start from, their range, and `max_masked_per_step` of the plan.

    revealed_prob_bl: see `keeps_probabilities`; None before the first step. step_range: int32 (first, end), an array so
    that all ranges share one program; None for all steps, a loop of static length.
    """

    canvas_bl: jax.Array
    revealed_prob_bl: Any
    step_range: Any
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
    """Runs the steps, under jit: reveals `counts_bt[:, i]` tokens of each image at step i.

    With `cfg.remask` that is the net number: as many more are revealed as are masked again. Returns the last canvas, or
    with `trajectory` the canvas after every step (steps, b, l); and the probabilities of the revealed tokens, None
    unless `keeps_probabilities(cfg)`. `part`: only some of the steps; default all.
    """
    each_step, mask_id = unrolled(cfg, generator.cfg.codebook_size), generator.cfg.mask_id
    scale_t, temperature_t, order = guidance_scales(cfg), temperatures(cfg), ORDERS[cfg.order]
    l = tokens_bl.shape[1]
    fixed_scores_bl = order_scores(order, fold_keys(key_b, 3 * cfg.steps), grid, sizes_of(condition))
    if cfg.remask is not None:
        sampled_bl = tokens_bl == mask_id
        window = remask_steps(cfg.steps, cfg.remask_from, cfg.remask_to)
        remask_counts_bt = remask_counts(cfg.remask, cfg.remask_eta, counts_bt, l, window)
        counts_bt = counts_bt + remask_counts_bt

    def step(i, carry, guided: bool, left: int = l):
        tokens_bl, canvases, revealed_prob_bl = carry
        scale = jnp.asarray(scale_t)[i] if guided else None
        at_bm = jnp.argsort(tokens_bl != mask_id, axis=-1, stable=True)[:, :left] if left < l else None
        logits_bmv = guided_logits(generator, tokens_bl, condition, scale, grid, at_bm)
        if cfg.temperature > 0:
            logits_bmv = logits_bmv / (cfg.temperature if cfg.temperature_end is None else jnp.asarray(temperature_t)[i])
        picks_bm = sample_tokens(fold_keys(key_b, 2 * i), logits_bmv, cfg, l, at_bm)
        scores_bl = fixed_scores_bl
        if order.by == "confidence" or keeps_probabilities(cfg):
            log_prob_bl = _scatter(confidence(logits_bmv, picks_bm), at_bm, l)
        if order.by == "confidence":
            scores_bl = log_prob_bl
        scores_bl = _with_noise(fold_keys(key_b, 2 * i + 1), scores_bl, l, i, cfg, order)
        after_bl = reveal(tokens_bl, _scatter(picks_bm, at_bm, l), scores_bl, counts_bt[:, i], mask_id)
        if cfg.remask is not None:
            remask_score_bl = remask_scores(fold_keys(key_b, 2 * cfg.steps + i), l, revealed_prob_bl)
            hidden_bl = topk_mask(sampled_bl & (tokens_bl != mask_id), remask_score_bl, remask_counts_bt[:, i])
            after_bl = jnp.where(hidden_bl, mask_id, after_bl)
        if revealed_prob_bl is not None:
            revealed_prob_bl = jnp.where(tokens_bl == mask_id, jnp.exp(log_prob_bl), revealed_prob_bl)
        return after_bl, (canvases.at[i].set(after_bl) if trajectory else None), revealed_prob_bl

    canvas_bl, revealed_prob_bl, step_range = (tokens_bl, None, None) if part is None else part[:3]
    if keeps_probabilities(cfg) and revealed_prob_bl is None:
        revealed_prob_bl = jnp.zeros(tokens_bl.shape, jnp.float32)
    carry = (canvas_bl, jnp.zeros((cfg.steps, *tokens_bl.shape), jnp.int32) if trajectory else None, revealed_prob_bl)
    runs = ((max(start, cfg.skip_steps), stop, guided) for start, stop, guided in guided_runs(scale_t))
    for start, stop, guided in runs:
        if start >= stop:
            continue
        if not each_step:
            low, high = (start, stop) if step_range is None else jnp.clip(step_range, start, stop)
            carry = jax.lax.fori_loop(low, high, functools.partial(step, guided=guided), carry)
            continue
        for i in range(start, stop):
            left = max(1, int(part.max_masked_t[i])) if part is not None else l
            now = functools.partial(step, i, guided=guided, left=left)
            if step_range is None:
                carry = now(carry)
            else:
                carry = jax.lax.cond((step_range[0] <= i) & (i < step_range[1]), now, lambda c: c, carry)
    return carry[1] if trajectory else carry[0], carry[2]


def remask_scores(key_b, length: int, revealed_prob_bl=None):
    """Scores float32 (b, l); tokens of the highest scores are masked again. Uniform without `revealed_prob_bl`.

    With it, the probability p that each token had when it was revealed, the first token to be masked is k with
    probability exp(-p_k) / sum of exp(-p), ReMDM's weights; the next one likewise among the others (Gumbel top-k).
    """
    if revealed_prob_bl is None:
        return jax.vmap(lambda key: jax.random.uniform(key, (length,)))(key_b)
    return jax.vmap(lambda key: jax.random.gumbel(key, (length,)))(key_b) - revealed_prob_bl


def unrolled(cfg: DecodeConfig, codes: int) -> bool:
    """Whether the loop is unrolled on this platform, for a codebook of `codes` codes."""
    if cfg.loop != "auto":
        return cfg.loop == "unrolled"
    return platform() == "cpu" and cfg.steps <= MAX_UNROLLED_STEPS and codes >= MIN_UNROLLED_CODES


def _scatter(values_bm, at_bm, length: int):
    """(b, m) values at positions `at_bm` -> (b, length), 0 elsewhere. None: they are of all positions."""
    if at_bm is None:
        return values_bm
    empty_bl = jnp.zeros((len(values_bm), length), values_bm.dtype)
    return jnp.put_along_axis(empty_bl, at_bm, values_bm, axis=-1, inplace=False)


def _with_noise(key_b, scores_bl, length: int, i, cfg: DecodeConfig, order: Order):
    """Float32 (b, l), the higher, the sooner a token is revealed: the scores of the order and their noise."""
    if order.by == "random":
        return jax.vmap(lambda key: jax.random.uniform(key, (length,)))(key_b)
    weights = (cfg.choice_temperature * (1 - progress(cfg.steps))).astype(np.float32)
    if order.by != "confidence" or not weights.any():
        return scores_bl
    return scores_bl + jnp.asarray(weights)[i] * jax.vmap(lambda key: jax.random.gumbel(key, (length,)))(key_b)


def _own_canvas(generator, condition, tokens_bl, grid):
    """The canvas before the first step, to be donated: a copy of the given tokens, or masks sharded like the condition.

    Padding holds code 0.
    """
    leaf, valid_bl = jax.tree.leaves(condition)[0], valid_tokens(condition, math.prod(grid))
    if tokens_bl is not None:
        return jnp.array(tokens_bl if valid_bl is None else jnp.where(valid_bl, tokens_bl, 0), jnp.int32)
    canvas_bl = jnp.full((leaf.shape[0], math.prod(grid)), generator.cfg.mask_id, jnp.int32)
    canvas_bl = canvas_bl if valid_bl is None else jnp.where(valid_bl, canvas_bl, 0)
    if not isinstance(getattr(leaf, "sharding", None), NamedSharding):
        return canvas_bl
    return jax.device_put(canvas_bl, NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[:1])))


def _step_range(first: int, end: int):
    """Bounds of the loop as an array argument, so that all ranges share one program."""
    return jax.device_put(np.array([first, end], np.int32))


def _check(generator, condition, key, tokens_bl, grid) -> tuple[int, int]:
    """Compares the sizes of all inputs before anything is traced; returns the grid as a tuple."""
    grid = tuple(int(side) for side in (generator.cfg.grid if grid is None else grid))
    require(len(grid) == 2 and min(grid) >= 1, f"grid: expected (rows, columns), both at least 1, got {grid}")
    require(not is_causal(generator.cfg), "generator: is causal, trained on the next token: see decoding.causal")
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(condition)}
    if len(sizes) != 1 or sizes in ({()}, {(0,)}):
        raise ConfigError(f"condition: expected arrays with one common batch size of at least 1, got leading sizes {sizes}")
    b = batch_size(condition)
    if (sized := sizes_of(condition)) is not None:
        check_sizes(sized, math.prod(grid), getattr(generator.cfg, "patch", 1))
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
