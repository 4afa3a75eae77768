"""The one loop that draws images: a request in batches of one shape -> keys and conditions -> codes -> pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.models.condition import take
from maskgil_jax.runtime.rng import keys_for_indices
from maskgil_jax.tokenizers.images import to_pixels


class RequestBatch(NamedTuple):
    """Part of a request. rows: int (b,), its rows of the request. num_valid: how many are not padding,
    the first ones."""

    rows: np.ndarray
    condition: Any
    key_b: jax.Array
    num_valid: int


def batch_requests(
    condition: Any, key: jax.Array, indices_n: np.ndarray, size: int, shard: Callable[[Any], Any]
) -> Iterator[RequestBatch]:
    """Cuts a request into batches of `size` images; the last one is padded with its last image.

    The image of index i has the key `fold_in(key, i)` whatever batch it is in; an array of keys holds one for each
    image.
    shard: puts arrays with a leading batch axis on the devices.
    """
    for start in range(0, len(indices_n), size):
        rows = np.minimum(np.arange(start, start + size), len(indices_n) - 1)
        part = jax.tree.map(jnp.asarray, take(condition, rows))
        key_b = key[rows] if key.ndim else keys_for_indices(key, np.asarray(indices_n)[rows])
        part, key_b = shard((part, key_b))
        yield RequestBatch(rows, part, key_b, min(size, len(indices_n) - start))


def draw(
    pipeline: Any,
    condition: Any,
    key: jax.Array,
    indices_n: np.ndarray,
    *,
    size: int,
    cfg: Any = None,
    grid: tuple[int, int] | None = None,
    ar_ratio: float = 0.0,
    on_step: Callable[[int, jax.Array], Any] | None = None,
) -> Iterator[tuple[jax.Array, int]]:
    """Yields (uint8 images (size, height, width, 3) on the devices, how many of them are not padding),
    batch by batch."""
    grid = tuple(grid or pipeline.generator.cfg.grid)
    for batch in batch_requests(condition, key, indices_n, size, pipeline.shard):
        watch = on_step and functools.partial(_without_padding, on_step, batch.num_valid)
        tokens_bl = pipeline.tokens(batch.condition, batch.key_b, cfg=cfg, grid=grid, ar_ratio=ar_ratio, on_step=watch)
        yield to_pixels(pipeline.tokenizer, tokens_bl, grid), batch.num_valid


def _without_padding(on_step: Callable, num_valid: int, step: int, tokens_bl: jax.Array) -> None:
    on_step(step, tokens_bl[:num_valid])
