"""Pictures for people: contact sheets and captions, as uint8 (h, w, 3) arrays."""

from __future__ import annotations

import io
import math
import os
from typing import IO

import numpy as np

from maskgil_jax.files.atomic import writing


def contact_sheet(images_bhwc: np.ndarray, *, columns: int | None = None, gap: int = 2, background: int = 255) -> np.ndarray:
    """A contact sheet of equally large uint8 images, row by row; about square unless `columns` is given."""
    b, h, w, _ = images_bhwc.shape
    columns = min(columns or math.ceil(math.sqrt(b)), b)
    rows = math.ceil(b / columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), background, np.uint8)
    for i, image in enumerate(images_bhwc):
        top, left = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        sheet[top : top + h, left : left + w] = image
    return sheet


def save_png(path, image_hwc: np.ndarray) -> None:
    """Writes a PNG, whole or not at all."""
    _save(path, [image_hwc], format="PNG")


def save_webp(path, image_hwc: np.ndarray) -> None:
    """Writes a lossless WebP, whole or not at all."""
    _save(path, [image_hwc], format="WEBP", lossless=True)


def png_bytes(image_hwc: np.ndarray) -> bytes:
    """What a PNG file of the image holds."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image_hwc).save(buffer, format="PNG")
    return buffer.getvalue()


def save_animation(path, frames_thwc: np.ndarray, *, seconds: float = 0.4, last: float = 1.5) -> None:
    """Writes frames as an endless GIF or lossless WebP, by the name's ending; each is shown `seconds`, the last one `last`."""
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


def curves(runs: dict) -> np.ndarray:
    """The logged losses of some runs, side by side: {name: folder with metrics.jsonl} -> picture."""
    import json
    import pathlib

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(runs), 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(runs), squeeze=False)
    for axis, (name, folder) in zip(axes[0], runs.items(), strict=True):
        lines = [json.loads(line) for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()]
        for metric in (m for m in lines[0] if m.endswith("loss")) if lines else ():
            logged = [line for line in lines if metric in line]  # figures of samples stand in lines of their own
            axis.plot([line["step"] for line in logged], [line[metric] for line in logged], label=metric)
        axis.set(title=name, xlabel="step", ylabel="loss")
        axis.grid(alpha=0.3)
        axis.legend()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


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
