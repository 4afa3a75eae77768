"""What a call asks for -> the condition, key and batch size of the images. `Pipeline` has three of these as methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from maskgil_jax.conditioning import TokenConditioner
from maskgil_jax.conditioning.speech import Transcript
from maskgil_jax.config import require
from maskgil_jax.models.condition import GuidedCondition, HybridCondition, repeat, take, without_null
from maskgil_jax.models.condition import batch_size as rows_of
from maskgil_jax.pipelines.sizes import grid_of_size
from maskgil_jax.pipelines.spoken import request_of_audio
from maskgil_jax.runtime.batch_sizes import batch_size_of, one_batch_of
from maskgil_jax.runtime.rng import keys_of_seeds


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
    ar_ratio: float = 0.0,
    audio: Any = None,
    speech: str = "base",
    language: str | None = None,
    on_transcript: Callable[[int, Transcript], Any] | None = None,
    one_batch: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """The condition of a call, a row an image, and the arguments of `Pipeline.batches` that go with it.

    one_batch: without `batch_size`, all images are one batch, as far as they fit (`runtime.batch_sizes`).
    """
    require(num_per_label >= 1, f"num_per_label: must be at least 1, got {num_per_label}")
    grid = pipeline.grid_of(height, width, grid)
    require(audio is None or (labels is None and prompts is None), "labels, prompts, audio: give one of them")
    require(audio is not None or (language is None and on_transcript is None), "language, on_transcript: belong to audio")
    if audio is not None:
        asked = request_of_audio(pipeline, audio, speech, language, on_transcript)
        labels, prompts = asked.get("labels"), asked.get("prompts")
    condition = repeat(pipeline.condition(labels, prompts, negative_prompts, grid=grid, ar_ratio=ar_ratio), num_per_label)
    count = rows_of(condition)
    if seeds is not None:
        require(key is None and seed == 0, "seeds: give them, seed or key")
        require(count in (1, len(seeds)), f"seeds: {len(seeds)} seeds for {count} images; give one for each")
        condition, key = take(condition, np.arange(len(seeds)) % count), keys_of_seeds(seeds)
    padded = batch_size is None
    if batch_size is None:
        batch_size = (one_batch_of if one_batch else batch_size_of)(rows_of(condition))
    return condition, dict(seed=seed, key=key, grid=grid, batch_size=batch_size, padded=padded)


def condition(
    pipeline: Any,
    labels: Any = None,
    prompts: Any = None,
    negative_prompts: Any = None,
    *,
    grid: tuple[int, int] | None = None,
    ar_ratio: float = 0.0,
) -> Any:
    """The condition of labels or of prompts, whichever is given, with that of negative prompts.

    grid: of the images, which some conditions name. ar_ratio: above 0, also the condition of `ar`, if it needs another.
    """
    require((labels is None) != (prompts is None), "labels, prompts: give one of them")
    text = pipeline.generator.cfg.condition != "class"
    require(prompts is None or text, "prompts: this generator is conditioned on a class; give labels")
    asked = labels if prompts is None else prompts
    condition = _encoded(pipeline, pipeline.conditioner, asked, negative_prompts, grid)
    if not ar_ratio or pipeline.ar_conditioner is None or dataclasses.is_dataclass(asked):
        return condition
    return HybridCondition(condition, _encoded(pipeline, pipeline.ar_conditioner, asked, negative_prompts, grid))


def _encoded(pipeline: Any, conditioner: Any, asked: Any, negative_prompts: Any, grid: tuple[int, int] | None) -> Any:
    """The condition that `conditioner` makes, for images of this grid (default: the training one)."""
    if isinstance(conditioner, TokenConditioner):
        conditioner = conditioner.for_grid(grid or pipeline.generator.cfg.grid)
    return pipeline.with_negative(conditioner.encode(asked), negative_prompts, conditioner)


def with_negative(pipeline: Any, condition: Any, negative_prompts: Any = None, conditioner: Any = None) -> Any:
    """The condition with that of negative prompts: one for all rows, or one for each. None: the condition itself.

    conditioner: what made the condition; default the pipeline's.
    """
    if negative_prompts is None:
        return condition
    kind = pipeline.generator.cfg.condition
    require(kind != "class", f"negative_prompts: this generator is conditioned on a {kind}, and takes no text")
    negative = without_null((conditioner or pipeline.conditioner).encode(negative_prompts))
    count = rows_of(condition)
    given = rows_of(negative)
    require(given in (1, count), f"negative_prompts: {given} for {count} prompts; give one, or one for each")
    return GuidedCondition(without_null(condition), take(negative, np.arange(count) % given))


def grid_of(pipeline: Any, height: int | None, width: int | None, grid: tuple[int, int] | None = None) -> tuple[int, int]:
    """(rows, columns) of codes for a size in pixels, or `grid`; the training grid where nothing is given."""
    return grid_of_size(pipeline.generator.cfg, pipeline.tokenizer.cfg.downsample, height, width, grid)
