"""Generated images as files: the formats, and the manifest that names the samples of a folder.

    png, webp       000000.png, 000001.png, ...
    npz             samples.npz: arr_0 uint8 (n, height, width, 3), arr_1 int64 (n,) classes, as ADM's evaluation reads
    it
    array_record    records: a PNG file, preceded by its class (int32, little-endian) where the classes are known

The folder of a sampling job holds `samples.json`, its manifest: how the images were made, how many there are and in
which files.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maskgil_jax.config import require
from maskgil_jax.config.base import MAX_INT, shown
from maskgil_jax.files.atomic import clear, writing
from maskgil_jax.files.images import png_bytes, read_image_and_conversions, save_png, save_webp
from maskgil_jax.files.manifests import check_types, read_object
from maskgil_jax.files.npz import NpzImages, npz_writer
from maskgil_jax.files.records import RecordFiles

IMAGE_FORMATS = ("png", "webp")  # a file for each image
FORMATS = (*IMAGE_FORMATS, "npz", "array_record")
MANIFEST, NPZ, PARTS = "samples.json", "samples.npz", "parts"
MANIFEST_FORMAT = "maskgil samples 1"
_LABEL = struct.Struct("<i")
_PNG_MAGIC = b"\x89PNG"
_SAVE = {"png": save_png, "webp": save_webp}


# ------------------------------------------------------------------------------------------------ writing
def write_images(folder: Path, images: Iterable[np.ndarray], *, start: int = 0, digits: int = 6, kind: str = "png") -> None:
    """Writes numbered image files, `start` first: 000000.png, 000001.png, ..."""
    for number, image in enumerate(images, start):
        _SAVE[kind](folder / f"{number:0{digits}d}.{kind}", image)


def write_part(path: Path, images_bhwc: np.ndarray, label_b: np.ndarray) -> None:
    """Writes a file of a job atomically: .png or .webp (one image), .npy, or .array_record with classes."""
    if path.suffix in (".png", ".webp"):
        _SAVE[path.suffix[1:]](path, images_bhwc[0])
    elif path.suffix == ".array_record":
        write_records(path, [_LABEL.pack(label) + png_bytes(image) for image, label in zip(images_bhwc, label_b)])
    else:
        with writing(path) as part, open(part, "wb") as file:
            np.save(file, images_bhwc)


def join_parts(path: Path, parts: list[Path], labels: np.ndarray) -> None:
    """Joins .npy parts to one .npz with `labels` as arr_1; one part is in memory at a time."""
    clear(path.parent, path.name)  # an unfinished file of a killed process, which may be large
    shape = (len(labels), *np.load(parts[0], mmap_mode="r", allow_pickle=False).shape[1:])
    with writing(path) as temporary, npz_writer(temporary, shape, labels) as add:
        for part in parts:
            add(np.load(part, allow_pickle=False))


def write_records(path: Path, records: list[bytes]) -> None:
    """Writes an ArrayRecord file atomically and checks that all of it is on disk. Raises an `OSError` if it is not."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        with writing(path, sync=True) as part:
            part.touch()  # the writer itself does not report a folder it cannot write to
            with _record_writer(part) as write:
                for record in records:
                    write(record)
            reader = ArrayRecordReader(str(part))
            found = reader.num_records()
            reader.close()
            if found != len(records):
                raise OSError(f"{found} of {len(records)} records arrived on disk")
    except RuntimeError as error:  # how the writer reports a failing disk
        raise OSError(str(error)) from None


