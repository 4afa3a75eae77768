"""Tokenises a data set into a code store (format: `code_format.py`); the same call continues an interrupted run."""

from __future__ import annotations

import collections
import contextlib
import errno
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grain
import jax
import numpy as np

from maskgil_jax.config import height_width, require
from maskgil_jax.data import code_format
from maskgil_jax.data.buckets import crop_to_bucket
from maskgil_jax.data.code_writer import StoreWriter
from maskgil_jax.data.loader import read_ahead
from maskgil_jax.data.transforms import five_crops
from maskgil_jax.files.lock import folder_lock
from maskgil_jax.files.paths import free_bytes, is_remote, open_folder, size_text
from maskgil_jax.runtime.progress import Progress

_log = logging.getLogger(__name__)


def encode_dataset(
    encode_fn: Callable[[np.ndarray], np.ndarray],
    source,
    out_dir: str | os.PathLike,
    *,
    tokenizer_hash: str,
    grid: tuple[int, int],
    codebook_size: int,
    size: int | tuple[int, int],
    sizes: Sequence[tuple[int, int]] | None = None,
    captions: bool = False,
    batch_size: int,
    flip: bool = False,
    ten_crop: bool = False,
    random_crop: bool = False,
    shard_size: int = 4096,
    num_workers: int = 0,
    progress: bool = True,
) -> Path:
    """Writes the codes of every image of `source` to the store `out_dir` and returns its path.

    out_dir: a folder, or gs://bucket/folder, to which shards are copied from a temporary file on the local disk. Of
    several JAX processes, which must see the same folder, process k of n encodes shards k, k + n, ...; process 0 writes
    the manifest when all shards are there. The bytes are those that one process writes.

    size: (height, width) to which images are cropped; one number is a square.
    sizes: several sizes (height, width), the first of them `size`: each image is cropped to the one that keeps most of
    it.
    captions: store the captions of a source of captioned images (`data.caption_sets`).
    encode_fn: uint8 (batch_size, height, width, 3) -> integer codes (batch_size, rows, columns). It gets only that
      shape, or one for each size: the last batch of a shard is padded with black images.
    flip: also the mirror image of each crop. ten_crop: LlamaGen's ten crops, corners and middle at 1.1 x, and their
      mirror images, instead of the ADM centre crop. random_crop: a random window of the scaled image instead of the
      middle one, by the image's number. shard_size: images per shard, the most that an interruption can lose.

    A finished store with the same settings is reused after its checksums were compared; an unfinished one is continued,
    with the same final bytes as an uninterrupted run. A damaged shard, and one whose images have changed, is encoded
    again. Raises a ValueError if the folder holds anything else, such as codes of another tokenizer, if another process
    writes there, or if `encode_fn` returns codes of another shape or range; an OSError if writing fails, which keeps
    the finished shards.
    """
    height, width = height_width(size, "image_size")
    require(batch_size >= 1, f"batch_size: must be at least 1, got {batch_size}")
    require(shard_size >= 1, f"shard_size: must be at least 1, got {shard_size}")
    require(2 <= codebook_size < 2**31, f"codebook_size: must be in 2..2^31-1, got {codebook_size}")
    require(len(source) > 0, f"{source.name}: no images to encode")
    given = [(height, width)] if sizes is None else [height_width(each, "sizes") for each in sizes]
    require(bool(given) and given[0] == (height, width), f"sizes: expected {(height, width)} first, got {given}")
    require(not (ten_crop and len(given) > 1), "ten_crop: is of one size; leave it out, or give one size")
    require(not (ten_crop and random_crop), "ten_crop, random_crop: give one of them")
    factor = height // grid[0]
    for each in given:
        fits = each[0] % factor == 0 and each[1] % factor == 0
        require(fits, f"sizes: {each[0]}x{each[1]} are not multiples of the tokenizer's downsampling factor {factor}")
    out_dir = open_folder(out_dir) if is_remote(out_dir) else Path(out_dir)
    crops = range(5) if ten_crop else range(1)
    variants = [[crop, mirrored] for mirrored in range(1 + (flip or ten_crop)) for crop in crops]
    settings = {
        "format": code_format.FORMAT,
        "tokenizer_hash": tokenizer_hash,
        "grid": [int(side) for side in grid],
        "codebook_size": int(codebook_size),
        "dtype": code_format.codes_dtype(codebook_size),
        "image_size": [height, width],
        "source": source.name,
        "source_fingerprint": getattr(source, "fingerprint", ""),
        "num_images": len(source),
        "class_names": list(getattr(source, "class_names", ())),
        "crops": "ten_crop" if ten_crop else "random" if random_crop else "center",
        "variants": variants,
        "shard_size": int(shard_size),
    }
    if captions or len(given) > 1:
        settings |= {"format": code_format.FORMAT_2, "captioned": captions, "sizes": [list(each) for each in given]}
    starts = range(0, len(source), shard_size)
    shards = {code_format.shard_name(n): range(a, min(a + shard_size, len(source))) for n, a in enumerate(starts)}
    process, processes = jax.process_index(), jax.process_count()
    own = dict(list(shards.items())[process::processes])
    content = {}
    if hasattr(source, "content"):
        content = {name: source.content(images.start, images.stop) for name, images in own.items()}
    lock = folder_lock if process == 0 else contextlib.nullcontext
    with contextlib.ExitStack() as stack:
        if out_dir.is_dir():
            stack.enter_context(lock(out_dir))
        writer = StoreWriter(out_dir, settings, list(shards), content, process, processes)
        if writer.finished:
            _log.info("%s: finished already; its checksums are right and its images have not changed", out_dir)
            return out_dir
        todo = {name: images for name, images in own.items() if name not in writer.done}
        _check_space(out_dir, settings, sum(len(images) for images in todo.values()))
        if not out_dir.is_dir():
            stack.enter_context(lock(out_dir))
        before = sum(len(images) for images in own.values()) - sum(len(images) for images in todo.values())
        writer.write(todo, _encoded(encode_fn, source, todo, settings, batch_size, num_workers, before, progress))
    return out_dir


