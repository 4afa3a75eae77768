"""The reveal orders: one row each. The decoder and the names that options accept come from here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def raster_ranks(grid: tuple[int, int]) -> np.ndarray:
    """Rank of each cell row by row, int32 (rows * columns,)."""
    import numpy as np  # late, so that the command line starts without it

    return np.arange(grid[0] * grid[1], dtype=np.int32)


@functools.lru_cache(maxsize=32)
def halton_ranks(grid: tuple[int, int]) -> np.ndarray:
    """Rank of each cell in the Halton order (Halton-MaskGIT, 2503.17076), int32 (rows * columns,) in raster order.

    Points of the two-dimensional Halton sequence from index 1, base 2 for the row and 3 for the column, scaled to the grid;
    the rank of a cell is that of the first point in it. Points are added until every cell has one, whatever the grid (the
    published 10,000 leave six cells of 64x64 without).
    """
    import numpy as np

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
    """floor(side * radical inverse of `index`), in integers: no cell border depends on rounding."""
    digits, power = index * 0, 1
    while index.any():
        digits = digits * base + index % base
        index, power = index // base, power * base
    return digits * side // power


@dataclasses.dataclass(frozen=True)
class Order:
    """What decides which tokens are revealed first.

    by: "confidence" (the probability of the drawn code), "random" (a draw at each step), or "ranks" (a fixed order).
    ranks: grid -> rank of each cell, int32 (rows * columns,). rolled: each image starts at its own place of that order, drawn
    from its key, and wraps around.
    """

    by: str
    ranks: Callable[[tuple[int, int]], np.ndarray] | None = None
    rolled: bool = False


ORDERS = {
    "confidence": Order("confidence"),
    "halton": Order("ranks", halton_ranks),
    "halton_rolled": Order("ranks", halton_ranks, rolled=True),
    "random": Order("random"),
    "raster": Order("ranks", raster_ranks),
}
