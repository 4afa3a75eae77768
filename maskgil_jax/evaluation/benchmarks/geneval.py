"""GenEval (Ghosh et al. 2023): writes the folders that its detector reads, and computes scores from its results.

The detector is not part of this package.

Prompts are read from the user's copy of the benchmark, `evaluation_metadata.jsonl`: one JSON object per line with
`tag`, `prompt` and the fields that the detector needs, which are copied unchanged. Layout: `00000/metadata.jsonl`,
`00000/samples/0000.png`, ...
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.evaluation.benchmarks.layouts import job_images, link
from maskgil_jax.files.atomic import writing
from maskgil_jax.files.json_lines import read_json_objects

# tag in the files -> name in tables, in the order of the paper's Table 4
TASKS = {
    "single_object": "Single Obj.",
    "two_object": "Two Obj.",
    "counting": "Counting",
    "colors": "Colors",
    "position": "Position",
    "color_attr": "Color Attri.",
}
# Paper, Table 4: MaskGIL, 775M parameters. The overall score is printed as 0.49; the mean of the six is 0.4933.
PAPER = dict(zip([*TASKS, "overall"], (0.98, 0.52, 0.24, 0.69, 0.24, 0.29, 0.49), strict=True))
PER_PROMPT = 4


def _tagged(path: str | os.PathLike, fields: set[str], what: str) -> list[dict]:
    found = read_json_objects(path, fields, f"give {what}")
    for number, record in found:
        if record["tag"] not in TASKS:
            raise ConfigError(f"{path}: line {number} has the unknown tag {record['tag']!r}; expected {', '.join(TASKS)}")
    return [record for _, record in found]


def read_prompts(path: str | os.PathLike) -> list[dict]:
    """Reads the prompts, dicts with at least `tag` and `prompt`. Raises a `ConfigError` that names file and line."""
    found = _tagged(path, {"tag", "prompt"}, "evaluation_metadata.jsonl of the benchmark")
    for number, record in enumerate(found, 1):
        require(isinstance(record["prompt"], str), f"{path}: prompt {number} is {record['prompt']!r:.40}, expected text")
    return found


def lay_out(drawn: str | os.PathLike, images: str | os.PathLike, prompts: Sequence[dict], per_prompt: int = PER_PROMPT) -> None:
    """Makes the folder of each prompt from a finished job of `per_prompt` images a prompt; the image files are linked.

    A folder appears as a whole. Folders that exist are kept. Raises a `ConfigError` if one is of another prompt.
    """
    files = job_images(drawn, per_prompt * len(prompts))
    for number, record in enumerate(prompts):
        folder = Path(images) / f"{number:05d}"
        if folder.exists():
            same = json.loads((folder / "metadata.jsonl").read_text(encoding="utf-8")) == record
            require(same, f"{folder}: was made for another prompt; give another --out")
            continue
        with writing(folder) as part:
            (part / "samples").mkdir(parents=True)
            (part / "metadata.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
            for i, file in enumerate(files[number * per_prompt : (number + 1) * per_prompt]):
                link(file, part / "samples" / f"{i:04d}.png")


def read_results(path: str | os.PathLike) -> dict:
    """Computes scores from the detector's results file (JSON lines with `tag`, `correct`, and `prompt` or `metadata`).

    Returns {"overall": mean of the task scores, TASK: fraction of its images that are correct, "images": their number,
    "correct_images": fraction over all images, "correct_prompts": fraction of prompts with at least one correct image}.
    Raises a `ValueError` for a missing task.
    """
    records = _tagged(path, {"tag", "correct"}, "the results file of the benchmark's evaluate_images.py")
    by_task: dict[str, list[bool]] = {tag: [] for tag in TASKS}
    by_prompt: dict[str, bool] = {}
    for number, record in enumerate(records, 1):
        if not isinstance(record["correct"], bool):
            raise ValueError(f"{path}: entry {number} has correct = {record['correct']!r}, expected true or false")
        by_task[record["tag"]].append(record["correct"])
        key = json.dumps(record.get("metadata", record.get("prompt", number)))
        by_prompt[key] = by_prompt.get(key, False) or record["correct"]
    empty = [tag for tag, marks in by_task.items() if not marks]
    if empty:
        raise ValueError(f"{path}: has no images of {', '.join(empty)}; the overall score needs all six tasks")
    scores = {tag: float(np.mean(marks)) for tag, marks in by_task.items()}
    return {
        "overall": float(np.mean(list(scores.values()))),
        **scores,
        "images": len(records),
        "correct_images": float(np.mean([record["correct"] for record in records])),
        "correct_prompts": float(np.mean(list(by_prompt.values()))),
    }


def as_markdown(scores: dict) -> str:
    """Formats the scores as a row, above the paper's and the difference."""
    names = [*TASKS, "overall"]
    head = ["", *(TASKS.get(name, "Overall") for name in names)]
    rows = [["this run", *(f"{scores[name]:.2f}" for name in names)], ["paper", *(f"{PAPER[name]:.2f}" for name in names)]]
    rows.append(["difference", *(f"{scores[name] - PAPER[name]:+.2f}" for name in names)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))
