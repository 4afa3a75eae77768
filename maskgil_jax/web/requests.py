"""The fields of requests: checked one by one, before anything is drawn. A `ConfigError` names the field."""

from __future__ import annotations

import dataclasses
import math
import re
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

import maskgil_jax
from maskgil_jax.config import ConfigError, DecodeConfig, ServeConfig, choose, require
from maskgil_jax.pipelines.words import PromptReader
from maskgil_jax.web.drawing import Drawing

FORMATS = ("png", "webp", "jpeg")
# Fields that clients of the images API send, and that mean nothing here.
IGNORED = ("user", "quality", "style", "background", "moderation", "input_fidelity", "stream", "partial_images")
FIELDS = ("prompt", "model", "n", "size", "seed", "steps", "ar_ratio", "negative_prompt", "response_format",
          "output_format", "output_compression", "strength", *IGNORED)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ImageRequest:
    """A request for images, checked. shown: what is drawn, in words."""

    prompt: str
    shown: str
    drawings: tuple[Drawing, ...]
    size: tuple[int, int]
    output_format: str = "png"
    compression: int = 100


class RequestReader:
    """Turns the fields of requests into drawings of one pipeline."""

    def __init__(self, pipeline: Any, cfg: ServeConfig, model: str):
        self.pipeline, self.cfg, self.model = pipeline, cfg, model
        self.prompts = PromptReader(pipeline)
        self.sizes = allowed_sizes(pipeline, cfg)
        self.steps = allowed_steps(pipeline, cfg)
        self.ar_ratios = (0.0, *cfg.ar_ratios) if pipeline.ar is not None else (0.0,)

    def images(self, fields: Mapping[str, Any], nearest: bool = False) -> ImageRequest:
        """The request of /v1/images/generations. nearest: see `PromptReader.read`."""
        require(isinstance(fields, Mapping), "body: expected a JSON object")
        for name in fields:
            choose("field", name, FIELDS)
        model = fields.get("model")
        require(model in (None, self.model), f"model: {model!r:.80} is not served here; it is {self.model!r}")
        prompt = self._prompt(fields)
        request, shown = self.prompts.read(prompt, nearest)
        negative = self._text(fields, "negative_prompt", required=False)
        require(negative is None or not self.prompts.by_class, "negative_prompt: these weights draw classes, and take no text")
        require(fields.get("stream") in (None, False), "stream: is not supported; ask without it")
        response_format = fields.get("response_format") or "b64_json"
        require(response_format == "b64_json", "response_format: only 'b64_json'; no files are kept for URLs")
        size = self.size(fields.get("size"))
        ar_ratio = self._one_of(fields, "ar_ratio", self.ar_ratios, 0.0)
        steps = self._one_of(fields, "steps", self.steps, getattr(self.pipeline.cfg, "steps", None))
        options = dict(cfg=self.decoding(steps), grid=self.pipeline.grid_of(*size), negative=negative, ar_ratio=ar_ratio)
        count = self._whole(fields, "n", 1, self.cfg.max_images, 1)
        seed = self._whole(fields, "seed", 0, 2**32 - 1, None)
        seed = secrets.randbits(32) if seed is None else seed
        drawings = tuple(Drawing(request, (seed + i) % 2**32, **options) for i in range(count))
        output_format = choose("output_format", fields.get("output_format") or "png", FORMATS)
        compression = self._whole(fields, "output_compression", 0, 100, 100)
        return ImageRequest(prompt, shown, drawings, size, output_format, compression)

    def edit(self, asked: ImageRequest, image_hwc: np.ndarray, hole_hw: np.ndarray) -> ImageRequest:
        """The same request as an edit of an image, which has the request's size."""
        require(self.pipeline.masked, "image: these weights hold a causal generator; editing needs a masked one")
        edits = (dataclasses.replace(drawing, image_hwc=image_hwc, mask_hw=hole_hw) for drawing in asked.drawings)
        return dataclasses.replace(asked, drawings=tuple(edits))

    def variation(self, asked: ImageRequest, image_hwc: np.ndarray, strength: float) -> ImageRequest:
        """The same request as variations of an image: `strength` of its tokens are drawn anew."""
        require(self.pipeline.masked, "image: these weights hold a causal generator; variations need a masked one")
        edits = (dataclasses.replace(drawing, image_hwc=image_hwc, strength=strength) for drawing in asked.drawings)
        return dataclasses.replace(asked, drawings=tuple(edits))

    def settings(self, asked: ImageRequest, drawing: Drawing) -> dict[str, Any]:
        """What a file says about its image: enough to draw it again."""
        height, width = asked.size
        about = {"prompt": asked.prompt, "seed": drawing.seed, "model": self.model, "size": f"{width}x{height}"}
        about |= {"steps": getattr(drawing.cfg, "steps", None), "guidance": drawing.cfg.guidance, "kind": drawing.kind}
        optional = {"drawn": asked.shown, "negative_prompt": drawing.negative, "ar_ratio": drawing.ar_ratio or None}
        about |= {name: value for name, value in optional.items() if value not in (None, asked.prompt)}
        return {**about, "software": f"maskgil_jax {maskgil_jax.__version__}"}

    def decoding(self, steps: int | None) -> Any:
        """The stored decoding options with another number of steps."""
        cfg = self.pipeline.cfg
        return dataclasses.replace(cfg, steps=steps) if isinstance(cfg, DecodeConfig) and steps else cfg

    def size(self, text: Any) -> tuple[int, int]:
        """(height, width) of "WIDTHxHEIGHT", as the images API writes it; "auto" or nothing: the first allowed size."""
        if text in (None, "", "auto"):
            return self.sizes[0]
        allowed = {f"{width}x{height}": (height, width) for height, width in self.sizes}
        choose("size", text if isinstance(text, str) else repr(text)[:40], ("auto", *allowed))
        return allowed[text]

    def _prompt(self, fields: Mapping[str, Any]) -> str:
        prompt = self._text(fields, "prompt", required=True)
        require(bool(prompt and prompt.strip()), "prompt: is empty")
        return str(prompt)

    def _text(self, fields: Mapping[str, Any], name: str, *, required: bool) -> str | None:
        text = fields.get(name)
        if text is None and not required:
            return None
        if not isinstance(text, str):
            raise ConfigError(f"{name}: expected text, got {'nothing' if text is None else type(text).__name__}")
        most = self.cfg.max_prompt
        require(len(text) <= most, f"{name}: {len(text)} characters; at most {most} are read")
        require("\0" not in text, f"{name}: holds a null character")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{name}: is not valid Unicode text") from None
        return text

    @staticmethod
    def _whole(fields: Mapping[str, Any], name: str, low: int, high: int, default: int | None) -> Any:
        """A whole number; text of digits in forms."""
        value = fields.get(name)
        if value is None or value == "":
            return default
        if isinstance(value, str) and re.fullmatch(r"\d{1,12}", value):
            value = int(value)
        whole = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        require(whole, f"{name}: must be a whole number in {low}..{high}, got {repr(value)[:40]}")
        return value

    @staticmethod
    def _one_of(fields: Mapping[str, Any], name: str, allowed: tuple, default: Any) -> Any:
        """One of a few numbers: every other one would need a program of its own."""
        value = fields.get(name)
        if value is None or value == "":
            return default
        try:
            number = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError):
            number = math.nan
        found = next((choice for choice in allowed if choice == number), None)
        shown = ", ".join(map(str, allowed)) or "none"
        require(found is not None, f"{name}: must be one of {shown}, got {repr(value)[:40]}")
        return found


def allowed_sizes(pipeline: Any, cfg: ServeConfig) -> tuple[tuple[int, int], ...]:
    """(height, width) of the images that may be asked for, the default first."""
    if cfg.sizes:
        for size in cfg.sizes:
            pipeline.grid_of(*size)
        return cfg.sizes
    cell = pipeline.tokenizer.cfg.downsample
    height, width = (side * cell for side in pipeline.generator.cfg.grid)
    trained = (height, width)
    if getattr(pipeline.generator.cfg, "positions", None) != "2d" or height != width:
        return (trained,)
    cell *= getattr(pipeline.generator.cfg, "patch", 1)
    long = round(1.5 * height / cell) * cell
    return trained, (height, long), (long, width)


def allowed_steps(pipeline: Any, cfg: ServeConfig) -> tuple[int, ...]:
    """Decoding steps that may be asked for."""
    stored = getattr(pipeline.cfg, "steps", None)
    return () if stored is None else tuple(sorted({stored, *cfg.steps}))
