"""Writes a safetensors file piece by piece, so that a network never has to be in memory as a whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping

import numpy as np

_NAMES = {"float32": "F32", "float16": "F16"}


def write_safetensors(path: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]], dtype: str, pieces: Iterable) -> None:
    """Writes arrays of `shapes`, all of one `dtype`, whose values come as `pieces`: arrays in the order of `shapes`, each of
    which may come in several pieces along its first axis. Raises: ValueError if they do not add up.
    """
    size, header, end = np.dtype(dtype).itemsize, {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * size
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8, as readers that map the file like it
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        begin = file.tell()
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, np.dtype(dtype).newbyteorder("<")).data)
        if file.tell() - begin != end:
            raise ValueError(f"{path}: {file.tell() - begin} bytes of arrays, expected {end}")
        file.flush()
        os.fsync(file.fileno())