@contextlib.contextmanager
def sample_writer(path: str | os.PathLike, count: int, size: tuple[int, int]) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields `add(images)`, which takes uint8 batches (b, h, w, 3), `count` images in all.

    The suffix chooses the format: .npz, .array_record, or a folder of PNG files without one. The result appears under
    `path` when the block ends; nothing remains of it if the block raises.
    """
    path = Path(path)
    clear(path.parent, path.name)  # an unfinished file of a killed process, which may be large
    with writing(path) as part, _open_writer(path.suffix, part, (count, *size, 3)) as add:
        yield add


@contextlib.contextmanager
def _open_writer(suffix: str, part: Path, shape: tuple[int, ...]) -> Iterator[Callable[[np.ndarray], None]]:
    if suffix == ".npz":
        with npz_writer(part, shape) as add:
            yield add
        return
    if suffix == ".array_record":
        with _record_writer(part) as write:
            yield lambda images_bhwc: _each(write, map(png_bytes, images_bhwc))
        return
    part.mkdir()
    names = (part / f"{i:06d}.png" for i in range(shape[0]))
    yield lambda images_bhwc: _each(lambda image: save_png(next(names), image), images_bhwc)


def _each(call: Callable, items: Iterable) -> None:
    for item in items:
        call(item)


@contextlib.contextmanager
def _record_writer(path: Path) -> Iterator[Callable[[bytes], None]]:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")  # PNG data do not compress further
    try:
        yield writer.write
    finally:
        writer.close()


# ------------------------------------------------------------------------------------------------ reading
def decode_record(record: bytes, name: str) -> tuple[np.ndarray, tuple[str, ...], int | None]:
    """(uint8 (h, w, 3), conversions, class or None) of a record, which errors call `name`."""
    label = None
    if record[_LABEL.size :].startswith(_PNG_MAGIC) and not record.startswith(_PNG_MAGIC):
        label, record = _LABEL.unpack_from(record)[0], record[_LABEL.size :]
    image, conversions = read_image_and_conversions(record, name)
    return image, conversions, label


def read_manifest(folder: str | os.PathLike) -> dict:
    """The manifest of a job's folder. Raises a `ConfigError` that names the file if it is not one of this version."""
    path = Path(folder) / MANIFEST
    values = read_object(path, "give another --out")
    for name, known in (("format", (MANIFEST_FORMAT,)), ("files", FORMATS)):
        found = values.get(name)
        sound = isinstance(found, str) and found in known
        require(sound, f"{path}: {name} is {shown(found)}, expected {' or '.join(known)}; give another --out")
    check_types(path, values, {"num": int, "part_size": int})
    for name in ("num", "part_size"):
        require(values[name] >= 1, f"{path}: {name} is {values[name]}, expected at least 1; give another --out")
    return values


def is_job_folder(folder: str | os.PathLike) -> bool:
    """Whether a folder holds the manifest of a sampling job, rather than no or another `samples.json`."""
    try:
        values = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and str(values.get("format", "")).startswith("maskgil samples")


def part_files(manifest: dict) -> dict[str, np.ndarray]:
    """The files that a job writes, before npz parts are joined, and the indices of the images in each."""
    kind, indices = manifest["files"], np.arange(manifest["num"])
    if kind in _SAVE:
        return {f"{i:06d}.{kind}": indices[i : i + 1] for i in indices}
    size, total = manifest["part_size"], -(-len(indices) // manifest["part_size"])
    name = f"{PARTS}/{{:05d}}.npy" if kind == "npz" else f"samples-{{:05d}}-of-{total:05d}.array_record"
    return {name.format(k): indices[k * size : (k + 1) * size] for k in range(total)}


def sample_files(manifest: dict) -> list[str]:
    """The files of a finished job, in the order of its images."""
    return [NPZ] if manifest["files"] == "npz" else list(part_files(manifest))


def manifest_labels(manifest: dict) -> np.ndarray | None:
    """The class of each image (n,) int32, from the manifest's [class, images in a row]; None without them."""
    runs = manifest.get("labels")
    if not isinstance(runs, list) or not all(map(_is_run, runs)) or sum(count for _, count in runs) != manifest["num"]:
        return None
    return np.repeat(*np.asarray(runs, np.int64).reshape(-1, 2).T).astype(np.int32)


def _is_run(run: Any) -> bool:
    """Whether `run` is [class, images in a row]."""
    return isinstance(run, list) and len(run) == 2 and all(type(n) is int and 0 <= n <= MAX_INT for n in run)


def read_samples(folder: str | os.PathLike, limit: int | None = None) -> np.ndarray:
    """The first images of a finished job, uint8 (n, height, width, 3); default all."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest["files"] == "npz":
        file = NpzImages(folder / NPZ)
        return next(file.batches(file.count, limit))
    images: list[np.ndarray] = []
    for name in sample_files(manifest):
        if limit is not None and len(images) >= limit:
            break
        images += _read_file(folder / name)
    return np.stack(images[:limit])


def _read_file(path: Path) -> list[np.ndarray]:
    if path.suffix != ".array_record":
        return [read_image_and_conversions(path)[0]]
    records = RecordFiles([path], path)
    return [decode_record(records[i], f"{path}: record {i}")[0] for i in range(len(records))]
