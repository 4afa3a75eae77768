"""Pictures for people: contact sheets and captions, as uint8 (h, w, 3) arrays."""

from __future__ import annotations

import math

import numpy as np


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
    import os

    from PIL import Image

    part = f"{path}.part"
    Image.fromarray(image_hwc).save(part, format="PNG")
    os.replace(part, path)


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
