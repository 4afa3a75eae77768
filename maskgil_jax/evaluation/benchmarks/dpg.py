"""DPG-Bench (Hu et al. 2024, ELLA): writes the grids of four images that its evaluator reads, and reads its results.

The evaluator, which asks a visual question answering network, is not part of this package. Prompts are read from the
user's copy of the benchmark, `dpg_bench/prompts/ITEM.txt`. An image file is ITEM.png, two rows of two images.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.evaluation.benchmarks.layouts import job_images
from maskgil_jax.files.images import contact_sheet, read_image, save_png

PER_PROMPT = 4
CATEGORIES = ("global", "entity", "attribute", "relation", "other")  # of the evaluator's first level
_SCORE = re.compile(r"^DPG-Bench score: *([0-9.eE+-]+)\s*$")
_CATEGORY = re.compile(r"^\t(.+?): *([0-9.eE+-]+)\s*$")


def read_prompts(folder: str | os.PathLike) -> list[tuple[str, str]]:
    """(item, text) of every prompt of `dpg_bench/prompts`, in the order of the items' names."""
    folder = Path(folder)
    require(folder.is_dir(), f"{folder}: no such folder; give dpg_bench/prompts of the benchmark")
    files = sorted(folder.glob("*.txt"))
    require(bool(files), f"{folder}: holds no .txt files; give dpg_bench/prompts of the benchmark")
    found = []
    for file in files:
        try:
            text = " ".join(file.read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: not a readable UTF-8 file ({error})") from None
        require(bool(text), f"{file}: is empty, expected a prompt")
        require("." not in file.stem, f"{file}: the evaluator takes what is before the first dot for the item; rename it")
        found.append((file.stem, text))
    return found


def lay_out(drawn: str | os.PathLike, images: str | os.PathLike, items: Sequence[str]) -> None:
    """Writes ITEM.png for each item from a finished job of four images a prompt. Grids that exist are kept."""
    files = job_images(drawn, PER_PROMPT * len(items))
    for number, item in enumerate(items):
        target = Path(images) / f"{item}.png"
        if not target.exists():
            four = [read_image(file) for file in files[number * PER_PROMPT : (number + 1) * PER_PROMPT]]
            save_png(target, contact_sheet(np.stack(four), columns=2, gap=0))


def read_results(path: str | os.PathLike, items: Sequence[str] | None = None) -> dict:
    """The scores of the evaluator's results file, in percent: {"overall", "images", CATEGORY:
    score of the first level}.

    The file has a line "PATH, SCORE, ..., MEAN" for each image, then the categories and "DPG-Bench score: X". The
    overall score is computed from the lines of the images. items: expected ones; those without a line are refused by
    name. Raises a `ConfigError` for a file without scores, or whose last line says another overall score.
    """
    hint = "give dpg-bench_..._results.txt of the benchmark's compute_dpg_bench.py"
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); {hint}") from None
    by_item: dict[str, float] = {}
    categories: dict[str, float] = {}
    stated, level = None, ""
    for number, line in enumerate(lines, 1):
        if found := _SCORE.match(line):
            stated = float(found[1])
        elif line.startswith(("L1 category", "L2 category")):
            level = line[:2]
        elif (found := _CATEGORY.match(line)) and level == "L1":
            categories[found[1].lower()] = float(found[2])
        elif ".png, " in line:
            *_, cells = csv.reader([line.rpartition(".png, ")[2]], skipinitialspace=True)
            try:
                scores = [float(cell) for cell in cells]
            except ValueError:
                raise ConfigError(f"{path}: line {number}: {line[:60]!r} has no numbers after the image; {hint}") from None
            require(len(scores) >= 2, f"{path}: line {number}: expected the scores of an image and their mean; {hint}")
            by_item[Path(line.rpartition(".png, ")[0]).name] = scores[-1]
    require(bool(by_item), f"{path}: holds no scores of images; {hint}")
    missing = [item for item in items or () if item not in by_item]
    require(
        not missing, f"{path}: has no score of {len(missing)} images, {missing[:1]} first; run the evaluator on all of them"
    )
    overall = 100 * float(np.mean(list(by_item.values())))
    agrees = stated is None or abs(stated - overall) < 0.01
    require(agrees, f"{path}: its images have the mean {overall:.2f}, its last line says {stated}; evaluate them in one run")
    return {"overall": overall, **categories, "images": len(by_item)}


def as_markdown(scores: dict) -> str:
    """Formats the scores as a row. The paper has no DPG-Bench score to compare with."""
    names = [*(name for name in CATEGORIES if name in scores), "overall"]
    cells = ["this run", *(f"{scores[name]:.2f}" for name in names), str(scores["images"])]
    head = ["", *(name.capitalize() for name in names), "images"]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), cells))
