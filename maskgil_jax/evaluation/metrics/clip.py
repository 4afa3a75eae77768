"""CLIPScore of images and texts: the formula, and its row among the metrics.

`clip_embedding.py` makes the embeddings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from maskgil_jax.config import ConfigError, choose
from maskgil_jax.evaluation.images import ImageSet
from maskgil_jax.evaluation.metrics.base import Figure, Metric, MetricResult
from maskgil_jax.evaluation.metrics.frechet import check_features

CLIP_CONVENTIONS = ("torchmetrics", "clipped", "hessel", "cosine")


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


@dataclasses.dataclass
class ClipScorer:
    """Embeds images as they are read. embedder: a `clip_embedding.ClipEmbedder`. texts: one for each image."""

    embedder: Any
    texts: list[str]
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
                self._rows.append(self.embedder.images(batch))
                yield batch

        return dataclasses.replace(images, batches=batches)

    def result(self) -> MetricResult:
        """The score of the images that were read."""
        score = clip_score(np.concatenate(self._rows), self.embedder.texts(self.texts), convention=self.convention)
        return MetricResult({"clip_score": score}, {"model": self.embedder.name, "convention": self.convention})


METRICS = (
    Metric(
        name="clip_score",
        help="CLIPScore of images and texts by --clip; texts of the manifest, or --texts",
        compute=lambda inputs: inputs.clip.result(),
        figures=(Figure("clip_score", "CLIPScore", 100, digits=3),),
        needs=("texts",),
        min_images=1,
    ),
)
