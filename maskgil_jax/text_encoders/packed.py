"""Matrices in 4 bits: how the encoder that the package brings along is stored, and read back as floats.

A matrix (rows, columns) is cut into groups of 32 columns. A group has one scale in float16, and each value is a whole
number from -8 to 7 times the scale. The file holds, instead of the tensor NAME, NAME.codes: uint8 (rows, columns / 2),
the value of an even column plus 8 in the low half of a byte and its right neighbour's in the high half; and
NAME.scales: float16 (rows, columns / 32). Vectors are stored as they are. `config.json` says {"packing": "int4 groups
of 32"}.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maskgil_jax.config import require
from maskgil_jax.text_encoders.folder import Stored, nested

PACKING = "int4 groups of 32"
GROUP = 32
CODES, SCALES = ".codes", ".scales"
_SHARES = np.linspace(0.75, 1.1, 15)  # of the scale at which the largest value of a group is exact


def pack(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes, scales) of a float matrix; of 15 scales for each group, the one with the least squared error."""
    rows, columns = matrix.shape
    require(columns % GROUP == 0, f"pack: {columns} columns are not a multiple of {GROUP}")
    values = matrix.astype(np.float32).reshape(rows, columns // GROUP, GROUP)
    extreme = np.take_along_axis(values, np.abs(values).argmax(axis=-1, keepdims=True), axis=-1)
    best = np.full(extreme.shape, np.inf, np.float32)
    scales, codes = np.zeros_like(extreme), np.zeros(values.shape, np.int8)
    for share in _SHARES:
        scale = (extreme / -8 * share).astype(np.float16).astype(np.float32)  # the extreme value becomes -8: that side has more
        code = np.clip(np.round(values / np.where(scale == 0, 1, scale)), -8, 7)
        error = np.square(code * scale - values).sum(axis=-1, keepdims=True)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, scale, scales)
        codes = np.where(better, code.astype(np.int8), codes)
    halves = (codes.reshape(rows, columns) + 8).astype(np.uint8)
    return halves[:, ::2] | halves[:, 1::2] << 4, scales[..., 0].astype(np.float16)


def unpack(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The float32 matrix of `pack`'s result."""
    rows, columns = codes.shape[0], 2 * codes.shape[1]
    halves = np.stack([codes & 15, codes >> 4], axis=-1).reshape(rows, columns // GROUP, GROUP).astype(np.float32) - 8
    return (halves * scales[..., None].astype(np.float32)).reshape(rows, columns)


def is_packed(values: Mapping[str, Any]) -> bool:
    """Whether a folder's `config.json` says that its matrices are packed."""
    return values.get("packing") == PACKING


def packed_shapes(folder: Path, stored: Mapping[str, Stored]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors as floats, for what the file holds. Raises: ConfigError, one line."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in stored.items():
        if name.endswith(CODES):
            bare, (rows, half) = name.removesuffix(CODES), tensor.shape
            scales = stored.get(bare + SCALES)
            fits = scales is not None and math.prod(scales.shape) * GROUP == rows * half * 2
            require(fits, f"{folder}: {bare + SCALES} is missing or does not fit {name}; install the package again")
            shapes[bare] = (rows, 2 * half)
        elif not name.endswith(SCALES):
            shapes[name] = tensor.shape
    return shapes


def read_packed(
    stored: Mapping[str, Stored], names: Mapping[str, str], dtype: str, put: Callable[[str, np.ndarray], Any]
) -> dict:
    """As `folder.read_params`, for packed matrices."""
    from safetensors import safe_open

    leaves = {}
    for path, name in names.items():
        bare = name in stored
        with safe_open(stored[name if bare else name + CODES].file, "numpy") as file:
            value = file.get_tensor(name) if bare else unpack(file.get_tensor(name + CODES), file.get_tensor(name + SCALES))
        leaves[path] = put(path, value.astype(np.dtype(dtype), copy=False))
    return nested(leaves)
