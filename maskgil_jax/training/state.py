"""The train state: a pytree of nested dicts, initialised sharded and donated to every step."""

from __future__ import annotations

from collections.abc import Callable

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from maskgil_jax.runtime.mesh import shardings
from maskgil_jax.training.skip_updates import select_if_applied


@flax.struct.dataclass
class TrainState:
    """`step`: updates done. `ema`: averaged parameters, or an empty dict when averaging is off."""

    step: jax.Array
    params: dict
    ema: dict
    opt_state: optax.OptState

    @property
    def averaged(self) -> dict:
        """The parameters to evaluate and save: the EMA if there is one."""
        return self.ema or self.params


def init_state(init_params: Callable[[jax.Array], dict], tx: optax.GradientTransformation, *, ema: bool):
    """Returns a function key -> TrainState, to be jitted with `out_shardings`,
    so that no device holds the whole state."""

    def init(key: jax.Array) -> TrainState:
        params = init_params(key)
        return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params) if ema else {}, tx.init(params))

    return init


def sharded_init(init: Callable, key: jax.Array, mesh: Mesh):
    """Runs `init(key)` under jit with the arrays sharded over the mesh. Returns (state, shardings of the state)."""
    state_sharding = shardings(jax.eval_shape(init, key), mesh)
    return jax.jit(init, out_shardings=state_sharding)(key), state_sharding


def apply_gradients(state: TrainState, grads: dict, tx: optax.GradientTransformation, ema_decay: float) -> TrainState:
    """Updates parameters and EMA. With `skip_bad_updates`, a bad step changes the step counter alone."""
    chex.assert_trees_all_equal_shapes(grads, state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = optax.incremental_update(params, state.ema, 1.0 - ema_decay) if state.ema else {}
    ema = select_if_applied(opt_state, ema, state.ema)
    return TrainState(state.step + 1, params, ema, opt_state)
