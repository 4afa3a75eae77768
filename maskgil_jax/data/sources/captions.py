"""Images with captions: what their sources share.

A source has `len(s)`, `s[i] -> {"image": uint8 (h, w, 3), "captions": tuple of str, "id": str}`, `s.name`. Those that
know their files also have `s.fingerprint` (identity of the image names), `s.content_hash` (of images and captions) and
`s.content(start, stop)` (of the images in between). `DrawCaption` draws one caption a record, by the random key of the
record's position in the stream.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from maskgil_jax.config import CaptionConfig, require

MAX_UNREADABLE = 100  # unreadable images in a row that mean that the whole source is gone
NAMED = 5  # of each kind of problem, in a log line
DIGEST_BYTES = 16
BLOCK = 8192  # bytes hashed at the beginning, in the middle and at the end of an image file

_log = logging.getLogger(__name__)


class DrawCaption(grain.transforms.RandomMap):
    """Draws record["caption"], a str, out of record["captions"]."""

    def random_map(self, element: dict, rng: np.random.Generator) -> dict:
        captions = element["captions"]
        require(len(captions) > 0, f"{element.get('id')}: has no caption")
        rest = {name: value for name, value in element.items() if name != "captions"}
        return {**rest, "caption": captions[int(rng.integers(len(captions)))]}


class LeftOut:
    """What a source leaves out: {kind of problem: names}, counted and named in one log line."""

    def __init__(self):
        self.names: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        self.names.setdefault(kind, []).append(name)

    def __bool__(self) -> bool:
        return bool(self.names)

    def __str__(self) -> str:
        return "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
            for kind, names in self.names.items()
        )


def caption_values(value: object, fields: Sequence[str]) -> Iterator[object]:
    """The single captions in a string, a list, or an object whose fields hold either; other values come as they are."""
    if isinstance(value, dict):
        for field in fields:
            if field in value:
                yield from caption_values(value[field], fields)
    elif isinstance(value, list | tuple | np.ndarray):
        for item in value:
            yield from caption_values(item, fields)
    elif value is not None:
        yield value


def clean_captions(values: Iterable[object], name: str, options: CaptionConfig, left_out: LeftOut) -> tuple[str, ...]:
    """The usable captions of an image, each once, white space made single blanks; adds the others to `left_out`."""
    found: dict[str, None] = {}
    for value in values:
        try:
            text = value.decode("utf-8") if isinstance(value, bytes) else value
            if not isinstance(text, str):
                raise TypeError
            text = " ".join(text.split())
            text.encode("utf-8")  # half of a surrogate pair is valid in JSON, and no text
        except (UnicodeError, TypeError):
            left_out.add("unreadable captions", name)
            continue
        if not text:
            left_out.add("empty captions", name)
        elif len(text) > options.max_characters:
            left_out.add(f"captions of more than {options.max_characters} characters", name)
        else:
            found[text] = None
    return tuple(found)


class Strings(Sequence[str]):
    """Many strings in one buffer: a tenth of the memory of a list, and fast to send to worker processes."""

    def __init__(self, texts: Iterable[str]):
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        start = int(self._ends[i - 1]) if i else 0
        return self._bytes[start : int(self._ends[i])].decode("utf-8", "surrogateescape")


def block_digest(file, start: int, size: int) -> bytes:
    """A hash of the size of a part of an open file and of three blocks of it, or all of it if it is short."""
    hashed = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=DIGEST_BYTES)
    blocks = [(0, size)] if size <= 3 * BLOCK else [(at, BLOCK) for at in (0, (size - BLOCK) // 2, size - BLOCK)]
    for at, count in blocks:
        file.seek(start + at)
        hashed.update(file.read(count))
    return hashed.digest()


class Entry(NamedTuple):
    """One image of a source: its name, its captions and the digest of its bytes."""

    id: str
    captions: tuple[str, ...]
    digest: bytes


class ReplacingSource:
    """Random access in which the next readable record replaces an unreadable one: data are a function of the source.

    Subclasses have `__len__`, `name` and `_record`, which raises a ValueError for an unreadable record. Replaced
    records are named in a log line each and counted in `skipped` {number: reason}.
    """

    name: str

    def __init__(self):
        self.skipped: dict[int, str] = {}

    def __len__(self) -> int:
        raise NotImplementedError

    def _record(self, i: int) -> dict:
        raise NotImplementedError

    def __getitem__(self, i: int) -> dict:
        count = len(self)
        if not 0 <= i < count:
            raise IndexError(i)
        reason = ""
        for number in range(i, i + min(MAX_UNREADABLE, count)):
            try:
                return self._record(number % count)
            except ValueError as error:
                reason = str(error)
            if number % count not in self.skipped:
                self.skipped[number % count] = reason
                _log.warning("unreadable record replaced by the next readable one: %s", reason)
        raise ValueError(f"{self.name}: {min(MAX_UNREADABLE, count)} records in a row could not be read; the last: {reason}")


class CaptionedImages(ReplacingSource):
    """Random access to images of known names and captions; subclasses read the pixels of an image in `_image`.

    Raises a ValueError that says what was left out if no image remains.
    """

    def __init__(self, name: str, where: str | os.PathLike, entries: Sequence[Entry], left_out: LeftOut):
        super().__init__()
        if not entries:
            raise ValueError(f"{where}: no image with a usable caption{f'; left out: {left_out}' if left_out else ''}")
        if left_out:
            _log.warning("%s: %d images with captions; left out: %s", where, len(entries), left_out)
        self.name, self.left_out = name, left_out.names
        self._ids = Strings(entry.id for entry in entries)
        self._captions = Strings(caption for entry in entries for caption in entry.captions)
        self._ends = np.cumsum([len(entry.captions) for entry in entries], dtype=np.int64)
        self._digests = b"".join(entry.digest for entry in entries)
        self.fingerprint = hashlib.sha256("\n".join(self._ids).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        texts = hashlib.sha256("\n".join(self._captions).encode() + self._ends.tobytes()).digest()
        self.content_hash = "captioned:" + hashlib.sha256(self._digests + texts).hexdigest()[:16]

    def content(self, start: int, stop: int) -> str:
        """Identity of the images `start` to `stop` (exclusive) and their captions: changes when one of them does."""
        hashed = hashlib.sha256(self._digests[DIGEST_BYTES * start : DIGEST_BYTES * stop])
        hashed.update(json.dumps([self.captions(i) for i in range(start, min(stop, len(self)))]).encode())
        return hashed.hexdigest()[:16]

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of image `i`, without reading it."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        start = int(self._ends[i - 1]) if i else 0
        return tuple(self._captions[n] for n in range(start, int(self._ends[i])))

    def __len__(self) -> int:
        return len(self._ids)

    def _image(self, i: int) -> np.ndarray:
        raise NotImplementedError

    def _record(self, i: int) -> dict:
        return {"image": self._image(i), "captions": self.captions(i), "id": self._ids[i]}
