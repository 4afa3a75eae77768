"""Whether a model draws the built-in emoji that it was trained on, as the shipped classifier sees it.

Text models: prompts are training captions. An image is right if the training drawing nearest to it, in the classifier's
features, is of the emoji of the caption. Class models: an image is right if the classifier sees the class asked for.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.data.sources.emoji import EmojiSource, emoji
from maskgil_jax.data.sources.emoji_captions import emoji_captions
from maskgil_jax.evaluation.benchmarks.layouts import spread
from maskgil_jax.evaluation.features import FeatureExtractor
from maskgil_jax.files.images import read_image
from maskgil_jax.tokenizers.images import reconstruct
from maskgil_jax.training.classifier import in_batches

COUNT = 500  # images, unless another number is asked for


@dataclasses.dataclass(frozen=True)
class CaptionPrompt:
    """A caption of training, and the drawing that it belongs to. index: of the drawing in the training split."""

    prompt: str
    code: str
    index: int


def caption_prompts(count: int = COUNT, seed: int = 0) -> list[CaptionPrompt]:
    """A caption each of `count` training drawings, evenly spread over the emoji; a pure function of the arguments."""
    require(count >= 1, f"--count: must be at least 1, got {count}")
    source, rng, found = emoji("train"), np.random.default_rng(seed), []
    for index in spread(len(source), count):
        record = source.record(int(index))
        captions = emoji_captions(record)
        found.append(CaptionPrompt(captions[int(rng.integers(len(captions)))], record["code"], int(index)))
    return found


def class_labels(count: int = COUNT) -> np.ndarray:
    """`count` class numbers with the frequencies of the training drawings, sorted."""
    source = emoji("train")
    return np.sort([source[i]["label"] for i in range(len(source))])[spread(len(source), count)].astype(np.int32)


def caption_scores(
    prompts: Sequence[CaptionPrompt], files: Sequence[Path], extractor: FeatureExtractor, tokenizer: Any
) -> dict[str, dict[str, float]]:
    """Scores of the images of the prompts, and of sets to compare with: {set: {"same_emoji", "agreement"}}.

    same_emoji: share of images whose nearest training drawing (cosine of features) is of the same emoji. agreement:
    share in which the classifier sees the subgroup of the emoji. "training drawings": those of the captions; "through
    the tokenizer": the same, encoded and decoded, which is the upper limit; "other prompts": the images beside the next
    prompt, chance.
    """
    source = emoji("train", size=_side(extractor))
    _check_classes(extractor, source)
    drawings = np.stack([source[i]["image"] for i in range(len(source))])
    codes, labels = zip(*((source.record(i)["code"], source[i]["label"]) for i in range(len(source))))
    code_n, label_n = np.array(codes), np.array(labels)
    known = _outputs(extractor, drawings)[0]
    at = np.array([prompt.index for prompt in prompts])
    through = in_batches(functools.partial(reconstruct, tokenizer), drawings[at])
    images = np.stack([read_image(file) for file in files])
    found, sets = {}, {"generated": images, "training drawings": drawings[at], "through the tokenizer": through}
    for name, images_nhwc in sets.items():
        features, logits = _outputs(extractor, images_nhwc)
        nearest, seen = np.argmax(features @ known.T, axis=1), np.argmax(logits, axis=1)
        found[name] = {
            "same_emoji": float((code_n[nearest] == code_n[at]).mean()),
            "agreement": float((seen == label_n[at]).mean()),
        }
        if name == "generated":
            other = np.roll(at, 1)
            found["other prompts"] = {
                "same_emoji": float((code_n[nearest] == code_n[other]).mean()),
                "agreement": float((seen == label_n[other]).mean()),
            }
    return found


def class_scores(label_n: np.ndarray, files: Sequence[Path], extractor: FeatureExtractor) -> dict[str, dict[str, float]]:
    """Share of the images of the classes `label_n` in which the classifier sees the class asked for."""
    _check_classes(extractor, emoji("train"))
    seen = np.argmax(_outputs(extractor, np.stack([read_image(file) for file in files]))[1], axis=1)
    return {
        "generated": {"agreement": float((seen == label_n).mean())},
        "other classes": {"agreement": float((seen == np.random.default_rng(0).permutation(label_n)).mean())},
    }


def as_markdown(rows: dict[str, dict[str, float]]) -> str:
    """Scores by set, as a table."""
    titles = {"same_emoji": "nearest drawing is of the same emoji", "agreement": "classified as the class"}
    names = [name for name in titles if name in next(iter(rows.values()))]
    lines = [["", *(titles[name] for name in names)], ["---"] * (len(names) + 1)]
    lines += [[title, *(f"{100 * row[name]:.1f}%" for name in names)] for title, row in rows.items()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _side(extractor: FeatureExtractor) -> int:
    """The side of the images that a classifier was trained on, from its protocol, "classifier-64"."""
    if extractor.family != "classifier":
        raise ConfigError(f"--features {extractor.name}: is a {extractor.family}, expected a classifier of the built-in emoji")
    return int(extractor.protocol.rpartition("-")[2])


def _check_classes(extractor: FeatureExtractor, source: EmojiSource) -> None:
    same = tuple(extractor.class_names) == tuple(source.class_names)
    require(same, f"--features {extractor.name}: has other classes than the built-in emoji; give demo")


def _outputs(extractor: FeatureExtractor, images_nhwc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(features of length 1, logits) of images."""
    outputs = in_batches(functools.partial(_compiled(extractor.apply), extractor.network), images_nhwc)
    features = outputs["features"]
    return features / np.linalg.norm(features, axis=1, keepdims=True), outputs["logits"]


@functools.lru_cache(2)
def _compiled(apply):
    return jax.jit(apply)
