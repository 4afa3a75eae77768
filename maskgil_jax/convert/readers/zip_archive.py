"""The directory of a zip file, from Python's `zipfile`, with the checks that a weight file passes and a crafted file
may not.

`zipfile` accepts doubled names, paths that leave the folder, records that overlap, and a wrong number of records. All
of these are refused here. Records that are stored uncompressed are read through the memory map, at the position
computed here.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import struct
import zipfile
import zlib

from .checkpoint import MappedFile, Problem, sanitize

MAX_RECORDS = 100_000
MAX_DIRECTORY = 16 << 20  # bytes of the directory; `zipfile` holds it in memory, about six times over
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED

_CHUNK = 16 << 20
_LOCAL_HEADER = 30  # bytes, before the name
_END_RECORD = 22  # bytes, before the comment


@dataclasses.dataclass(frozen=True)
class Record:
    """One file inside a zip. start: position of its bytes. packed, size: their number as stored and once unpacked."""

    name: str
    start: int
    packed: int
    size: int
    method: int
    crc: int
    archive: zipfile.ZipFile = dataclasses.field(repr=False, compare=False)

    def require_stored(self) -> None:
        """Raises Problem if the record is compressed: torch.save never does that,
        and a small file could unpack to anything."""
        if self.method != STORED or self.packed != self.size:
            raise Problem(
                f"record {sanitize(self.name)} is compressed ({self.packed} -> {self.size} bytes); torch.save never does that"
            )

    def unpack(self, limit: int) -> bytes:
        """The first `limit` bytes; all of them are compared with the size and CRC-32 of the directory.

        Raises: Problem.
        """
        try:
            with self.archive.open(self.name) as opened:
                data = opened.read(limit)  # never without a limit: `zipfile` would unpack more than the directory says
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError):
            raise Problem(f"record {sanitize(self.name)} is corrupt (its size or CRC-32 does not match)") from None
        if len(data) != min(limit, self.size):
            raise Problem(f"record {sanitize(self.name)} is corrupt (its size or CRC-32 does not match)")
        return data


def verify_crc(file: MappedFile, record: Record) -> None:
    """Reads a stored record once and compares its CRC-32. Raises: Problem if a bit has changed."""
    file.will_read(record.start, record.packed)
    crc = 0
    for start in range(record.start, record.start + record.packed, _CHUNK):
        crc = zlib.crc32(file.bytes[start : min(start + _CHUNK, record.start + record.packed)], crc)
    if crc != record.crc:
        raise Problem(f"record {sanitize(record.name)} is corrupt (CRC-32 does not match); download the file again")


class _MappedReader(io.RawIOBase):
    """The file object that `zipfile` reads: the memory map, with a limit on one read until the directory is in
    memory."""

    def __init__(self, data: memoryview):
        self._data, self._position, self.limit = data, 0, MAX_DIRECTORY

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + (0, self._position, len(self._data))[whence]
        if position < 0:
            raise OSError("a position before the start of the file")
        self._position = position
        return position

    def read(self, size: int | None = -1) -> bytes:
        rest = max(0, len(self._data) - self._position)
        size = rest if size is None or size < 0 else min(size, rest)
        if size > self.limit:
            raise Problem(
                f"the table of contents of the zip file has {size} bytes; at most {MAX_DIRECTORY >> 20} MB are accepted"
            )
        self._position += size
        return bytes(self._data[self._position - size : self._position])


def read_directory(file: MappedFile) -> dict[str, Record]:
    """Name -> Record, in the order of the directory. Raises: Problem for a damaged or crafted zip file."""
    reader = _MappedReader(file.bytes)
    try:
        archive = zipfile.ZipFile(reader, metadata_encoding="utf-8")  # also where the UTF-8 flag is not set
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, OSError, struct.error) as error:
        if "not a zip file" in str(error):
            raise Problem(f"not a whole zip file; the download may be cut short ({file.size} bytes are here)") from None
        raise Problem(f"the table of contents of the zip file is damaged ({sanitize(str(error))})") from None
    infos = archive.infolist()
    _check_count(file, archive, len(infos))
    reader.limit = file.size
    records: dict[str, Record] = {}
    spans = []
    for info in infos:
        name = _checked_name(info)
        if name in records:
            raise Problem(f"record {sanitize(name)} is in the zip file twice")
        start = _data_start(file, info, archive.start_dir)
        if start + info.compress_size > archive.start_dir:
            raise Problem(f"record {sanitize(name)} reaches past the end of the data; the file may be cut short")
        records[name] = Record(name, start, info.compress_size, info.file_size, info.compress_type, info.CRC, archive)
        spans.append((info.header_offset, start + info.compress_size, name))
    spans.sort()
    for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
        if begin < end:
            raise Problem(f"records {sanitize(first)} and {sanitize(second)} overlap in the zip file")
    return records


def _check_count(file: MappedFile, archive: zipfile.ZipFile, count: int) -> None:
    """Compares the number of records with the end record, which `zipfile` does not. Raises: Problem."""
    end = file.size - _END_RECORD - len(archive.comment)
    if end < 0 or file.bytes[end : end + 4] != b"PK\x05\x06":
        raise Problem(f"not a whole zip file; there are bytes behind its end record ({file.size} bytes are here)")
    disk, first_disk, here, stated = struct.unpack("<4H", file.bytes[end + 4 : end + 12])
    if (disk, first_disk) not in ((0, 0), (0xFFFF, 0xFFFF)) or here != stated:
        raise Problem("a zip file in several parts; join them first")
    if stated not in (count, 0xFFFF):  # 0xFFFF: the number is in the 64-bit end record
        raise Problem(
            f"the table of contents of the zip file is damaged (it has {count} records, the end record says {stated})"
        )
    if count > MAX_RECORDS:
        raise Problem(f"a zip file with {count} records; at most {MAX_RECORDS} are accepted")


def _checked_name(info: zipfile.ZipInfo) -> str:
    name = info.orig_filename  # `filename` ends at a zero byte
    if not name or name.startswith("/") or "\\" in name or ":" in name or "\0" in name or ".." in name.split("/"):
        raise Problem(f"record {sanitize(name)} has an unsafe name (it could lead out of the folder)")
    if info.flag_bits & 1:
        raise Problem(f"record {sanitize(name)} is encrypted")
    if 0xFFFFFFFF in (info.file_size, info.compress_size, info.header_offset):
        raise Problem(f"record {sanitize(name)} has no 64-bit size although it needs one")
    return name


def _data_start(file: MappedFile, info: zipfile.ZipInfo, limit: int) -> int:
    """Where the record's bytes begin, from its local header, which must have the same name and method.

    Raises: Problem.
    """
    header = info.header_offset
    if not 0 <= header <= limit - _LOCAL_HEADER or file.bytes[header : header + 4] != b"PK\x03\x04":
        raise Problem(f"record {sanitize(info.orig_filename)} does not begin where the table of contents says")
    method, name_size, extra_size = struct.unpack("<H16xHH", file.bytes[header + 8 : header + _LOCAL_HEADER])
    raw = info.orig_filename.encode()
    start = header + _LOCAL_HEADER + name_size
    if method != info.compress_type or file.bytes[header + _LOCAL_HEADER : start] != raw:
        raise Problem(f"record {sanitize(info.orig_filename)} is described in two different ways in the zip file")
    return start + extra_size
