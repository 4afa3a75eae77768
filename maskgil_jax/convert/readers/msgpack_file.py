"""Flax's msgpack checkpoints (the published MaskGIT-JAX weights), parsed without unpacking: arrays stay on disk.

Flax stores a tree of maps whose leaves are extension type 1: an inner message (shape, dtype name, bytes). An array
above 1 GiB is a map with "__msgpack_chunked_array__", its shape, and flat chunks.
Source: the MessagePack specification and flax's documented serialization format.
"""

from __future__ import annotations

import functools
import math
import struct
from typing import Any

import ml_dtypes
import numpy as np

from .checkpoint import Checkpoint, Entry, MappedFile, Problem, sanitize

# `flax.serialization.msgpack_restore` and msgpack's `Unpacker` are not used. They do not report the position of an
# array's bytes in the file, so all arrays would be in memory at once. msgpack_restore also merges doubled names without
# an error.
MAX_VALUES = 500_000  # values in one file: numbers, names, arrays
MAX_DEPTH = 32
MAX_PATH = 512  # characters of a name with all its parents
MAX_TEXT = 1 << 16
CONTAINERS = ("ema_params", "params")  # first choice first; otherwise the tree itself

_NUMPY_TYPES = "float64 float32 float16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool complex64 complex128".split()
_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in _NUMPY_TYPES} | {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "V2": np.dtype(ml_dtypes.bfloat16),  # what numpy calls bfloat16 when it does not know it
}
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_SIZED = {0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4), 0xC7: ("ext", 1), 0xC8: ("ext", 2), 0xC9: ("ext", 4)}
_SIZED |= {0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4), 0xDC: ("array", 2), 0xDD: ("array", 4)}
_SIZED |= {0xDE: ("map", 2), 0xDF: ("map", 4)} | {0xD4 + i: (f"fixext{1 << i}", 0) for i in range(5)}
_SIMPLE = {0xC0: None, 0xC2: False, 0xC3: True}


class _Bytes:
    """The position of raw bytes in the file; they are not read."""

    def __init__(self, start: int, size: int):
        self.start, self.size = start, size


class _Parser:
    def __init__(self, file: MappedFile):
        self.file, self.position, self.values = file, 0, 0

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.file.bytes[self.skip(struct.calcsize(layout)) : self.position])[0]

    def skip(self, size: int) -> int:
        start = self.position
        if size > self.file.size - start:
            raise Problem("the msgpack data end too early; the download may be cut short")
        self.position = start + size
        return start

    def value(self, depth: int = 0) -> Any:
        self.values += 1
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            raise Problem(f"its msgpack data have more than {MAX_VALUES} values or {MAX_DEPTH} levels")
        code = self.number(">B")
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if code < 0x90:
            return self.map(code & 15, depth)
        if code < 0xA0:
            return [self.value(depth + 1) for _ in range(code & 15)]
        if code < 0xC0:
            return self.text(code & 31)
        if code in _SIMPLE:
            return _SIMPLE[code]
        if code in _NUMBERS:
            return self.number(_NUMBERS[code])
        if code not in _SIZED:
            raise Problem(f"byte {code:#x} at {self.position - 1} is not msgpack")
        kind, width = _SIZED[code]
        size = self.number({0: "", 1: ">B", 2: ">H", 4: ">I"}[width]) if width else int(kind[6:])
        if kind == "map":
            return self.map(size, depth)
        if kind == "array":
            return [self.value(depth + 1) for _ in range(size)]
        if kind == "str":
            return self.text(size)
        if kind == "bin":
            return _Bytes(self.skip(size), size)
        return self.extension(self.number(">b"), size, depth)

    def text(self, size: int) -> str:
        if size > MAX_TEXT:
            raise Problem(f"its msgpack data hold a text of {size} bytes")
        return str(self.file.bytes[self.skip(size) : self.position], "utf-8", "replace")

    def map(self, size: int, depth: int) -> dict:
        result = {}
        for _ in range(size):
            name = self.value(depth + 1)
            if type(name) is not str:
                raise Problem(f"its msgpack data use a {type(name).__name__} as a name")
            if name in result:
                raise Problem(f"its msgpack data have the name {sanitize(name)} twice in one map")
            result[name] = self.value(depth + 1)
        return result

    def extension(self, kind: int, size: int, depth: int) -> Any:
        end = self.position + size
        if kind not in (1, 3):  # 1: array, 3: numpy scalar, stored as an array without dimensions
            self.skip(size)
            return None
        inner = self.value(depth + 1)
        if self.position != end or type(inner) is not list or len(inner) != 3:
            raise Problem(f"the array that ends at byte {end} of its msgpack data is damaged")
        return _array(self.file, *inner)


