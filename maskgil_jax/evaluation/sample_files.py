"""Samples kept as files, written while they are measured: a folder of PNGs, an `.npz` (`arr_0`) or an `.array_record`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from maskgil_jax.config import ConfigError
from maskgil_jax.evaluation.image_sets import ImageSet
from maskgil_jax.evaluation.npz_files import NpzWriter
from maskgil_jax.files.atomic import clear, writing


@contextlib.contextmanager
def sample_files(path: str | os.PathLike, count: int, size: tuple[int, int]) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that takes uint8 batches (b, h, w, 3), `count` images in all; the path's ending says the kind.

    What is written appears under `path` when the block ends well and nothing is left when it does not.
    """
    path = Path(path)
    clear(path.parent, path.name)  # it may be large
    open_writer = {".npz": _npz, ".array_record": _records}.get(path.suffix, _folder)
    with writing(path) as part, open_writer(part, (count, *size, 3)) as add:
        yield add


def saved(images: ImageSet, path: str | os.PathLike) -> ImageSet:
    """The same set, written to `path` while it is read. Raises a `ConfigError` if something is there already."""
    if Path(path).exists():
        raise ConfigError(f"{path}: is there already; give another place for the samples, or remove it")

    def batches(rows: int) -> Iterator[np.ndarray]:
        with sample_files(path, images.count, images.size) as add:
            for batch in images.batches(rows):
                add(batch)
                yield batch

    return dataclasses.replace(images, batches=batches, about={**images.about, "saved": os.fspath(path)})


@contextlib.contextmanager
def _npz(part: Path, shape: tuple[int, ...]):
    writer = NpzWriter(part, shape)
    try:
        yield writer.add
    finally:
        writer.close()


@contextlib.contextmanager
def _records(part: Path, shape: tuple[int, ...]):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(part), "group_size:1,uncompressed")  # PNGs do not compress

    def add(images_bhwc: np.ndarray) -> None:
        for image in images_bhwc:
            writer.write(_png(image))

    try:
        yield add
    finally:
        writer.close()


@contextlib.contextmanager
def _folder(part: Path, shape: tuple[int, ...]):
    part.mkdir()
    seen = 0

    def add(images_bhwc: np.ndarray) -> None:
        nonlocal seen
        for image in images_bhwc:
            (part / f"{seen:06d}.png").write_bytes(_png(image))
            seen += 1

    yield add


def _png(image_hwc: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image_hwc).save(file, format="PNG")
    return file.getvalue()
