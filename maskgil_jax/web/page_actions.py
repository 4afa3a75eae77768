"""What the buttons of the page do: requests to the engine, and the pictures of each step as they come."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import html
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from maskgil_jax.conditioning.languages import language_name
from maskgil_jax.config import ConfigError
from maskgil_jax.web.engine import QueueFull, Stopping, TimedOut
from maskgil_jax.web.pictures import encode, image_and_hole

KEPT = 24  # pictures in the gallery of a visitor
FILES = 1000  # pictures to download, of all visitors together; gradio copies the ones it serves
VARIATIONS, STRENGTH = 4, 0.5
LEAST_SIDE = 256  # pixels of a shown picture's shorter side; smaller ones are enlarged for display


@dataclasses.dataclass(frozen=True)
class Shown:
    """A picture of the gallery."""

    image_hwc: np.ndarray
    caption: str
    seed: int
    prompt: str
    file: str


class PageActions:
    """The actions of one page. Each visitor's history is a list of `Shown`, the newest first."""

    def __init__(self, engine: Any, reader: Any, speech: Any = None):
        self.engine, self.reader, self.speech = engine, reader, speech
        self._files: collections.deque[str] = collections.deque()

    # -------------------------------------------------------------------------------------------- requests
    async def draw(self, text, negative, history, *settings) -> AsyncIterator[tuple]:
        """Draws what was typed."""
        async for shown in self._drawn({"prompt": text, "negative_prompt": negative or None}, history, settings):
            yield shown

    async def draw_heard(self, words, history, *settings) -> AsyncIterator[tuple]:
        """Draws what was heard, as it was edited."""
        if words and words.strip():
            async for shown in self._drawn({"prompt": words}, history, settings):
                yield shown
        else:
            yield self._said("Nothing was heard yet.", history)

    async def draw_class(self, name, history, *settings) -> AsyncIterator[tuple]:
        """Draws a class of the menu."""
        async for shown in self._drawn({"prompt": name or ""}, history, settings):
            yield shown

    async def again(self, history, *settings) -> AsyncIterator[tuple]:
        """Draws the last prompt with another seed."""
        if not history:
            yield self._said("There is no picture yet.", history)
            return
        async for shown in self._drawn({"prompt": history[0].prompt}, history, settings):
            yield shown

    async def vary(self, history, *settings) -> AsyncIterator[tuple]:
        """Draws variations of the last picture."""
        if not history:
            yield self._said("There is no picture yet.", history)
            return
        last = history[0]

        def change(asked):
            return self.reader.variation(asked, last.image_hwc, STRENGTH)

        height, width = last.image_hwc.shape[:2]
        fields = {"prompt": last.prompt, "n": min(VARIATIONS, self.reader.cfg.max_images), "size": f"{width}x{height}"}
        async for shown in self._drawn(fields, history, settings, change):
            yield shown

    async def edit(self, canvas, text, history, *settings) -> AsyncIterator[tuple]:
        """Draws the painted part of a picture anew."""
        if not canvas or canvas.get("background") is None:
            yield self._said("Load a picture first, or take the last one.", history)
            return
        fields = {"prompt": text}
        try:
            size = self.reader.size(settings[0])
            image_hwc, hole_hw = await asyncio.to_thread(_painted, canvas, size)
        except ConfigError:
            yield self._said("Paint over the part that shall be drawn anew.", history)
            return
        async for shown in self._drawn(fields, history, settings, lambda asked: self.reader.edit(asked, image_hwc, hole_hw)):
            yield shown

    async def hear(self, file, language) -> tuple:
        """(the English text, the badge, the state) of a recording."""
        import gradio as gr

        start = time.perf_counter()
        if not file:
            raise gr.Error("Nothing was recorded.", print_exception=False)
        try:
            heard = await asyncio.to_thread(self.speech.translate, _bytes_of(file), None if language == "detect" else language)
        except (ConfigError, QueueFull) as error:
            raise gr.Error(str(error).removeprefix("audio: ").capitalize(), title="Not heard", print_exception=False) from None
        badge = f"<span class='badge'>{html.escape(language_name(heard.language))} {heard.language_probability:.0%}</span> "
        badge += html.escape("; ".join(heard.warnings))
        return heard.text, badge, _status(f"heard {time.perf_counter() - start:.2f} s")

    # -------------------------------------------------------------------------------------------- the history
    def last_picture(self, history) -> Any:
        """The last picture, for the editor; enlarged, so that there is something to paint on."""
        return _enlarged(history[0].image_hwc, 512) if history else None

    def choose(self, history, index: int) -> tuple:
        """The picture that was chosen in the gallery: itself, its seed and its file."""
        chosen = history[index]
        return _enlarged(chosen.image_hwc), chosen.seed, chosen.file

    # -------------------------------------------------------------------------------------------- drawing
    async def _drawn(self, fields, history, settings, change=None) -> AsyncIterator[tuple]:
        """Yields (preview, state, gallery, history, seed, file) for every step, and for the result."""
        size, step_index, ar_ratio, count, seed, locked = settings
        seed = int(seed or 0) if locked else secrets.randbits(32)
        steps = self.reader.steps[int(step_index)] if self.reader.steps else None
        fields = {"size": size, "steps": steps, "ar_ratio": ar_ratio, "n": int(count), "seed": seed, **fields}
        loop, seen = asyncio.get_running_loop(), asyncio.Queue()

        def on_step(index: int, step: int, preview_hwc: np.ndarray) -> None:
            if index == 0:
                loop.call_soon_threadsafe(seen.put_nowait, (step, preview_hwc))

        start = time.perf_counter()
        try:
            asked = await asyncio.to_thread(self.reader.images, fields, True)
            asked = asked if change is None else change(asked)
            read = time.perf_counter() - start
            ticket = self.engine.submit(asked.drawings, on_step)
        except (ConfigError, QueueFull, Stopping) as error:
            yield self._said(str(error).removeprefix("prompt: ").capitalize() + ".", history, problem=True)
            return
        done = asyncio.wrap_future(ticket.future)
        done.add_done_callback(lambda _: seen.put_nowait(None))
        first = None
        try:
            while (entry := await seen.get()) is not None:
                first = first or time.perf_counter() - start
                waiting = _status(f"step {entry[0]} of {steps}", busy=True)
                yield _enlarged(entry[1]), waiting, _kept(), history, seed, _kept()
            pictures = await done
        except (TimedOut, ConfigError) as error:
            yield self._said(str(error).capitalize() + ".", history, problem=True)
            return
        finally:
            if not done.done():
                self.engine.cancel(ticket)
        made = [await asyncio.to_thread(self._shown, asked, picture) for picture in pictures]
        history = [*made, *history][:KEPT]
        seconds = pictures[0].seconds
        stages = [f"waited {seconds['waited']:.2f} s", f"encoded {read + seconds['encoded']:.2f} s"]
        stages += ([f"first preview {first:.2f} s"] if first else []) + [f"drawn {seconds['drawn']:.2f} s"]
        drawn_as = "" if asked.shown == asked.prompt else f"drawn as “{asked.shown}” · "
        images = [(_enlarged(shown.image_hwc), shown.caption) for shown in history]
        state = _status(drawn_as + " · ".join(stages))
        yield _enlarged(made[0].image_hwc), state, images, history, made[0].seed, made[0].file

    def _shown(self, asked, picture) -> Shown:
        about = self.reader.settings(asked, picture.drawing)
        with tempfile.NamedTemporaryFile(prefix=f"maskgil-{picture.drawing.seed}-", suffix=".png", delete=False) as file:
            file.write(encode(picture.image_hwc, about))
        self._files.append(file.name)
        while len(self._files) > FILES:
            with contextlib.suppress(OSError):
                os.unlink(self._files.popleft())
        caption = f"{asked.prompt[:40]} · seed {picture.drawing.seed}"
        return Shown(picture.image_hwc, caption, picture.drawing.seed, asked.prompt, file.name)

    @staticmethod
    def _said(text: str, history, problem: bool = False) -> tuple:
        return _kept(), _status(text, problem=problem), _kept(), history, _kept(), _kept()


