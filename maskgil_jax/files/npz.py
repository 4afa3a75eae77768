"""Reads and writes `.npz` files of images batch by batch: ADM's sample batches are 10 GB and never fit in memory.

An `.npz` is a zip of `.npy` members whose headers are plain text. Object arrays (pickle) are refused by their header.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

# What `zipfile` and NumPy raise for damaged files; an unknown compression and a password are the last two.
_DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, EOFError, OSError, KeyError, ValueError, OverflowError)
_DAMAGE += (struct.error, zlib.error, MemoryError, NotImplementedError, RuntimeError)


def npz_headers(path: str | os.PathLike) -> dict[str, tuple[tuple[int, ...], np.dtype, bool]]:
    """{key: (shape, dtype, in Fortran order)} of every array of the file, from the headers alone.

    Raises a `ValueError` that names the file if it is not an npz, is truncated, or holds pickled objects.
    """
    with _reading(path, "not a readable .npz file"), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy"): _header(archive, name, path) for name in archive.namelist()}


@contextlib.contextmanager
def _reading(path, what: str) -> Iterator[None]:
    """Turns the many exceptions of damaged zip files and arrays into a `ValueError` of one line."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        if isinstance(error, ValueError) and reason.startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: {what} ({reason[:160] or type(error).__name__})") from None


def _header(archive: zipfile.ZipFile, name: str, path):
    with archive.open(name) as member:
        return _read_header(member, f"{path}: {name}")


def _read_header(member, where: str):
    try:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
    except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError) as error:
        raise ValueError(f"{where}: not an array ({' '.join(str(error).split())[:160]})") from None
    if any(side < 0 for side in shape):
        raise ValueError(f"{where}: has the impossible shape {shape}")
    if dtype.hasobject:
        raise ValueError(f"{where}: holds pickled Python objects, which are never loaded; save plain arrays")
    return shape, dtype, fortran


def load_array(path: str | os.PathLike, key: str) -> np.ndarray:
    """Loads one array of an npz. Raises a `ValueError` that names the file."""
    with _reading(path, f"{key} cannot be read"), np.load(path, allow_pickle=False) as arrays:
        return arrays[key]


def load_json(path: str | os.PathLike, key: str) -> dict:
    """Loads a JSON object that was saved as a text array. Raises a `ValueError` that names the file."""
    try:
        value = json.loads(str(load_array(path, key)[()]))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {key} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {key} is not a JSON object")
    return value


class NpzImages:
    """The images of an ADM sample file: `arr_0`, uint8 (n, h, w, 3), or grey (n, h, w) and (n, h, w, 1).

    Grey is copied to three channels. `labels` are the classes in `arr_1` (n,), None without it. Raises a `ValueError`
    that names the file, the keys found and what was expected.
    """

    def __init__(self, path: str | os.PathLike):
        self.path, headers = Path(path), npz_headers(path)
        if "arr_0" not in headers:
            keys = ", ".join(sorted(headers)) or "(none)"
            raise ValueError(f"{path}: has the keys {keys}, expected the images as arr_0 (the ADM layout)")
        self.shape, dtype, fortran = headers["arr_0"]
        found = f"{path}: arr_0 is {dtype} {self.shape}"
        if len(self.shape) == 4 and self.shape[1] == 3 and self.shape[3] != 3:
            raise ValueError(f"{found}: channels come first; save it as (n, height, width, 3)")
        if len(self.shape) not in (3, 4) or (len(self.shape) == 4 and self.shape[3] not in (1, 3)) or 0 in self.shape:
            raise ValueError(f"{found}: expected (n, height, width, 3), with at least one image")
        if dtype != np.uint8:
            raise ValueError(f"{found}: expected uint8; convert floats in [-1, 1] by clip(127.5 * x + 127.5, 0, 255).round()")
        if fortran:
            raise ValueError(f"{found}, in Fortran order: save np.ascontiguousarray of it")
        self.count, self.size = self.shape[0], (self.shape[1], self.shape[2])
        self.channels = self.shape[3] if len(self.shape) == 4 else 1
        shape, dtype, _ = headers.get("arr_1", ((), np.dtype(float), False))
        has_labels = shape == (self.count,) and np.issubdtype(dtype, np.integer)
        self.labels = load_array(path, "arr_1").astype(np.int32) if has_labels else None

    def batches(self, rows: int, count: int | None = None) -> Iterator[np.ndarray]:
        """Yields uint8 (rows, h, w, 3) of the first `count` images; the last batch may be shorter."""
        image_bytes, left = self.size[0] * self.size[1] * self.channels, min(count or self.count, self.count)
        with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as member:
            _read_header(member, str(self.path))
            while left:
                take = min(rows, left)
                with _reading(self.path, "arr_0 is damaged"):
                    data = member.read(take * image_bytes)
                if len(data) != take * image_bytes:
                    raise ValueError(f"{self.path}: arr_0 ends after {self.count - left} of {self.count} images")
                images = np.frombuffer(data, np.uint8).reshape(take, *self.size, self.channels)
                yield np.repeat(images, 3, axis=3) if self.channels == 1 else images
                left -= take


@contextlib.contextmanager
def npz_writer(
    path: str | os.PathLike, shape: tuple[int, ...], labels: np.ndarray | None = None
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields `add(images)`, which appends uint8 batches to `arr_0` of the given shape; `labels` become `arr_1`, int64.

    The bytes of the file depend on the images alone: its members carry no time of writing.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)

            def add(images_bhwc: np.ndarray) -> None:
                member.write(np.ascontiguousarray(images_bhwc).tobytes())

            yield add
        if labels is not None:
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as member:
                np.lib.format.write_array(member, labels.astype(np.int64), allow_pickle=False)
