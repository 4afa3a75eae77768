"""Captioned images in tar shards of the webdataset layout, as img2dataset writes them: random access by an index.

A sample is all members of a shard that have the same name up to the first dot: `000000012.jpg`, `.txt` (one caption),
`.json` (fields with captions). The index holds where the bytes of each image lie; pixels are read from the shard when
asked for.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence

import numpy as np

from maskgil_jax.config import CaptionConfig
from maskgil_jax.data.sources.captions import (
    CaptionedImages,
    Entry,
    LeftOut,
    Strings,
    block_digest,
    caption_values,
    clean_captions,
)
from maskgil_jax.data.sources.folder import EXTENSIONS
from maskgil_jax.files.images import read_image_and_conversions
from maskgil_jax.files.paths import open_folder

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand_shards(spec: str | os.PathLike) -> list[str]:
    """Paths of the shards of a .tar file, a folder of some, or a pattern such as `{00000..00009}.tar` or `*.tar`."""
    text = os.fspath(spec)
    if numbers := RANGE.search(text):
        first, last = numbers.groups()
        names = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
        return [shard for name in names for shard in expand_shards(text[: numbers.start()] + name + text[numbers.end() :])]
    path = open_folder(text)
    if "*" in path.name:
        found = sorted(os.fspath(p) for p in path.parent.glob(path.name))
    elif path.is_dir():
        found = sorted(os.fspath(p) for p in path.glob("*.tar"))
    else:
        found = [text] if path.exists() else []
    if not found:
        raise ValueError(f"{text}: no such .tar shards")
    return found


class TarShards(CaptionedImages):
    """Captioned images in uncompressed tar shards, in the order of the shards and, in each, of the samples.

    Samples without an image or a usable caption, unusable captions, and shards that end early are counted and named in
    one log line and in `left_out`. Raises a ValueError for a file that is not an uncompressed tar archive.
    """

    def __init__(self, shards: Sequence[str], options: CaptionConfig):
        left_out, entries, places = LeftOut(), [], []
        from tqdm import tqdm

        quiet = len(shards) < 10 or not sys.stderr.isatty()
        for number, shard in enumerate(tqdm(shards, desc="indexing shards", disable=quiet)):
            for entry, place in _index(shard, options, left_out):
                entries.append(entry)
                places.append((number, *place))
        self._shards = Strings(shards)
        self._places = np.array(places, np.int64).reshape(-1, 3)  # shard, first byte, bytes
        where = shards[0] if len(shards) == 1 else f"{shards[0]} and {len(shards) - 1} more shards"
        name = os.path.basename(os.path.dirname(os.path.abspath(shards[0])))
        super().__init__(f"shards/{name}", where, entries, left_out)

    def _image(self, i: int) -> np.ndarray:
        shard, start, size = (int(x) for x in self._places[i])
        with open_folder(self._shards[shard]).open("rb") as file:
            file.seek(start)
            data = file.read(size)
        return read_image_and_conversions(data, self._ids[i])[0]


def _index(shard: str, options: CaptionConfig, left_out: LeftOut) -> Iterator[tuple[Entry, tuple[int, int]]]:
    """(entry, (first byte, bytes) of the image) of every usable sample of a shard."""
    name = os.path.basename(shard)
    with open_folder(shard).open("rb") as file:
        samples, whole = _members(shard, file)
        if not whole:
            left_out.add("shards that end early", name)
        for key, members in samples.items():
            sample = f"{name}/{key}"
            place = next((members[e] for e in EXTENSIONS if e in members), None)
            if place is None:
                left_out.add("samples without an image", sample)
                continue
            values: list = []
            if ".txt" in members:
                values.append(_bytes(file, members[".txt"]))
            if ".json" in members:
                try:
                    values += caption_values(json.loads(_bytes(file, members[".json"])), options.fields)
                except ValueError:
                    left_out.add("unreadable captions", sample)
            if captions := clean_captions(values, sample, options, left_out):
                yield Entry(sample, captions, block_digest(file, *place)), place
            else:
                left_out.add("images without a usable caption", sample)


def _bytes(file, place: tuple[int, int]) -> bytes:
    file.seek(place[0])
    return file.read(place[1])


def _members(shard: str, file) -> tuple[dict[str, dict[str, tuple[int, int]]], bool]:
    """({name up to the first dot: {the rest in lower case: (first byte, bytes)}}, whether the archive has its end)."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    whole = True
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            headers: list = tar.members  # type: ignore[attr-defined]
            while (member := tar.next()) is not None:
                headers.clear()  # tarfile keeps all of them otherwise
                folder, _, base = member.name.rpartition("/")
                if not member.isreg() or base.startswith("."):
                    continue
                if member.offset_data + member.size > length:
                    whole = False
                    break
                key, dot, ending = base.partition(".")
                key = f"{folder}/{key}" if folder else key
                samples.setdefault(key, {})[(dot + ending).lower()] = (member.offset_data, member.size)
            end = tar.offset
    except tarfile.ReadError as error:
        if not samples:
            raise ValueError(f"{shard}: is not an uncompressed tar archive ({error})") from None
        return samples, False
    # tarfile ends without an error at a damaged header; a zero block follows the last member of a whole archive.
    return samples, whole and _bytes(file, (end, tarfile.BLOCKSIZE)) == bytes(tarfile.BLOCKSIZE)
