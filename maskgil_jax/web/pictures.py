"""Pictures in and out of requests: files with their settings inside, and uploads cut to the size that is drawn."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.data.transforms import adm_center_crop
from maskgil_jax.files.images import to_rgb
from maskgil_jax.pipelines.pictures import scaled_with_hole

UPLOADS = ("PNG", "JPEG", "WEBP")  # Pillow's names of the formats that are read


def encode(image_hwc: np.ndarray, about: dict[str, Any], output_format: str = "png", compression: int = 100) -> bytes:
    """The image as a file that holds its settings: a PNG text chunk "parameters", or the EXIF description.

    compression: quality 0..100 of JPEG, and of WebP below 100 (100: lossless).
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    image, text, buffer = Image.fromarray(image_hwc), json.dumps(about, ensure_ascii=False), io.BytesIO()
    if output_format == "png":
        info = PngInfo()
        info.add_itxt("parameters", text)
        image.save(buffer, format="PNG", pnginfo=info)
        return buffer.getvalue()
    exif = Image.Exif()
    exif[0x010E] = json.dumps(about)  # ImageDescription, which is ASCII
    lossless = {"lossless": True} if output_format == "webp" and compression == 100 else {}
    image.save(buffer, format=output_format.upper(), quality=compression, exif=exif, **lossless)
    return buffer.getvalue()


def settings_of(data: bytes) -> dict[str, Any]:
    """The settings in a file that `encode` wrote."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return json.loads(image.info.get("parameters") or image.getexif()[0x010E])


def read_upload(data: bytes, name: str, max_side: int) -> Any:
    """An uploaded picture as a PIL image.

    Its size is checked before it is decoded; the name of the file is not used.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=UPLOADS)
    except Image.UnidentifiedImageError:
        raise ConfigError(f"{name}: not a PNG, JPEG or WebP file") from None
    except Image.DecompressionBombError:
        raise ConfigError(f"{name}: has far too many pixels; at most {max_side} a side are read") from None
    except Exception as error:  # Pillow's readers raise many kinds of exception on damaged input
        raise ConfigError(f"{name}: cannot be read ({type(error).__name__})") from None
    longest = max(image.size)
    require(longest <= max_side, f"{name}: {image.width} x {image.height} pixels; at most {max_side} a side are read")
    try:
        image.load()
    except Exception as error:
        raise ConfigError(f"{name}: cannot be decoded ({type(error).__name__})") from None
    return image


def image_and_hole(image: Any, mask: Any, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 (h, w, 3), bool (h, w), true in the hole) of PIL images, cut in the middle and scaled to (height, width).

    The hole is where `mask` is transparent, or white if it has no transparency; without a mask, where the image is
    transparent.
    """
    image_hwc = to_rgb(image)
    marks = image if mask is None else mask
    if marks.has_transparency_data:
        hole_hw = np.asarray(marks.convert("RGBA"))[..., 3] < 128
    else:
        require(mask is not None, "mask: none given, and the image has no transparent part")
        hole_hw = np.asarray(marks.convert("L")) >= 128
    if hole_hw.shape != image_hwc.shape[:2]:
        (h, w), (mask_h, mask_w) = image_hwc.shape[:2], hole_hw.shape
        raise ConfigError(f"mask: {mask_w} x {mask_h} pixels, the image has {w} x {h}; they must be the same")
    require(bool(hole_hw.any()), "mask: marks nothing; transparent pixels, or white ones without transparency, are drawn anew")
    if image_hwc.shape[:2] == size:
        return image_hwc, hole_hw
    image_hwc, hole_hw = scaled_with_hole(image_hwc, hole_hw, lambda part_hwc: scaled(part_hwc, size))
    require(bool(hole_hw.any()), "mask: marks nothing that is left at the drawn size; mark a larger part")
    return image_hwc, hole_hw


def scaled(image_hwc: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image cut in the middle to the shape of (height, width), and scaled to it."""
    height, width = size
    if height == width:
        return adm_center_crop(image_hwc, height)
    from PIL import Image

    h, w = image_hwc.shape[:2]
    scale = min(h / height, w / width)
    cut_h, cut_w = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (h - cut_h) // 2, (w - cut_w) // 2
    cut = Image.fromarray(image_hwc[top : top + cut_h, left : left + cut_w])
    return np.asarray(cut.resize((width, height), Image.Resampling.BOX if scale > 1 else Image.Resampling.BICUBIC))
