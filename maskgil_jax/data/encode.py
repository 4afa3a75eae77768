"""Tokenises a data set into a code store (format: `code_format.py`); the same call continues an interrupted run."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grain
import numpy as np

from maskgil_jax.config import height_width, require
from maskgil_jax.data import code_format
from maskgil_jax.data.buckets import crop_to_bucket
from maskgil_jax.data.loader import read_ahead
from maskgil_jax.data.transforms import adm_center_crop, five_crops
from maskgil_jax.files.atomic import clear, write_json
from maskgil_jax.files.lock import NAME as LOCK_NAME
from maskgil_jax.files.lock import folder_lock
from maskgil_jax.files.paths import free_bytes, is_remote, size_text
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
    shard_size: int = 4096,
    num_workers: int = 0,
    progress: bool = True,
) -> Path:
    """Writes the codes of every image of `source` to the store `out_dir` and returns its path.

    size: (height, width) to which images are cropped; one number is a square.
    sizes: several sizes (height, width), the first of them `size`: each image is cropped to the one that keeps most of it.
    captions: store the captions of a source of captioned images (`data.caption_sets`).
    encode_fn: uint8 (batch_size, height, width, 3) -> integer codes (batch_size, rows, columns). It gets only that shape, or
      one for each size: the last batch of a shard is padded with black images.
    flip: also the mirror image of each crop. ten_crop: LlamaGen's ten crops, corners and middle at 1.1 x, and their mirror
      images, instead of the ADM centre crop. shard_size: images per shard, the most that an interruption can lose.

    A finished store with the same settings is reused after its checksums were compared; an unfinished one is continued, with
    the same final bytes as an uninterrupted run. A damaged shard, and one whose images have changed, is encoded again. Raises
    a ValueError if the folder holds anything else, such as codes of another tokenizer, if another process writes there, or if
    `encode_fn` returns codes of another shape or range; an OSError if writing fails, which keeps the finished shards.
    """
    height, width = height_width(size, "image_size")
    require(batch_size >= 1, f"batch_size: must be at least 1, got {batch_size}")
    require(shard_size >= 1, f"shard_size: must be at least 1, got {shard_size}")
    require(2 <= codebook_size < 2**31, f"codebook_size: must be in 2..2^31-1, got {codebook_size}")
    require(len(source) > 0, f"{source.name}: no images to encode")
    require(not is_remote(out_dir), f"{out_dir}: codes are written to a local disk; copy the finished folder there")
    given = [(height, width)] if sizes is None else [height_width(each, "sizes") for each in sizes]
    require(bool(given) and given[0] == (height, width), f"sizes: expected {(height, width)} first, got {given}")
    require(not (ten_crop and len(given) > 1), "ten_crop: is of one size; leave it out, or give one size")
    factor = height // grid[0]
    for each in given:
        fits = each[0] % factor == 0 and each[1] % factor == 0
        require(fits, f"sizes: {each[0]}x{each[1]} are not multiples of the tokenizer's downsampling factor {factor}")
    out_dir = Path(out_dir)
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
        "crops": "ten_crop" if ten_crop else "center",
        "variants": variants,
        "shard_size": int(shard_size),
    }
    if captions or len(given) > 1:
        settings |= {"format": code_format.FORMAT_2, "captioned": captions, "sizes": [list(each) for each in given]}
    starts = range(0, len(source), shard_size)
    shards = {code_format.shard_name(n): range(a, min(a + shard_size, len(source))) for n, a in enumerate(starts)}
    content = {}
    if hasattr(source, "content"):
        content = {name: source.content(images.start, images.stop) for name, images in shards.items()}
    with contextlib.ExitStack() as stack:
        if out_dir.is_dir():
            stack.enter_context(folder_lock(out_dir))
        done = _finished_shards(out_dir, settings, content)
        todo = {name: images for name, images in shards.items() if name not in done}
        if not todo and (out_dir / code_format.MANIFEST).is_file():
            (out_dir / code_format.PROGRESS).unlink(missing_ok=True)
            _log.info("%s: finished already; its checksums are right and its images have not changed", out_dir)
            return out_dir
        _check_space(out_dir, settings, sum(len(images) for images in todo.values()))
        if not out_dir.is_dir():
            stack.enter_context(folder_lock(out_dir))
        records = _encoded(encode_fn, source, todo, settings, batch_size, num_workers, progress)
        _write(out_dir, settings, list(shards), done, todo, content, records)
    return out_dir


def _write(
    out_dir: Path, settings: dict, names: list[str], done: dict[str, dict], todo: dict, content: dict, records: Iterator
) -> None:
    """Writes the shards to do, progress.json after each, and the manifest at the end."""
    manifest, progress = out_dir / code_format.MANIFEST, out_dir / code_format.PROGRESS
    clear(out_dir)
    try:
        write_json(progress, {**settings, "shards": list(done.values())})
        manifest.unlink(missing_ok=True)  # until its damaged or outdated shards are replaced, a store is unfinished
        for name, shard in zip(todo, records, strict=True):
            done[name] = code_format.write_shard(out_dir / name, shard)
            if name in content:
                done[name]["content"] = content[name]
            write_json(progress, {**settings, "shards": [done[name] for name in names if name in done]})
            _log.info("%s: %d of %d shards", out_dir, len(done), len(names))
        write_json(manifest, {**settings, "shards": [done[name] for name in names]})
        progress.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            error.errno or errno.EIO,
            f"{out_dir}: writing failed ({error.strerror or error}); {len(done)} of {len(names)} shards are finished "
            "and kept, run the same command again to continue",
        ) from error


def _finished_shards(out_dir: Path, settings: dict, content: dict[str, str]) -> dict[str, dict]:
    """The shards that can be kept: {name: manifest entry}. Raises a ValueError if the folder belongs to something else.

    content: {shard: identity of its images now}, empty if the source cannot tell.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir}: is a file; give a folder for the codes")
    for name in (code_format.MANIFEST, code_format.PROGRESS):
        path = out_dir / name
        if path.is_file():
            found = code_format.read_json(path)
            _require_same(out_dir, found, settings)
            return _kept_shards(out_dir, found["shards"], content)
    ours = (".part", ".array_record", LOCK_NAME)  # left by a process that was killed before it wrote progress.json
    others = [p.name for p in out_dir.iterdir() if not p.name.endswith(ours)] if out_dir.is_dir() else []
    if others:
        raise ValueError(f"{out_dir}: not empty (it has {others[0]}) and not a code store; give another folder")
    return {}


