"""CLIPScore of images and texts: the formula, and embeddings by a CLIP model of the transformers library.

`pip install maskgil_jax[clip]` brings the transformers library with PyTorch; the model is a folder or hub name of its
format.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from maskgil_jax.config import ConfigError, choose
from maskgil_jax.evaluation.images import ImageSet
from maskgil_jax.evaluation.metrics.base import Figure, Metric, MetricResult
from maskgil_jax.evaluation.metrics.frechet import check_features

CLIP_CONVENTIONS = ("torchmetrics", "clipped", "hessel", "cosine")
USUAL_MODEL = "openai/clip-vit-large-patch14"


def clip_similarity(image_emb, text_emb) -> np.ndarray:
    """Cosine of each row of `image_emb` (n, d) with the same row of `text_emb` (or of other images), (n,) float64."""
    pair = check_features(image_emb, "image_emb"), check_features(text_emb, "text_emb")
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"image_emb is {pair[0].shape}, text_emb {pair[1].shape}: one row per pair, from the same CLIP model")
    a_nd, b_nd = (rows.astype(np.float64) for rows in pair)
    lengths = np.linalg.norm(a_nd, axis=1) * np.linalg.norm(b_nd, axis=1)
    if (lengths == 0).any():
        raise ValueError(f"row {int((lengths == 0).argmax())}: an embedding of length zero has no direction")
    return (a_nd * b_nd).sum(axis=1) / lengths


def clip_score(image_emb, text_emb, *, convention: str = "torchmetrics") -> float:
    """CLIPScore of n image-text pairs from their embeddings (n, d), normalised or not; the formula only.

    `torchmetrics`: max(100 * mean(cos), 0); `clipped`: mean(max(100 * cos, 0)); `hessel`: mean(2.5 * max(cos, 0)), the
    paper's (arXiv:2104.08718); `cosine`: mean(cos) (LlamaGen). Raises a `ValueError` for shapes that differ, NaN or
    zeros.
    """
    choose("convention", convention, CLIP_CONVENTIONS)
    cos_n = clip_similarity(image_emb, text_emb)
    if convention == "cosine":
        return float(cos_n.mean())
    if convention == "torchmetrics":
        return max(100 * float(cos_n.mean()), 0.0)
    return float(np.maximum(cos_n, 0).mean()) * (100 if convention == "clipped" else 2.5)


def read_texts(path) -> list[str]:
    """Reads one text per image, in order: lines of text, or JSON lines with a "prompt". Errors name the line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text ({error})") from None
    texts = []
    for number, line in enumerate((line.strip() for line in lines), 1):
        if line.startswith("{"):
            try:
                line = json.loads(line)["prompt"]
            except (ValueError, KeyError):
                raise ValueError(f"{path}: line {number} is not a JSON object with a prompt") from None
        if line:
            texts.append(str(line))
    if not texts:
        raise ValueError(f"{path}: holds no texts")
    return texts


@dataclasses.dataclass
class ClipScorer:
    """Embeds images as they are read. `embed_images(uint8 (b, h, w, 3))` and `embed_texts([str])` -> (b, d) arrays."""

    embed_images: Callable[[np.ndarray], np.ndarray]
    embed_texts: Callable[[list[str]], np.ndarray]
    texts: list[str]
    model: str
    convention: str = "torchmetrics"

    def __post_init__(self):
        choose("convention", self.convention, CLIP_CONVENTIONS)
        self._rows: list[np.ndarray] = []

    def embedding(self, images: ImageSet) -> ImageSet:
        """The same set, embedded as it is read. Raises a `ConfigError` unless there is one text per image."""
        if len(self.texts) != images.count:
            raise ConfigError(f"--texts: {len(self.texts)} texts for {images.count} images; give one line per image, in order")

        def batches(rows: int) -> Iterator[np.ndarray]:
            for batch in images.batches(rows):
                self._rows.append(np.asarray(self.embed_images(batch), np.float32))
                yield batch

        return dataclasses.replace(images, batches=batches)

    def result(self) -> MetricResult:
        """The score of the images that were read."""
        step = 256
        texts = [self.embed_texts(self.texts[i : i + step]) for i in range(0, len(self.texts), step)]
        score = clip_score(np.concatenate(self._rows), np.concatenate(texts), convention=self.convention)
        return MetricResult({"clipscore": score}, {"model": self.model, "convention": self.convention})


def open_clip(texts: list[str], model: str = USUAL_MODEL, convention: str = "torchmetrics") -> ClipScorer:
    """Makes a `ClipScorer` with a model of transformers, on the CPU. Raises a `ConfigError` without the extra."""
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError:
        raise ConfigError("clipscore: needs the transformers library: pip install maskgil_jax[clip]") from None
    try:
        # safetensors only: loading a pickled checkpoint could run code
        network, processor = CLIPModel.from_pretrained(model, use_safetensors=True), CLIPProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--clip {model}: cannot be loaded ({str(error).strip().splitlines()[0]})") from None
    network.eval().requires_grad_(False)

    def rows(output) -> np.ndarray:  # newer versions of the library wrap the projected embedding
        return np.asarray(getattr(output, "pooler_output", output), np.float32)

    def images(batch: np.ndarray) -> np.ndarray:
        return rows(network.get_image_features(**processor(images=list(batch), return_tensors="pt")))

    def words(batch: list[str]) -> np.ndarray:
        inputs = processor(text=batch, return_tensors="pt", padding=True, truncation=True)
        return rows(network.get_text_features(**inputs))

    return ClipScorer(images, words, texts, model, convention)


METRICS = (
    Metric(
        name="clipscore",
        help="CLIPScore of images and texts, with --texts",
        compute=lambda inputs: inputs.clip.result(),
        figures=(Figure("clipscore", "CLIPScore", 100, digits=3),),
        needs=("texts",),
        min_images=1,
    ),
)
