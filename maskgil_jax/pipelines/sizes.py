"""Sizes of images: pixels -> rows and columns of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from maskgil_jax.config import require

MAX_TOKENS = 65_536  # of an image: 4096x4096 pixels at 16 pixels a token


def grid_of_size(
    cfg: Any, token: int, height: int | None, width: int | None, grid: tuple[int, int] | None = None
) -> tuple[int, int]:
    """(rows, columns) of tokens for a size in pixels, or `grid`; the training grid where nothing is given.

    cfg: of the generator. token: pixels along a side of a token. Raises a `ConfigError` for a size that is no multiple
    of a token, or of the generator's patch of tokens, and for one of more than `MAX_TOKENS` tokens.
    """
    trained, patch = cfg.grid, getattr(cfg, "patch", 1)
    if height is None and width is None:
        return _limited(tuple(grid or trained), token)
    require(grid is None, f"grid: give it or height and width, got {grid} and {height} x {width}")
    cell, what = token * patch, "a token" if patch == 1 else f"{patch} tokens"
    height = trained[0] * token if height is None else height
    width = trained[1] * token if width is None else width
    for name, side in (("height", height), ("width", width)):
        whole = isinstance(side, (int, np.integer)) and bool(side >= cell and side % cell == 0)
        near = max(cell, round(side / cell) * cell) if isinstance(side, (int, float)) else cell
        require(whole, f"{name}: must be a multiple of {cell} pixels, the size of {what}, got {side!r}; e.g. {near}")
    return _limited((height // token, width // token), token)


def _limited(grid: Any, token: int) -> tuple[int, int]:
    rows, columns = grid
    require(
        rows * columns <= MAX_TOKENS,
        f"size: {rows * token}x{columns * token} pixels are {rows * columns} tokens, more than {MAX_TOKENS}; choose less",
    )
    return rows, columns
