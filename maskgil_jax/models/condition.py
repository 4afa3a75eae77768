"""What a generator is conditioned on: pytrees of arrays with a leading batch axis, and functions for every kind of them.

The arrays are NumPy's when a conditioner has just made them, and JAX's inside programs.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class ClassCondition:
    """Class labels. `label_b`: int32 (b,), 0..num_classes-1; `num_classes` itself is the learned null class."""

    label_b: Any


@flax.struct.dataclass
class TextCondition:
    """States of a frozen text encoder. `features_btd`: float (b, t, d); `mask_bt`: bool (b, t), True at real tokens.

    t and d are the generator's `text_tokens` and `text_dim`. No position attends to padding.
    """

    features_btd: Any
    mask_bt: Any


def batch_size(condition: Any) -> int:
    """Length of the leading axis."""
    return jax.tree.leaves(condition)[0].shape[0]


def take(condition: Any, rows: Any) -> Any:
    """The rows `rows` (integers or a slice) of a condition."""
    return jax.tree.map(lambda leaf: leaf[rows], condition)


def repeat(condition: Any, count: int) -> Any:
    """Each row `count` times, one after the other: (b, ...) -> (b * count, ...)."""
    return jax.tree.map(lambda leaf: leaf.repeat(count, axis=0), condition)


def concatenate(*conditions: Any) -> Any:
    """Conditions of one kind, one after the other along the batch axis."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conditions)


def select(drop_b: jax.Array, null: Any, condition: Any) -> Any:
    """Rows of `null` where `drop_b` (bool, (b,)), else of `condition`: the dropout that trains classifier-free guidance."""
    return jax.tree.map(lambda n, c: jnp.where(drop_b.reshape(-1, *(1,) * (c.ndim - 1)), n, c), null, condition)
