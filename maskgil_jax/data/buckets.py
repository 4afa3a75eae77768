"""Size buckets: image sizes of nearly equal area, the crop to them, and their codes on a canvas of one length.

The list of sizes and the choice among them are those of Lumina-mGPT. Every bucket of a side S has at most (S / 16)^2
tokens, so one compiled program trains on all of them: `pad_codes` writes the codes of an image into a canvas of that
length, with the row, the column and the validity of every position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from maskgil_jax.config import choose, require
from maskgil_jax.data.transforms import adm_center_crop, random_window, resize_to_cover

CROPS = ("center", "random")
Size = tuple[int, int]  # (height, width)


def buckets(side: int, patch: int = 32, max_ratio: float = 4.0) -> tuple[Size, ...]:
    """All sizes (height, width) in multiples of `patch` that just fit into the area `side` x `side`, wide to tall.

    max_ratio: largest ratio of the longer to the shorter side. 25 sizes for a side of 256 pixels, 49 for 512.
    """
    require(patch >= 1, f"patch: must be at least 1, got {patch}")
    require(side >= patch and side % patch == 0, f"side: must be a multiple of patch = {patch}, got {side}")
    require(max_ratio >= 1, f"max_ratio: must be at least 1, got {max_ratio}")
    area = (side // patch) ** 2
    found, rows, columns = [], 1, area
    while columns:  # along the border of the sizes that fit: one row more while it fits, else one column less
        if max(rows, columns) <= max_ratio * min(rows, columns):
            found.append((rows * patch, columns * patch))
        if (rows + 1) * columns <= area:
            rows += 1
        else:
            columns -= 1
    return tuple(found)


def area_kept(size: Size, bucket: Size) -> float:
    """Fraction of the image's area that remains after scaling it to cover the bucket and cropping."""
    horizontal, vertical = bucket[1] / size[1], bucket[0] / size[0]
    return min(horizontal, vertical) / max(horizontal, vertical)


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket that keeps the largest part of an image of `size` (height, width); of equal ones, the widest.

    The ratio is computed in float64 as in the published code, so that ties are decided alike.
    """
    require(len(buckets) > 0, "buckets: is empty")
    require(min(size) >= 1, f"size: sides must be at least 1, got {size}")
    return max(buckets, key=lambda bucket: (area_kept(size, bucket), bucket[1], bucket[0]))


def crop_to_bucket(image_hwc: np.ndarray, buckets: Sequence[Size], rng: np.random.Generator | None = None) -> np.ndarray:
    """Scales and crops an image, uint8 (h, w, 3), to its nearest bucket.

    It is halved by a box filter while both sides are at least twice those needed, scaled by a bicubic filter to cover
    the bucket, and cropped. rng: None crops the centre. With a generator the position is random, as in the published
    code of Lumina-mGPT, where the function is called a centre crop.
    """
    size = nearest_bucket(image_hwc.shape[:2], buckets)
    if rng is None:
        return adm_center_crop(image_hwc, size)
    return random_window(resize_to_cover(image_hwc, size, "BICUBIC", box_first=True), size, rng)


class CenterBucketCrop(grain.transforms.Map):
    """Centre crop of record["image"] to its nearest bucket."""

    def __init__(self, buckets: Sequence[Size]):
        self._buckets = tuple(buckets)

    def map(self, element: dict) -> dict:
        return {**element, "image": crop_to_bucket(element["image"], self._buckets)}


class RandomBucketCrop(grain.transforms.RandomMap):
    """Random crop of record["image"] to its nearest bucket."""

    def __init__(self, buckets: Sequence[Size]):
        self._buckets = tuple(buckets)

    def random_map(self, element: dict, rng: np.random.Generator) -> dict:
        return {**element, "image": crop_to_bucket(element["image"], self._buckets, rng)}


def bucket_transform(crop: str, buckets: Sequence[Size]) -> CenterBucketCrop | RandomBucketCrop:
    """The transform for one of `CROPS`."""
    choose("crop", crop, CROPS)
    return CenterBucketCrop(buckets) if crop == "center" else RandomBucketCrop(buckets)


# --------------------------------------------------------------------------- canvases of one length
class Positions(NamedTuple):
    """Where each position of a padded canvas lies: int32 row and column, and whether it holds a token of the image.

    Padding follows the tokens and has row 0 and column 0.
    """

    row_l: np.ndarray
    column_l: np.ndarray
    valid_l: np.ndarray


def canvas_length(side: int, downsampling: int = 16) -> int:
    """Number of tokens of the canvas for the buckets of `side`: those of the square, the most that any bucket has."""
    require(side % downsampling == 0, f"side: must be a multiple of the tokenizer's factor {downsampling}, got {side}")
    return (side // downsampling) ** 2


def largest_grid(buckets: Sequence[Size], downsampling: int = 16) -> tuple[int, int]:
    """Most rows and most columns of tokens that any bucket has: the lengths of the rotation tables."""
    return max(h for h, _ in buckets) // downsampling, max(w for _, w in buckets) // downsampling


def canvas_positions(grid: tuple[int, int], length: int) -> Positions:
    """Positions of a grid of (rows, columns) tokens in raster order, padded to `length`."""
    rows, columns = grid
    require(min(grid) >= 1, f"grid: sides must be at least 1, got {grid}")
    require(rows * columns <= length, f"grid: {rows} x {columns} = {rows * columns} tokens, the canvas holds {length}")
    valid = np.arange(length) < rows * columns
    token = np.arange(length, dtype=np.int32) * valid
    return Positions(token // columns, token % columns, valid)


def pad_codes(codes_hw: np.ndarray, length: int, fill: int = 0) -> np.ndarray:
    """Codes of one image in raster order, followed by `fill`: (h, w) -> (length,)."""
    count = codes_hw.size
    require(count <= length, f"codes: {codes_hw.shape} are {count} tokens, the canvas holds {length}")
    return np.pad(codes_hw.reshape(-1), (0, length - count), constant_values=fill)


def unpad_codes(codes_l: np.ndarray, positions: Positions) -> np.ndarray:
    """The grid of codes of one image from its padded canvas: (length,) -> (h, w)."""
    rows, columns = (int(axis[positions.valid_l].max()) + 1 for axis in (positions.row_l, positions.column_l))
    return codes_l[: rows * columns].reshape(rows, columns)


class PadCodes(grain.transforms.Map):
    """Replaces record["codes"] (h, w) by a canvas (length,) and adds its "row", "column" and "valid"."""

    def __init__(self, length: int, fill: int = 0):
        self._length, self._fill = length, fill

    def map(self, element: dict) -> dict:
        codes_hw = element["codes"]
        row_l, column_l, valid_l = canvas_positions(codes_hw.shape, self._length)
        padded = {"codes": pad_codes(codes_hw, self._length, self._fill), "row": row_l, "column": column_l, "valid": valid_l}
        return {**element, **padded}
