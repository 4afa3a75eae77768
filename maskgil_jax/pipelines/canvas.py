"""One program for images of all sizes: the padded canvas on which a generator was trained on images of several sizes.

Its weights say so by the entry `canvas` of their config.json, (rows, columns) of tokens. An image whose tokens fit on
the canvas is drawn at its start (`models.condition.SizedCondition`); the others have a program of their own grid, as
all images have without that entry. `Pipeline` has `canvas` and `tokens`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import CausalConfig, ConfigError, DecodeConfig
from maskgil_jax.decoding.generate import generate_tokens
from maskgil_jax.models.condition import HybridCondition, with_sizes
from maskgil_jax.models.condition import batch_size as rows_of
from maskgil_jax.models.generator import takes_sizes

Grid = tuple[int, int]


def canvas_of(pipeline: Any) -> Grid | None:
    """(rows, columns) of the canvas that images of all sizes share; None if each size has a program of its own.

    None without the entry, for classes, and where positions are scaled (`rope_scaling`).
    """
    canvas, cfg = pipeline.metadata.get("generator", {}).get("canvas"), pipeline.generator.cfg
    return tuple(canvas) if canvas and cfg.condition != "class" and takes_sizes(cfg) else None


def check_canvas(cfg: Any, canvas: Any, where: str) -> None:
    """Raises a `ConfigError` that names the file unless its entry `canvas` is one that the generator can have."""
    if canvas is None:
        return
    sides = canvas if isinstance(canvas, list | tuple) else ()
    whole = len(sides) == 2 and all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in sides)
    patch = getattr(cfg, "patch", 1)
    if not whole or any(side % patch for side in sides):
        raise ConfigError(f"{where}: canvas: expected [rows, columns] of tokens, multiples of patch {patch}, got {canvas!r}")


def on_canvas(pipeline: Any, grid: Sequence[int], cfg: Any, ar_ratio: float = 0.0) -> bool:
    """Whether images of this grid are drawn by the program of the canvas.

    The plan "gamma_canvas" counts the tokens of the whole canvas, so it has a program for each size.
    """
    canvas, patch = pipeline.canvas, getattr(pipeline.generator.cfg, "patch", 1)
    if canvas is None or ar_ratio or not isinstance(cfg, DecodeConfig) or cfg.plan == "gamma_canvas":
        return False
    return math.prod(grid) <= math.prod(canvas) and all(side >= patch and side % patch == 0 for side in grid)


def sized(pipeline: Any, condition: Any, grids_b: Sequence[Sequence[int]]) -> Any:
    """The condition of images on the canvas; grids_b: (rows, columns) of each."""
    rows_b, columns_b = np.array(grids_b, np.int32).T
    return with_sizes(condition, *pipeline.shard((jnp.asarray(rows_b), jnp.asarray(columns_b))))


def program_of(pipeline: Any, condition: Any, grid: Grid, cfg: Any) -> tuple[Any, Grid]:
    """(condition, grid) with which images of this grid are decoded: on the canvas if they belong there,
    else as given."""
    if not on_canvas(pipeline, grid, cfg):
        return condition, grid
    return sized(pipeline, condition, [grid] * rows_of(condition)), pipeline.canvas


def tokens(
    pipeline: Any,
    condition: Any,
    key: jax.Array,
    *,
    cfg: DecodeConfig | CausalConfig | str | None = None,
    grid: Grid | None = None,
    tokens_bl: jax.Array | None = None,
    ar_ratio: float = 0.0,
    on_step: Callable[[int, jax.Array], Any] | None = None,
) -> jax.Array:
    """The codes behind the images of a condition, or of labels: int32 (b, rows * columns). See `generate_tokens`."""
    if not dataclasses.is_dataclass(condition):
        condition = pipeline.conditioner.encode(condition)
    how, grid = pipeline.options(cfg), tuple(grid or pipeline.generator.cfg.grid)
    if not on_canvas(pipeline, grid, how, ar_ratio):
        ar = dict(ar=pipeline.ar, ar_cfg=pipeline.ar_cfg, ar_ratio=ar_ratio)
        options: dict[str, Any] = dict(grid=grid, tokens_bl=tokens_bl, on_step=on_step, **ar)
        return generate_tokens(pipeline.generator, condition, key, how, **options)
    count = math.prod(grid)
    if tokens_bl is not None:
        if tokens_bl.ndim != 2 or tokens_bl.shape[1] != count:
            raise ConfigError(f"tokens_bl: a {grid[0]}x{grid[1]} grid needs (b, {count}) tokens, got {tokens_bl.shape}")
        tokens_bl = jnp.pad(tokens_bl, ((0, 0), (0, math.prod(pipeline.canvas) - count)))
    show = on_step and functools.partial(_cut, on_step, count)
    condition = condition.condition if isinstance(condition, HybridCondition) else condition
    grids_b = [grid] * rows_of(condition)
    return tokens_of_sizes(pipeline, condition, key, grids_b, how, tokens_bl=tokens_bl, on_step=show)[:, :count]


def tokens_of_sizes(
    pipeline: Any,
    condition: Any,
    key: jax.Array,
    grids_b: Sequence[Sequence[int]],
    cfg: DecodeConfig,
    *,
    tokens_bl: jax.Array | None = None,
    on_step: Callable[[int, jax.Array], Any] | None = None,
) -> jax.Array:
    """The codes of images of several sizes, at the start of a canvas each: int32 (b, length of the canvas).

    grids_b: (rows, columns) of each image, all of which are `on_canvas`. tokens_bl, on_step: as for `generate_tokens`,
    but of whole canvases.
    """
    condition = sized(pipeline, condition, grids_b)
    options: dict[str, Any] = dict(grid=pipeline.canvas, tokens_bl=tokens_bl, on_step=on_step)
    return generate_tokens(pipeline.generator, condition, key, cfg, **options)


def _cut(on_step: Callable, count: int, step: int, tokens_bl: jax.Array) -> None:
    on_step(step, tokens_bl[:, :count])
