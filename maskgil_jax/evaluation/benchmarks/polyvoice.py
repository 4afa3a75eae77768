"""PolyVoice (paper, 5.2): reads sets of English texts spoken in other languages, and scores images made from speech.

The paper's own set is not published. A set here is a folder with `metadata.jsonl`, one JSON object per line: `text`
(English), `language` and `audio` (a file in the folder); `spoken` (the transcript in that language) is optional.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from maskgil_jax.evaluation.metrics.clip import clip_score


@dataclasses.dataclass(frozen=True)
class Spoken:
    """A recording and the English text that it expresses."""

    text: str
    language: str
    audio: Path
    spoken: str = ""


def read_spoken(folder: str | os.PathLike) -> list[Spoken]:
    """Reads the recordings of a set, in order. Raises a `ValueError` that names the line with missing data."""
    file = Path(folder) / "metadata.jsonl"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); a set holds metadata.jsonl and its audio files") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            item = Spoken(record["text"], record["language"], Path(folder) / record["audio"], record.get("spoken", ""))
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{file}: line {number} is not an object with text, language and audio") from None
        inside = item.audio.resolve().is_relative_to(Path(folder).resolve())
        if not inside or not item.audio.is_file():
            raise ValueError(f"{file}: line {number}: there is no file {record['audio']} in {folder}")
        found.append(item)
    if not found:
        raise ValueError(f"{file}: is empty")
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
