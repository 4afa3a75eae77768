"""Images for training: where they come from, and batches of them.

A source has `len(s)`, `s[i] -> {"image": uint8 (h, w, 3), "label": int, "id": str}`, `s.class_names` and `s.name`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from maskgil_jax.config import require
from maskgil_jax.data.loader import batches
from maskgil_jax.data.sources.emoji import TILE, emoji
from maskgil_jax.data.sources.folder import ImageFolder
from maskgil_jax.data.transforms import RandomFlip, crop_transform


def open_images(
    spec: str | os.PathLike,
    *,
    split: str = "train",
    label: str = "subgroup",
    size: int = TILE,
    data_dir: str | os.PathLike | None = None,
):
    """Opens an image source.

    spec: "emoji" (the built-in drawings; `split`, `label` and `size` are those of `demo.emoji`), "tfds:NAME" (a data set
      prepared as ArrayRecord; `split` and `data_dir` are TFDS's), or a folder with one sub-folder per class: its sub-folder
      named `split` if that itself holds folders (the train/ and val/ of ImageNet), else, for "train" and "all", all of it.
    Raises a ValueError saying what was looked for and not found.
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


def image_batches(
    source,
    *,
    batch_size: int,
    image_size: int,
    crop: str = "center",
    flip: bool = False,
    seed: int = 0,
    shuffle: bool = True,
    num_epochs: int | None = None,
    num_workers: int = 0,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
    drop_remainder: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over {"image": uint8 (b, image_size, image_size, 3), "label": int32 (b,), "index": int64 (b,)}.

    crop: "center" (ADM), "random" (resize + random crop), "adm_random", or "none" (every image must have the size already).
    All of them enlarge an image that is smaller than `image_size`. flip: mirror at random. The rest as in `loader.batches`:
    the global batch of a step depends on nothing but the source, these options, `batch_size`, `seed` and the step.
    """
    require(isinstance(image_size, int) and image_size >= 1, f"image_size: must be a whole number >= 1, got {image_size!r}")
    transforms = [crop_transform(crop, image_size)] + [RandomFlip()] * flip
    return batches(
        source,
        transforms,
        {"image": np.uint8, "label": np.int32, "index": np.int64},
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        num_epochs=num_epochs,
        num_workers=num_workers,
        start_step=start_step,
        rows=rows,
        drop_remainder=drop_remainder,
    )
