"""Tokenises a data set once into a code store (format: `code_format.py`); an interrupted run is continued by the same call."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grain
import numpy as np

from maskgil_jax.config import require
from maskgil_jax.data import code_format
from maskgil_jax.data.loader import read_ahead
from maskgil_jax.data.transforms import adm_center_crop, five_crops
from maskgil_jax.files.atomic import clear, write_json
from maskgil_jax.files.paths import free_bytes, is_remote, size_text

_log = logging.getLogger(__name__)


def encode_dataset(
    encode_fn: Callable[[np.ndarray], np.ndarray],
    source,
    out_dir: str | os.PathLike,
    *,
    tokenizer_hash: str,
    grid: tuple[int, int],
    codebook_size: int,
    image_size: int,
    batch_size: int,
    flip: bool = False,
    ten_crop: bool = False,
    shard_size: int = 4096,
    num_workers: int = 0,
    progress: bool = True,
) -> Path:
    """Writes the codes of every image of `source` to the store `out_dir` and returns its path.

    encode_fn: uint8 (batch_size, image_size, image_size, 3) -> integer codes (batch_size, rows, columns). It only ever sees
      that one shape: the last batch of a shard is filled up with black images.
    flip: also the mirror image of each crop. ten_crop: LlamaGen's ten crops, corners and middle at 1.1 x, and their mirror
      images, in place of the ADM centre crop. shard_size: images per shard, the most that an interruption can lose.

    A finished store with the same settings is reused after its checksums were compared (a damaged shard is made anew);
    an unfinished one is continued, with the same final bytes as an uninterrupted run. Raises a ValueError if the folder holds
    something else, above all codes of another tokenizer, or if `encode_fn` returns other codes than it said; an OSError
    if writing fails, with the finished shards kept.
    """
    require(batch_size >= 1, f"batch_size: must be at least 1, got {batch_size}")
    require(shard_size >= 1, f"shard_size: must be at least 1, got {shard_size}")
    require(2 <= codebook_size < 2**31, f"codebook_size: must be in 2..2^31-1, got {codebook_size}")
    require(len(source) > 0, f"{source.name}: no images to encode")
    require(not is_remote(out_dir), f"{out_dir}: codes are written to a local disk; copy the finished folder there")
    out_dir = Path(out_dir)
    crops = range(5) if ten_crop else range(1)
    variants = [[crop, mirrored] for mirrored in range(1 + (flip or ten_crop)) for crop in crops]
    settings = {
        "format": code_format.FORMAT,
        "tokenizer_hash": tokenizer_hash,
        "grid": [int(side) for side in grid],
        "codebook_size": int(codebook_size),
        "dtype": code_format.codes_dtype(codebook_size),
        "image_size": int(image_size),
        "source": source.name,
        "source_fingerprint": getattr(source, "fingerprint", ""),
        "num_images": len(source),
        "class_names": list(source.class_names),
        "crops": "ten_crop" if ten_crop else "center",
        "variants": variants,
        "shard_size": int(shard_size),
    }
    done = _finished_shards(out_dir, settings)
    starts = range(0, len(source), shard_size)
    shards = {code_format.shard_name(n): range(a, min(a + shard_size, len(source))) for n, a in enumerate(starts)}
    todo = {name: images for name, images in shards.items() if name not in done}
    manifest = out_dir / code_format.MANIFEST
    if not todo and manifest.is_file():
        (out_dir / code_format.PROGRESS).unlink(missing_ok=True)
        return out_dir
    _check_space(out_dir, settings, sum(len(images) for images in todo.values()))
    clear(out_dir)
    try:
        write_json(out_dir / code_format.PROGRESS, {**settings, "shards": list(done.values())})
        manifest.unlink(missing_ok=True)  # a damaged store is unfinished until it is whole again
        records = _encoded(encode_fn, source, todo, settings, batch_size, num_workers, progress)
        for name, shard in zip(todo, records, strict=True):
            done[name] = code_format.write_shard(out_dir / name, shard)
            ordered = [done[name] for name in shards if name in done]
            write_json(out_dir / code_format.PROGRESS, {**settings, "shards": ordered})
            _log.info("%s: %d of %d shards", out_dir, len(done), len(shards))
        write_json(manifest, {**settings, "shards": [done[name] for name in shards]})
        (out_dir / code_format.PROGRESS).unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            error.errno or errno.EIO,
            f"{out_dir}: writing failed ({error.strerror or error}); {len(done)} of {len(shards)} shards are finished "
            "and kept, run the same command again to continue",
        ) from error
    return out_dir


def _finished_shards(out_dir: Path, settings: dict) -> dict[str, dict]:
    """The shards that are there and whole, {name: manifest entry}; a ValueError if the folder is not for this store."""
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir}: is a file; give a folder for the codes")
    for name in (code_format.MANIFEST, code_format.PROGRESS):
        path = out_dir / name
        if not path.is_file():
            continue
        found = code_format.read_json(path)
        for key, value in settings.items():
            if found[key] != value:
                kind = "a store made by another tokenizer" if key == "tokenizer_hash" else "a store with other settings"
                raise ValueError(
                    f"{out_dir}: holds {kind}: {key} is {_short(found[key])} there, {_short(value)} now; give another folder"
                )
        whole = {}
        for entry in found["shards"]:
            shard = out_dir / entry["name"]
            if shard.is_file() and {**entry, **code_format.sum_file(shard)} == entry:
                whole[entry["name"]] = entry
            else:
                _log.warning("%s: missing or damaged; encoding it again", shard)
        return whole
    ours = (".part", ".array_record")  # what a run killed before its first word leaves behind
    others = [p.name for p in out_dir.iterdir() if not p.name.endswith(ours)] if out_dir.is_dir() else []
    if others:
        raise ValueError(f"{out_dir}: not empty (it has {others[0]}) and not a code store; give another folder")
    return {}


def _short(value) -> str:
    return text if len(text := repr(value)) <= 80 else text[:77] + "..."


def _check_space(out_dir: Path, settings: dict, images: int) -> None:
    rows, columns = settings["grid"]
    each = len(settings["variants"]) * rows * columns * np.dtype(settings["dtype"]).itemsize + 256
    free = free_bytes(out_dir)
    if free < images * each:
        raise OSError(errno.ENOSPC, f"{out_dir}: needs {size_text(images * each)}, {size_text(free)} are free")


class _Cropped:
    """The images still to do, cropped: {"images": uint8 (v, size, size, 3), "label", "id"}."""

    def __init__(self, source, ranges: list[range], settings: dict):
        self._source, self._ranges = source, ranges
        self._ends = np.cumsum([len(r) for r in ranges])
        self._size, self._ten = settings["image_size"], settings["crops"] == "ten_crop"
        self._mirror = any(mirrored for _, mirrored in settings["variants"])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> dict:
        shard = int(np.searchsorted(self._ends, i, side="right"))
        record = self._source[self._ranges[shard][i - int(self._ends[shard])]]  # counted from the shard's end
        image = record["image"]
        images = five_crops(image, self._size) if self._ten else adm_center_crop(image, self._size)[None]
        if self._mirror:
            images = np.concatenate([images, images[:, :, ::-1]])
        return {"images": images, "label": record["label"], "id": record["id"]}


def _encoded(
    encode_fn, source, todo: dict[str, range], settings: dict, batch_size: int, num_workers: int, progress: bool
) -> Iterator:
    """Yields the packed records of each shard to do, in order."""
    from tqdm import tqdm

    if not todo:
        return
    cropped = grain.MapDataset.source(_Cropped(source, list(todo.values()), settings))
    total, before = settings["num_images"], settings["num_images"] - len(cropped)
    quiet = not progress or not sys.stderr.isatty()
    with (
        contextlib.closing(read_ahead(cropped, num_workers)) as reader,
        tqdm(total=total, initial=before, desc="encoding", unit="image", disable=quiet) as bar,
    ):
        for images in todo.values():
            labels, ids, codes, rows = [], [], [], []
            for record in itertools.islice(reader, len(images)):
                labels.append(int(record["label"]))
                ids.append(str(record["id"]))
                rows.extend(record["images"])
                while len(rows) >= batch_size:
                    codes.append(_encode(encode_fn, rows[:batch_size], batch_size, settings))
                    del rows[:batch_size]
                bar.update()
            if rows:
                codes.append(_encode(encode_fn, rows, batch_size, settings))
            codes_nvhw = np.concatenate(codes).reshape(len(images), -1, *settings["grid"])
            yield [
                code_format.pack(codes_vhw, label, name, settings["variants"], settings["dtype"])
                for codes_vhw, label, name in zip(codes_nvhw, labels, ids, strict=True)
            ]


def _encode(encode_fn, rows: list[np.ndarray], batch_size: int, settings: dict) -> np.ndarray:
    """The codes of at most `batch_size` images, checked; always asks for a whole batch, so that one shape is compiled."""
    size, grid, codebook_size = settings["image_size"], tuple(settings["grid"]), settings["codebook_size"]
    images_bhwc = np.zeros((batch_size, size, size, 3), np.uint8)
    images_bhwc[: len(rows)] = rows
    codes = np.asarray(encode_fn(images_bhwc))
    require(
        codes.shape == (batch_size, *grid),
        f"grid: the tokenizer gave codes of shape {codes.shape} for {batch_size} images, expected {(batch_size, *grid)}",
    )
    require(np.issubdtype(codes.dtype, np.integer), f"encode_fn: gave {codes.dtype} codes, expected integers")
    low, high = int(codes.min()), int(codes.max())
    require(
        low >= 0 and high < codebook_size,
        f"codebook_size: the tokenizer gave codes {low}..{high}, expected 0..{codebook_size - 1}",
    )
    return codes[: len(rows)]
