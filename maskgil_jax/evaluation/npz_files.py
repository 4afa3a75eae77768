"""The .npz files of the field, read without trust and without loading them: ADM sample batches are 10 GB.

An `.npz` is a zip of `.npy` members; their headers are plain text, and an object array (pickle) is refused by its header.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def npz_headers(path: str | os.PathLike) -> dict[str, tuple[tuple[int, ...], np.dtype, bool]]:
    """{key: (shape, dtype, in Fortran order)} of every array of the file, from the headers alone.

    Raises a `ValueError` naming the file if it is not an npz, is cut short, or holds pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy"): _header(archive, name, path) for name in archive.namelist()}
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npz file ({error})") from None


def _header(archive: zipfile.ZipFile, name: str, path):
    with archive.open(name) as member:
        return _read_header(member, f"{path}: {name}")


def _read_header(member, where: str):
    try:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
    except ValueError as error:
        raise ValueError(f"{where}: not an array ({str(error).splitlines()[0]})") from None
    if dtype.hasobject:
        raise ValueError(f"{where}: holds pickled Python objects, which are never loaded; save plain arrays")
    return shape, dtype, fortran


def load_array(path: str | os.PathLike, key: str) -> np.ndarray:
    """One whole array of an npz, by key. Raises a `ValueError` naming the file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path}: {key} cannot be read ({str(error).splitlines()[0]})") from None


class NpzImages:
    """`arr_0` of an ADM sample file: uint8 (n, h, w, 3), or (n, h, w) and (n, h, w, 1) whose grey is copied to three channels.

    Read from the zip a batch at a time. Raises a `ValueError` naming the file, the keys found and what was expected.
    """

    def __init__(self, path: str | os.PathLike):
        self.path, headers = Path(path), npz_headers(path)
        if "arr_0" not in headers:
            raise ValueError(f"{path}: has the keys {_keys(headers)}, expected the images as arr_0 (the ADM layout)")
        self.shape, dtype, fortran = headers["arr_0"]
        said = f"{path}: arr_0 is {dtype} {self.shape}"
        if len(self.shape) == 4 and self.shape[1] == 3 and self.shape[3] != 3:
            raise ValueError(f"{said}: channels come first; save it as (n, height, width, 3)")
        if len(self.shape) not in (3, 4) or (len(self.shape) == 4 and self.shape[3] not in (1, 3)) or 0 in self.shape:
            raise ValueError(f"{said}: expected (n, height, width, 3), with at least one image")
        if dtype != np.uint8:
            raise ValueError(f"{said}: expected uint8; floats in [-1, 1] become it by clip(127.5 * x + 127.5, 0, 255).round()")
        if fortran:
            raise ValueError(f"{said}, in Fortran order: save np.ascontiguousarray of it")
        self.count, self.size = self.shape[0], (self.shape[1], self.shape[2])
        self.channels = self.shape[3] if len(self.shape) == 4 else 1

    def batches(self, rows: int, count: int | None = None) -> Iterator[np.ndarray]:
        """uint8 (rows, h, w, 3) of the first `count` images, the last batch shorter."""
        image_bytes, left = self.size[0] * self.size[1] * self.channels, min(count or self.count, self.count)
        with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as member:
            _read_header(member, str(self.path))
            while left:
                take = min(rows, left)
                try:
                    data = member.read(take * image_bytes)
                except (zipfile.BadZipFile, EOFError, OSError) as error:
                    raise ValueError(f"{self.path}: arr_0 is damaged ({error})") from None
                if len(data) != take * image_bytes:
                    raise ValueError(f"{self.path}: arr_0 ends after {self.count - left} of {self.count} images")
                images = np.frombuffer(data, np.uint8).reshape(take, *self.size, self.channels)
                yield np.repeat(images, 3, axis=3) if self.channels == 1 else images
                left -= take


class NpzWriter:
    """Writes `arr_0` (uint8, of a known shape) to an npz a batch at a time."""

    def __init__(self, path: str | os.PathLike, shape: tuple[int, ...]):
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._member = self._archive.open("arr_0.npy", "w", force_zip64=True)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._member, header)

    def add(self, images_bhwc: np.ndarray) -> None:
        """Appends a batch."""
        self._member.write(np.ascontiguousarray(images_bhwc).tobytes())

    def close(self) -> None:
        """Ends the file."""
        self._member.close()
        self._archive.close()


def read_note(path: str | os.PathLike, key: str) -> dict:
    """A JSON object that was saved as a text array. Raises a `ValueError` naming the file."""
    try:
        value = json.loads(str(load_array(path, key)[()]))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {key} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {key} is not a JSON object")
    return value


def _keys(headers: dict) -> str:
    return ", ".join(sorted(headers)) or "(none)"
