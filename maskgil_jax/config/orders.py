"""The reveal orders: one row each. The decoder and the names that options accept come from here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def raster_ranks(grid: tuple[int, int]) -> np.ndarray:
    """Rank of each cell row by row, int32 (rows * columns,)."""
    import numpy as np  # late, so that the command line starts without it

    return np.arange(grid[0] * grid[1], dtype=np.int32)


def raster_ranks_of_sizes(rows_b: Any, columns_b: Any, length: int) -> Any:
    """`raster_ranks` of every image, int32 (b, length)."""
    import jax.numpy as jnp

    return jnp.broadcast_to(jnp.arange(length), (len(rows_b), length))


@functools.lru_cache(maxsize=32)
def halton_ranks(grid: tuple[int, int]) -> np.ndarray:
    """Rank of each cell in the Halton order (Halton-MaskGIT, 2503.17076), int32 (rows * columns,) in raster order.

    Points of the two-dimensional Halton sequence from index 1, base 2 for the row and 3 for the column, scaled to the
    grid; the rank of a cell is that of the first point in it. Points are added until every cell has one, whatever the
    grid (the published 10,000 leave six cells of 64x64 without).
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


def halton_ranks_of_sizes(rows_b: Any, columns_b: Any, length: int) -> Any:
    """`halton_ranks` of every image, int32 (b, length), whose sizes may be traced.

    Later cells rank after those of the image.

    24 points for each token of the canvas reach all cells of any grid. The s-th part of a side holds a whole interval
    of length 2^-j with 2^j < 4s, and one of 3^-k with 3^k < 6s; and a box of two such intervals has one of any 2^j 3^k
    points in a row.
    """
    import jax.numpy as jnp
    import numpy as np

    index_m = np.arange(1, 24 * length + 1)
    row_bm, column_bm = (_scaled_inverses(index_m, base, side_b) for base, side_b in ((2, rows_b), (3, columns_b)))
    cell_bm = row_bm * jnp.asarray(columns_b)[:, None] + column_bm
    first_bl = jnp.full((len(cell_bm), length), len(index_m))
    first_bl = first_bl.at[jnp.arange(len(cell_bm))[:, None], cell_bm].min(jnp.arange(len(index_m))[None])
    return jnp.argsort(jnp.argsort(first_bl, axis=1, stable=True), axis=1).astype(jnp.int32)


def _scaled_inverses(index_m: np.ndarray, base: int, side_b: Any) -> Any:
    """`_scaled_inverse` for the side of every image, int32 (b, m).

    Horner's rule from the last digit of the radical inverse, rounded down after every digit, which changes no final
    integer: no number exceeds base * side.
    """
    import jax.numpy as jnp

    side_b1 = jnp.asarray(side_b, jnp.int32)[:, None]
    scaled_bm, power = jnp.zeros((len(side_b1), len(index_m)), jnp.int32), 1
    while power * base <= index_m[-1]:
        power *= base
    while power:
        scaled_bm = (jnp.asarray((index_m // power % base).astype("int32"))[None] * side_b1 + scaled_bm) // base
        power //= base
    return scaled_bm


@dataclasses.dataclass(frozen=True)
class Order:
    """What decides which tokens are revealed first.

    by: "confidence" (the probability of the drawn code), "random" (a draw at each step), or "ranks" (a fixed order).
    ranks: grid -> rank of each cell, int32 (rows * columns,). ranks_of_sizes: the same for images of several sizes on
    canvases of one length, (rows_b, columns_b, length) -> int32 (b, length), inside a jitted function. rolled: each
    image starts at its own place of that order, drawn from its key, and wraps around.
    """

    by: str
    ranks: Callable[[tuple[int, int]], np.ndarray] | None = None
    ranks_of_sizes: Callable[[Any, Any, int], Any] | None = None
    rolled: bool = False


ORDERS = {
    "confidence": Order("confidence"),
    "halton": Order("ranks", halton_ranks, halton_ranks_of_sizes),
    "halton_rolled": Order("ranks", halton_ranks, halton_ranks_of_sizes, rolled=True),
    "random": Order("random"),
    "raster": Order("ranks", raster_ranks, raster_ranks_of_sizes),
}