def _array(file: MappedFile, shape: Any, kind: Any, data: Any) -> Entry | Problem:
    """The array, or its problem, which `_flatten` reports with the name of the array."""
    if type(shape) is not list or len(shape) > 16 or any(type(s) is not int or not 0 <= s < 1 << 48 for s in shape):
        return Problem("its shape is not a short list of whole numbers")
    if type(kind) is not str or kind not in _DTYPES:
        return Problem(f"has the unsupported type {sanitize(str(kind))}")
    dtype, count = _DTYPES[kind], math.prod(shape)
    if not isinstance(data, _Bytes) or data.size != count * dtype.itemsize:
        return Problem(f"has shape {tuple(shape)} and type {kind}, but {data.size if isinstance(data, _Bytes) else 'no'} bytes")

    def read() -> np.ndarray:
        return file.array(dtype, count, data.start).reshape(shape) if count else np.empty(shape, dtype)

    return Entry(tuple(shape), dtype, read)


def open_msgpack(file: MappedFile, container: str | None = None) -> tuple[Checkpoint, list[str]]:
    """Reads a flax msgpack file; nested names are joined with "/".

    Returns the checkpoint and its problems. Raises: Problem.
    """
    parser = _Parser(file)
    tree = parser.value()
    if parser.position != file.size:
        raise Problem(f"its msgpack data end at byte {parser.position}, the file at {file.size}")
    if type(tree) is not dict:
        raise Problem("its msgpack data are not a map of named arrays")
    containers = tuple(name for name in CONTAINERS if type(tree.get(name)) is dict) or ("bare",)
    if container is None:
        container = containers[0]
    if container != "bare" and type(tree.get(container)) is not dict:
        raise Problem(f"has no {sanitize(container)!r}; it holds {', '.join(sanitize(name) for name in tree)}")
    entries: dict[str, Entry] = {}
    extras: dict[str, Any] = {}
    problems: list[str] = []
    _flatten(tree if container == "bare" else tree[container], "", entries, extras, problems)
    ignored = {}
    for name, value in tree.items() if container != "bare" else ():
        if name != container and type(value) in (dict, list, Entry, Problem):
            ignored[name] = f"{type(value).__name__} outside the weights"
        elif name != container:
            extras[name] = value
    return Checkpoint(file.path, "flax msgpack", entries, [file], container, containers, ignored, extras), problems


def _flatten(tree: dict, prefix: str, entries: dict[str, Entry], extras: dict, problems: list[str]) -> None:
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if len(path) > MAX_PATH:
            raise Problem(f"its msgpack data hold a name of more than {MAX_PATH} characters")
        if type(value) is dict and "__msgpack_chunked_array__" in value:
            value = _joined(value)
        if type(value) is dict:
            _flatten(value, path + "/", entries, extras, problems)
        elif isinstance(value, Entry):
            entries[path] = value
        elif isinstance(value, Problem):
            problems.append(f"{sanitize(path)}: {value}")
        elif value is None or isinstance(value, (bool, int, float, str)):
            extras[path] = value
        else:
            problems.append(f"{sanitize(path)} is a list or raw bytes, not an array")


def _joined(parts: dict) -> Entry | Problem:
    """One array from its flat chunks, which are concatenated when it is read."""
    shape, chunks = parts.get("shape"), parts.get("chunks")
    if type(shape) is not dict or type(chunks) is not dict or not chunks:
        return Problem("its chunks are damaged")
    shape = tuple(shape.get(str(i)) for i in range(len(shape)))
    chunks = [chunks.get(str(i)) for i in range(len(chunks))]
    if any(type(s) is not int or s < 0 for s in shape) or any(not isinstance(c, Entry) for c in chunks):
        return Problem("its chunks are damaged")
    if len({c.dtype for c in chunks}) != 1 or sum(math.prod(c.shape) for c in chunks) != math.prod(shape):
        return Problem(f"has shape {sanitize(shape)}, but its chunks hold another number of values")
    return Entry(shape, chunks[0].dtype, functools.partial(_read_joined, chunks, shape))


def _read_joined(chunks: list[Entry], shape: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([chunk.read().reshape(-1) for chunk in chunks]).reshape(shape)
