"""What the drawn benchmarks share: the job of their images, its settings as text, and files placed in other folders."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from maskgil_jax.config import require
from maskgil_jax.evaluation.report import environment
from maskgil_jax.files.atomic import write_json
from maskgil_jax.files.sample_formats import read_manifest, sample_files
from maskgil_jax.pipelines.jobs import sample_to_folder

DRAWN, IMAGES, SETTINGS = "drawn", "images", "benchmark.json"  # below the folder of a benchmark: job, layout, settings


def draw_benchmark(
    pipeline: Any,
    out: str | os.PathLike,
    benchmark: dict[str, Any],
    *,
    prompts: Sequence | None = None,
    labels: Any = None,
    seed: int = 0,
    batch_size: int = 32,
    overwrite: bool = False,
) -> Path:
    """Draws an image for each prompt or label as the job `out`/drawn, which continues where it was interrupted.

    benchmark: its name and options; with the settings of the job they are written to `out`/benchmark.json. Processes
    share the work. Raises a `ConfigError` if the folder holds other samples, unless `overwrite`, which removes the
    layout too.
    """
    out = Path(out)
    first = jax.process_index() == 0
    if first and overwrite:
        shutil.rmtree(out / IMAGES, ignore_errors=True)
    drawn = sample_to_folder(
        pipeline, labels, out / DRAWN, prompts=prompts, seed=seed, batch_size=batch_size, overwrite=overwrite
    )
    if first:
        job = {name: value for name, value in read_manifest(drawn).items() if name not in ("prompts", "labels", "format")}
        write_json(out / SETTINGS, {**environment(), "benchmark": benchmark, "weights": pipeline.name, "job": job})
    return drawn


def settings_text(settings: dict) -> str:
    """The settings of a benchmark in a few lines, as a figure without them says little."""
    job, names = settings["job"], ("num", "seed", "canvas", "generator", "tokenizer")
    decode = {name.removeprefix("decode."): value for name, value in job.items() if name.startswith("decode.")}
    encoder = job.get("text_encoder") or {}
    lines = {
        "benchmark": settings["benchmark"],
        "weights": {"path": settings["weights"], **{name: job[name] for name in names if name in job}},
        "decoding": {name: value for name, value in decode.items() if value is not None},
    }
    if encoder:
        lines["text encoder"] = {name: value for name, value in encoder.items() if value not in (None, "")}
    shown = {title: ", ".join(f"{name} {value}" for name, value in values.items()) for title, values in lines.items()}
    return "\n".join(f"{title}: {text}" for title, text in shown.items())


def job_images(drawn: str | os.PathLike, count: int) -> list[Path]:
    """The image files of a finished job of `count` images, in order."""
    files = [Path(drawn) / name for name in sample_files(read_manifest(drawn))]
    require(len(files) == count, f"{drawn}: holds {len(files)} images, expected {count}; give another --out")
    missing = [file.name for file in files if not file.exists()]
    require(not missing, f"{drawn}: {len(missing)} images are missing, {missing[:1]} first; run the same command again")
    return files


def link(file: Path, target: Path) -> None:
    """Makes `target` a second name of a file, or a copy where the disk has no links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def digest(path: str | os.PathLike) -> str:
    """16 characters for the content of a file, or of the files of a folder by name."""
    path, whole = Path(path), hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file():
            whole.update(f"{file.name}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()[:16]


def spread(length: int, count: int) -> np.ndarray:
    """`count` indices evenly spread over 0..length-1, in order; some come up again if there are more than `length`."""
    return (np.arange(count) * length + length // 2) // count
