"""Images to be measured, from wherever they lie: looked at once, in order, a batch at a time, never all in memory.

Nothing is resized behind anybody's back: images of one size are taken as they are, others only with `image_size`, and what
was converted on the way (grey, transparent, CMYK, 16-bit files) is counted and said in the output.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.data.images import open_images
from maskgil_jax.data.sources.folder import EXTENSIONS
from maskgil_jax.data.transforms import adm_center_crop
from maskgil_jax.evaluation.npz_files import NpzImages
from maskgil_jax.files.images import decode_image, read_image_and_mode

THREADS = 8
CONVERSIONS = {
    "L": "grey, copied to three channels",
    "1": "black and white, copied to three channels",
    "LA": "grey with transparency, laid on white",
    "RGBA": "transparent, laid on white",
    "PA": "palette with transparency, laid on white",
    "P": "palette, looked up",
    "CMYK": "CMYK, converted to RGB",
    "YCbCr": "YCbCr, converted to RGB",
    "I;16": "16-bit grey, scaled to 8 bits",
    "I;16B": "16-bit grey, scaled to 8 bits",
    "I": "16-bit grey, scaled to 8 bits",
}


@dataclasses.dataclass
class ImageSet:
    """`batches(n)` gives uint8 (n, h, w, 3) arrays, the last one shorter; `size` is (height, width), the same for all.

    labels: gives the class of each image (n,), where classes are known. about: what the output says of the set.
    notes: conversions, complete once the images were read.
    """

    name: str
    count: int
    size: tuple[int, int]
    batches: Callable[[int], Iterator[np.ndarray]]
    labels: Callable[[], np.ndarray] | None = None
    class_names: tuple[str, ...] = ()
    about: dict = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def open_set(
    spec: str | os.PathLike,
    *,
    split: str = "train",
    label: str = "subgroup",
    data_dir: str | None = None,
    image_size: int | None = None,
    count: int | None = None,
) -> ImageSet:
    """Opens images to be measured.

    spec: a folder of image files at any depth, an ADM `.npz` (`arr_0`), an `.array_record` of encoded images, "emoji" or
      "tfds:NAME" (`split`, `label` and `data_dir` as in `data.images.open_images`).
    image_size: every image is centre-cropped to it as ADM does; without it all must have one size. count: only so many.
    Raises a `ValueError` naming the file for whatever cannot be read, is empty, or mixes sizes.
    """
    text = os.fspath(spec)
    require(bool(text), "images: no path given")
    require(count is None or count >= 1, f"count: must be at least 1, got {count}")
    if text == "emoji" or text.startswith("tfds:"):
        return _from_source(
            open_images(text, split=split, label=label, size=image_size or 64, data_dir=data_dir), image_size, count
        )
    path = Path(text)
    require(path.exists(), f"{text}: no such file or folder; give a folder of images, an .npz, an .array_record or tfds:NAME")
    if path.is_dir():
        return _from_folder(path, image_size, count)
    if path.suffix == ".npz":
        return _from_npz(path, image_size, count)
    if path.suffix in (".array_record", ".arrayrecord"):
        return _from_records(path, image_size, count)
    raise ConfigError(f"{text}: expected a folder of images, an .npz (arr_0) or an .array_record")


def _from_folder(path: Path, image_size: int | None, count: int | None) -> ImageSet:
    files = sorted(
        Path(folder) / name for folder, _, names in os.walk(path) for name in names if name.lower().endswith(EXTENSIONS)
    )
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not files:
        raise ValueError(f"{path}: holds no images ({', '.join(EXTENSIONS)})")
    lossy = sum(file.suffix.lower() in (".jpg", ".jpeg") for file in files)
    notes = [f"{lossy} of {len(files)} files are JPEG: compression moves FID"] if lossy else []
    return _from_decoder(
        str(path), [str(f) for f in files], lambda i: read_image_and_mode(files[i]), image_size, count, "folder", notes
    )


def _from_records(path: Path, image_size: int | None, count: int | None) -> ImageSet:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        records = ArrayRecordDataSource([str(path)])
        total = len(records)
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{path}: not a readable ArrayRecord file ({str(error).splitlines()[0][:120]})") from None
    if not total:
        raise ValueError(f"{path}: holds no records")
    names = [f"{path}: record {i}" for i in range(total)]
    return _from_decoder(str(path), names, lambda i: decode_image(records[i], names[i]), image_size, count, "array_record", [])


def _from_source(source, image_size: int | None, count: int | None) -> ImageSet:
    number = min(count or len(source), len(source))
    names = [f"{source.name}: image {i}" for i in range(number)]
    found = _from_decoder(source.name, names, lambda i: (source[i]["image"], "RGB"), image_size, number, "data set", [])
    found.class_names = tuple(source.class_names)
    found.labels = lambda: np.asarray([source[i]["label"] for i in range(number)], np.int32)
    return found


def _from_decoder(
    name: str,
    files: list[str],
    decode: Callable[[int], tuple[np.ndarray, str]],
    image_size: int | None,
    count: int | None,
    kind: str,
    notes: list[str],
) -> ImageSet:
    """A set of images that are decoded one by one, ahead of their turn, in threads."""
    number = min(count or len(files), len(files))

    def sized(i: int) -> tuple[np.ndarray, str, bool]:
        image, mode = decode(i)
        if image_size is None or image.shape[:2] == (image_size, image_size):
            return image, mode, False
        return adm_center_crop(image, image_size), mode, True

    first, _, _ = sized(0)
    size = first.shape[:2]

    def batches(rows: int) -> Iterator[np.ndarray]:
        modes: collections.Counter[str] = collections.Counter()
        crops, batch = 0, []
        for i, (image, mode, cropped) in enumerate(_ahead(sized, range(number), 2 * rows)):
            if image.shape[:2] != size:
                raise ValueError(
                    f"{files[i]}: {image.shape[1]} x {image.shape[0]} pixels, {files[0]} has {size[1]} x {size[0]}; "
                    "images must be of one size: --image-size N crops them all"
                )
            modes[mode] += mode != "RGB"
            crops += cropped
            batch.append(image)
            if len(batch) == rows:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)
        said = [
            f"{n} of {number} images: {CONVERSIONS.get(mode, mode + ', converted to RGB')}" for mode, n in modes.items() if n
        ]
        if crops:
            said.append(f"{crops} of {number} images: centre-cropped to {image_size} x {image_size} (ADM)")
        found.notes[:] = [*notes, *said]

    found = ImageSet(name, number, size, batches, about={"kind": kind, "path": name}, notes=list(notes))
    return found


def _ahead(work: Callable, items: Iterable[int], depth: int) -> Iterator:
    """`work` of each item, in order, up to `depth` of them under way in threads."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        waiting: collections.deque = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _from_npz(path: Path, image_size: int | None, count: int | None) -> ImageSet:
    file = NpzImages(path)
    number = min(count or file.count, file.count)
    side = image_size or 0
    crop = bool(side) and file.size != (side, side)
    notes = [f"{number} images: one channel, copied to three"] if file.channels == 1 else []
    if crop:
        notes.append(f"{number} images: centre-cropped to {image_size} x {image_size} (ADM)")

    def batches(rows: int) -> Iterator[np.ndarray]:
        for images in file.batches(rows, number):
            yield np.stack([adm_center_crop(image, side) for image in images]) if crop else images

    size = (side, side) if crop else file.size
    return ImageSet(str(path), number, size, batches, about={"kind": "npz", "path": str(path)}, notes=notes)


def array_set(images_nhwc: np.ndarray, name: str = "array", **more) -> ImageSet:
    """uint8 images (n, h, w, 3) that are in memory already, as a set."""
    images_nhwc = np.asarray(images_nhwc)
    if images_nhwc.ndim != 4 or images_nhwc.dtype != np.uint8 or images_nhwc.shape[-1] != 3 or not len(images_nhwc):
        raise ValueError(f"{name}: expected uint8 (n, h, w, 3), got {images_nhwc.dtype} {images_nhwc.shape}")

    def batches(rows: int) -> Iterator[np.ndarray]:
        for start in range(0, len(images_nhwc), rows):
            yield images_nhwc[start : start + rows]

    return ImageSet(name, len(images_nhwc), images_nhwc.shape[1:3], batches, about={"kind": "array"}, **more)
