"""Square crops of uint8 images, as array functions and as grain transforms of records.

The ADM crops halve with a box filter while the short side is at least twice the target, then go bicubic: the preprocessing of
the tokenizers and of the reference statistics (Dhariwal & Nichol 2021). Resize + random crop is that of the published code.
"""

from __future__ import annotations

import math

import grain
import numpy as np

from maskgil_jax.config import choose

CROPS = ("center", "random", "adm_random", "none")


def _resize(image_hwc: np.ndarray, short_side: int, resample: str, box_first: bool) -> np.ndarray:
    """Scales the short side to `short_side`, up or down, keeping the aspect ratio."""
    from PIL import Image

    height, width = image_hwc.shape[:2]
    if min(height, width) == short_side:
        return image_hwc
    image = Image.fromarray(image_hwc)
    while box_first and min(image.size) >= 2 * short_side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = short_side / min(image.size)
    width, height = (short_side if side == min(image.size) else round(side * scale) for side in image.size)
    return np.asarray(image.resize((width, height), getattr(Image.Resampling, resample)))


def _cut(image_hwc: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    return image_hwc[top : top + size, left : left + size]


def adm_center_crop(image_hwc: np.ndarray, size: int) -> np.ndarray:
    """The middle square of the image at `size` pixels: uint8 (h, w, 3) -> (size, size, 3)."""
    image_hwc = _resize(image_hwc, size, "BICUBIC", box_first=True)
    height, width = image_hwc.shape[:2]
    return _cut(image_hwc, (height - size) // 2, (width - size) // 2, size)


def adm_random_crop(
    image_hwc: np.ndarray, size: int, rng: np.random.Generator, min_fraction: float = 0.8, max_fraction: float = 1.0
) -> np.ndarray:
    """A random square whose side is `min_fraction`..`max_fraction` of the short side, at `size` pixels."""
    short_side = int(rng.integers(math.ceil(size / max_fraction), math.ceil(size / min_fraction) + 1))
    return _random_window(_resize(image_hwc, short_side, "BICUBIC", box_first=True), size, rng)


def resize_random_crop(image_hwc: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Short side to `size` by antialiased bilinear, then a random square of it."""
    return _random_window(_resize(image_hwc, size, "BILINEAR", box_first=False), size, rng)


def _random_window(image_hwc: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    height, width = image_hwc.shape[:2]
    return _cut(image_hwc, int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1)), size)


def five_crops(image_hwc: np.ndarray, size: int, scale: float = 1.1) -> np.ndarray:
    """Top left, top right, bottom left, bottom right and middle of the ADM centre crop at `scale * size`: (5, size, size, 3).

    With their mirror images these are LlamaGen's ten crops.
    """
    side = int(size * scale)
    image_hwc = adm_center_crop(image_hwc, side)
    far, middle = side - size, round((side - size) / 2)
    corners = ((0, 0), (0, far), (far, 0), (far, far), (middle, middle))
    return np.stack([_cut(image_hwc, top, left, size) for top, left in corners])


class CenterCrop(grain.transforms.Map):
    """ADM centre crop of record["image"]."""

    def __init__(self, size: int):
        self._size = size

    def map(self, element: dict) -> dict:
        return {**element, "image": adm_center_crop(element["image"], self._size)}


class RandomCrop(grain.transforms.RandomMap):
    """Resize + random crop ("random") or ADM random crop ("adm_random") of record["image"]."""

    def __init__(self, size: int, kind: str = "random"):
        self._size = size
        self._crop = {"random": resize_random_crop, "adm_random": adm_random_crop}[kind]

    def random_map(self, element: dict, rng: np.random.Generator) -> dict:
        return {**element, "image": self._crop(element["image"], self._size, rng)}


class ExactSize(grain.transforms.Map):
    """No crop: an image of another size is an error that names it."""

    def __init__(self, size: int):
        self._size = size

    def map(self, element: dict) -> dict:
        height, width = element["image"].shape[:2]
        if (height, width) != (self._size, self._size):
            raise ValueError(
                f"{element['id']}: {width} x {height} pixels, expected {self._size} x {self._size}; choose a crop to resize"
            )
        return element


class RandomFlip(grain.transforms.RandomMap):
    """Mirrors record["image"] left to right half of the time."""

    def random_map(self, element: dict, rng: np.random.Generator) -> dict:
        if rng.random() < 0.5:
            return {**element, "image": element["image"][:, ::-1]}
        return element


def crop_transform(crop: str, size: int) -> grain.transforms.Map | grain.transforms.RandomMap:
    """The transform for one of `CROPS`."""
    choose("crop", crop, CROPS)
    if crop == "none":
        return ExactSize(size)
    return CenterCrop(size) if crop == "center" else RandomCrop(size, crop)
