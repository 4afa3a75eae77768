"""Image sources for training, and batches of their images.

A source has `len(s)`, `s[i] -> {"image": uint8 (h, w, 3), "label": int, "id": str}`, `s.class_names` and `s.name`. It
may have `s.fingerprint` (identity of the image names), `s.content_hash` and `s.content(start, stop)` (identity of the
images).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from maskgil_jax.config import LoaderConfig, height_width, require
from maskgil_jax.data.loader import batches
from maskgil_jax.data.sources.captions import DrawCaption
from maskgil_jax.data.sources.emoji import TILE, emoji
from maskgil_jax.data.sources.folder import ImageFolder
from maskgil_jax.data.transforms import RandomFlip, crop_transform

_log = logging.getLogger(__name__)


def open_images(
    spec: str | os.PathLike,
    *,
    split: str = "train",
    label: str = "subgroup",
    size: int | tuple[int, int] = TILE,
    data_dir: str | os.PathLike | None = None,
):
    """Opens an image source.

    spec: "emoji" (the built-in drawings; `split`, `label` and `size` are those of `sources.emoji.emoji`), "tfds:NAME"
      (a data set prepared as ArrayRecord; `split` and `data_dir` are TFDS's), or a folder with one sub-folder per
      class: its sub-folder named `split` if that holds folders (as train/ and val/ of ImageNet), else, for "train" and
      "all", all of it.
    Raises a ValueError that names what was not found.
    """
    spec = os.fspath(spec)
    require(bool(spec), "data.path: is empty; give emoji, tfds:NAME or a folder of images")
    if spec == "emoji":
        return emoji(split, label, size)
    if spec.startswith("tfds:"):
        from maskgil_jax.data.sources.tfds import PreparedDataset

        return PreparedDataset(spec[len("tfds:") :], split, data_dir)
    inner = Path(spec) / split
    if split and next(inner.glob("*/"), None) is not None:
        return ImageFolder(inner)
    require(
        split in ("train", "all") or not os.path.isdir(spec),
        f"data.split: {split!r}, but there is no folder {inner} with class sub-folders in it; "
        f"for the whole of {spec} use train or all",
    )
    return ImageFolder(spec)


def open_held_out(source, spec: str | os.PathLike, *, split: str, **options):
    """The images by which a training is judged: those of `split`, opened as `open_images` does,
    or the training's `source`.

    A folder without sub-folders for splits has no other images; that is logged unless `split` is "all".
    """
    folder = Path(os.fspath(spec))
    if os.fspath(spec) == "emoji" or os.fspath(spec).startswith("tfds:") or not folder.is_dir():
        return open_images(spec, split=split, **options)
    if any(name and next((folder / name).glob("*/"), None) is not None for name in (split, "train")):
        return open_images(spec, split=split, **options)
    if split != "all":
        _log.info("%s: has no folder %r of held-out images; those of the training are shown", spec, split)
    return source


def image_batches(
    source,
    loader: LoaderConfig,
    *,
    size: int | tuple[int, int],
    crop: str = "center",
    flip: bool = False,
    start_step: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over {"image": uint8 (b, height, width, 3), "label": int32 (b,), "index": int64 (b,)};
    as `loader.batches`.

    size: (height, width); one number is a square. crop: "center" (ADM), "random" (resize + random crop), "adm_random",
    or "none" (every image must have the size already). The crops enlarge smaller images. flip: mirror half of the
    images.
    """
    transforms = [crop_transform(crop, height_width(size))] + [RandomFlip()] * flip
    dtypes = {"image": np.uint8, "label": np.int32, "index": np.int64}
    return batches(source, transforms, dtypes, loader, start_step=start_step)


def captioned_batches(
    source,
    loader: LoaderConfig,
    *,
    size: int | tuple[int, int],
    crop: str = "center",
    flip: bool = False,
    transforms: Sequence = (),
    fields: Mapping[str, np.dtype],
    start_step: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """As `image_batches`, of a source of captioned images: {"image", "index"} and `fields`.

    transforms: grain transforms of records in which "caption" is one of the image's captions, drawn by seed and
    position in the stream; they make `fields` {name: type}.
    """
    first = [crop_transform(crop, height_width(size))] + [RandomFlip()] * flip
    dtypes = {"image": np.dtype(np.uint8), "index": np.dtype(np.int64), **fields}
    return batches(source, [*first, DrawCaption(), *transforms], dtypes, loader, start_step=start_step)
