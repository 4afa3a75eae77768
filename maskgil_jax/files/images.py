"""Image files: reading to uint8 RGB arrays, writing PNG, WebP and animations, and contact sheets."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from typing import IO

import numpy as np

from maskgil_jax.files.atomic import writing

MAX_PIXELS = 40_000_000  # a 400 kB file can decompress to gigabytes: the size in the header is checked before decoding

# Stored mode of an image (Pillow's names) -> what conversion to 8-bit RGB does to it.
CONVERSIONS = {
    "1": "black and white, copied to three channels",
    "L": "grey, copied to three channels",
    "P": "palette, looked up",
    "CMYK": "CMYK, converted to RGB",
    "YCbCr": "YCbCr, converted to RGB",
    "LAB": "CIELAB, converted to RGB",
    "HSV": "HSV, converted to RGB",
}


# ------------------------------------------------------------------------------------------------ writing
def contact_sheet(images_bhwc: np.ndarray, *, columns: int | None = None, gap: int = 2, background: int = 255) -> np.ndarray:
    """Arranges uint8 images of one size in rows; about square unless `columns` is given."""
    b, h, w, _ = images_bhwc.shape
    columns = min(columns or math.ceil(math.sqrt(b)), b)
    rows = math.ceil(b / columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), background, np.uint8)
    for i, image in enumerate(images_bhwc):
        top, left = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        sheet[top : top + h, left : left + w] = image
    return sheet


def to_pil(images_bhwc: np.ndarray) -> list:
    """uint8 images as a list of PIL images."""
    from PIL import Image

    return [Image.fromarray(image) for image in np.asarray(images_bhwc)]


def save_png(path, image_hwc: np.ndarray) -> None:
    """Writes a PNG file atomically."""
    _save(path, [image_hwc], format="PNG")


def save_webp(path, image_hwc: np.ndarray) -> None:
    """Writes a lossless WebP file atomically."""
    _save(path, [image_hwc], format="WEBP", lossless=True)


def png_bytes(image_hwc: np.ndarray) -> bytes:
    """Encodes an image as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image_hwc).save(buffer, format="PNG")
    return buffer.getvalue()


def save_animation(path, frames_thwc: np.ndarray, *, seconds: float = 0.4, last: float = 1.5) -> None:
    """Writes an endless GIF or lossless WebP, chosen by the suffix; `seconds` per frame, `last` for the last one."""
    kind = {".gif": "GIF", ".webp": "WEBP"}.get(os.path.splitext(path)[1].lower())
    if kind is None:
        raise ValueError(f"{path}: animations are .gif or .webp")
    durations = [round(1000 * seconds)] * (len(frames_thwc) - 1) + [round(1000 * last)]
    _save(path, frames_thwc, format=kind, duration=durations, loop=0, **({"lossless": True} if kind == "WEBP" else {}))


def _save(path, frames, **options) -> None:
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in frames)
    if rest:
        options |= {"save_all": True, "append_images": rest}
    with writing(path) as part:
        first.save(part, **options)


# ------------------------------------------------------------------------------------------------ reading
def read_image(path: str | os.PathLike | IO[bytes]) -> np.ndarray:
    """Decodes a PNG, JPEG, WebP, BMP or GIF (first frame) file to uint8 (h, w, 3), rotated by its EXIF orientation.

    path: a file name, or an open binary file.
    Transparent pixels are composited over white; 16-bit values are scaled to 8 bits; CMYK, palette and grey become RGB.
    Raises a `ValueError` that names the file if it cannot be decoded, has no pixels or has more than 40 million.
    """
    with _open(path) as image:
        return _decode(image, path)


def read_image_and_conversions(
    source: str | os.PathLike | bytes, name: str | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """`read_image`, and a description of each conversion that changed the stored pixels; an empty tuple for plain RGB.

    source: a file name, or the bytes of an encoded image, which errors call `name`.
    """
    name = os.fspath(source) if name is None and not isinstance(source, bytes) else name
    with _open(io.BytesIO(source) if isinstance(source, bytes) else source, name) as image:
        found, pixels_hwc = _decode(image, name, lambda image: (conversions_of(image), to_rgb(image)))
        return pixels_hwc, found


def conversions_of(image) -> tuple[str, ...]:
    """What `read_image` does to an opened PIL image after decoding. Must be called before its pixels are loaded."""
    found = []
    stored = "" if not getattr(image, "tile", None) else str(image.tile[0][3])  # the depth in the file, e.g. "RGB;16B"
    deep = image.mode.startswith("I") or ";16" in stored
    base = {"RGBA": "RGB", "RGBX": "RGB", "RGBa": "RGB", "LA": "L", "La": "L", "PA": "P"}.get(image.mode, image.mode)
    if deep:
        grey = image.mode.startswith("I") or stored.startswith("L")
        found.append(f"16-bit {'grey' if grey else 'colour'}, scaled to 8 bits")
    elif base != "RGB":
        found.append(CONVERSIONS.get(base, f"{base}, converted to RGB"))
    if image.has_transparency_data:
        found.append("transparent, composited over white")
    if image.getexif().get(0x0112, 1) != 1:
        found.append("rotated by the EXIF orientation")
    if getattr(image, "n_frames", 1) > 1:
        found.append("of several frames, the first taken")
    return tuple(found)


def read_alpha(path: str | os.PathLike) -> np.ndarray | None:
    """The opacity of a file's pixels, uint8 (h, w), 0 = transparent; None without alpha. Errors as in `read_image`."""
    from PIL import ImageOps

    with _open(path) as image:
        try:
            if not image.has_transparency_data:
                return None
            return np.array(ImageOps.exif_transpose(image).convert("RGBA"))[..., 3]
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(f"{path}: cannot be decoded ({_reason(error)})") from None


def check_image(path: str | os.PathLike) -> None:
    """Raises the `ValueError` of `read_image` for an obviously damaged file, from its first and last bytes alone.

    A file that does not end as its format requires is decoded to be sure. Damage in the middle shows only when it is
    read.
    """
    with _open(path) as image:
        if not _has_format_end(path, image.format):
            _decode(image, path)


def to_rgb(image) -> np.ndarray:
    """Converts a PIL image of any mode to uint8 (h, w, 3); see `read_image`."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow's own conversion saturates 16-bit grey to white
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = ((levels * 255 + 32767) // 65535).astype(np.uint8)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            grey[levels == transparent] = 255
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))  # a copy: the source's buffer is read-only


def _open(file, name=None):
    from PIL import Image

    path = file if name is None else name
    try:
        image = Image.open(file)
    except MemoryError:
        raise
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path}: not an image file") from None
    except Exception as error:  # Pillow's readers raise many kinds of exception on damaged input
        raise ValueError(f"{path}: cannot be opened ({_reason(error)})") from None
    width, height = image.size
    if not 1 <= width * height <= MAX_PIXELS:
        image.close()
        raise ValueError(f"{path}: {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million are read")
    return image


def _decode(image, path, decode: Callable = to_rgb):
    try:
        return decode(image)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: cannot be decoded ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _has_format_end(path, kind: str | None) -> bool:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(16)
        file.seek(max(0, size - 16))
        tail = file.read()
    if kind == "JPEG":
        return tail.rstrip(b"\0").endswith(b"\xff\xd9")
    if kind == "PNG":
        return tail.endswith(b"IEND\xaeB`\x82")
    if kind == "GIF":
        return tail.rstrip(b"\0").endswith(b";")
    if kind == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size
    return False
