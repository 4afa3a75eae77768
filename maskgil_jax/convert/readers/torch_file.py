"""The two containers PyTorch writes, read without torch: zip archives (since 1.6) and the older sequence of pickles.

Both give a tree of dicts whose leaves are `Tensor`s (descriptions; their bytes stay on disk), plain values, and
`Opaque` placeholders for every object that only code could rebuild.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from .checkpoint import Entry, MappedFile, Problem, sanitize
from .pickle_reader import MAX_BYTES, Global, Opaque, describe, interpret
from .zip_archive import Record, verify_crc

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_DIMENSIONS = 16
BARE_PICKLE = "not a torch checkpoint (a bare pickle), refused, since a pickle can run code; save the weights with torch.save"

# torch's names on the left; "untyped" storages count bytes and the tensor brings its own type.
_STORAGE_TYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    "_UntypedStorage": "uint8",
}
_SMALL_FLOATS = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_DTYPES = {name: np.dtype(getattr(ml_dtypes, name)) for name in _SMALL_FLOATS} | {
    name: np.dtype(name).newbyteorder("<")
    for name in "float64 float32 float16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool complex64 complex128".split()
}


@dataclasses.dataclass
class Storage:
    """A run of bytes that tensors are views of.

    `problem`: why it cannot be used; `start` is -1 until its place is known.
    """

    key: str
    dtype: np.dtype
    nbytes: int
    start: int = -1
    record: Record | None = None
    problem: str | None = None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor as the file describes it, not yet checked."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any
    dtype: Any  # a Global such as "torch.float8_e4m3fn", or None for the storage's own type


@dataclasses.dataclass(frozen=True)
class Archive:
    """An opened file: the unpickled tree, the bytes, and the records whose CRC-32 was compared already."""

    file: MappedFile
    tree: Any
    format: str
    checksummed: bool
    verified: set[str] = dataclasses.field(default_factory=set)

    def entry(self, tensor: Tensor) -> Entry:
        """The tensor as an array, checked to lie inside its storage. Raises: Problem."""
        storage = tensor.storage
        if not isinstance(storage, Storage):
            raise Problem("a tensor without a storage")
        if storage.problem:
            raise Problem(storage.problem)
        dtype = storage.dtype if tensor.dtype is None else _dtype_of(tensor.dtype)
        shape, stride = _checked_layout(tensor)
        available, count = storage.nbytes // dtype.itemsize, math.prod(shape)
        last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if count else -1
        if count > available or tensor.offset + last >= available:
            raise Problem(
                f"tensor of shape {sanitize(shape)}, stride {sanitize(stride)} and offset {sanitize(tensor.offset)} "
                f"reaches outside its storage of {available} values"
            )
        return Entry(shape, dtype, functools.partial(self._view, storage, dtype, tensor.offset, shape, stride))

    def _view(self, storage: Storage, dtype: np.dtype, offset: int, shape: tuple, stride: tuple) -> np.ndarray:
        record = storage.record
        if self.checksummed and record is not None and record.name not in self.verified:
            verify_crc(self.file, record)
            self.verified.add(record.name)
        if 0 in shape:
            return np.empty(shape, dtype)
        step = dtype.itemsize
        steps = tuple(s * step for s in stride)
        return np.ndarray(shape, dtype, self.file.map, storage.start + offset * step, steps)  # read-only, as the map is


def open_zip(file: MappedFile, records: dict[str, Record]) -> Archive:
    """Reads the index of a zip checkpoint whose directory is `records`. Raises: Problem."""
    indexes = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(indexes) != 1:
        raise Problem("a zip file, but not one that torch.save wrote (it has no data.pkl)")
    root = indexes[0].removesuffix("data.pkl")
    if root + "constants.pkl" in records or any(name.startswith(root + "code/") for name in records):
        raise Problem("a TorchScript archive, which holds code; save the model's state_dict() instead")
    index = records[indexes[0]]
    index.require_stored()
    if index.size > MAX_BYTES:
        raise Problem(
            f"record {sanitize(index.name)} has {index.size} bytes; an index of weights has at most {MAX_BYTES >> 20} MB"
        )
    # torch.save has an option to leave out the checksums, which torch.load does not compare; then all of them are zero.
    checksummed = any(record.crc for record in records.values())
    if checksummed:
        verify_crc(file, index)
    order = records.get(root + "byteorder")
    if order is not None and bytes(file.bytes[order.start : order.start + order.packed]) != b"little":
        raise Problem("written on a big-endian machine; save it again on an ordinary one")

    def storage(identity: Any) -> Storage:
        found = _storage_of(identity)
        record = records.get(f"{root}data/{found.key}")
        if found.problem:
            return found
        if record is None:
            found.problem = f"record data/{sanitize(found.key)} is missing"
            return found
        try:
            record.require_stored()
        except Problem as problem:
            found.problem = str(problem)
        if record.size != found.nbytes and found.problem is None:
            found.problem = f"record {sanitize(record.name)} holds {record.size} bytes, its index says {found.nbytes}"
        found.start, found.record = record.start, record
        return found

    tree, _ = interpret(file.bytes[index.start : index.start + index.size], _CALLS, storage)
    return Archive(file, tree, "torch zip", checksummed)


def open_legacy(file: MappedFile) -> Archive:
    """Reads the index of a checkpoint in the layout before PyTorch 1.6, which has no checksums. Raises: Problem."""
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Any:
        if type(identity) is tuple and len(identity) >= 2 and identity[0] == "module":
            return Opaque(describe(identity[1]))  # the class of a whole pickled model, followed by its source code
        found = _storage_of(identity)
        return found if found.problem else storages.setdefault(found.key, found)

    position, values = 0, []
    for step in range(5):
        try:
            value, position = interpret(file.bytes, _CALLS, storage, position)
        except Problem:
            if step:
                raise
            value = None
        if step == 0 and value != LEGACY_MAGIC:
            raise Problem(BARE_PICKLE)
        values.append(value)
    _, _, system, tree, keys = values
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise Problem("written on a big-endian machine; save it again on an ordinary one")
    if type(keys) is not list or any(type(key) is not str for key in keys) or len(set(keys)) != len(keys):
        raise Problem("its list of storages is damaged")
    for key in keys:
        if key not in storages:
            raise Problem(f"storage {sanitize(key)} is in its list, but no tensor uses it")
        found = storages[key]
        count = int.from_bytes(file.bytes[position : position + 8], "little", signed=True)
        if count * found.dtype.itemsize != found.nbytes:
            raise Problem(
                f"storage {sanitize(key)} holds {count} values, its index says {found.nbytes // found.dtype.itemsize}"
            )
        found.start = position + 8
        position = found.start + found.nbytes
        if position > file.size:
            raise Problem(
                f"storage {sanitize(key)} ends behind the file; the download may be cut short ({file.size} bytes are here)"
            )
    for found in storages.values():
        if found.start < 0:
            found.problem = f"storage {sanitize(found.key)} has no data"
    return Archive(file, tree, "torch legacy", False)


def _storage_of(identity: Any) -> Storage:
    """The storage that a persistent id ("storage", type, key, device, number of values) describes,
    or one with a problem."""

    def bad(why: str) -> Storage:
        return Storage("", np.dtype("uint8"), 0, problem=why)

    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        return bad("a reference in its pickle that is not to a storage")
    _, kind, key, _, count = identity[:5]
    if type(key) is not str or not 0 < len(key) <= 64:
        return bad("a storage without a name")
    if type(count) is not int or not 0 <= count < 1 << 48:
        return bad(f"storage {sanitize(key)} claims {sanitize(describe(count) if type(count) is not int else count)} values")
    if len(identity) == 6 and identity[5] is not None:
        return bad(f"storage {sanitize(key)} is a view of another, as PyTorch before 0.4 wrote; save it again with a newer one")
    name = kind.name if isinstance(kind, Global) else ""
    if not name.startswith("torch.") or name.rpartition(".")[2] not in _STORAGE_TYPES:
        return bad(f"storage {sanitize(key)} has the unknown type {describe(kind)}")
    dtype = _DTYPES[_STORAGE_TYPES[name.rpartition(".")[2]]]
    return Storage(key, dtype, count * dtype.itemsize)


def _dtype_of(named: Any) -> np.dtype:
    name = named.name if isinstance(named, Global) else ""
    if not name.startswith("torch.") or name[6:] not in _DTYPES:
        raise Problem(f"a tensor of the unsupported type {describe(named)}")
    return _DTYPES[name[6:]]


def _checked_layout(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape, stride = tensor.shape, tensor.stride
    if type(shape) not in (tuple, list) or type(stride) not in (tuple, list) or len(shape) != len(stride):
        raise Problem("a tensor whose shape and stride are not two lists of the same length")
    if len(shape) > MAX_DIMENSIONS:
        raise Problem(f"a tensor with {len(shape)} dimensions; at most {MAX_DIMENSIONS} are accepted")
    for what, values in (("shape", shape), ("stride", stride), ("offset", (tensor.offset,))):
        for value in values:
            if type(value) is not int or not 0 <= value < 1 << 48:
                raise Problem(
                    f"a tensor with the impossible {what} {sanitize(value if type(value) is int else describe(value))}"
                )
    return tuple(shape), tuple(stride)


def _rebuild_v2(arguments: tuple) -> Any:
    """torch._utils._rebuild_tensor and _v2: (storage, offset, shape, stride, ...)."""
    if len(arguments) < 4:
        return Opaque("tensor with too few arguments")
    storage, offset, shape, stride = arguments[:4]
    return Tensor(storage, offset, shape, stride, None)


def _rebuild_v3(arguments: tuple) -> Any:
    """torch._utils._rebuild_tensor_v3: as v2, with the type after requires_grad and hooks."""
    if len(arguments) < 7:
        return Opaque("tensor with too few arguments")
    storage, offset, shape, stride, _, _, dtype = arguments[:7]
    return Tensor(storage, offset, shape, stride, dtype)


def _rebuild_typed(arguments: tuple) -> Any:
    """torch._tensor._rebuild_from_type_v2: (function, class, arguments, state); a tensor that carries attributes."""
    if len(arguments) == 4 and isinstance(arguments[0], Global) and type(arguments[2]) is tuple:
        kind, rule = arguments[1], _CALLS.get(arguments[0].name)
        if (
            rule not in (None, _rebuild_typed)
            and isinstance(kind, Global)
            and kind.name in ("torch.Tensor", "torch.nn.parameter.Parameter")
        ):
            return rule(arguments[2])
    return Opaque(f"tensor of class {describe(arguments[1]) if len(arguments) > 1 else 'unknown'}")


def _parameter(arguments: tuple) -> Any:
    """torch._utils._rebuild_parameter: (tensor, requires_grad, hooks)."""
    return arguments[0] if arguments else Opaque("empty parameter")


_CALLS: dict[str, Callable[[tuple], Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_v2,
    "torch._utils._rebuild_tensor_v2": _rebuild_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_typed,
}
