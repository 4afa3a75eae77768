"""The table of contents of a zip file, checked strictly: where each record's bytes lie, without unpacking anything.

Stricter than a general unpacker on purpose: a weight file has no reason for doubled names, paths that leave the folder,
encryption, records that overlap, or local headers that disagree with the central directory.
Source: PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12, 4.3.14-16 and 4.5.3.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
import zlib

from .checkpoint import MappedFile, Problem, shown

MAX_RECORDS = 100_000
STORED, DEFLATED = 0, 8

_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CHUNK = 16 << 20


@dataclasses.dataclass(frozen=True)
class Record:
    """One file inside a zip. `start` is the position of its bytes, `packed` their number, `size` the number once unpacked."""

    name: str
    start: int
    packed: int
    size: int
    method: int
    crc: int

    def require_stored(self) -> None:
        """Raises Problem if the record is compressed: torch.save never does that, and a small file could unpack to anything."""
        if self.method != STORED or self.packed != self.size:
            raise Problem(
                f"record {shown(self.name)} is compressed ({self.packed} -> {self.size} bytes); torch.save never does that"
            )


def verify_crc(file: MappedFile, record: Record) -> None:
    """Reads a stored record once and compares its CRC-32. Raises: Problem if a bit has changed."""
    file.will_read(record.start, record.packed)
    crc = 0
    for start in range(record.start, record.start + record.packed, _CHUNK):
        crc = zlib.crc32(file.bytes[start : min(start + _CHUNK, record.start + record.packed)], crc)
    if crc != record.crc:
        raise Problem(f"record {shown(record.name)} is corrupt (CRC-32 does not match); download the file again")


def read_directory(file: MappedFile) -> dict[str, Record]:
    """Name -> Record, in the order of the directory. Raises: Problem for anything a whole, honest zip file does not have."""
    start, size, count = _find_directory(file)
    if count > MAX_RECORDS:
        raise Problem(f"a zip file with {count} records; at most {MAX_RECORDS} are accepted")
    table, position = file.bytes[start : start + size], 0
    records: dict[str, Record] = {}
    spans = []
    for _ in range(count):
        if position + 46 > size or table[position : position + 4] != b"PK\x01\x02":
            raise Problem("the table of contents of the zip file is damaged")
        flags, method, crc, packed, full, name_size, extra_size, note_size, header = struct.unpack(
            "<8xHH4xLLLHHH8xL", table[position : position + 46]
        )
        raw = bytes(table[position + 46 : position + 46 + name_size])
        extra = bytes(table[position + 46 + name_size : position + 46 + name_size + extra_size])
        position += 46 + name_size + extra_size + note_size
        name = _checked_name(raw)
        if name in records:
            raise Problem(f"record {shown(name)} is in the zip file twice")
        if flags & 1:
            raise Problem(f"record {shown(name)} is encrypted")
        full, packed, header = _wide_sizes(name, extra, full, packed, header)
        data = _data_start(file, name, raw, method, header, start)
        if data + packed > start:
            raise Problem(f"record {shown(name)} reaches past the end of the data; the file may be cut short")
        records[name] = Record(name, data, packed, full, method, crc)
        spans.append((header, data + packed, name))
    if position != size:
        raise Problem(f"the table of contents of the zip file has {size} bytes, its {count} records take {position}")
    spans.sort()
    for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
        if begin < end:
            raise Problem(f"records {shown(first)} and {shown(second)} overlap in the zip file")
    return records


def _find_directory(file: MappedFile) -> tuple[int, int, int]:
    """(start, size, number of records) of the central directory, from the end record (its 64-bit form if there is one)."""
    tail_start = max(0, file.size - 22 - 65535)
    tail = bytes(file.bytes[tail_start:])
    at = tail.rfind(_END)
    while at >= 0 and not (at + 22 <= len(tail) and at + 22 + int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail)):
        at = tail.rfind(_END, 0, at)
    if at < 0:
        raise Problem(f"not a whole zip file; the download may be cut short ({file.size} bytes are here)")
    disk, first_disk, here, count, size, start = struct.unpack("<4H2L", tail[at + 4 : at + 20])
    end = tail_start + at
    if end >= 20 and file.bytes[end - 20 : end - 16] == _LOCATOR64:
        end64 = struct.unpack("<Q", file.bytes[end - 12 : end - 4])[0]
        if end64 + 56 > file.size or file.bytes[end64 : end64 + 4] != _END64:
            raise Problem("the 64-bit end record of the zip file is damaged")
        disk, first_disk, here, count, size, start = struct.unpack("<LLQQQQ", file.bytes[end64 + 16 : end64 + 56])
        end = end64
    if disk or first_disk or here != count:
        raise Problem("a zip file in several parts; join them first")
    if start + size > end:
        raise Problem("the table of contents of the zip file lies outside the file; the download may be cut short")
    return start, size, count


def _checked_name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Problem(f"a record of the zip file has an unreadable name {shown(repr(raw))}") from None
    if not name or name.startswith("/") or "\\" in name or ":" in name or "\0" in name or ".." in name.split("/"):
        raise Problem(f"record {shown(name)} has an unsafe name (it could lead out of the folder)")
    return name


def _wide_sizes(name: str, extra: bytes, *values: int) -> list[int]:
    """(full size, packed size, header position), each taken from the 64-bit extra field where the 32-bit one is all ones."""
    wide = b""
    while len(extra) >= 4:
        tag, size = struct.unpack("<HH", extra[:4])
        if tag == 1:
            wide = extra[4 : 4 + size]
        extra = extra[4 + size :]
    result = []
    for value in values:
        if value == 0xFFFFFFFF:
            if len(wide) < 8:
                raise Problem(f"record {shown(name)} has no 64-bit size although it needs one")
            value, wide = struct.unpack("<Q", wide[:8])[0], wide[8:]
        result.append(value)
    return result


def _data_start(file: MappedFile, name: str, raw: bytes, method: int, header: int, limit: int) -> int:
    """Where the record's bytes begin, from its local header, which must tell the same name and method."""
    if header + 30 > limit or file.bytes[header : header + 4] != b"PK\x03\x04":
        raise Problem(f"record {shown(name)} does not begin where the table of contents says")
    local_method, name_size, extra_size = struct.unpack("<H16xHH", file.bytes[header + 8 : header + 30])
    if local_method != method or file.bytes[header + 30 : header + 30 + name_size] != raw:
        raise Problem(f"record {shown(name)} is described in two different ways in the zip file")
    return header + 30 + name_size + extra_size
