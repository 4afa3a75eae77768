"""For callers that show pictures while they are made: those of every step, and programs compiled ahead.

`Pipeline` has `stream` and `warm_up` as its methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.conditioning.speech import Transcript
from maskgil_jax.config import choose, require
from maskgil_jax.decoding.masked import decode_stream
from maskgil_jax.files.images import to_pil
from maskgil_jax.models.condition import batch_size as rows_of
from maskgil_jax.models.generator import for_condition
from maskgil_jax.pipelines.canvas import program_of
from maskgil_jax.pipelines.draw import batch_requests
from maskgil_jax.pipelines.requests import request_of
from maskgil_jax.runtime.batch_sizes import batch_size_of, one_batch_of
from maskgil_jax.tokenizers.images import to_pixels

GREY = 160  # of cells that are still masked


def stream(
    pipeline: Any,
    labels: Any = None,
    *,
    prompts: Any = None,
    audio: Any = None,
    speech: str = "base",
    language: str | None = None,
    on_transcript: Callable[[int, Transcript], Any] | None = None,
    negative_prompts: Any = None,
    cfg: Any = None,
    every: int = 1,
    output: str = "numpy",
    height: int | None = None,
    width: int | None = None,
    grid: tuple[int, int] | None = None,
    seed: int = 0,
    seeds: Any = None,
    num_per_label: int = 1,
    key: jax.Array | None = None,
    batch_size: int | None = None,
    **decoding: Any,
) -> Iterator[tuple[int, Any]]:
    """Yields (step, images) while one batch is made: uint8 (b, height, width, 3), steps 1 to `cfg.steps`.

    The arguments are those of a call of the pipeline, and the last images are those that it returns with the same batch
    size, bit for bit. Cells that are still masked are grey. A causal generator has no such steps: its finished images
    are yielded once, as step 1.

    every: yields each `every`-th step only, and the last one; a step that is left out costs no decoding to pixels.
    batch_size: images of the batch, all of the request, at most 64 by default.

    Arguments are checked by the call itself, not at the first `next`. A generator that is closed early stops decoding.
    """
    choose("output", output, ("numpy", "pil"))
    require(every >= 1, f"every: must be at least 1, got {every}")
    condition, options = request_of(
        pipeline,
        labels,
        prompts,
        negative_prompts,
        height=height,
        width=width,
        grid=grid,
        seed=seed,
        seeds=seeds,
        num_per_label=num_per_label,
        key=key,
        batch_size=batch_size,
        audio=audio,
        speech=speech,
        language=language,
        on_transcript=on_transcript,
        one_batch=True,
    )
    count, shape = rows_of(condition), options["grid"]
    key, size = pipeline.request(count, options["seed"], options["key"], options["batch_size"], options["padded"])
    require(count <= size, f"stream: {count} images do not fit into one batch of {size}; give batch_size or ask in parts")
    cfg = pipeline.options(cfg, **decoding)
    batch = next(batch_requests(condition, key, np.arange(count), size, pipeline.shard))
    return _stream(pipeline, batch, cfg, shape, every, output)


def _stream(pipeline: Any, batch: Any, cfg: Any, grid: tuple[int, int], every: int, output: str) -> Iterator[tuple[int, Any]]:
    count = math.prod(grid)
    if pipeline.masked:
        condition, canvas = program_of(pipeline, batch.condition, grid, cfg)
        generator, last = for_condition(pipeline.generator, condition), cfg.steps
        steps = decode_stream(generator, condition, batch.key_b, cfg, grid=canvas)
    else:
        steps, last = iter([(1, pipeline.tokens(batch.condition, batch.key_b, cfg=cfg, grid=grid))]), 1
    mask_id = pipeline.generator.cfg.mask_id
    for step, tokens_bl in steps:
        if step % every and step != last:
            continue
        tokens_bl = tokens_bl[:, :count]
        masked_bl = tokens_bl == mask_id
        images_bhwc = to_pixels(pipeline.tokenizer, _without_masks(tokens_bl, mask_id), grid)
        images_bhwc = paint_masked(jax.device_get(images_bhwc), jax.device_get(masked_bl), grid)[: batch.num_valid]
        yield step, images_bhwc if output == "numpy" else to_pil(images_bhwc)


def warm_up(
    pipeline: Any,
    sizes: Sequence[tuple[int, int]] | None = None,
    *,
    batch_sizes: Sequence[int] = (1, 2, 4, 8),
    steps_shown: bool = False,
    cfg: Any = None,
    **decoding: Any,
) -> None:
    """Compiles, by drawing once, what calls for these sizes and numbers of images need, so that none of them waits.

    sizes: (height, width) in pixels; default the training size. batch_sizes: numbers of images; 1 and
    17 cover all calls (`runtime.batch_sizes`). steps_shown: also the programs of `stream`, one for 4, 8, 16, 32 and 64
    images each. cfg, decoding: as in a call; every other set of options is another program. With the compilation cache
    of `load` a later process reads the programs from the disk.
    """
    for count in batch_sizes:
        whole = isinstance(count, int | np.integer) and not isinstance(count, bool) and count >= 1
        require(whole, f"batch_sizes: must be whole numbers from 1, got {count!r}")
    grids = [pipeline.grid_of(*size) for size in sizes or ()] or [pipeline.grid_of(None, None)]
    cfg = pipeline.options(cfg, **decoding)
    for grid in grids:
        for count in sorted({batch_size_of(int(count)) for count in batch_sizes}):
            options = dict(cfg=cfg, grid=grid, batch_size=count)
            next(pipeline.batches(pipeline.conditioner.examples(count), **options, padded=True))
        for count in sorted({one_batch_of(int(count)) for count in batch_sizes}) if steps_shown else ():
            key, size = pipeline.request(count, 0, None, count, True)
            examples = pipeline.conditioner.examples(count)
            batch = next(batch_requests(examples, key, np.arange(count), size, pipeline.shard))
            next(_stream(pipeline, batch, cfg, grid, 1, "numpy"))


@jax.jit
def _without_masks(tokens_bl: jax.Array, mask_id: int) -> jax.Array:
    """Masked tokens take the code of the nearest revealed one before them, or of the first one.

    Code 0 if there is none.

    A tokenizer cannot decode a mask, and decodes revealed cells at the edge of a masked area together with these codes.
    """
    known_bl = tokens_bl != mask_id
    before_bl = jax.lax.cummax(jnp.where(known_bl, jnp.arange(tokens_bl.shape[1])[None], -1), axis=1)
    source_bl = jnp.where(before_bl < 0, jnp.argmax(known_bl, axis=1)[:, None], before_bl)
    filled_bl = jnp.take_along_axis(tokens_bl, source_bl, axis=1)
    return jnp.where(filled_bl == mask_id, 0, filled_bl)


def paint_masked(images_bhwc: np.ndarray, masked_bl: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The images with the cells of masked tokens in grey."""
    cell = images_bhwc.shape[1] // grid[0]
    masked_bhw = np.asarray(masked_bl).reshape(-1, *grid).repeat(cell, axis=1).repeat(cell, axis=2)
    return np.where(masked_bhw[..., None], np.uint8(GREY), images_bhwc)
