"""One image file -> uint8 RGB pixels, whatever its mode; a bad file is a `ValueError` that says why."""

from __future__ import annotations

import io
import os
from typing import IO

import numpy as np

MAX_PIXELS = 40_000_000  # a 400 kB file can unpack to gigabytes: the header is asked before anything is decoded


def read_image(path: str | os.PathLike | IO[bytes]) -> np.ndarray:
    """Decodes a PNG, JPEG, WebP, BMP or GIF (first frame) file to uint8 (h, w, 3), upright by its EXIF orientation.

    path: its name, or the opened file.
    Transparency is laid on white; 16-bit grey is scaled to 8 bits; CMYK, palette and grey become RGB.
    Raises a ValueError naming the file when it cannot be decoded, has no pixels or has more than 40 million.
    """
    with _open(path) as image:
        return _decode(image, path)


def decode_image(data: bytes, name: str) -> tuple[np.ndarray, str]:
    """An encoded image as it lies in a record -> (uint8 (h, w, 3), the mode it was stored in); see `read_image`."""
    with _open(io.BytesIO(data), name) as image:
        return _decode(image, name), image.mode


def read_image_and_mode(path: str | os.PathLike) -> tuple[np.ndarray, str]:
    """`read_image` and the mode the file was stored in ("RGB", "L", "RGBA", "CMYK", "I;16", ...): who measures must say it."""
    with _open(path) as image:
        return _decode(image, path), image.mode


def read_alpha(path: str | os.PathLike) -> np.ndarray | None:
    """How opaque a file's pixels are, uint8 (h, w), 0 = see-through; None if it does not say. Errors as in `read_image`."""
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
    """Raises the ValueError of `read_image` for a file that is plainly bad, at the price of its first and last bytes.

    A file whose end is not the end its format has is decoded to be sure; damage in the middle shows only when it is read.
    """
    with _open(path) as image:
        if not _ends_well(path, image.format):
            _decode(image, path)


def _open(file, name=None):
    from PIL import Image

    path = file if name is None else name
    try:
        image = Image.open(file)
    except MemoryError:
        raise
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path}: not an image file") from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged input
        raise ValueError(f"{path}: cannot be opened ({_reason(error)})") from None
    width, height = image.size
    if not 1 <= width * height <= MAX_PIXELS:
        image.close()
        raise ValueError(f"{path}: {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million are read")
    return image


def _decode(image, path) -> np.ndarray:
    try:
        return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: cannot be decoded ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def to_rgb(image) -> np.ndarray:
    """A PIL image in any mode -> uint8 (h, w, 3); see `read_image`."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow's own conversion saturates 16-bit grey to white
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = ((levels * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))  # a copy: the source's buffer is read-only


def _ends_well(path, kind: str | None) -> bool:
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
