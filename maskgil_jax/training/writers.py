"""Where a run writes what it measures: TensorBoard event files, and the same numbers as JSON lines anybody can read.

`clu.metric_writers` would do, but imports TensorFlow; the method names are kept so that it can take this one's place.
"""

from __future__ import annotations

import json

import numpy as np
from etils import epath

from maskgil_jax.atomic import writing
from maskgil_jax.storage import LineFile, is_remote, open_folder


class MetricWriter:
    """Scalars go to `metrics.jsonl` and TensorBoard, images to `images/` as PNG and TensorBoard. Only process 0 writes."""

    def __init__(self, workdir, *, resume_step: int = 0, enabled: bool = True):
        self.enabled = enabled
        if not enabled:
            return
        from tensorboardX import SummaryWriter

        self.workdir = open_folder(workdir)
        _drop_after(self.workdir / "metrics.jsonl", resume_step)
        self.lines = LineFile(self.workdir / "metrics.jsonl")
        # purge_step hides what an interrupted run had logged beyond its last checkpoint
        self.events = SummaryWriter(str(self.workdir / "tensorboard"), purge_step=resume_step + 1 if resume_step else None)

    def write_scalars(self, step: int, scalars: dict) -> None:
        """One line, flushed at once, so that the log of a killed run is whole."""
        if not self.enabled:
            return
        values = {name: float(value) for name, value in scalars.items()}
        self.lines.append(json.dumps({"step": step, **values}))
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """uint8 (h, w, 3) pictures by name."""
        if not self.enabled:
            return
        from PIL import Image

        folder = self.workdir / "images"
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in images.items():
            with (folder / f"{name}_{step:07d}.png").open("wb") as file:
                Image.fromarray(image).save(file, "PNG")
            self.events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes the event file."""
        if self.enabled:
            self.events.close()


def _drop_after(file: epath.Path, step: int) -> None:
    """Keeps the lines up to `step`: an interrupted run goes on from its checkpoint and writes the later ones again."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):  # half a line, from a kill in the middle of a write
            continue
    if is_remote(file):
        file.write_text("".join(kept))
    else:
        with writing(file) as part:
            part.write_text("".join(kept))
