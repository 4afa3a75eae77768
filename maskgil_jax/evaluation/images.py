"""Image sets to be evaluated, from files, data sets or arrays: read once, in order, batch by batch.

Images are resized only if `image_size` is given. Conversions (grey, transparent, CMYK, 16-bit files) and files that are
left out are counted, and the output names them once.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.data.images import open_images
from maskgil_jax.data.sources.folder import EXTENSIONS
from maskgil_jax.data.transforms import adm_center_crop
from maskgil_jax.files import sample_formats
from maskgil_jax.files.images import read_image_and_conversions
from maskgil_jax.files.npz import NpzImages
from maskgil_jax.files.records import RecordFiles

THREADS = 8
Size = int | tuple[int, int]  # (height, width); one number is a square
Decoded = tuple[np.ndarray, tuple[str, ...], int | None]  # uint8 (h, w, 3), conversions, class if known


@dataclasses.dataclass
class ImageSet:
    """`batches(n)` yields uint8 (n, h, w, 3) arrays, the last one shorter; `size` is (height, width), the same for all.

    labels: returns the class of each image (n,), where classes are known. provenance: the set's entry in a result.
    notes: conversions and files left out, complete once the images were read.
    """

    name: str
    count: int
    size: tuple[int, int]
    batches: Callable[[int], Iterator[np.ndarray]]
    labels: Callable[[], np.ndarray] | None = None
    class_names: tuple[str, ...] = ()
    provenance: dict = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def open_image_set(
    spec: str | os.PathLike,
    *,
    split: str = "train",
    label: str = "subgroup",
    data_dir: str | None = None,
    image_size: Size | None = None,
    count: int | None = None,
) -> ImageSet:
    """Opens images to be evaluated.

    spec: a folder of image files at any depth, the folder of a sampling job, an ADM `.npz` (`arr_0`), an
      `.array_record` of encoded images, "emoji" or "tfds:NAME" (`split`, `label` and `data_dir` as in
      `data.images.open_images`).
    image_size: (height, width), or the side of a square, to which every image is centre-cropped as ADM does; without it
      all images must have one size. count: the number of images taken, from the first on.
    Raises a `ValueError` that names the file if something cannot be read, is empty, or has mixed sizes.
    """
    text = os.fspath(spec)
    require(bool(text), "images: no path given")
    require(count is None or count >= 1, f"count: must be at least 1, got {count}")
    size = _height_width(image_size)
    if text == "emoji" or text.startswith("tfds:"):
        rendered = max(size) if size else 64  # the emoji are rendered at the size asked for
        return _from_source(open_images(text, split=split, label=label, size=rendered, data_dir=data_dir), size, count)
    path = Path(text)
    require(path.exists(), f"{text}: no such file or folder; give a folder of images, an .npz, an .array_record or tfds:NAME")
    if path.is_dir():
        return (_from_job if sample_formats.is_job_folder(path) else _from_folder)(path, size, count)
    if path.suffix == ".npz":
        return _from_npz(path, size, count)
    if path.suffix in (".array_record", ".arrayrecord"):
        return _from_records(str(path), [path], size, count)
    raise ConfigError(f"{text}: expected a folder of images, an .npz (arr_0) or an .array_record")


def array_set(images_nhwc: np.ndarray, name: str = "array", **fields) -> ImageSet:
    """Wraps uint8 images (n, h, w, 3) in memory as a set. fields: further fields of `ImageSet`."""
    images_nhwc = np.asarray(images_nhwc)
    if images_nhwc.ndim != 4 or images_nhwc.dtype != np.uint8 or images_nhwc.shape[-1] != 3 or not len(images_nhwc):
        raise ValueError(f"{name}: expected uint8 (n, h, w, 3), got {images_nhwc.dtype} {images_nhwc.shape}")

    def batches(rows: int) -> Iterator[np.ndarray]:
        for start in range(0, len(images_nhwc), rows):
            yield images_nhwc[start : start + rows]

    return ImageSet(name, len(images_nhwc), images_nhwc.shape[1:3], batches, provenance={"kind": "array"}, **fields)


def saved(images: ImageSet, path: str | os.PathLike) -> ImageSet:
    """The same set, also written to `path` while it is read. Raises a `ConfigError` if `path` exists."""
    if Path(path).exists():
        raise ConfigError(f"{path}: is there already; give another place for the samples, or remove it")

    def batches(rows: int) -> Iterator[np.ndarray]:
        with sample_formats.sample_writer(path, images.count, images.size) as add:
            for batch in images.batches(rows):
                add(batch)
                yield batch

    return dataclasses.replace(images, batches=batches, provenance={**images.provenance, "saved": os.fspath(path)})


# ------------------------------------------------------------------------------------------------ folders
def _from_folder(path: Path, size: tuple[int, int] | None, count: int | None) -> ImageSet:
    found = _visible_files(path)
    files = [file for file in found if file.name.lower().endswith(EXTENSIONS)]
    if not files:
        raise ValueError(f"{path}: holds no images ({', '.join(EXTENSIONS)})")
    notes = []
    lossy = sum(file.suffix.lower() in (".jpg", ".jpeg") for file in files)
    if lossy:
        notes.append(f"{lossy} of {len(files)} files are JPEG: compression moves FID")
    others = [file for file in found if not file.name.lower().endswith(EXTENSIONS)]
    if others:
        text = _plural(len(others), "file", "without an image suffix")
        notes.append(f"{text} left out ({_examples(path, others)})")
    return _from_files(path, files, size, count, notes)


def _from_job(path: Path, size: tuple[int, int] | None, count: int | None) -> ImageSet:
    """The samples that the manifest of a job names; other images of the folder (its contact sheet) are left out."""
    manifest = sample_formats.read_manifest(path)
    files = [path / name for name in sample_formats.sample_files(manifest)]
    missing = [file.name for file in files if not file.exists()]
    require(
        not missing,
        f"{path}: {len(missing)} of the {len(files)} files of this sampling job are missing, {missing[:1]} first; the job is "
        "unfinished: run its maskgil sample command again",
    )
    others = [file for file in _visible_files(path) if file.name.lower().endswith(EXTENSIONS) and file not in set(files)]
    notes = []
    if others:
        text = _plural(len(others), "image", f"that the manifest {sample_formats.MANIFEST} does not name")
        notes = [f"{text} left out ({_examples(path, others)})"]
    if manifest["files"] == "npz":
        found = _from_npz(files[0], size, count, notes)
    elif manifest["files"] == "array_record":
        found = _from_records(str(path), files, size, count, notes)
    else:
        found = _from_files(path, files, size, count, notes)
    labels = sample_formats.manifest_labels(manifest)
    if labels is not None:
        found.labels = lambda: labels[: found.count]
    found.name, found.provenance = str(path), {"kind": "job", "path": str(path), "seed": manifest.get("seed")}
    return found


def _visible_files(root: Path) -> list[Path]:
    """All files below a folder that are not hidden, sorted.

    Links are followed, except to a folder that contains them.
    """
    found = []
    for folder, inner, names in os.walk(root, followlinks=True):
        here = Path(folder).resolve()
        inner[:] = [name for name in inner if not name.startswith(".") and not _contains(Path(folder, name).resolve(), here)]
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    return sorted(found)


def _contains(folder: Path, inner: Path) -> bool:
    return inner == folder or folder in inner.parents


def _plural(count: int, noun: str, which: str) -> str:
    return f"{count} {noun} {which} is" if count == 1 else f"{count} {noun}s {which} are"


def _examples(root: Path, files: Sequence[Path]) -> str:
    return ", ".join(str(file.relative_to(root)) for file in files[:3]) + (", ..." if len(files) > 3 else "")


def _from_files(path: Path, files: list[Path], size, count: int | None, notes: Sequence[str]) -> ImageSet:
    def decode(i: int) -> Decoded:
        return *read_image_and_conversions(files[i]), None

    return _from_decoder(str(path), [str(file) for file in files], decode, size, count, "folder", notes)


# ------------------------------------------------------------------------------------------------ other containers
def _from_records(name: str, paths: list[Path], size, count: int | None, notes: Sequence[str] = ()) -> ImageSet:
    records = RecordFiles(paths, name)
    total = len(records)
    if not total:
        raise ValueError(f"{name}: holds no records")
    names = [f"{name}: record {i}" for i in range(total)]

    def decode(i: int) -> Decoded:
        return sample_formats.decode_record(records[i], names[i])

    return _from_decoder(name, names, decode, size, count, "array_record", notes)


def _from_source(source, size: tuple[int, int] | None, count: int | None) -> ImageSet:
    def decode(i: int) -> Decoded:
        record = source[i]
        return record["image"], (), int(record["label"])

    names = [f"{source.name}: image {i}" for i in range(len(source))]
    found = _from_decoder(source.name, names, decode, size, count, "data set")
    found.class_names = tuple(source.class_names)
    return found


def _from_npz(path: Path, size: tuple[int, int] | None, count: int | None, notes: Sequence[str] = ()) -> ImageSet:
    file = NpzImages(path)
    number = min(count or file.count, file.count)
    crop = size if size and size != file.size else None
    grey = [f"{number} images: one channel, copied to three"] * (file.channels == 1)
    cropped = [f"{number} images: {_cropped(crop)}"] if crop else []

    def batches(rows: int) -> Iterator[np.ndarray]:
        for images in file.batches(rows, number):
            yield np.stack([adm_center_crop(image, _crop_size(crop)) for image in images]) if crop else images

    known = None if file.labels is None else file.labels[:number]
    labels = None if known is None else lambda: known
    return ImageSet(
        str(path),
        number,
        crop or file.size,
        batches,
        labels,
        provenance={"kind": "npz", "path": str(path)},
        notes=[*notes, *grey, *cropped],
    )


def _from_decoder(
    name: str,
    files: list[str],
    decode: Callable[[int], Decoded],
    crop: tuple[int, int] | None,
    count: int | None,
    kind: str,
    notes: Sequence[str] = (),
) -> ImageSet:
    """A set of images that threads decode one by one, ahead of their use. The classes are kept as they are decoded."""
    number = min(count or len(files), len(files))
    labels: list[int | None] = [None] * number

    def load(i: int) -> tuple[np.ndarray, tuple[str, ...]]:
        image, conversions, labels[i] = decode(i)
        if crop is None or image.shape[:2] == crop:
            return image, conversions
        return adm_center_crop(image, _crop_size(crop)), (*conversions, _cropped(crop))

    def known_labels() -> np.ndarray:
        return np.asarray([decode(i)[2] if known is None else known for i, known in enumerate(labels)], np.int32)

    size = load(0)[0].shape[:2]

    def batches(rows: int) -> Iterator[np.ndarray]:
        conversions: collections.Counter[str] = collections.Counter()
        batch: list[np.ndarray] = []
        for i, (image, done) in enumerate(_prefetch(load, range(number), 2 * rows)):
            if image.shape[:2] != size:
                raise ValueError(
                    f"{files[i]}: {image.shape[1]} x {image.shape[0]} pixels, {files[0]} has {size[1]} x {size[0]}; "
                    "images must be of one size: --image-size N crops them all"
                )
            conversions.update(done)
            batch.append(image)
            if len(batch) == rows:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)
        counted = [f"{n} of {number} images: {conversion}" for conversion, n in conversions.items()]
        found.notes[:] = [*notes, *counted]

    found = ImageSet(
        name,
        number,
        size,
        batches,
        labels=None if labels[0] is None else known_labels,
        provenance={"kind": kind, "path": name},
        notes=list(notes),
    )
    return found


def _prefetch(work: Callable, items: Iterable[int], depth: int) -> Iterator:
    """Yields `work(item)` in order while threads run it for up to `depth` further items."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        pending: collections.deque = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _height_width(size: Size | None) -> tuple[int, int] | None:
    sides = (size, size) if isinstance(size, int) else size
    require(sides is None or (len(sides) == 2 and min(sides) >= 1), f"image_size: must be at least 1, got {size}")
    return None if sides is None else (int(sides[0]), int(sides[1]))


def _crop_size(size: tuple[int, int]) -> Any:
    """The argument of `adm_center_crop`: one number for a square."""
    return size[0] if size[0] == size[1] else size


def _cropped(size: tuple[int, int]) -> str:
    return f"centre-cropped to {size[1]} x {size[0]} (ADM)"
