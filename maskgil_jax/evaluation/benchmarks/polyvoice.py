"""PolyVoice (paper, 5.2): reads sets of English texts spoken in other languages, and scores images made from speech.

The paper's own set is not published. A set here is a folder with `metadata.jsonl`, one JSON object per line: `text`
(English), `language` and `audio` (a file in the folder). Optional: `spoken`, the transcript in that language, and
`heard`, the English text that a speech recogniser made of the recording; `transcribed` makes it. `spoken_sets` makes a
set.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskgil_jax.conditioning.speech import NoSpeech, load_transcriber
from maskgil_jax.config import ConfigError, require
from maskgil_jax.evaluation.clip_embedding import ClipEmbedder
from maskgil_jax.evaluation.metrics.clip import clip_score
from maskgil_jax.files.atomic import writing
from maskgil_jax.files.json_lines import read_json_objects
from maskgil_jax.pipelines.prompts import PromptRequest
from maskgil_jax.pipelines.spoken import transcribe

_log = logging.getLogger(__name__)

# Paper, Table 6: language -> (Image CLIPScore, Text CLIPScore); "text" are the images made from the English texts.
PAPER = {"text": (1.0, 31.040), "zh": (0.971, 30.793), "pt": (0.986, 30.894), "fr": (0.988, 30.891), "es": (0.956, 30.745)}


@dataclasses.dataclass(frozen=True)
class Spoken:
    """A recording, the English text that it expresses, and what was heard, in English."""

    text: str
    language: str
    audio: Path
    spoken: str = ""
    heard: str = ""


def read_spoken(folder: str | os.PathLike) -> list[Spoken]:
    """Reads the recordings of a set, in order. Raises a `ConfigError` that names the line with missing data."""
    file, found = Path(folder) / "metadata.jsonl", []
    hint = "a set holds metadata.jsonl, lines with text, language and audio, and its audio files"
    for number, record in read_json_objects(file, ("text", "language", "audio"), hint):
        fields = {name: record.get(name, "") for name in ("text", "language", "audio", "spoken", "heard")}
        wrong = next((name for name, value in fields.items() if not isinstance(value, str)), None)
        require(wrong is None, f"{file}: line {number}: {wrong} is not text; {hint}")
        item = Spoken(**{**fields, "audio": Path(folder) / fields["audio"]})
        inside = item.audio.resolve().is_relative_to(Path(folder).resolve())
        require(inside and item.audio.is_file(), f"{file}: line {number}: there is no file {fields['audio']} in {folder}")
        found.append(item)
    return found


def spoken_scores(languages, spoken_emb, text_image_emb, text_emb) -> dict[str, dict[str, float]]:
    """Computes the paper's Table 6 from CLIP embeddings (n, d): {language: {"image_clip", "text_clip", "count"}}.

    spoken_emb: of the images made from speech; text_image_emb: of those made from the English text with the same seed;
    text_emb: of that text. image_clip is the mean cosine of the two images (1 for equal ones), text_clip the CLIPScore
    of the spoken image and the text, 100 times the mean cosine.
    """
    scores = {}
    for language in dict.fromkeys(languages):
        rows = [i for i, name in enumerate(languages) if name == language]
        scores[language] = {
            "image_clip": clip_score(spoken_emb[rows], text_image_emb[rows], convention="cosine"),
            "text_clip": clip_score(spoken_emb[rows], text_emb[rows]),
            "count": len(rows),
        }
    return scores


def transcribed(items: Sequence[Spoken], speech: str = "base") -> list[Spoken]:
    """The recordings, each with what Whisper hears in it, where `heard` is empty. speech: Whisper's model, or a folder.

    `heard` stays empty, with a warning, where Whisper hears no words.
    """
    found = []
    for item in items:
        if not item.heard.strip():
            try:
                code = item.language.lower().partition("-")[0]
                known = code in load_transcriber(speech).languages
                (heard,) = transcribe(item.audio, speech, code if known else None, voice_only=False)
            except NoSpeech as error:
                _log.warning("%s", error)
                found.append(item)
                continue
            except ConfigError as error:
                about = str(error).removeprefix(f"{item.audio}: ")
                raise ConfigError(f"{item.audio}: no `heard` in its line of metadata.jsonl, and {about}") from None
            item = dataclasses.replace(item, heard=heard.text)
        found.append(item)
    return found


def write_heard(items: Sequence[Spoken], file: str | os.PathLike) -> None:
    """Writes what was heard of each recording, a JSON line each."""
    names = ("text", "language", "audio", "heard")
    lines = [json.dumps({name: str(getattr(item, name)) for name in names}, ensure_ascii=False) for item in items]
    with writing(file) as part:
        part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def requests_of(items: Sequence[Spoken], seed: int, **options: Any) -> list[PromptRequest]:
    """An image from what was heard of each recording, then one from its text with the same seed. options:
    sizes and so on.

    Raises a `ConfigError` for a recording whose line of metadata.jsonl has no `heard`.
    """
    silent = next((item for item in items if not item.heard.strip()), None)
    if silent is not None:
        raise ConfigError(f"{silent.audio}: its line of metadata.jsonl has no `heard`; call `transcribed` first")
    pairs = [[item.heard for item in items], [item.text for item in items]]
    return [PromptRequest(text, seed=(seed + i) % 2**32, **options) for texts in pairs for i, text in enumerate(texts)]


def score_images(items: Sequence[Spoken], images: Iterable[np.ndarray], embedder: ClipEmbedder) -> dict[str, dict[str, float]]:
    """Table 6 of the images of `requests_of`: {language: {"image_clip", "text_clip", "count"}},
    "text" for those of texts."""
    spoken_emb, text_image_emb = np.split(embedder.images(images), 2)
    text_emb = embedder.texts([item.text for item in items])
    text = {"image_clip": 1.0, "text_clip": clip_score(text_image_emb, text_emb), "count": len(items)}
    return {"text": text, **spoken_scores([item.language for item in items], spoken_emb, text_image_emb, text_emb)}


def as_markdown(rows: dict[str, dict[str, float]]) -> str:
    """Scores by language, beside the paper's where it has the language."""
    head = ["", "Image CLIPScore", "paper", "Text CLIPScore", "paper", "recordings"]
    lines = [head, ["---"] * len(head)]
    for language, row in rows.items():
        image, text = (f"{value:.3f}" for value in PAPER[language]) if language in PAPER else ("", "")
        name = "English text" if language == "text" else language
        lines.append([name, f"{row['image_clip']:.3f}", image, f"{row['text_clip']:.3f}", text, str(row["count"])])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
