"""Embeddings of images and texts by a CLIP in JAX, and the CLIPScore of a folder of samples."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maskgil_jax.config import ConfigError, choose, require
from maskgil_jax.evaluation.images import open_image_set
from maskgil_jax.evaluation.metrics.clip import CLIP_CONVENTIONS, clip_score
from maskgil_jax.evaluation.report import environment
from maskgil_jax.files.images import read_image
from maskgil_jax.files.json_lines import parse_json_line
from maskgil_jax.files.sample_formats import is_job_folder, read_manifest, sample_files
from maskgil_jax.text_encoders import load_clip

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images
IMAGE_ROWS, TEXT_ROWS = 32, 64  # that go through the networks at once


def clip_pixels(image_hwc: np.ndarray, side: int) -> np.ndarray:
    """A uint8 image as CLIP reads it, float32 (side, side, 3): shorter side by Pillow's bicubic,
    centre crop, normalised."""
    height, width = image_hwc.shape[:2]
    short = min(height, width)
    rows, columns = int(side * height / short), int(side * width / short)
    resized = np.asarray(Image.fromarray(image_hwc).resize((columns, rows), Image.Resampling.BICUBIC))
    top, left = (rows - side) // 2, (columns - side) // 2
    unit = resized[top : top + side, left : left + side].astype(np.float32) / 255
    return (unit - np.array(MEAN, np.float32)) / np.array(STD, np.float32)


class ClipEmbedder:
    """Images and texts -> float32 (n, d) in CLIP's shared space, not normalised.

    path: Hugging Face folder or "hf://owner/repo" of a whole CLIP. dtype: "float32" or "bfloat16".
    """

    def __init__(self, path: str | os.PathLike, dtype: str = "float32"):
        self.name, self.network = os.fspath(path), load_clip(path, dtype=dtype)
        if self.network.text is None or self.network.vision is None:
            raise ConfigError(f"--clip {path}: holds one half of CLIP; scores need the text and the image network")
        self.side = self.network.vision.image_size

    def images(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Of uint8 images (h, w, 3) of any sizes."""
        pixels = (clip_pixels(image, self.side) for image in images)
        return self._rows(pixels, IMAGE_ROWS, self.network.image_features)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Of texts; those over CLIP's length are cut with a warning."""
        return self._rows(iter(self.network.tokenize(texts)), TEXT_ROWS, self.network.text_features)

    @staticmethod
    def _rows(items: Iterator[np.ndarray], size: int, embed) -> np.ndarray:
        """Embeds `size` items at a time; a last batch is filled up with its last item,
        so that one shape is compiled."""
        found = []
        while batch := [item for _, item in zip(range(size), items)]:
            full = np.stack(batch + [batch[-1]] * (size - len(batch)))
            found.append(np.asarray(embed(full))[: len(batch)])
        return np.concatenate(found)


def read_texts(path: str | os.PathLike) -> list[str]:
    """Reads one text per image, in order: lines of text, or JSON lines with a "prompt". Errors name the line."""
    hint = 'give lines of text, or JSON lines such as {"prompt": "a cat"}'
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error}); {hint}") from None
    texts = []
    for number, line in enumerate((line.strip() for line in lines), 1):
        if line.startswith("{"):
            record = parse_json_line(line.encode(), path, number, hint)
            require(isinstance(record.get("prompt"), str), f"{path}: line {number} has no prompt; {hint}")
            line = record["prompt"]
        if line:
            texts.append(line)
    require(bool(texts), f"{path}: holds no texts")
    return texts


def job_texts(samples: str | os.PathLike) -> list[str] | None:
    """The prompt of each image of a sampling job's folder, from its manifest; None for other images."""
    if not Path(samples).is_dir() or not is_job_folder(samples):
        return None
    prompts = read_manifest(samples).get("prompts")
    return [record["prompt"] for record in prompts] if prompts else None


def texts_of(samples: str | os.PathLike, texts: str | os.PathLike | None) -> list[str]:
    """The texts of a file, or those of a sampling job's manifest."""
    found = read_texts(texts) if texts else job_texts(samples)
    if found is None:
        raise ConfigError(f"--metrics clip_score: {samples} has no manifest with prompts; give --texts, one line per image")
    return found


def score_samples(
    samples: str | os.PathLike,
    texts: Sequence[str],
    embedder: ClipEmbedder,
    *,
    convention: str = "torchmetrics",
    **options,
) -> dict:
    """CLIPScore of images and their texts, with its provenance, ready for JSON.

    samples: the folder of a sampling job, whose images may have several sizes, or what `open_image_set` takes, with
    `options`. texts: one for each image, in order.
    """
    choose("convention", convention, CLIP_CONVENTIONS)
    began, whole, sizes = time.perf_counter(), hashlib.sha256(), set()

    def hashed(images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for image in images:
            sizes.add(f"{image.shape[1]}x{image.shape[0]}")
            whole.update(image.tobytes())
            yield image

    images, count, notes = _images(samples, options)
    require(len(texts) == count, f"--texts: {len(texts)} texts for {count} images; give one line per image, in order")
    score = clip_score(embedder.images(hashed(images)), embedder.texts(texts), convention=convention)
    return {
        **environment(),
        "figures": {"clip_score": score},
        "settings": {"clip_score": {"model": embedder.name, "convention": convention}},
        "samples": {
            "name": os.fspath(samples),
            "count": count,
            "size": ", ".join(sorted(sizes)),
            "hash": whole.hexdigest()[:16],
        },
        "warnings": [],
        "notes": [f"samples: {note}" for note in notes],
        "seconds": round(time.perf_counter() - began, 1),
    }


def _images(samples: str | os.PathLike, options: dict) -> tuple[Iterator[np.ndarray], int, list[str]]:
    """(the images one by one, their number, notes) of samples."""
    if job_texts(samples) is None:
        found = open_image_set(samples, **options)
        return (image for batch in found.batches(IMAGE_ROWS) for image in batch), found.count, found.notes
    files = [Path(samples) / name for name in sample_files(read_manifest(samples))]
    missing = [file.name for file in files if not file.exists()]
    require(not missing, f"{samples}: {len(missing)} images are missing, {missing[:1]} first; run its command again")
    return map(read_image, files), len(files), []
