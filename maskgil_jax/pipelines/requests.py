"""What a call asks for -> the condition, key and batch size of the images. `Pipeline` has three of these as methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.models.condition import GuidedCondition, repeat, take
from maskgil_jax.models.condition import batch_size as rows_of
from maskgil_jax.runtime.rng import keys_of_seeds

MAX_BATCH = 64  # images that a call without `batch_size` generates at once


def request_of(
    pipeline: Any,
    labels: Any = None,
    prompts: Any = None,
    negative_prompts: Any = None,
    *,
    height: int | None = None,
    width: int | None = None,
    grid: tuple[int, int] | None = None,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    num_per_label: int = 1,
    key: jax.Array | None = None,
    batch_size: int | None = None,
) -> tuple[Any, dict[str, Any]]:
    """The condition of a call, a row an image, and the arguments of `Pipeline.batches` that go with it."""
    require(num_per_label >= 1, f"num_per_label: must be at least 1, got {num_per_label}")
    condition = repeat(pipeline.condition(labels, prompts, negative_prompts), num_per_label)
    grid, count = pipeline.grid_of(height, width, grid), rows_of(condition)
    if seeds is not None:
        require(key is None and seed == 0, "seeds: give them, seed or key")
        require(count in (1, len(seeds)), f"seeds: {len(seeds)} seeds for {count} images; give one for each")
        condition, key = take(condition, np.arange(len(seeds)) % count), keys_of_seeds(seeds)
    padded = batch_size is None
    if batch_size is None:
        batch_size = padded_size(rows_of(condition))
    return condition, dict(seed=seed, key=key, grid=grid, batch_size=batch_size, padded=padded)


def padded_size(count: int) -> int:
    """The batch size of a call for `count` images: the next power of two, at most `MAX_BATCH`."""
    return min(1 << (count - 1).bit_length(), MAX_BATCH)


def condition(pipeline: Any, labels: Any = None, prompts: Any = None, negative_prompts: Any = None) -> Any:
    """The condition of labels or of prompts, whichever is given, with that of negative prompts."""
    require((labels is None) != (prompts is None), "labels, prompts: give one of them")
    kind = pipeline.generator.cfg.condition
    if prompts is not None and kind not in ("text", "pooled_text"):
        raise ConfigError(f"prompts: this generator is conditioned on a {kind}; give labels")
    return pipeline.with_negative(pipeline.conditioner.encode(labels if prompts is None else prompts), negative_prompts)


def with_negative(pipeline: Any, condition: Any, negative_prompts: Any = None) -> Any:
    """The condition with that of negative prompts: one for all rows, or one for each. None: the condition itpipeline."""
    if negative_prompts is None:
        return condition
    kind = pipeline.generator.cfg.condition
    require(kind != "class", f"negative_prompts: this generator is conditioned on a {kind}, and takes no text")
    negative, count = pipeline.conditioner.encode(negative_prompts), rows_of(condition)
    given = rows_of(negative)
    require(given in (1, count), f"negative_prompts: {given} for {count} prompts; give one, or one for each")
    return GuidedCondition(condition, take(negative, np.arange(count) % given))


def grid_of(pipeline: Any, height: int | None, width: int | None, grid: tuple[int, int] | None = None) -> tuple[int, int]:
    """(rows, columns) of codes for a size in pixels, or `grid`; the training grid where nothing is given."""
    trained, cell = pipeline.generator.cfg.grid, pipeline.tokenizer.cfg.downsample
    if height is None and width is None:
        return tuple(grid or trained)
    require(grid is None, f"grid: give it or height and width, got {grid} and {height} x {width}")
    height = trained[0] * cell if height is None else height
    width = trained[1] * cell if width is None else width
    for name, side in (("height", height), ("width", width)):
        whole = isinstance(side, (int, np.integer)) and side >= cell and side % cell == 0
        near = max(cell, round(side / cell) * cell) if isinstance(side, (int, float)) else cell
        require(whole, f"{name}: must be a multiple of {cell} pixels, the size of a token, got {side!r}; e.g. {near}")
    return height // cell, width // cell
