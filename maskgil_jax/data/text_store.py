"""The text store: features of captions from a frozen text encoder, computed once, for small sets.

A store is a folder:

    codes-00000.array_record ...   ArrayRecord shards (group size 1, uncompressed)
    manifest.json                  written last; a folder without it is not a finished store
    progress.json                  only while unfinished: the settings, and the shards that are done

One record is one text. Only real tokens are stored, so a text of 20 tokens of width 2304 takes 92 kB. Record 0 is the
empty text, whose features are the null text of training. Little-endian, without padding:

    uint16    bytes of the caption id (n)
    uint16    tokens (t)
    bytes     caption id, UTF-8      n bytes
    bfloat16  features               t * width, token by token

The caption ids of an image are its own id, "#" and a number: "folder/cat.png#0", "folder/cat.png#1". manifest.json:
format, encoder (path, name, options and hash: `text_encoders.TextEncoder.about`), width, max_tokens, num_texts, texts
(a hash of all ids and texts), shard_size, and shards as in a code store.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import ml_dtypes
import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.config.base import shown
from maskgil_jax.data.code_format import MANIFEST, PROGRESS, shard_name, sum_file, write_shard
from maskgil_jax.files.atomic import write_json
from maskgil_jax.files.manifests import Kind, check_shards, check_types, read_object
from maskgil_jax.files.records import RecordFiles

FORMAT = "maskgil-texts-1"
_HEAD = struct.Struct("<HH")
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_FIELDS: dict[str, Kind] = {
    "encoder": dict,
    "width": int,
    "max_tokens": int,
    "num_texts": int,
    "texts": str,
    "shard_size": int,
    "shards": list,
}


def caption_ids(image_id: str, count: int) -> list[str]:
    """The ids of an image's captions."""
    return [f"{image_id}#{number}" for number in range(count)]


