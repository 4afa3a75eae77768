"""NumPy's .npz files: a zip of .npy records. Arrays stay on disk until asked for."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
from numpy.lib import format as npy

from .checkpoint import Checkpoint, Entry, MappedFile, Problem, sanitize
from .zip_archive import DEFLATED, STORED, Record, verify_crc

MAX_UNPACKED = 64 << 20  # bytes that an .npz may always unpack to ...
MAX_RATIO = 20  # ... and beyond that, how many times its own size; float weights hardly shrink
MAX_HEADER = 1 << 16  # bytes of a record in which its header must end


def open_npz(file: MappedFile, records: dict[str, Record]) -> tuple[Checkpoint, list[str]]:
    """Reads the headers of an .npz, of which `records` is the directory; compressed arrays are unpacked when indexed.

    Object arrays (which are pickles) and archives that unpack to far more than their own size are refused. Raises:
    Problem.
    """
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
            problems.append(f"{sanitize(name)}: {problem}")
    return Checkpoint(file.path, "npz", entries, [file], checksummed=True), problems


def _npy_entry(file: MappedFile, record: Record) -> Entry:
    if record.method not in (STORED, DEFLATED) or (record.method == STORED and record.packed != record.size):
        raise Problem("is packed in a way that numpy does not write")
    stored = record.method == STORED
    start = (
        bytes(file.bytes[record.start : record.start + min(record.packed, MAX_HEADER)]) if stored else record.unpack(MAX_HEADER)
    )
    head = io.BytesIO(start)
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
    except Exception:  # numpy parses the header as a Python literal; every error of it is one of the file
        raise Problem("has a damaged npy header") from None
    if dtype.hasobject:
        raise Problem("holds Python objects (a pickle), refused, since a pickle can run code")
    if dtype.kind not in "biufc":
        raise Problem(f"has type {sanitize(str(dtype))}, which is not a number")
    offset, count = head.tell(), math.prod(shape)
    if any(size < 0 for size in shape) or offset + count * dtype.itemsize != record.size:
        raise Problem(f"has shape {sanitize(shape)} and type {dtype}, but {record.size - offset} bytes")
    checked: list[bool] = []

    def read() -> np.ndarray:
        if record.method == DEFLATED:
            flat = np.frombuffer(record.unpack(record.size), dtype, count, offset)
        else:
            if not checked:
                verify_crc(file, record)
                checked.append(True)
            flat = file.array(dtype, count, record.start + offset)
        return flat.reshape(shape, order="F" if fortran else "C")

    return Entry(tuple(shape), dtype, read)