def _kept() -> Any:
    """An output that stays as it is."""
    import gradio as gr

    return gr.skip()


def _status(text: str, busy: bool = False, problem: bool = False) -> str:
    role = "alert" if problem else "status"
    return f"<span class='stages' role='{role}' aria-busy='{str(busy).lower()}'>{html.escape(text)}</span>"


def _enlarged(image_hwc: np.ndarray, least: int = LEAST_SIDE) -> np.ndarray:
    """The image with every pixel repeated, so that small ones are shown sharp."""
    factor = max(1, -(-least // min(image_hwc.shape[:2])))
    return image_hwc.repeat(factor, axis=0).repeat(factor, axis=1)


def _painted(canvas: dict, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(image, hole) of what the editor gives: the hole is where something was painted."""
    from PIL import Image

    background = canvas["background"].convert("RGB")
    alpha_hw = np.zeros(background.size[::-1], np.uint8)
    for layer in canvas.get("layers") or []:
        painted_hw = np.asarray(layer.convert("RGBA").resize(background.size))[..., 3]
        alpha_hw = np.maximum(alpha_hw, painted_hw)
    return image_and_hole(background, Image.fromarray(np.where(alpha_hw > 64, np.uint8(255), np.uint8(0))), size)


def _bytes_of(file: str) -> bytes:
    with open(file, "rb") as recording:
        return recording.read()
