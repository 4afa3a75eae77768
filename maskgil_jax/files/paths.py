"""Folders that may lie in a bucket: "gs://bucket/folder" wherever a run writes, and where weights are read."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import pathlib
import shutil
import tempfile

from etils import epath

from maskgil_jax.config import require


def is_remote(path) -> bool:
    """Whether `path` is an address in a bucket, not a file of this machine."""
    return "://" in os.fspath(path)


def open_folder(path) -> epath.Path:
    """`path` as an object with the methods of `pathlib.Path`, local or in a bucket. Raises if buckets need an extra."""
    text = os.fspath(path)
    if is_remote(path):
        require(text.startswith("gs://"), f"{text}: expected a local path or gs://bucket/folder")
        installed = importlib.util.find_spec("gcsfs") or importlib.util.find_spec("tensorflow")
        require(installed is not None, f'{text}: buckets need an extra: pip install "maskgil_jax[gcs]"')
    return epath.Path(text)


class LineFile:
    """A text file that grows by lines. In a bucket, where nothing can be appended to, it is written whole again each time."""

    def __init__(self, path):
        self.file = open_folder(path)
        self.text = self.file.read_text() if is_remote(path) and self.file.exists() else ""

    def append(self, line: str) -> None:
        """Adds a line, which is there when this returns."""
        if is_remote(self.file):
            self.text += line + "\n"
            self.file.write_text(self.text)
        else:
            with self.file.open("a") as file:
                file.write(line + "\n")


def upload(folder: pathlib.Path, address) -> None:
    """Copies the files of a local folder into a bucket, `config.json` last: who reads it finds the rest in place."""
    target = open_folder(address)
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.iterdir(), key=lambda f: (f.name == "config.json", f.name)):
        (target / file.name).write_bytes(file.read_bytes())


def local_copy(address) -> pathlib.Path:
    """A weights folder of a bucket, one level of sub-folders included, on this machine until the process ends."""
    return pathlib.Path(_fetched(os.fspath(address)).name)


@functools.cache
def _fetched(address: str) -> tempfile.TemporaryDirectory:
    source, room = open_folder(address), tempfile.TemporaryDirectory(prefix="maskgil_jax_")
    for pattern in ("*.json", "*.safetensors", "*/*.json", "*/*.safetensors"):
        for file in source.glob(pattern):
            copy = pathlib.Path(room.name, *file.parts[len(source.parts) :])
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return room


def free_bytes(folder) -> float:
    """Free space where a folder lies or will lie; without end in a bucket."""
    if is_remote(folder):
        return math.inf
    path = pathlib.Path(folder).absolute()
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free


def size_text(count: float) -> str:
    """A number of bytes as people read it: "2.5 MB"."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
