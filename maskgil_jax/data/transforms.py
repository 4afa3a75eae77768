"""Crops of uint8 images to (height, width), as array functions and as grain transforms of records.

The ADM crops halve with a box filter while the image is at least twice as large as needed, then go bicubic: the
preprocessing of the tokenizers and of the reference statistics (Dhariwal & Nichol 2021), which is for squares. Other
shapes are treated the same way: the image is scaled to cover (height, width) and cut. Resize + random crop is that of
LlamaGen's published code.
"""

from __future__ import annotations

import math

import grain
import numpy as np

from maskgil_jax.config import choose, height_width

CROPS = ("center", "random", "adm_random", "none")
Size = int | tuple[int, int]  # (height, width); one number is a square


def resize_to_cover(image_hwc: np.ndarray, size: tuple[int, int], resample: str, box_first: bool) -> np.ndarray:
    """Scales an image, keeping its aspect ratio, so that it just covers `size`: one side fits exactly,
    the other is longer."""
    from PIL import Image

    height, width = size
    image = Image.fromarray(image_hwc)
    if (image.height == height and image.width >= width) or (image.width == width and image.height >= height):
        return image_hwc
    while box_first and image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    fits_width = width * image.height >= height * image.width  # else the height fits exactly
    fits_height = width * image.height <= height * image.width
    scale = width / image.width if fits_width else height / image.height
    target = width if fits_width else round(image.width * scale), height if fits_height else round(image.height * scale)
    return np.asarray(image.resize(target, getattr(Image.Resampling, resample)))


def _cut(image_hwc: np.ndarray, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    return image_hwc[top : top + size[0], left : left + size[1]]


def adm_center_crop(image_hwc: np.ndarray, size: Size) -> np.ndarray:
    """The largest centred part of the image that has the shape of `size`, scaled to it: uint8 (h, w, 3)
    -> (*size, 3)."""
    size = height_width(size)
    image_hwc = resize_to_cover(image_hwc, size, "BICUBIC", box_first=True)
    height, width = image_hwc.shape[:2]
    return _cut(image_hwc, (height - size[0]) // 2, (width - size[1]) // 2, size)


def adm_random_crop(
    image_hwc: np.ndarray, size: Size, rng: np.random.Generator, min_fraction: float = 0.8, max_fraction: float = 1.0
) -> np.ndarray:
    """A random part of the image, `min_fraction` to `max_fraction` of the largest one of that shape,
    scaled to `size`."""
    size = height_width(size)
    short = min(size)
    scaled = int(rng.integers(math.ceil(short / max_fraction), math.ceil(short / min_fraction) + 1))
    cover = -(-size[0] * scaled // short), -(-size[1] * scaled // short)
    return random_window(resize_to_cover(image_hwc, cover, "BICUBIC", box_first=True), size, rng)


def resize_random_crop(image_hwc: np.ndarray, size: Size, rng: np.random.Generator) -> np.ndarray:
    """Scales the image by antialiased bilinear to cover `size` and cuts a random window."""
    size = height_width(size)
    return random_window(resize_to_cover(image_hwc, size, "BILINEAR", box_first=False), size, rng)


def random_window(image_hwc: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    height, width = image_hwc.shape[:2]
    return _cut(image_hwc, int(rng.integers(height - size[0] + 1)), int(rng.integers(width - size[1] + 1)), size)


def five_crops(image_hwc: np.ndarray, size: Size, scale: float = 1.1) -> np.ndarray:
    """Top left, top right, bottom left, bottom right and middle of the ADM centre crop at `scale * size`:
    (5, *size, 3).

    With their mirror images these are LlamaGen's ten crops.
    """
    size = height_width(size)
    large = int(size[0] * scale), int(size[1] * scale)
    image_hwc = adm_center_crop(image_hwc, large)
    bottom, right = large[0] - size[0], large[1] - size[1]
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2)))
    return np.stack([_cut(image_hwc, top, left, size) for top, left in corners])


class CenterCrop(grain.transforms.Map):
    """ADM centre crop of record["image"]."""

    def __init__(self, size: Size):
        self._size = height_width(size)

    def map(self, element: dict) -> dict:
        return {**element, "image": adm_center_crop(element["image"], self._size)}


class RandomCrop(grain.transforms.RandomMap):
    """Resize + random crop ("random") or ADM random crop ("adm_random") of record["image"]."""

    def __init__(self, size: Size, kind: str = "random"):
        self._size = height_width(size)
        self._crop = {"random": resize_random_crop, "adm_random": adm_random_crop}[kind]

    def random_map(self, element: dict, rng: np.random.Generator) -> dict:
        return {**element, "image": self._crop(element["image"], self._size, rng)}


class ExactSize(grain.transforms.Map):
    """No crop. Raises a ValueError that names an image of another size."""

    def __init__(self, size: Size):
        self._size = height_width(size)

    def map(self, element: dict) -> dict:
        found, (height, width) = element["image"].shape[:2], self._size
        if found != self._size:
            raise ValueError(
                f"{element['id']}: {found[1]} x {found[0]} pixels, expected {width} x {height}; set config.data.crop to center "
                "(or random, adm_random) to resize and crop"
            )
        return element


class RandomFlip(grain.transforms.RandomMap):
    """Mirrors record["image"] left to right half of the time."""

    def random_map(self, element: dict, rng: np.random.Generator) -> dict:
        if rng.random() < 0.5:
            return {**element, "image": element["image"][:, ::-1]}
        return element


def crop_transform(crop: str, size: Size) -> grain.transforms.Map | grain.transforms.RandomMap:
    """The transform for one of `CROPS`."""
    choose("crop", crop, CROPS)
    if crop == "none":
        return ExactSize(size)
    return CenterCrop(size) if crop == "center" else RandomCrop(size, crop)
