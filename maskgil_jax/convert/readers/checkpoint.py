"""`Checkpoint`, the result of every reader: named arrays that stay on disk until indexed.

`BadWeightFile`, the error.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

_LISTED = 20  # problems spelled out in one error; a wrong file can have thousands
_CHUNK = 1 << 22  # elements looked at together by `check_finite`, so that its masks stay small
_READERS = 8  # threads of `Checkpoint.verify`
_RELEASE_EVERY = 256 << 20  # bytes read by `Checkpoint.verify` before the mapped pages are given back


class Problem(Exception):
    """One problem of a file, a sentence without the file's name. `BadWeightFile` collects them."""


class BadWeightFile(ValueError):
    """A weight file was refused. The first line of the message names the file and the first problem.

    path: the file or folder. problems: every problem found, each one sentence that names the key or record it is about.
    """

    def __init__(self, path: str | os.PathLike, problems: Iterable[str]):
        self.path = os.fspath(path)
        self.problems = tuple(problems)
        text = f"{sanitize(self.path, 300)}: {self.problems[0]}"
        if len(self.problems) > 1:
            text += f" (and {len(self.problems) - 1} more)"
            text += "".join(f"\n  {problem}" for problem in self.problems[1:_LISTED])
        super().__init__(text)


def sanitize(text: Any, limit: int = 100) -> str:
    """`text` from a file as one line for a terminal: unprintable characters replaced, at most `limit` characters."""
    text = str(text[: limit + 1] if isinstance(text, str) else text)
    text = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of a file. `read` returns it (a read-only view where the format allows) or raises `Problem`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


class MappedFile:
    """A regular file mapped read-only into memory. The file must not shrink while it is mapped."""

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        with open(self.path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.bytes = memoryview(self.map)

    def array(self, dtype: np.dtype, count: int, start: int) -> np.ndarray:
        """`count` elements from byte `start` on, as a read-only 1-D view; nothing is read yet."""
        return np.frombuffer(self.map, dtype=dtype, count=count, offset=start)

    def will_read(self, start: int, size: int) -> None:
        """Asks the system to read ahead: these bytes come next (madvise WILLNEED)."""
        if hasattr(mmap, "MADV_WILLNEED") and size:
            first = start - start % mmap.PAGESIZE
            self.map.madvise(mmap.MADV_WILLNEED, first, start + size - first)

    def release(self) -> None:
        """Frees the pages that were read (madvise DONTNEED); views stay valid and are read again when used."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)


class Checkpoint(Mapping[str, np.ndarray]):
    """Named arrays of a weight file, read when indexed: `checkpoint["norm.weight"]` is a read-only numpy array.

    path: the file or folder. format: how it is stored, e.g. "torch zip". container: the outer key whose weights these
    are, or "bare" if the names are at the top level. containers: every outer key that holds weights.
    ignored: outer key -> what it was, for everything that was left out (optimizer states, callbacks, argparse.Namespace
    ...).
    extras: plain values outside the weights (numbers, texts, lists, dicts), also those inside a skipped Namespace.
    checksummed: True if the format has checksums; then each array's bytes are compared when they are first read.
    wrappers: wrapper prefix that was stripped from the names -> number of names (`strip_wrappers`).
    """

    def __init__(
        self,
        path: str | os.PathLike,
        format: str,
        entries: dict[str, Entry],
        files: Iterable[MappedFile] = (),
        container: str = "bare",
        containers: tuple[str, ...] = (),
        ignored: dict[str, str] | None = None,
        extras: dict[str, Any] | None = None,
        checksummed: bool = False,
        wrappers: Mapping[str, int] | None = None,
    ):
        self.path = os.fspath(path)
        self.format = format
        self.entries = entries
        self.container = container
        self.containers = containers or (container,)
        self.ignored = ignored or {}
        self.extras = extras or {}
        self.checksummed = checksummed
        self.files = tuple(files)
        self.wrappers = dict(wrappers or {})

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        try:
            return entry.read()
        except Problem as problem:
            raise BadWeightFile(self.path, [f"{sanitize(name)}: {problem}"]) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"<{self.format} checkpoint {self.path!r}: {len(self)} arrays in {self.container!r}, {self.nbytes} bytes>"

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one array, without reading it."""
        return self.entries[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Type of one array, without reading it."""
        return self.entries[name].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together, without reading them."""
        return sum(entry.nbytes for entry in self.entries.values())

    def verify(self, finite: bool = False) -> None:
        """Reads every array (checksums are compared on the way); with `finite` also refuses NaN and infinity.

        Several threads: `zlib.crc32` is slower than a fast disk and releases the GIL.
        Raises: BadWeightFile with all problems of the file together.
        """

        def problem_of(item: tuple[str, Entry]) -> str | None:
            name, entry = item
            try:
                array = entry.read()
                return check_finite(name, array) if finite else None
            except Problem as problem:
                return f"{sanitize(name)}: {problem}"

        problems, since = [], 0
        with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
            for entry, problem in zip(self.entries.values(), pool.map(problem_of, self.entries.items()), strict=True):
                if problem:
                    problems.append(problem)
                since += entry.nbytes
                if since > _RELEASE_EVERY:
                    self.release()
                    since = 0
        if problems:
            raise BadWeightFile(self.path, problems)

    def release(self) -> None:
        """Frees the memory of what was read so far; arrays that were returned stay valid."""
        for file in self.files:
            file.release()


def check_finite(name: str, array: np.ndarray) -> str | None:
    """A sentence such as "layers.3.qkv holds 12 NaN and 0 infinite values", or None if all values are finite."""
    if array.dtype.kind in "biu":
        return None
    flat = array.ravel(order="K")  # order K: a transposed view is read in memory order, without a copy
    nans = infinite = 0
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        if not np.isfinite(part).all():
            nans += int(np.isnan(part).sum())
            infinite += int(np.isinf(part).sum())
    return f"{sanitize(name)} holds {nans} NaN and {infinite} infinite values" if nans or infinite else None


# What torch.compile, FSDP (two versions) and activation checkpointing insert in front of a module's names, at any
# depth.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module)\.")
_DATA_PARALLEL = "module."  # what DataParallel and DistributedDataParallel put in front of all names


def strip_wrappers(name: str) -> tuple[str, list[str]]:
    """The name without what training wrappers added to it, and what was removed, e.g. ("a", ["_orig_mod.",
    "module."])."""
    removed = [f"{wrapper}." for wrapper in _WRAPPERS.findall(name)]
    name = _WRAPPERS.sub("", name)
    while name.startswith(_DATA_PARALLEL):
        name = name.removeprefix(_DATA_PARALLEL)
        removed.append(_DATA_PARALLEL)
    return name, removed


def strip_all(checkpoint: Checkpoint) -> list[str]:
    """Strips the wrappers from the names of `checkpoint`.

    Returns a problem for each name that two entries would share.
    """
    stripped, origin, problems = {}, {}, []
    counts: Counter[str] = Counter()
    for name, entry in checkpoint.entries.items():
        short, removed = strip_wrappers(name)
        counts.update(set(removed))
        if short in stripped:
            problems.append(f"{sanitize(origin[short])} and {sanitize(name)} are the same name once prefixes are stripped")
        stripped[short], origin[short] = entry, name
    checkpoint.entries, checkpoint.wrappers = stripped, dict(counts)
    return problems
