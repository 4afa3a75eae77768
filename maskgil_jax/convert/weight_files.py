"""Weight files that hold nothing but arrays: safetensors and numpy's .npz. Arrays stay on disk until asked for."""

from __future__ import annotations

import io
import json
import math
import warnings
import zlib
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from .checkpoint import Checkpoint, Entry, MappedFile, Problem, shown, strip_all
from .zip_records import DEFLATED, STORED, Record, read_directory, verify_crc

MAX_JSON = 10 << 20  # bytes of a safetensors header or an index; enough for about 60 000 arrays
MAX_BRACKETS = 200_000  # lists and dicts in it, each costs memory
MAX_UNPACKED = 64 << 20  # bytes that an .npz may always unpack to ...
MAX_RATIO = 20  # ... and beyond that, how many times its own size; float weights hardly shrink
_PIECE = 1 << 20  # packed bytes given to zlib at a time

_SAFETENSORS_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
    "C64": "<c8",
}


def parse_json(raw: bytes, what: str) -> dict:
    """A JSON object from a file, of bounded size and depth, without doubled keys. Raises: Problem that begins with `what`."""
    if len(raw) > MAX_JSON:
        raise Problem(f"{what} has {len(raw)} bytes; at most {MAX_JSON >> 20} MB are accepted")
    if raw.count(b"[") + raw.count(b"{") > MAX_BRACKETS:
        raise Problem(f"{what} has more than {MAX_BRACKETS} lists")

    def once(pairs: list[tuple[str, Any]]) -> dict:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            double = next(name for name in names if names.count(name) > 1)
            raise Problem(f"{what} has the key {shown(double)} twice")
        return result

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=once)
    except RecursionError:
        raise Problem(f"{what} is nested too deep") from None
    except ValueError as error:
        raise Problem(f"{what} is not valid JSON ({shown(str(error))})") from None
    if not isinstance(value, dict):
        raise Problem(f"{what} is not a JSON object")
    return value


# ------------------------------------------------------------------------------------------------ safetensors
def open_safetensors(file: MappedFile) -> tuple[Checkpoint, list[str]]:
    """Checks the whole header against the file. Returns the checkpoint and the problems of single arrays. Raises: Problem.

    Source: the format description in the safetensors repository (8-byte header length, JSON header, one gapless buffer).
    """
    if file.size < 10:
        raise Problem(f"too short for a safetensors file ({file.size} bytes)")
    length = int.from_bytes(file.bytes[:8], "little")
    if length > MAX_JSON:
        raise Problem(f"its safetensors header claims {length} bytes; at most {MAX_JSON >> 20} MB are accepted")
    if 8 + length > file.size:
        raise Problem(f"its safetensors header claims {length} bytes, the file has {file.size}; the download may be cut short")
    header = parse_json(bytes(file.bytes[8 : 8 + length]), "its safetensors header")
    metadata = header.pop("__metadata__", {})
    start, entries, spans, problems = 8 + length, {}, [], []
    for name, about in header.items():
        try:
            begin, end, entry = _safetensors_entry(file, start, about)
        except Problem as problem:
            problems.append(f"{shown(name)}: {problem}")
            continue
        entries[name] = entry
        spans.append((begin, end, name))
    if not problems:
        spans.sort()
        reached = 0
        for begin, end, name in spans:
            if begin != reached:
                found = (
                    "overlaps the array before it" if begin < reached else f"leaves a gap of {begin - reached} bytes before it"
                )
                problems.append(f"{shown(name)}: {found}")
            reached = max(reached, end)
        if not problems and start + reached != file.size:
            problems.append(f"its arrays end at byte {start + reached}, the file at {file.size}; the download may be damaged")
    entries, twice = strip_all(entries)
    extras = metadata if isinstance(metadata, dict) else {}
    return Checkpoint(file.path, "safetensors", entries, [file], extras=extras), problems + twice


