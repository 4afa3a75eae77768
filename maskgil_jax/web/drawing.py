"""One image that somebody asks the server for, and the program that draws a batch of them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.pipelines.canvas import on_canvas, tokens_of_sizes
from maskgil_jax.pipelines.streaming import paint_masked
from maskgil_jax.runtime.rng import keys_of_seeds
from maskgil_jax.tokenizers.images import to_pixels


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One image. request: a prompt, or a class number. cfg, grid, ar_ratio: as in a call of the pipeline.

    image_hwc, with mask_hw (true in the hole) or strength: an edit, `inpaint` or `vary`.
    """

    request: str | int
    seed: int
    cfg: Any
    grid: tuple[int, int]
    negative: str | None = None
    ar_ratio: float = 0.0
    image_hwc: np.ndarray | None = dataclasses.field(default=None, compare=False)
    mask_hw: np.ndarray | None = dataclasses.field(default=None, compare=False)
    strength: float | None = None

    @property
    def kind(self) -> str:
        if self.image_hwc is None:
            return "draw"
        return "inpaint" if self.strength is None else "vary"

    @property
    def program(self) -> tuple:
        """Images with the same value can share a batch, whatever the weights."""
        return self.grid, *self.settings

    @property
    def settings(self) -> tuple:
        """What images of several sizes must have in common to share a batch."""
        return self.kind, self.cfg, self.ar_ratio, self.negative is None, self.strength


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawn image. seconds: time per stage: waited, encoded, drawn."""

    image_hwc: np.ndarray
    drawing: Drawing
    seconds: dict[str, float]


class BatchDrawer:
    """Draws batches with a pipeline. Every image is, bit for bit, the one of a call for it alone.

    Tokens are drawn in batches of a few fixed sizes. Pixels are decoded image by image, by the program of a call for
    one image: convolutions of another batch size round differently.
    """

    def __init__(self, pipeline: Any, batch_sizes: Sequence[int], cached: int = 1024):
        devices = 1 if pipeline.mesh is None else pipeline.mesh.size
        self.pipeline = pipeline
        self.batch_sizes = tuple(sorted({-(-size // devices) * devices for size in batch_sizes}))
        self._conditions: dict[tuple, Any] = {}
        self._cached = cached

    def program(self, drawing: Drawing) -> tuple:
        """Images with the same value can share a batch: of one size, or of any that the canvas of the weights holds."""
        return (self.pipeline.canvas, *drawing.settings) if self._on_canvas(drawing) else drawing.program

    def _on_canvas(self, drawing: Drawing) -> bool:
        return drawing.kind == "draw" and on_canvas(self.pipeline, drawing.grid, drawing.cfg, drawing.ar_ratio)

    def largest(self, drawing: Drawing) -> int:
        """How many images of this kind a batch holds."""
        return self.batch_sizes[-1] if drawing.kind == "draw" else 1

    def can_show_steps(self, drawing: Drawing) -> bool:
        """Whether the tokens are known after every step."""
        return drawing.kind == "draw" and self.pipeline.masked and not drawing.ar_ratio

    def warm_up(self, drawings: Sequence[Drawing], progress: Callable[[str], Any] = lambda _: None) -> None:
        """Compiles the programs of these drawings for every batch size, with and without previews.

        Where drawings have one program, the later ones compile what decodes the pixels of their size.
        """
        compiled: set[tuple] = set()
        for drawing in drawings:
            if self.program(drawing) in compiled:
                progress(f"compiling pixels of {drawing.grid[0]}x{drawing.grid[1]} tokens")
                self._pixels(np.zeros(drawing.grid[0] * drawing.grid[1], np.int32), drawing.grid)
                continue
            compiled.add(self.program(drawing))
            shown = f"{drawing.grid[0]}x{drawing.grid[1]} tokens, {getattr(drawing.cfg, 'steps', 'causal')} steps"
            for size in self.batch_sizes if drawing.kind == "draw" else (1,):
                progress(f"compiling {shown}, batch size {size}")
                self.draw([drawing] * size)
                if self.can_show_steps(drawing):
                    self.draw([drawing] * size, on_step=lambda *_: None, watched=(0,))

    def draw(
        self,
        drawings: Sequence[Drawing],
        on_step: Callable[[int, int, np.ndarray], Any] | None = None,
        watched: Sequence[int] = (),
    ) -> list[Picture]:
        """Draws images of one program. on_step: called as (index, step, preview_hwc) for each index of `watched`."""
        first, start = drawings[0], time.perf_counter()
        conditions = [self._condition(drawing) for drawing in drawings]
        encoded = time.perf_counter()
        if first.kind == "draw":
            images = self._draw(drawings, conditions, on_step, watched)
        else:
            images = [self._edit(drawing, condition) for drawing, condition in zip(drawings, conditions, strict=True)]
        done = time.perf_counter()
        seconds = {"encoded": encoded - start, "drawn": done - encoded}
        return [Picture(image, drawing, seconds) for image, drawing in zip(images, drawings, strict=True)]

    def _condition(self, drawing: Drawing) -> Any:
        """The condition of one image, of batch size 1; kept, since the same words are often asked for again."""
        name = (drawing.request, drawing.negative, drawing.grid, drawing.ar_ratio)
        if name not in self._conditions:
            asked = {"labels" if isinstance(drawing.request, int) else "prompts": [drawing.request]}
            negative = None if drawing.negative is None else [drawing.negative]
            options = dict(grid=drawing.grid, ar_ratio=drawing.ar_ratio)
            made = self.pipeline.condition(**asked, negative_prompts=negative, **options)
            while len(self._conditions) >= self._cached:
                self._conditions.pop(next(iter(self._conditions)))
            self._conditions[name] = jax.device_get(made)
        return self._conditions[name]

    def _draw(self, drawings, conditions, on_step, watched) -> list[np.ndarray]:
        first, count, pipeline = drawings[0], len(drawings), self.pipeline
        size = next(size for size in self.batch_sizes if size >= count)
        rows = np.minimum(np.arange(size), count - 1)
        condition = jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate([leaves[i] for i in rows])), *conditions)
        key_b = keys_of_seeds([drawings[i].seed for i in rows])
        condition, key_b = pipeline.shard((condition, key_b))
        show = None
        if on_step is not None and self.can_show_steps(first):

            def show(step: int, tokens_bl: jax.Array) -> None:
                for index in watched if step < first.cfg.steps else ():
                    grid = drawings[index].grid
                    on_step(index, step, self._preview(np.asarray(tokens_bl[index])[: math.prod(grid)], grid))

        if self._on_canvas(first):
            grids_b = [drawings[i].grid for i in rows]
            tokens_bl = tokens_of_sizes(pipeline, condition, key_b, grids_b, first.cfg, on_step=show)
        else:
            options = dict(cfg=first.cfg, grid=first.grid, ar_ratio=first.ar_ratio, on_step=show)
            tokens_bl = pipeline.tokens(condition, key_b, **options)
        made_bl = np.asarray(jax.device_get(tokens_bl))
        return [self._pixels(made_bl[i, : math.prod(drawings[i].grid)], drawings[i].grid) for i in range(count)]

    def _pixels(self, tokens_l: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        return np.asarray(jax.device_get(to_pixels(self.pipeline.tokenizer, jnp.asarray(tokens_l[None]), grid)))[0]

    def _preview(self, tokens_l: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """The image so far: masked cells are grey; for the decoder they hold the code that is most frequent so far."""
        masked_l = tokens_l == self.pipeline.generator.cfg.mask_id
        known_l = tokens_l[~masked_l]
        filler = np.bincount(known_l).argmax() if len(known_l) else 0
        pixels_hwc = self._pixels(np.where(masked_l, filler, tokens_l).astype(tokens_l.dtype), grid)
        return paint_masked(pixels_hwc[None], masked_l[None], grid)[0]

    def _edit(self, drawing: Drawing, condition: Any) -> np.ndarray:
        options = dict(labels=condition, key=keys_of_seeds([drawing.seed]), cfg=drawing.cfg)
        assert drawing.image_hwc is not None
        if drawing.strength is not None:
            return self.pipeline.vary(drawing.image_hwc[None], strength=drawing.strength, **options)[0]
        assert drawing.mask_hw is not None
        return self.pipeline.inpaint(drawing.image_hwc[None], drawing.mask_hw[None], **options)[0]
