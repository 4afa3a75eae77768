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


@flax.struct.dataclass
class PooledTextCondition:
    """A text as aMUSEd takes it: the states of a frozen encoder, an embedding of the whole text, and numbers about the image.

    `features_btd`: float (b, t, d); `mask_bt`: bool (b, t), True at real tokens; `pooled_bp`: float (b, p). `micro_bm`: float
    (b, 5), the micro-conditioning: width, height, two numbers of the crop, aesthetic score. The generator's options are
    `text_tokens`, `text_dim`, `pooled_dim` and `micro_values`.
    """

    features_btd: Any
    mask_bt: Any
    pooled_bp: Any
    micro_bm: Any


@flax.struct.dataclass
class TokenCondition:
    """A prompt as tokens of the generator's own vocabulary. `ids_bt`: int (b, t); `mask_bt`: bool (b, t), False at padding,
    which stands on the left. t is at most the generator's `text_tokens`.
    """

    ids_bt: Any
    mask_bt: Any


@flax.struct.dataclass
class HybridCondition:
    """What the two networks of hybrid decoding are conditioned on, where they read the same request differently.

    `condition`: of the masked network; `ar`: of the causal one.
    """

    condition: Any
    ar: Any


@flax.struct.dataclass
class SizedCondition:
    """A condition with the size of each image, for a batch of images of several sizes on one padded canvas.

    `rows_b`, `columns_b`: int32 (b,), the grid of each image. Its tokens are the first rows * columns of the sequence, in its
    own raster order; the rest is padding, to which nothing attends. As part of the condition, the sizes go wherever the
    condition goes: through guidance, condition dropout and batches.
    """

    condition: Any
    rows_b: Any
    columns_b: Any


@flax.struct.dataclass
class GuidedCondition:
    """A condition with what takes the place of the null condition in its classifier-free guidance: a negative prompt's.

    Both are of one kind and batch size. `models.generator.GuidedGenerator` computes with it.
    """

    condition: Any
    negative: Any


def without_null(condition: Any) -> Any:
    """The condition itself, of one that may bring along its null condition."""
    return condition.condition if isinstance(condition, GuidedCondition) else condition


def token_places(condition: SizedCondition, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(row, column, whether it is no padding) of every token, int32 and bool (b, length)."""
    index_1l, columns_b1 = jnp.arange(length)[None], jnp.asarray(condition.columns_b)[:, None]
    valid_bl = index_1l < jnp.asarray(condition.rows_b)[:, None] * columns_b1
    row_bl, column_bl = index_1l // columns_b1, index_1l % columns_b1
    return jnp.where(valid_bl, row_bl, 0), jnp.where(valid_bl, column_bl, 0), valid_bl


def valid_tokens(condition: Any, length: int) -> jax.Array | None:
    """Which tokens are no padding, bool (b, length); None if all images fill the canvas."""
    return token_places(condition, length)[2] if isinstance(condition, SizedCondition) else None


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
