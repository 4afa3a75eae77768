"""Pictures for people: contact sheets and captions, as uint8 (h, w, 3) arrays."""

from __future__ import annotations

import math
import os

import numpy as np

from maskgil_jax.atomic import writing


def grid_of(images_bhwc: np.ndarray, *, columns: int | None = None, gap: int = 2, background: int = 255) -> np.ndarray:
    """A contact sheet of equally large uint8 images, row by row; about square unless `columns` is given."""
    b, h, w, _ = images_bhwc.shape
    columns = min(columns or math.ceil(math.sqrt(b)), b)
    rows = math.ceil(b / columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), background, np.uint8)
    for i, image in enumerate(images_bhwc):
        top, left = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        sheet[top : top + h, left : left + w] = image
    return sheet


def save_png(path, image_hwc: np.ndarray) -> None:
    """Writes a PNG, whole or not at all."""
    _save(path, [image_hwc], format="PNG")


def save_webp(path, image_hwc: np.ndarray) -> None:
    """Writes a lossless WebP, whole or not at all."""
    _save(path, [image_hwc], format="WEBP", lossless=True)


def png_bytes(image_hwc: np.ndarray) -> bytes:
    """What a PNG file of the image holds."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image_hwc).save(buffer, format="PNG")
    return buffer.getvalue()


def save_animation(path, frames_thwc: np.ndarray, *, seconds: float = 0.4, last: float = 1.5) -> None:
    """Writes frames as an endless GIF or lossless WebP, by the name's ending; each is shown `seconds`, the last one `last`."""
    kind = {".gif": "GIF", ".webp": "WEBP"}.get(os.path.splitext(path)[1].lower())
    if kind is None:
        raise ValueError(f"{path}: animations are .gif or .webp")
    durations = [round(1000 * seconds)] * (len(frames_thwc) - 1) + [round(1000 * last)]
    _save(path, frames_thwc, format=kind, duration=durations, loop=0, **({"lossless": True} if kind == "WEBP" else {}))


def _save(path, frames, **options) -> None:
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in frames)
    if rest:
        options |= {"save_all": True, "append_images": rest}
    with writing(path) as part:
        first.save(part, **options)


def curves(runs: dict) -> np.ndarray:
    """The logged losses of some runs, side by side: {name: folder with metrics.jsonl} -> picture."""
    import json
    import pathlib

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(runs), 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(runs), squeeze=False)
    for axis, (name, folder) in zip(axes[0], runs.items(), strict=True):
        lines = [json.loads(line) for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()]
        for metric in (m for m in lines[0] if m.endswith("loss")) if lines else ():
            logged = [line for line in lines if metric in line]  # figures of samples stand in lines of their own
            axis.plot([line["step"] for line in logged], [line[metric] for line in logged], label=metric)
        axis.set(title=name, xlabel="step", ylabel="loss")
        axis.grid(alpha=0.3)
        axis.legend()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