def _safetensors_entry(file: MappedFile, start: int, about: Any) -> tuple[int, int, Entry]:
    def whole(values: Any) -> bool:
        return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in values)

    if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
        raise Problem("its entry in the header needs exactly dtype, shape and data_offsets")
    kind, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if not isinstance(kind, str) or kind not in _SAFETENSORS_TYPES:
        raise Problem(f"has the unknown type {shown(repr(kind))}; known are {', '.join(_SAFETENSORS_TYPES)}")
    if not whole(shape) or len(shape) > 16:
        raise Problem("its shape is not a short list of whole numbers")
    if not whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Problem("its data_offsets are not two positions in order")
    begin, end = offsets
    dtype, count = np.dtype(_SAFETENSORS_TYPES[kind]), math.prod(shape)
    if end - begin != count * dtype.itemsize:
        raise Problem(f"has shape {tuple(shape)} and type {kind}, but {end - begin} bytes")
    if start + end > file.size:
        raise Problem(f"ends at byte {start + end}, the file at {file.size}; the download may be cut short")

    def read() -> np.ndarray:
        return file.array(dtype, count, start + begin).reshape(shape) if count else np.empty(shape, dtype)

    return begin, end, Entry(tuple(shape), dtype, read)


# ------------------------------------------------------------------------------------------------ npz
def open_npz(file: MappedFile, records: dict[str, Record] | None = None) -> tuple[Checkpoint, list[str]]:
    """Reads the headers of an .npz; compressed ones are unpacked array by array, when asked for. Raises: Problem.

    Object arrays (which are pickles) and archives that unpack to far more than their own size are refused.
    """
    records = read_directory(file) if records is None else records
    total = sum(record.size for record in records.values())
    if total > max(MAX_UNPACKED, MAX_RATIO * file.size):
        raise Problem(f"a file of {file.size} bytes that unpacks to {total}; real weights do not shrink that much")
    entries, problems = {}, []
    for name, record in records.items():
        try:
            if not name.endswith(".npy"):
                raise Problem("is not an array (.npy)")
            entries[name.removesuffix(".npy")] = _npy_entry(file, record)
        except Problem as problem:
            problems.append(f"{shown(name)}: {problem}")
    entries, twice = strip_all(entries)
    return Checkpoint(file.path, "npz", entries, [file], checksummed=True), problems + twice


def _npy_entry(file: MappedFile, record: Record) -> Entry:
    if record.method not in (STORED, DEFLATED) or (record.method == STORED and record.packed != record.size):
        raise Problem("is packed in a way that numpy does not write")
    head = io.BytesIO(_unpack(file, record, 1 << 16))
    try:
        version = npy.read_magic(head)
        if version not in ((1, 0), (2, 0)):
            raise Problem(f"has the unknown npy version {version}")
        reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shape, fortran, dtype = reader(head, max_header_size=10_000)
    except Problem:
        raise
    except Exception:  # numpy parses the header as a Python literal; whatever it complains of is the file's fault
        raise Problem("has a damaged npy header") from None
    if dtype.hasobject:
        raise Problem("holds Python objects (a pickle), refused, since a pickle can run code")
    if dtype.kind not in "biufc":
        raise Problem(f"has type {shown(str(dtype))}, which is not a number")
    offset, count = head.tell(), math.prod(shape)
    if any(size < 0 for size in shape) or offset + count * dtype.itemsize != record.size:
        raise Problem(f"has shape {shown(shape)} and type {dtype}, but {record.size - offset} bytes")
    checked: list[bool] = []

    def read() -> np.ndarray:
        if record.method == DEFLATED:
            flat = np.frombuffer(_unpack(file, record, record.size), dtype, count, offset)
        else:
            if not checked:
                verify_crc(file, record)
                checked.append(True)
            flat = file.array(dtype, count, record.start + offset)
        return flat.reshape(shape, order="F" if fortran else "C")

    return Entry(tuple(shape), dtype, read)


def _unpack(file: MappedFile, record: Record, limit: int) -> bytes:
    """The first `limit` bytes of a record. Asked for all, also checks the size and the CRC-32. Raises: Problem."""
    packed = file.bytes[record.start : record.start + record.packed]
    if record.method == STORED:
        return bytes(packed[:limit])
    engine, pieces, got = zlib.decompressobj(-15), [], 0
    try:
        for start in range(0, len(packed), _PIECE):
            pieces.append(engine.decompress(packed[start : start + _PIECE], limit + 1 - got))
            got += len(pieces[-1])
            if got > limit or engine.eof:
                break
            while engine.unconsumed_tail and got <= limit:
                pieces.append(engine.decompress(engine.unconsumed_tail, limit + 1 - got))
                got += len(pieces[-1])
    except zlib.error as error:
        raise Problem(f"cannot be unpacked ({shown(str(error))})") from None
    data = b"".join(pieces)
    if limit >= record.size and (len(data) != record.size or zlib.crc32(data) != record.crc):
        raise Problem(f"record {shown(record.name)} is corrupt (its size or CRC-32 does not match)")
    return data[:limit]
