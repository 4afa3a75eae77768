"""Skips bad optimizer updates inside the compiled step; too many in a row stop the training.

An update is bad if the norm of its gradient is not finite, or far above its running mean. It changes the step counter
alone. `optax.apply_if_finite` differs in three ways: it checks only for finite values, it applies an update after a
number of bad ones in a row, and it does not report to the EMA, which must not move either. A bad norm is not added to
the running mean, as one NaN there would make every later comparison false.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from clu.metrics import Average

from maskgil_jax.config import from_dict
from maskgil_jax.config.training import SkipConfig


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
