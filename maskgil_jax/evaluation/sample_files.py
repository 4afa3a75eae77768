"""Samples kept as files, written while they are measured: a folder of PNGs, an `.npz` (`arr_0`) or an `.array_record`."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from maskgil_jax.config import ConfigError
from maskgil_jax.evaluation.image_sets import ImageSet
from maskgil_jax.evaluation.npz_files import NpzWriter


class SampleFolder:
    """Writes images as they come by to PATH: a folder of PNGs, an `.npz` (`arr_0`) or an `.array_record` of PNGs.

    Files appear whole when the block ends well; on an error nothing is left. Use: `with SampleFolder(...) as out: out.add(b)`.
    """

    def __init__(self, path: str | os.PathLike, count: int, size: tuple[int, int]):
        self.path, self.count, self.size, self.seen = Path(path), count, size, 0
        if self.path.exists():
            raise ConfigError(f"{self.path}: is there already; give another place for the samples, or remove it")
        self.kind = self.path.suffix if self.path.suffix in (".npz", ".array_record") else ""
        self.part = self.path.with_name(f".{self.path.name}.part")

    def __enter__(self) -> SampleFolder:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._remove()
        if self.kind == ".npz":
            self.writer = NpzWriter(self.part, (self.count, *self.size, 3))
        elif self.kind:
            from array_record.python.array_record_module import ArrayRecordWriter

            self.writer = ArrayRecordWriter(str(self.part), "group_size:1,uncompressed")
        else:
            self.part.mkdir()
        return self

    def add(self, images_bhwc: np.ndarray) -> None:
        """Writes one batch."""
        if self.kind == ".npz":
            self.writer.add(images_bhwc)
        else:
            from PIL import Image

            for i, image in enumerate(images_bhwc, self.seen):
                file = io.BytesIO()
                Image.fromarray(image).save(file, format="PNG")
                if self.kind:
                    self.writer.write(file.getvalue())
                else:
                    (self.part / f"{i:06d}.png").write_bytes(file.getvalue())
        self.seen += len(images_bhwc)

    def __exit__(self, kind, error, trace) -> None:
        if self.kind:
            self.writer.close()
        if error is None and self.seen == self.count:
            os.replace(self.part, self.path)
        else:
            self._remove()

    def _remove(self) -> None:
        if self.part.is_dir():
            shutil.rmtree(self.part)
        else:
            self.part.unlink(missing_ok=True)


def saved(images: ImageSet, path: str | os.PathLike) -> ImageSet:
    """The same set, written to `path` while it is read."""

    def batches(rows: int) -> Iterator[np.ndarray]:
        with SampleFolder(path, images.count, images.size) as out:
            for batch in images.batches(rows):
                out.add(batch)
                yield batch

    SampleFolder(path, images.count, images.size)  # refuses a taken place before anything is drawn
    return dataclasses.replace(images, batches=batches, about={**images.about, "saved": os.fspath(path)})
