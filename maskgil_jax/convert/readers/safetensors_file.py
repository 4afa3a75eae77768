"""Safetensors files: an 8-byte header length, a JSON header, and one buffer without gaps.

Arrays stay on disk until asked for.

Source: the format description in the safetensors repository.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from .bounded_text import MAX_JSON, parse_json
from .checkpoint import Checkpoint, Entry, MappedFile, Problem, sanitize

# `safetensors.safe_open` is not used: it accepts headers of 100 MB, copies tensors instead of giving views of the
# mapped file, and raises at the first problem, mostly without the tensor's name. This reader reports all problems, each
# with its tensor.
_TYPES = {
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


def open_safetensors(file: MappedFile) -> tuple[Checkpoint, list[str]]:
    """Checks the header against the file. Returns the checkpoint and the problems of single arrays. Raises: Problem."""
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
            begin, end, entry = _entry(file, start, about)
        except Problem as problem:
            problems.append(f"{sanitize(name)}: {problem}")
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
                problems.append(f"{sanitize(name)}: {found}")
            reached = max(reached, end)
        if not problems and start + reached != file.size:
            problems.append(f"its arrays end at byte {start + reached}, the file at {file.size}; the download may be damaged")
    extras = metadata if isinstance(metadata, dict) else {}
    return Checkpoint(file.path, "safetensors", entries, [file], extras=extras), problems


def _entry(file: MappedFile, start: int, about: Any) -> tuple[int, int, Entry]:
    def whole_numbers(values: Any) -> bool:
        return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in values)

    if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
        raise Problem("its entry in the header needs exactly dtype, shape and data_offsets")
    kind, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise Problem(f"has the unknown type {sanitize(repr(kind))}; known are {', '.join(_TYPES)}")
    if not whole_numbers(shape) or len(shape) > 16:
        raise Problem("its shape is not a short list of whole numbers")
    if not whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Problem("its data_offsets are not two positions in order")
    begin, end = offsets
    dtype, count = np.dtype(_TYPES[kind]), math.prod(shape)
    if end - begin != count * dtype.itemsize:
        raise Problem(f"has shape {tuple(shape)} and type {kind}, but {end - begin} bytes")
    if start + end > file.size:
        raise Problem(f"ends at byte {start + end}, the file at {file.size}; the download may be cut short")

    def read() -> np.ndarray:
        return file.array(dtype, count, start + begin).reshape(shape) if count else np.empty(shape, dtype)

    return begin, end, Entry(tuple(shape), dtype, read)
