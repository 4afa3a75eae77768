"""CLIPScore of images and texts: the embeddings come from a CLIP model through an extra, the formula is ours.

`pip install maskgil_jax[clip]` brings the transformers library with PyTorch; the model is a folder or hub name of its format.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from maskgil_jax.config import ConfigError, choose
from maskgil_jax.evaluation.image_sets import ImageSet
from maskgil_jax.evaluation.metrics import CLIP_CONVENTIONS, clip_score

USUAL_MODEL = "openai/clip-vit-large-patch14"


def read_texts(path) -> list[str]:
    """One text per image, in the images' order: lines of text, or JSON lines with a "prompt". Raises naming the line."""
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
class ClipScore:
    """Embeds images while they pass by. `embed_images(uint8 (b, h, w, 3))` and `embed_texts([str])` -> (b, d) arrays."""

    embed_images: Callable[[np.ndarray], np.ndarray]
    embed_texts: Callable[[list[str]], np.ndarray]
    texts: list[str]
    model: str
    convention: str = "torchmetrics"

    def __post_init__(self):
        choose("convention", self.convention, CLIP_CONVENTIONS)
        self._rows: list[np.ndarray] = []

    def watch(self, images: ImageSet) -> ImageSet:
        """The same set; its images are embedded as they are read. Raises unless there is one text per image."""
        if len(self.texts) != images.count:
            raise ConfigError(f"--texts: {len(self.texts)} texts for {images.count} images; give one line per image, in order")

        def batches(rows: int) -> Iterator[np.ndarray]:
            for batch in images.batches(rows):
                self._rows.append(np.asarray(self.embed_images(batch), np.float32))
                yield batch

        return dataclasses.replace(images, batches=batches)

    def figures(self) -> tuple[dict, dict]:
        """({"clipscore": value}, settings) of the images seen."""
        step = 256
        texts = [self.embed_texts(self.texts[i : i + step]) for i in range(0, len(self.texts), step)]
        score = clip_score(np.concatenate(self._rows), np.concatenate(texts), convention=self.convention)
        return {"clipscore": score}, {"model": self.model, "convention": self.convention}


def open_clip(texts: list[str], model: str = USUAL_MODEL, convention: str = "torchmetrics") -> ClipScore:
    """A `ClipScore` with a model of the transformers library, on the CPU. Raises a `ConfigError` without the extra."""
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError:
        raise ConfigError("clipscore: needs the transformers library: pip install maskgil_jax[clip]") from None
    try:
        # Only safetensors: a pickled checkpoint could run code.
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

    return ClipScore(images, words, texts, model, convention)