def write_text_store(
    texts: Mapping[str, str] | Iterable[tuple[str, str]],
    out: str | os.PathLike,
    encoder: Callable[[Sequence[str]], Any],
    *,
    about: Mapping[str, Any],
    shard_size: int = 1024,
    batch_size: int = 64,
) -> Path:
    """Writes the store `out` of texts by caption id; an interrupted call is continued by the same one.

    encoder: texts -> (features, mask) of b texts, as `TextCondition` has them; the number of positions must be the same
    in every call. about: `encoder.about`. Raises: ConfigError, if an id is given twice or `out` holds a store of other
    texts or of another encoder. A text that occurs several times is encoded once.
    """
    given = [("", ""), *(texts.items() if isinstance(texts, Mapping) else texts)]
    require(len(given) > 1, "texts: none given")
    require(shard_size >= 1 and batch_size >= 1, f"shard_size, batch_size: must be at least 1, got {shard_size}, {batch_size}")
    seen: set[str] = set()
    for name, text in given:
        sound = isinstance(name, str) and isinstance(text, str) and name not in seen and len(name.encode()) < 2**16
        require(sound, f"texts: {name!r:.60} is given twice, or is no caption id with a text")
        seen.add(name)
    digest = hashlib.sha256(json.dumps(given, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    settings = {"format": FORMAT, "encoder": dict(about), "texts": digest, "num_texts": len(given), "shard_size": shard_size}
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    done = _finished_shards(out, settings)
    if done is None:
        return out
    sizes = {name: _read(out / PROGRESS)[name] for name in ("width", "max_tokens")} if done else {}
    counts = collections.Counter(text for _, text in given)
    known = _repeated(out, done, given, counts)  # the stored part of records whose text comes up again
    for number in range(len(done), -(-len(given) // shard_size)):
        some = given[number * shard_size : (number + 1) * shard_size]
        new = list(dict.fromkeys(text for _, text in some if text not in known))
        fresh: dict[str, bytes] = {}
        for start in range(0, len(new), batch_size):
            batch = new[start : start + batch_size]
            found = encoder(batch)
            features_btd, mask_bt = np.asarray(found.features_btd), np.asarray(found.mask_bt).astype(bool)
            sizes = {"width": features_btd.shape[2], "max_tokens": features_btd.shape[1]}
            fresh |= {text: features_btd[i][mask_bt[i]].astype(_BFLOAT16).tobytes() for i, text in enumerate(batch)}
        known |= {text: features for text, features in fresh.items() if counts[text] > 1}
        records = []
        for name, text in some:
            features = fresh[text] if text in fresh else known[text]
            records.append(_pack(name, features, sizes["width"]))
        done.append(write_shard(out / shard_name(number), records))
        write_json(out / PROGRESS, {**settings, **sizes, "shards": done})
    write_json(out / MANIFEST, {**settings, **sizes, "shards": done})
    (out / PROGRESS).unlink()
    return out


def _finished_shards(out: Path, settings: dict) -> list[dict] | None:
    """The shards of an earlier call with the same settings that are whole; None if the store is finished."""
    for name in (MANIFEST, PROGRESS):
        if not (out / name).exists():
            continue
        values = _read(out / name)
        other = next((key for key in settings if values.get(key) != settings[key]), None)
        require(other is None, f"{out}: holds a store with another {other!r}; write to another folder")
        if name == MANIFEST:
            return None
        return list(itertools.takewhile(lambda entry: _is_whole(out, entry), values["shards"]))
    return []


def _is_whole(out: Path, entry: dict) -> bool:
    file = out / entry["name"]
    return file.is_file() and sum_file(file) == {name: entry[name] for name in ("bytes", "crc32")}


def _repeated(out: Path, done: list[dict], given: list[tuple[str, str]], counts: Mapping[str, int]) -> dict[str, bytes]:
    """The stored features of the texts in finished shards that occur more than once."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    if not done:
        return {}
    records, found = ArrayRecordDataSource([str(out / entry["name"]) for entry in done]), {}
    for number in range(len(records)):
        text = given[number][1]
        if counts[text] > 1 and text not in found:
            record = records[number]
            found[text] = bytes(record[_HEAD.size + _HEAD.unpack_from(record)[0] :])
    return found


def _pack(name: str, features: bytes, width: int) -> bytes:
    identity = name.encode("utf-8")
    return _HEAD.pack(len(identity), len(features) // (width * _BFLOAT16.itemsize)) + identity + features


def _read(file: Path) -> dict:
    values = read_object(file, "write the store again into a new folder")
    require(values.get("format") == FORMAT, f"{file}: format is {shown(values.get('format'))}, expected {FORMAT!r}")
    check_shards(file, values.get("shards"))
    return values


class TextStore:
    """Random access by caption id to a store made by `write_text_store`.

    about: the encoder. width, max_tokens: sizes of a text's features when padded. ids: all caption ids, in order.
    Raises: ConfigError, one line that names the file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        require((self.path / MANIFEST).is_file(), f"{path}: not a finished text store (no {MANIFEST})")
        manifest = _read(self.path / MANIFEST)
        check_types(self.path / MANIFEST, manifest, _FIELDS)
        for name in ("width", "max_tokens"):
            found = manifest[name]
            require(1 <= found < 2**16, f"{self.path / MANIFEST}: {name} is {found}, expected 1 to 65535")
        self.about, self.width, self.max_tokens = manifest["encoder"], manifest["width"], manifest["max_tokens"]
        for entry in manifest["shards"]:
            file = self.path / entry["name"]
            size = file.stat().st_size if file.is_file() else 0
            require(size == entry["bytes"], f"{file}: {size} bytes, expected {entry['bytes']}; write the store again")
        listed, expected = sum(entry["records"] for entry in manifest["shards"]), manifest["num_texts"]
        sound = 1 <= listed == expected
        require(sound, f"{self.path / MANIFEST}: shards hold {listed} texts, num_texts is {expected}")
        self._records = RecordFiles([self.path / entry["name"] for entry in manifest["shards"]], self.path)
        found = len(self._records)
        require(found == expected, f"{self.path}: shards hold {found} texts, the manifest says {expected}")
        self.texts: str = manifest["texts"]
        self.ids: tuple[str, ...] = tuple(self._split(i)[0] for i in range(found))
        self._number = {name: number for number, name in enumerate(self.ids)}
        self._captions: dict[str, list[str]] = {}
        for name in self.ids[1:]:
            self._captions.setdefault(name.rpartition("#")[0], []).append(name)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: str) -> bool:
        return name in self._number

    def _split(self, number: int) -> tuple[str, np.ndarray]:
        """(caption id, features) of a record. Raises a `ConfigError` that names the store if it is damaged."""
        try:
            record = self._records[number]
            size, tokens = _HEAD.unpack_from(record)
            start = _HEAD.size + size
            name = bytes(record[_HEAD.size : start]).decode("utf-8")
        except (struct.error, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ConfigError(f"{self.path}: text {number} cannot be read ({reason}); write the store again") from None
        expected = start + tokens * self.width * _BFLOAT16.itemsize
        require(len(record) == expected, f"{self.path}: text {number} has {len(record)} bytes, expected {expected}")
        require(tokens <= self.max_tokens, f"{self.path}: text {number} has {tokens} tokens, max_tokens is {self.max_tokens}")
        return name, np.frombuffer(record, _BFLOAT16, offset=start).reshape(tokens, self.width)

    def __getitem__(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(features bfloat16 (max_tokens, width), zero at padding, mask bool (max_tokens,)) of a caption."""
        require(name in self._number, f"{self.path}: holds no caption {name!r}; write the store of this data set")
        _, some_td = self._split(self._number[name])
        features_td, mask_t = np.zeros((self.max_tokens, self.width), _BFLOAT16), np.zeros(self.max_tokens, bool)
        place = slice(-len(some_td), None) if self.about.get("padding") == "left" else slice(0, len(some_td))
        if len(some_td):
            features_td[place], mask_t[place] = some_td, True
        return features_td, mask_t

    def batch(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(features (b, max_tokens, width), mask (b, max_tokens)) of some captions; "" is the empty text."""
        features, masks = zip(*(self[name] for name in names))
        return np.stack(features), np.stack(masks)

    def captions_of(self, image_id: str) -> list[str]:
        """The caption ids of an image. Raises a `ConfigError` if there is none."""
        require(image_id in self._captions, f"{self.path}: holds no caption of image {image_id!r}")
        return self._captions[image_id]


class RandomCaption(grain.transforms.RandomMap):
    """Adds "text_features" and "text_mask" of one of an image's captions,
    drawn by the key of its place in the stream."""

    def __init__(self, store: TextStore):
        self._store = store

    def random_map(self, element: dict, rng: np.random.Generator) -> dict:
        names = self._store.captions_of(element["id"])
        features_td, mask_t = self._store[names[rng.integers(len(names))]]
        return {**element, "text_features": features_td, "text_mask": mask_t}


TEXT_FIELDS = {"text_features": _BFLOAT16, "text_mask": np.dtype(bool)}
