"""Reveal orders that do not look at the network: the place of every position in the queue."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.lru_cache(maxsize=32)
def halton_ranks(grid: tuple[int, int]) -> np.ndarray:
    """Place of each cell in the Halton order (Halton-MaskGIT, 2503.17076), int32 (rows * columns,) in raster order.

    Points of the two-dimensional Halton sequence from index 1, base 2 for the row and 3 for the column, scaled to the grid;
    a cell's place is that of the first point in it. Points are added until every cell has one, whatever the grid (the
    published 10,000 leave six cells of 64x64 without).
    """
    rows, columns = grid
    count = rows * columns
    while True:
        index = np.arange(1, count + 1)
        row, column = (_scaled_inverse(index, base, side) for base, side in ((2, rows), (3, columns)))
        cells, first = np.unique(row * columns + column, return_index=True)
        if len(cells) == rows * columns:
            return np.argsort(np.argsort(first)).astype(np.int32)
        count *= 2


def _scaled_inverse(index: np.ndarray, base: int, side: int) -> np.ndarray:
    """floor(side * radical inverse of `index`), in whole numbers: no cell border depends on rounding."""
    digits, power = np.zeros_like(index), 1
    while index.any():
        digits = digits * base + index % base
        index, power = index // base, power * base
    return digits * side // power


def order_scores(order: str, key_b, grid: tuple[int, int]):
    """Scores (b, l) of the orders that stay as they are for a whole image: float32, the higher, the sooner.

    "halton_rolled" starts each image at its own place of the Halton sequence, drawn from its key, and goes round.
    """
    if order == "raster":
        place_bl = jnp.arange(grid[0] * grid[1])[None]
    else:
        place_bl = jnp.asarray(halton_ranks(grid))[None]
    if order == "halton_rolled":
        length = place_bl.shape[1]
        shift_b = jax.vmap(lambda key: jax.random.randint(key, (), 0, length))(key_b)
        place_bl = (place_bl + shift_b[:, None]) % length
    return jnp.broadcast_to(-place_bl.astype(jnp.float32), (len(key_b), place_bl.shape[1]))
