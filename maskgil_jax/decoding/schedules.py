"""Number of tokens that each decoding step reveals, and mask ratio of training examples.

Each schedule is one curve `gamma(t)`: the fraction still masked at progress t. A *plan* turns it into counts; one
schedule gives different counts under different plans (arccos, 8 steps, 256 tokens):

    density      1 18 26 32 38 43 48 50     gamma is the density of reveals, normalised (the published MaskGIL code)
    gamma        21 21 21 23 25 28 35 82    floor(gamma(t/T) N) tokens stay masked (MaskGIT)
    gamma_ceil   20 21 21 23 25 28 35 83    ceil(gamma(t/T) N) tokens stay masked (the text of the paper, section 4.2)
    gamma_floor  21 21 21 23 25 28 35 82    as gamma, but may end with idle steps: one token must stay masked (aMUSEd)
    gamma_canvas 21 21 21 23 25 28 35 82    as gamma_floor, with N the length of the canvas (aMUSEd)
    cumulative   1 22 24 25 27 30 38 89     1 - gamma on an even grid from 0 to 1 (confidence sampler of Halton-MaskGIT)

The arithmetic is float64 NumPy at trace time, with ties decided by rule, so counts do not depend on platform or
tracing.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import PLANS, REMASK_RULES, SCHEDULES, choose, renamed, require

# Larger than any rounding error of float64 here and smaller than any real distance from a tie.
_TIE = 1e-9


def gamma(schedule: str, t):
    """Share of tokens still masked at progress `t` in [0, 1]: falls from 1 to 0 (paper, appendix B).

    Args:
      schedule: one of `config.SCHEDULES`.
      t: NumPy values (computed as float64) or a JAX array.

    Raises:
      ConfigError: unknown schedule.
    """
    xp = jnp if isinstance(t, jax.Array) else np
    return SCHEDULES[choose("schedule", schedule, SCHEDULES)].gamma(t, xp)


def mask_ratio(schedule: str, r, convention: str = "gamma"):
    """Share of tokens to mask in a training example for a uniform draw `r` in [0, 1).

    `convention="gamma"` is the decoding curve itself; `"release"` is the published code (`config.schedules.Schedule`).

    Raises:
      ConfigError: unknown schedule or convention.
    """
    choose("convention", convention, ("gamma", "release"))
    ratio = gamma(schedule, r)
    return 1 - ratio if convention == "release" and SCHEDULES[schedule].release_complement else ratio


@renamed(pause="hold_steps")
def reveal_counts(
    plan: str,
    schedule: str,
    steps: int,
    num_masked,
    max_masked: int = 4096,
    hold_steps: tuple[int, int] = (0, 0),
    skip_steps: int = 0,
    canvas: int | None = None,
):
    """Number of tokens to reveal at each step; never negative, always sums to `num_masked`.

    Where the published plans are valid (nothing negative) the counts are theirs; "cumulative" may then have steps that
    reveal nothing. Otherwise every step reveals at least one token while `steps <= num_masked`; with more steps than
    tokens the first `num_masked` steps reveal one each.

    Args:
      plan: one of `config.PLANS` (see the module's table).
      schedule: one of `config.SCHEDULES`.
      steps: at least 1.
      num_masked: a Python int, or an integer array (b,), possibly traced, for a plan per image.
      max_masked: static upper bound of a traced `num_masked` (the canvas length); larger entries give -1.
      hold_steps: (first, end) of steps that reveal nothing; the plan is that of the other steps.
      skip_steps: as many steps at the start reveal nothing; the others follow the whole plan. For the plans
        "gamma_floor" and "gamma_canvas".
      canvas: length of the canvas, for the plan "gamma_canvas". Default: as long as there are masked tokens.

    Returns:
      int32 NumPy array (steps,) for an int, otherwise a JAX array (b, steps).

    Raises:
      ConfigError: unknown plan or schedule, `steps` below 1, or a concrete `num_masked` that is negative.
    """
    if isinstance(num_masked, (int, np.integer)):
        require(bool(num_masked >= 0), f"num_masked: must be at least 0, got {num_masked}")
        return _counts(plan, schedule, steps, np.array([num_masked]), hold_steps, skip_steps, canvas)[0]
    if not isinstance(num_masked, jax.core.Tracer):
        num_masked = np.asarray(num_masked)
        require(bool(num_masked.min(initial=0) >= 0), f"num_masked: must be at least 0, got {num_masked.min(initial=0)}")
        return jnp.asarray(_counts(plan, schedule, steps, num_masked, hold_steps, skip_steps, canvas))
    # Tabulated for every possible number, so that the traced plan is the NumPy plan bit for bit.
    table = jnp.asarray(_table(plan, schedule, steps, max_masked, hold_steps, skip_steps, canvas))
    return table.at[num_masked].get(mode="fill", fill_value=-1)


def max_masked_per_step(
    plan: str, schedule: str, steps: int, max_masked: int, hold_steps: tuple[int, int] = (0, 0), skip_steps: int = 0
) -> np.ndarray:
    """Int64 (steps,): at most this many tokens are masked when each step begins, if `max_masked` are at the first.

    A bound for every smaller number at the first step, too, so that it can size arrays whatever an image starts with.
    """
    table = _table(plan, schedule, steps, max_masked, hold_steps, skip_steps, max_masked)
    revealed = np.cumsum(table, axis=1) - table
    return (np.arange(max_masked + 1)[:, None] - revealed).max(axis=0)


def remask_steps(steps: int, start: float, stop: float) -> tuple[int, int]:
    """(first, end) of the steps i with `start <= i / steps < stop` that can mask tokens again:
    neither the first nor the last.

    In ReMDM's time, which runs from 1 to 0, these are t_on = 1 - start >= t > t_off = 1 - stop.
    """
    first, end = (math.ceil(share * steps - _TIE) for share in (start, stop))
    first = max(first, 1)
    return first, max(first, min(end, steps - 1))


def remask_counts(rule: str, eta: float, counts_bt, max_masked: int = 4096, window: tuple[int, int] | None = None):
    """How many of the tokens revealed so far ReMDM (2503.00307) masks again at each step: int32 JAX array (b, steps).

    A step that reveals n tokens then reveals n + this many, so the plan of what stays masked holds all the same. In
    ReMDM every revealed token is masked with a probability sigma, at most sigma_max = min(1, left / made), where `left`
    counts those masked after the step and `made` those revealed before it. Here the number is fixed, floor(sigma *
    made), and only which ones is random, so every step reveals an exact number. `cap`: sigma = min(eta, sigma_max).
    `rescale`: sigma = eta * sigma_max. Nothing is masked at the first step (nothing is revealed yet) nor at the last
    (nothing may be left).

    Args:
      rule: one of `config.REMASK_RULES`.
      eta: strength in [0, 1].
      counts_bt: the plan, integers (b, steps), possibly traced: what `reveal_counts` gives.
      max_masked: static upper bound of a plan's sum (the canvas length).
      window: (first, end) of the steps that mask tokens again (`remask_steps`). Default: all.

    Raises:
      ConfigError: unknown rule.
    """
    choose("remask", rule, REMASK_RULES)
    first, end = (0, counts_bt.shape[-1]) if window is None else window
    inside_t = (np.arange(counts_bt.shape[-1]) >= first) & (np.arange(counts_bt.shape[-1]) < end)
    after_bt = jnp.cumsum(counts_bt, axis=-1)
    made_bt, left_bt = after_bt - counts_bt, after_bt[:, -1:] - after_bt
    # Tabulated in float64 on the host, as the plans are: the number must not depend on the platform's rounding.
    share = jnp.asarray(np.floor(eta * np.arange(max_masked + 1) + _TIE), jnp.int32)
    remask_counts_bt = jnp.minimum(share[made_bt], left_bt) if rule == "cap" else share[jnp.minimum(made_bt, left_bt)]
    return jnp.where(inside_t[None], remask_counts_bt, 0)


@functools.lru_cache(maxsize=64)
def _table(
    plan: str, schedule: str, steps: int, max_masked: int, hold_steps: tuple[int, int], skip_steps: int, canvas: int | None
) -> np.ndarray:
    return _counts(plan, schedule, steps, np.arange(max_masked + 1), hold_steps, skip_steps, canvas)


def _counts(
    plan: str,
    schedule: str,
    steps: int,
    n_b: np.ndarray,
    hold_steps: tuple[int, int] = (0, 0),
    skip_steps: int = 0,
    canvas: int | None = None,
) -> np.ndarray:
    """Counts (b, steps) for each number of masked tokens in `n_b`."""
    first, end = hold_steps
    if end > first:
        moving_bt = _counts(plan, schedule, steps - (end - first), n_b, canvas=canvas)
        return np.insert(moving_bt, [first] * (end - first), 0, axis=1)
    choose("plan", plan, PLANS)
    choose("schedule", schedule, SCHEDULES)
    whole = isinstance(steps, (int, np.integer)) and not isinstance(steps, bool)
    require(whole and steps >= 1, f"steps: must be a whole number >= 1, got {steps!r}")
    n_b1 = n_b.astype(np.int64)[:, None]
    if plan in ("gamma_floor", "gamma_canvas"):
        base_b1 = n_b1 if plan == "gamma_floor" or canvas is None else np.full_like(n_b1, canvas)
        return _floor_counts(schedule, steps, n_b1, base_b1, skip_steps)
    require(skip_steps == 0, f"skip_steps: needs the plan gamma_floor or gamma_canvas, got {plan!r}")
    if plan == "density":
        known_bt = _density(schedule, steps, n_b1)
        # The last step takes the remainder. Raising zeros to 1 can spend more than there is, and the published code
        # then reveals a negative number: only those rows are clipped, the others stay as published.
        fits_b1 = np.where(steps == 1, 0, known_bt[:, -2:-1].sum(axis=1, keepdims=True)) <= n_b1
        return _differences(np.where(fits_b1, known_bt, _fit(known_bt, n_b1)), n_b1)
    if plan == "cumulative":
        known_bt = np.floor((1 - gamma(schedule, _linspace32(steps))) * n_b1 + _TIE).astype(np.int64)
        # At least i + 1 tokens are known after step i. A schedule that reveals more than that early has idle steps
        # later, which the published sampler keeps.
        return _differences(np.minimum(np.maximum(known_bt, np.arange(steps) + 1), n_b1), n_b1)
    masked_bt = gamma(schedule, np.arange(1, steps + 1) / steps) * n_b1
    masked_bt = np.floor(masked_bt + _TIE) if plan == "gamma" else np.ceil(masked_bt - _TIE)
    return _differences(_fit(n_b1 - masked_bt.astype(np.int64), n_b1), n_b1)


def _floor_counts(schedule: str, steps: int, n_b1: np.ndarray, base_b1: np.ndarray, skip_steps: int) -> np.ndarray:
    """Counts of aMUSEd's scheduler: floor(gamma * base) tokens stay masked, at most all but one, at least one,
    at last none.

    Its float32 product can fall just short of a whole number, where one more token stays masked here.
    """
    target_bt = np.floor(gamma(schedule, np.arange(1, steps + 1) / steps) * base_b1 + _TIE).astype(np.int64)
    left_b1, counts = n_b1, []
    for i in range(steps):
        after_b1 = np.minimum(np.maximum(np.minimum(left_b1 - 1, target_bt[:, i : i + 1]), 1), left_b1)
        after_b1 = left_b1 if i < skip_steps else after_b1 if i < steps - 1 else np.zeros_like(left_b1)
        counts.append(left_b1 - after_b1)
        left_b1 = after_b1
    return np.concatenate(counts, axis=1).astype(np.int32)


def _differences(known_bt: np.ndarray, n_b1: np.ndarray) -> np.ndarray:
    """Cumulative counts to counts per step; everything is known after the last."""
    return np.diff(np.concatenate([known_bt[:, :-1], n_b1], axis=1), axis=1, prepend=0).astype(np.int32)


def _density(schedule: str, steps: int, n_b1: np.ndarray) -> np.ndarray:
    """Known tokens after each step when gamma(1 - i/(T-1)) is the density of reveals:
    rounded half to even, at least 1."""
    density_t = gamma(schedule, np.linspace(1.0, 0.0, steps))
    total = density_t.sum() or 1.0  # one step: the density is 0 / 0 and the only count is the remainder
    exact_bt = np.round(density_t / total * n_b1, 9)  # to nine digits first: rational ties must not hang on the last bit
    return np.cumsum(np.maximum(np.round(exact_bt), 1).astype(np.int64), axis=1)


def _linspace32(steps: int) -> np.ndarray:
    """0..1 in float32 as `torch.linspace` computes it: from both ends,
    each value rounded once (a fused multiply-add)."""
    index = np.arange(steps)
    step = np.float64(np.float32(1) / np.float32(max(steps - 1, 1)))  # products with a float32 are exact in float64
    t = np.where(index < steps // 2, index * step, 1 - (steps - 1 - index) * step).astype(np.float32)
    return np.clip(t.astype(np.float64), 0.0, 1.0)


def _fit(known_bt: np.ndarray, n_b1: np.ndarray) -> np.ndarray:
    """Clips cumulative counts: at least one token a step while there are enough, never more than there are."""
    steps = known_bt.shape[1]
    lowest_t = np.arange(steps) + 1
    highest_bt = np.maximum(n_b1 - steps + lowest_t, lowest_t)
    return np.minimum(np.clip(known_bt, lowest_t, highest_bt), n_b1)