def _check_space(out_dir: Path, settings: dict, images: int) -> None:
    each = (
        len(settings["variants"])
        * max(rows * columns for rows, columns in _grids(settings).values())
        * np.dtype(settings["dtype"]).itemsize
        + 256
    )
    free = free_bytes(out_dir)
    if free < images * each:
        raise OSError(errno.ENOSPC, f"{out_dir}: needs {size_text(images * each)}, {size_text(free)} are free")


def _grids(settings: dict) -> dict[tuple[int, int], tuple[int, int]]:
    """Size -> grid of all sizes of a store."""
    factor = settings["image_size"][0] // settings["grid"][0]
    sizes = settings.get("sizes", [settings["image_size"]])
    return {(height, width): (height // factor, width // factor) for height, width in sizes}


class _Cropped:
    """The remaining images, cropped: {"images": uint8 (v, height, width, 3), "label", "id", "captions"}."""

    def __init__(self, source, ranges: list[range], settings: dict):
        self._source, self._ranges = source, ranges
        self._ends = np.cumsum([len(r) for r in ranges])
        self._sizes, self._ten = list(_grids(settings)), settings["crops"] == "ten_crop"
        self._random = settings["crops"] == "random"
        self._mirror = any(mirrored for _, mirrored in settings["variants"])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> dict:
        shard = int(np.searchsorted(self._ends, i, side="right"))
        number = self._ranges[shard][i - int(self._ends[shard])]  # counted from the shard's end
        record = self._source[number]
        image, rng = record["image"], np.random.default_rng(number) if self._random else None
        images = five_crops(image, self._sizes[0]) if self._ten else crop_to_bucket(image, self._sizes, rng)[None]
        if self._mirror:
            images = np.concatenate([images, images[:, :, ::-1]])
        return {
            "images": images,
            "label": record.get("label", 0),
            "id": record["id"],
            "captions": list(record.get("captions", ())),
        }


def _encoded(
    encode_fn, source, todo: dict[str, range], settings: dict, batch_size: int, num_workers: int, before: int, progress: bool
) -> Iterator[tuple[list[bytes], list[int]]]:
    """Yields (packed records, images of each size) of each remaining shard, in order. before: images that are done."""
    if not todo:
        return
    cropped = grain.MapDataset.source(_Cropped(source, list(todo.values()), settings))
    shown = Progress("encoding", before + len(cropped), done=before, log=_log) if progress else contextlib.nullcontext()
    with contextlib.closing(read_ahead(cropped, num_workers)) as reader, shown as bar:
        for images in todo.values():
            yield _shard(encode_fn, itertools.islice(reader, len(images)), len(images), settings, batch_size, bar)


def _shard(encode_fn, records: Iterator[dict], count: int, settings: dict, batch_size: int, bar):
    """(packed records, images of each size) of one shard.

    Images of each size wait until they fill a batch; the rest is encoded at the end.
    """
    variants, dtype = settings["variants"], settings["dtype"]
    heads: list[tuple[int, str, list[str]]] = []
    codes: list[list[np.ndarray]] = []  # of each image, its variants so far
    waiting: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = {size: [] for size in _grids(settings)}

    def flush(size: tuple[int, int], number: int) -> None:
        owners, rows = zip(*waiting[size][:number], strict=True)
        del waiting[size][:number]
        for owner, codes_hw in zip(owners, _encode(encode_fn, rows, batch_size, size, settings), strict=True):
            codes[owner].append(codes_hw)
            if bar and len(codes[owner]) == len(variants):
                bar.update(1)

    for owner, record in enumerate(records):
        heads.append((int(record["label"]), str(record["id"]), record["captions"]))
        codes.append([])
        size = record["images"].shape[1:3]
        waiting[size].extend((owner, image) for image in record["images"])
        while len(waiting[size]) >= batch_size:
            flush(size, batch_size)
    for size, rest in waiting.items():
        if rest:
            flush(size, len(rest))
    assert len(codes) == count
    packed = []
    for (label, name, captions), parts in zip(heads, codes, strict=True):
        codes_vhw = np.stack(parts)
        if settings["format"] == code_format.FORMAT:
            packed.append(code_format.pack(codes_vhw, label, name, variants, dtype))
        else:
            packed.append(
                code_format.pack_2(codes_vhw, label, name, variants, dtype, captions if settings["captioned"] else ())
            )
    found = collections.Counter(parts[0].shape for parts in codes)
    return packed, [found[grid] for grid in _grids(settings).values()]


def _encode(encode_fn, rows: Sequence[np.ndarray], batch_size: int, size: tuple[int, int], settings: dict) -> np.ndarray:
    """The checked codes of at most `batch_size` images, padded to a whole batch,
    so that one shape of a size is compiled."""
    grid, codebook_size = _grids(settings)[size], settings["codebook_size"]
    images_bhwc = np.zeros((batch_size, *size, 3), np.uint8)
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
