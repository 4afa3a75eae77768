"""Paths of files and folders, on local disks and in buckets ("gs://bucket/folder")."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from maskgil_jax.config import require


def is_remote(path) -> bool:
    """Whether `path` is an address in a bucket and not a local path."""
    return "://" in os.fspath(path)


def open_folder(path) -> epath.Path:
    """`path` as an object with the methods of `pathlib.Path`, local or in a bucket.

    Raises a ConfigError for another kind of address, or if the package that reads buckets is not installed.
    """
    text = os.fspath(path)
    if is_remote(path):
        require(text.startswith("gs://"), f"{text}: expected a local path or gs://bucket/folder")
        installed = importlib.util.find_spec("gcsfs") or importlib.util.find_spec("tensorflow")
        require(installed is not None, f'{text}: buckets need an extra: pip install "maskgil_jax[gcs]"')
    return epath.Path(text)


class LineFile:
    """A text file to which lines are appended. A bucket cannot append, so there the whole file is written each time."""

    def __init__(self, path):
        self.file = open_folder(path)
        self.text = self.file.read_text() if is_remote(path) and self.file.exists() else ""

    def append(self, line: str) -> None:
        """Adds a line and flushes it."""
        if is_remote(self.file):
            self.text += line + "\n"
            self.file.write_text(self.text)
        else:
            with self.file.open("a") as file:
                file.write(line + "\n")


def upload(folder: pathlib.Path, address) -> None:
    """Copies the files of a local folder into a bucket, `config.json` last,
    so that a reader of it finds all other files."""
    target = open_folder(address)
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.iterdir(), key=lambda f: (f.name == "config.json", f.name)):
        (target / file.name).write_bytes(file.read_bytes())


def local_copy(address) -> pathlib.Path:
    """Copies a weights folder of a bucket, with one level of sub-folders, to a temporary folder of this process."""
    return pathlib.Path(_fetched(os.fspath(address)).name)


@functools.cache
def _fetched(address: str) -> tempfile.TemporaryDirectory:
    source, target = open_folder(address), tempfile.TemporaryDirectory(prefix="maskgil_jax_")
    for pattern in ("*.json", "*.safetensors", "*/*.json", "*/*.safetensors"):
        for file in source.glob(pattern):
            copy = pathlib.Path(target.name, *file.parts[len(source.parts) :])
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return target


def free_bytes(folder) -> float:
    """Free bytes on the disk of a folder, which need not exist yet; infinite in a bucket."""
    if is_remote(folder):
        return math.inf
    path = pathlib.Path(folder).absolute()
    return shutil.disk_usage(next(parent for parent in (path, *path.parents) if parent.exists())).free


def size_text(count: float) -> str:
    """A number of bytes as text: "2.5 MB"."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def walk_files(folder: str | os.PathLike, _above: frozenset[str] = frozenset()) -> Iterator[pathlib.Path]:
    """Yields the files under a folder, sorted within each folder. Links to files and folders are followed.

    Hidden files and folders are left out, and so is a linked folder that contains itself.
    """
    real = os.path.realpath(folder)
    if real in _above:
        return
    for path in sorted(pathlib.Path(folder).iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from walk_files(path, _above | {real})
        else:
            yield path