def _require_same(out_dir: Path, found: dict, settings: dict) -> None:
    for key, value in settings.items():
        if found.get(key) != value:
            kind = "a store made by another tokenizer" if key == "tokenizer_hash" else "a store with other settings"
            if key in ("source_fingerprint", "num_images", "class_names"):
                kind = "a store of other images (files were added, removed or renamed)"
            raise ValueError(
                f"{out_dir}: holds {kind}: {key} is {_short(found.get(key))} there, {_short(value)} now; give another folder"
            )


def _kept_shards(out_dir: Path, entries: list[dict], content: dict[str, str]) -> dict[str, dict]:
    kept, changed, unknown = {}, 0, 0
    for entry in entries:
        shard = out_dir / entry["name"]
        if not shard.is_file() or {**entry, **code_format.sum_file(shard)} != entry:
            _log.warning("%s: missing or damaged; encoding it again", shard)
            continue
        now, then = content.get(entry["name"]), entry.get("content")
        if now and then and now != then:
            changed += 1
            continue
        unknown += bool(now) and not then
        kept[entry["name"]] = entry
    if changed:
        _log.warning("%s: images of %d of %d shards have changed; encoding these again", out_dir, changed, len(entries))
    if unknown:
        _log.warning(
            "%s: made by an older version, which recorded only the names of the images: whether images have changed since "
            "is not known; encode into another folder if they have",
            out_dir,
        )
    return kept


def _short(value) -> str:
    return text if len(text := repr(value)) <= 80 else text[:77] + "..."


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
        self._mirror = any(mirrored for _, mirrored in settings["variants"])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> dict:
        shard = int(np.searchsorted(self._ends, i, side="right"))
        record = self._source[self._ranges[shard][i - int(self._ends[shard])]]  # counted from the shard's end
        image = record["image"]
        images = five_crops(image, self._sizes[0]) if self._ten else self._one_crop(image)[None]
        if self._mirror:
            images = np.concatenate([images, images[:, :, ::-1]])
        return {
            "images": images,
            "label": record.get("label", 0),
            "id": record["id"],
            "captions": list(record.get("captions", ())),
        }

    def _one_crop(self, image_hwc: np.ndarray) -> np.ndarray:
        if len(self._sizes) == 1:
            return adm_center_crop(image_hwc, self._sizes[0])
        return crop_to_bucket(image_hwc, self._sizes)


def _encoded(
    encode_fn, source, todo: dict[str, range], settings: dict, batch_size: int, num_workers: int, progress: bool
) -> Iterator:
    """Yields the packed records of each remaining shard, in order."""
    if not todo:
        return
    cropped = grain.MapDataset.source(_Cropped(source, list(todo.values()), settings))
    total, before = settings["num_images"], settings["num_images"] - len(cropped)
    shown = Progress("encoding", total, done=before, log=_log) if progress else contextlib.nullcontext()
    with contextlib.closing(read_ahead(cropped, num_workers)) as reader, shown as bar:
        for images in todo.values():
            yield _shard(encode_fn, itertools.islice(reader, len(images)), len(images), settings, batch_size, bar)


def _shard(encode_fn, records: Iterator[dict], count: int, settings: dict, batch_size: int, bar) -> list[bytes]:
    """The packed records of one shard. Images of each size wait until they fill a batch; the rest is encoded at the end."""
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
    return packed


def _encode(encode_fn, rows: Sequence[np.ndarray], batch_size: int, size: tuple[int, int], settings: dict) -> np.ndarray:
    """The checked codes of at most `batch_size` images, padded to a whole batch, so that one shape of a size is compiled."""
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
