"""Pictures as users have them (arrays, PIL images, files, or lists of them) <-> uint8 batches."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from maskgil_jax.config import ConfigError, choose, require
from maskgil_jax.decoding.token_edits import fill_holes
from maskgil_jax.files.images import read_alpha, read_image, to_pil, to_rgb


def as_images(images: Any, channels: tuple[int, ...] = (3,)) -> np.ndarray:
    """A uint8 batch (b, height, width, c) of images in any form; one image is a batch of one.

    images: a uint8 array (b, height, width, c) or (height, width, c), a PIL image, the path of a file, or a list of
    these of one size. PIL images and files become RGB as `files.images.read_image` says; with 4 among `channels` the
    alpha of a transparent one is kept as its fourth channel.
    """
    if isinstance(images, (list, tuple)):
        require(len(images) > 0, "images: none given")
        rows = [_picture(image, 4 in channels) for image in images]
        shapes = {row.shape: i for i, row in reversed(list(enumerate(rows)))}
        if len(shapes) > 1:
            sizes = "; ".join(f"image {i} is {shape}" for shape, i in sorted(shapes.items(), key=lambda item: item[1])[:2])
            raise ConfigError(f"images: must have one size (height, width, channels), but {sizes}; crop or scale them")
        images_bhwc = np.stack(rows)
    else:
        images_bhwc = _picture(images, 4 in channels)
        images_bhwc = images_bhwc[None] if images_bhwc.ndim == 3 else images_bhwc
    if images_bhwc.dtype != np.uint8 or images_bhwc.ndim != 4 or images_bhwc.shape[-1] not in channels or not images_bhwc.size:
        wanted = " or ".join(map(str, channels))
        raise ConfigError(
            f"images: expected uint8 (b, height, width, {wanted}) or one picture (height, width, {wanted}), PIL images or "
            f"paths, got {images_bhwc.dtype} {images_bhwc.shape}"
        )
    return images_bhwc


def as_masks(masks: Any) -> np.ndarray:
    """Masks as an array, bool or uint8: arrays are returned.

    Of PIL images and files it is the grey level; white is masked.
    """
    if isinstance(masks, (list, tuple)):
        return np.stack([as_masks(mask) for mask in masks])
    if isinstance(masks, Image.Image):
        return np.asarray(masks) if masks.mode == "1" else np.asarray(ImageOps.exif_transpose(masks).convert("L"))
    if isinstance(masks, (str, os.PathLike)):
        return read_image(masks).mean(axis=-1).round().astype(np.uint8)
    return np.asarray(masks)


def scaled_with_hole(
    image_hwc: np.ndarray, hole_hw: np.ndarray, scale: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """An image and its hole (bool), both scaled by `scale`: uint8 (h, w, 3) -> uint8 (h', w', 3).

    Scaling averages neighbouring pixels, so the content of the hole is replaced before it.
    """
    levels_hwc = np.repeat(np.where(hole_hw, np.uint8(255), np.uint8(0))[..., None], 3, axis=2)
    return scale(fill_holes(image_hwc[None], hole_hw[None])[0]), scale(levels_hwc)[..., 0] >= 128


def _picture(image: Any, alpha: bool) -> np.ndarray:
    """One item of `as_images` as an array."""
    if isinstance(image, (str, os.PathLike)):
        rgb_hwc, opacity_hw = read_image(image), read_alpha(image) if alpha else None
        return rgb_hwc if opacity_hw is None else np.concatenate([rgb_hwc, opacity_hw[..., None]], axis=-1)
    if isinstance(image, Image.Image):
        if alpha and image.has_transparency_data:
            return np.array(ImageOps.exif_transpose(image).convert("RGBA"))
        return to_rgb(image)
    return np.asarray(image)


def with_output(function: Callable[..., np.ndarray]) -> Callable[..., Any]:
    """Adds `output` to a function that returns images: "numpy", or "pil" for a list of PIL images (of lists, if
    nested)."""

    @functools.wraps(function)
    def call(*args: Any, output: str = "numpy", **options: Any) -> Any:
        choose("output", output, ("numpy", "pil"))
        images = function(*args, **options)
        return images if output == "numpy" else _nested_pil(images)

    return call


def _nested_pil(images: np.ndarray) -> list:
    return to_pil(images) if images.ndim == 4 else [_nested_pil(part) for part in images]
