"""Skips bad optimizer updates inside the compiled step; too many in a row stop the training.

An update is bad if the norm of its gradient is not finite, or far above its running mean. It changes the step counter alone.
`optax.apply_if_finite` differs in three ways: it checks only for finite values, it applies an update after a number of bad
ones in a row, and it does not report to the EMA, which must not move either. A bad norm is not added to the running mean, as
one NaN there would make every later comparison false.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from clu.metrics import Average

from maskgil_jax.config import from_dict, require


@dataclasses.dataclass(frozen=True)
class SkipConfig:
    """The `guard` section of a run file; these are the defaults."""

    spike: float = 10.0  # a gradient norm this many times its running mean is bad; 0: only norms that are not finite are
    warmup: int = 50  # accepted steps before spikes are detected
    stop_after: int = 10  # bad steps in a row that stop the training
    loss_alarm: float = 6.0  # standard deviations above its running mean at which the loss is logged as a jump; 0: never
    watchdog_seconds: float = 300.0  # limit for one step, after which the program ends; 0: no watchdog
    watchdog_factor: float = 10.0  # the same limit as a multiple of the median step; the longer one counts

    def __post_init__(self):
        require(self.spike == 0 or self.spike > 1, f"guard.spike: must be above 1, or 0 for none, got {self.spike}")
        for name in ("stop_after", "warmup"):
            value, least = getattr(self, name), 1 if name == "stop_after" else 0
            require(value >= least, f"guard.{name}: must be at least {least}, got {value}")
        for name in ("loss_alarm", "watchdog_seconds", "watchdog_factor"):
            require(getattr(self, name) >= 0, f"guard.{name}: must not be negative, got {getattr(self, name)}")


def skip_config(config) -> SkipConfig:
    """Reads the `guard` section of a run file."""
    return from_dict(SkipConfig, dict(config.get("guard") or {}), "config.guard")


class GuardState(NamedTuple):
    """State of `skip_bad_updates`. norm_mean: of accepted steps. skipped_in_a_row: 0 if the last step was accepted."""

    inner: optax.OptState
    norm_mean: jax.Array
    accepted: jax.Array
    skipped_in_a_row: jax.Array


def skip_bad_updates(inner: optax.GradientTransformation, options: SkipConfig) -> optax.GradientTransformation:
    """Wraps an optimizer: a bad step gives zero updates and keeps the state of `inner`."""

    def init(params):
        return GuardState(inner.init(params), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(grads, state: GuardState, params=None):
        norm = optax.tree.norm(grads).astype(jnp.float32)
        spike = jnp.asarray(False)
        if options.spike:
            spike = (state.accepted >= options.warmup) & (norm > options.spike * state.norm_mean)
        good = jnp.isfinite(norm) & ~spike
        updates, new_inner = inner.update(grads, state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(good, u, -jnp.zeros_like(u)), updates)  # x + -0 is x, bit for bit
        new_inner = jax.tree.map(lambda new, old: jnp.where(good, new, old), new_inner, state.inner)
        mean = jnp.where(state.accepted == 0, norm, 0.98 * state.norm_mean + 0.02 * norm)
        return updates, GuardState(
            new_inner,
            jnp.where(good, mean, state.norm_mean),
            state.accepted + good,
            jnp.where(good, 0, state.skipped_in_a_row + 1),
        )

    return optax.GradientTransformation(init, update)


def select_if_applied(opt_state, new, old):
    """`new` if the update that gave `opt_state` was accepted, else `old`; `new` for an optimizer that skips nothing."""
    if not isinstance(opt_state, GuardState):
        return new
    good = opt_state.skipped_in_a_row == 0
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def step_metrics(grads, old_params, params, opt_state) -> dict[str, Average]:
    """Norms of gradient, parameters and update, and the number of skipped steps for `StepLog`.

    They cost one more read of arrays that the update reads too.
    """
    change = jax.tree.map(jnp.subtract, params, old_params)
    values = {
        "grad_norm": optax.tree.norm(grads),
        "param_norm": optax.tree.norm(params),
        "update_norm": optax.tree.norm(change),
    }
    if isinstance(opt_state, GuardState):
        values["skipped_in_a_row"] = opt_state.skipped_in_a_row.astype(jnp.float32)
    return {name: Average(value, jnp.ones(())) for name, value in values.items()}
