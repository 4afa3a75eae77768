"""What a generator is conditioned on: pytrees of arrays with a leading batch axis,
and functions for every kind of them.

The arrays are NumPy's when a conditioner has just made them, and JAX's inside programs.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import ConfigError


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
    """A text as aMUSEd takes it: the states of a frozen encoder, an embedding of the whole text,
    and numbers about the image.

    `features_btd`: float (b, t, d); `mask_bt`: bool (b, t), True at real tokens; `pooled_bp`: float (b, p). `micro_bm`:
    float (b, 5), the micro-conditioning: width, height, two numbers of the crop, aesthetic score. The generator's
    options are `text_tokens`, `text_dim`, `pooled_dim` and `micro_values`.
    """

    features_btd: Any
    mask_bt: Any
    pooled_bp: Any
    micro_bm: Any


@flax.struct.dataclass
class TokenCondition:
    """A prompt as tokens of the generator's own vocabulary.

    `ids_bt`: int (b, t); `mask_bt`: bool (b, t), False at padding, which stands on the left. t is at most the
    generator's `text_tokens`.
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

    `rows_b`, `columns_b`: int32 (b,), the grid of each image. Its tokens are the first rows * columns of the sequence,
    in its own raster order; the rest is padding, to which nothing attends. As part of the condition, the sizes go
    wherever the condition goes: through guidance, condition dropout and batches.
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


@flax.struct.dataclass
class ConditionPair:
    """Two conditions of one kind and batch size, and the weight between them: `weight_b` float32 (b,),
    0 first, 1 second."""

    first: Any
    second: Any
    weight_b: Any


def without_null(condition: Any) -> Any:
    """The condition itself, of one that may bring along its null condition."""
    return condition.condition if isinstance(condition, GuidedCondition) else condition


def token_places(condition: SizedCondition, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(row, column, whether it is no padding) of every token, int32 and bool (b, length)."""
    index_1l, columns_b1 = jnp.arange(length)[None], jnp.asarray(condition.columns_b)[:, None]
    valid_bl = index_1l < jnp.asarray(condition.rows_b)[:, None] * columns_b1
    row_bl, column_bl = index_1l // columns_b1, index_1l % columns_b1
    return jnp.where(valid_bl, row_bl, 0), jnp.where(valid_bl, column_bl, 0), valid_bl


def patch_tokens(condition: SizedCondition, length: int, patch: int) -> jax.Array:
    """The tokens of every position of a sequence of patches, int32 (b, length / patch^2, patch^2), as numbers in each
    image's raster order.

    The patches of an image stand in their own raster order and hold `patch` x `patch` of its tokens, row by row; those
    of padding hold padding, each token once.
    """
    place_1n1, inside_11k = jnp.arange(length // patch**2)[None, :, None], jnp.arange(patch**2)[None, None]
    rows_b11, columns_b11 = (jnp.asarray(sides)[:, None, None] for sides in (condition.rows_b, condition.columns_b))
    row_bn1, column_bn1 = (part * patch for part in jnp.divmod(place_1n1, columns_b11 // patch))
    token_bnk = (row_bn1 + inside_11k // patch) * columns_b11 + column_bn1 + inside_11k % patch
    return jnp.where(place_1n1 * patch**2 < rows_b11 * columns_b11, token_bnk, place_1n1 * patch**2 + inside_11k)


def patch_places(condition: SizedCondition, length: int, patch: int) -> jax.Array:
    """The inverse of `patch_tokens`: where every token of an image stands in the sequence of patches,
    int32 (b, length)."""
    row_bl, column_bl, valid_bl = token_places(condition, length)
    patch_bl = row_bl // patch * (jnp.asarray(condition.columns_b)[:, None] // patch) + column_bl // patch
    place_bl = patch_bl * patch**2 + row_bl % patch * patch + column_bl % patch
    return jnp.where(valid_bl, place_bl, jnp.arange(length)[None])


def check_sizes(condition: SizedCondition, length: int, patch: int = 1) -> None:
    """Raises a `ConfigError` unless `patch` divides the sides of all images and `length` tokens hold each of them.

    Inside a jitted function, where sizes are not known, it checks that `patch` divides the canvas alone.
    """
    if length % patch**2:
        raise ConfigError(f"tokens: a canvas of {length} tokens is not a multiple of the {patch**2} tokens of a patch")
    if isinstance(condition.rows_b, jax.core.Tracer) or isinstance(condition.columns_b, jax.core.Tracer):
        return
    if not all(getattr(sides, "is_fully_addressable", True) for sides in (condition.rows_b, condition.columns_b)):
        return
    for size in zip(np.asarray(condition.rows_b).tolist(), np.asarray(condition.columns_b).tolist(), strict=True):
        if any(side < 1 or side % patch for side in size):
            raise ConfigError(f"condition: an image of {size[0]}x{size[1]} tokens; sides must be multiples of patch {patch}")
        if size[0] * size[1] > length:
            raise ConfigError(f"condition: an image of {size[0]}x{size[1]} tokens does not fit on a canvas of {length}")


def with_sizes(condition: Any, rows_b: Any, columns_b: Any) -> Any:
    """The condition as a `SizedCondition`; of one that brings along its null condition, both."""
    if isinstance(condition, GuidedCondition):
        both = condition.condition, condition.negative
        return GuidedCondition(*(SizedCondition(each, rows_b, columns_b) for each in both))
    return SizedCondition(condition, rows_b, columns_b)


def sizes_of(condition: Any) -> SizedCondition | None:
    """The condition with the size of each image; None if all images fill the canvas."""
    condition = without_null(condition.first if isinstance(condition, ConditionPair) else condition)
    return condition if isinstance(condition, SizedCondition) else None


def valid_tokens(condition: Any, length: int) -> jax.Array | None:
    """Which tokens are no padding, bool (b, length); None if all images fill the canvas."""
    sizes = sizes_of(condition)
    return None if sizes is None else token_places(sizes, length)[2]


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
    """Rows of `null` where `drop_b` (bool, (b,)), else of `condition`:
    the dropout that trains classifier-free guidance."""
    return jax.tree.map(lambda n, c: jnp.where(drop_b.reshape(-1, *(1,) * (c.ndim - 1)), n, c), null, condition)
