"""Sampling jobs: many images written in parts, so that an interrupted job continues where it stopped.

An image depends on the job's seed and its own index. So the process that makes it, the devices, the batch size and
interruptions do not change it. `files/sample_formats.py` describes the formats and the manifest, `samples.json`, which
records the settings of the job. Only a job with the same settings may continue in the same folder.
"""

from __future__ import annotations

import itertools
import logging
import math
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from maskgil_jax.config import ConfigError, choose, require, to_dict
from maskgil_jax.files.atomic import write_json
from maskgil_jax.files.paths import is_remote
from maskgil_jax.files.sample_formats import (
    FORMATS,
    IMAGE_FORMATS,
    MANIFEST,
    MANIFEST_FORMAT,
    NPZ,
    PARTS,
    join_parts,
    part_files,
    read_manifest,
    read_samples,
    write_part,
)
from maskgil_jax.networks import fingerprint, params_of
from maskgil_jax.pipelines.pipeline import Pipeline
from maskgil_jax.pipelines.prompts import PromptRequest, as_requests, draw_prompts, size_order
from maskgil_jax.runtime.progress import Progress

__all__ = ["FORMATS", "balanced_labels", "read_samples", "sample_to_folder"]

_log = logging.getLogger(__name__)


def balanced_labels(ids: np.ndarray, *, num: int | None = None, per_class: int | None = None) -> np.ndarray:
    """The classes of a job, in order: `per_class` images of each, or `num` in all, as evenly as possible."""
    require(per_class is None or per_class >= 1, f"--per-class: must be at least 1, got {per_class}")
    require(num is None or num >= 1, f"--num: must be at least 1, got {num}")
    if per_class is not None:
        total = len(ids) * per_class
        require(num in (None, total), f"--num: {num}, but {len(ids)} classes with {per_class} images each make {total}")
        return np.repeat(ids, per_class)
    if num is None:
        raise ConfigError("--num or --per-class: say how many images")
    return ids[np.arange(num) * len(ids) // num]


def sample_to_folder(
    pipeline: Pipeline,
    labels,
    out,
    *,
    prompts: str | Sequence[str | PromptRequest] | None = None,
    format: str = "png",
    seed: int = 0,
    batch_size: int = 32,
    grid: tuple[int, int] | None = None,
    ar_ratio: float = 0.0,
    part_size: int = 1000,
    overwrite: bool = False,
    share: tuple[int, int] | None = None,
) -> pathlib.Path:
    """Generates one image per label into the folder `out`; keeps the parts that an earlier run finished.

    prompts: with labels=None, one image per text or `PromptRequest`, which says size and seed; files of one image (png,
    webp) only. The manifest holds each request. format: one of `FORMATS`. part_size: images per part of npz and
    array_record, the most that an interruption loses.
    overwrite: first remove the samples of a job with other settings. share: (index, count) of the shares into which the
    job is split; default: this process among those of the run. Share 0 joins the parts once all exist.

    Raises a `ValueError` if `out` holds samples of other settings, which it names, if the generator does not support
    `grid`, and
    if parts are missing after all processes finished: they must write to one disk.
    """
    choose("--format", format, FORMATS)
    require(
        not is_remote(out), f"--out: {out}: samples are written to a disk that all processes see; copy them to a bucket after"
    )
    require(str(out) != "", "--out: is empty; give a folder")
    require(part_size >= 1, f"part_size: must be at least 1, got {part_size}")
    out = pathlib.Path(out)
    require((labels is None) != (prompts is None), "labels, prompts: give one of them")
    if prompts is None:
        requests, ids_n, order = [], pipeline.label_ids(labels), []
        runs = [[int(label), len(list(run))] for label, run in itertools.groupby(ids_n)]  # [class, images in a row]
        asked: dict[str, Any] = {"labels": runs}
    else:
        require(format in IMAGE_FORMATS, f"--format: images of prompts are {' or '.join(IMAGE_FORMATS)}, got {format!r}")
        require(grid is None, "grid: prompts have sizes of their own")
        kind = pipeline.generator.cfg.condition
        require(kind != "class", f"prompts: this generator is conditioned on a {kind}; give labels")
        requests = as_requests(prompts)
        ids_n, order = np.zeros(len(requests), np.int32), size_order(pipeline, requests)
        asked = {"prompts": [request.plain() for request in requests], **pipeline.conditioner.metadata()}
    pipeline.request(len(ids_n), seed, None, batch_size)  # refuses a bad seed or batch size before anything is written
    _check_grid(pipeline, grid)
    index, count = share or _process_share()
    settings = _settings(pipeline, len(ids_n), asked, format, seed, grid or pipeline.generator.cfg.grid, ar_ratio, part_size)
    if index == 0:
        _create_or_resume(out, settings, overwrite)
    _sync_processes("created", share)
    parts = part_files(settings)
    own = list(itertools.islice(parts.items(), index, None, count))
    finished = (out / NPZ).exists() and format == "npz"
    todo = [] if finished else [(name, rows) for name, rows in own if not (out / name).exists()]
    if requests:
        todo.sort(key=lambda part: order.index(part[1][0]))
        images = _prompt_images(pipeline, requests, [rows for _, rows in todo], seed, batch_size, ar_ratio)
    else:
        images = _images(pipeline, ids_n, [rows for _, rows in todo], seed, batch_size, grid, ar_ratio)
    for (name, rows), images_bhwc in zip(todo, images):
        write_part(out / name, images_bhwc, ids_n[rows])
    _sync_processes("written", share)
    last = index == 0 and not share and not finished  # all processes have written their parts
    missing = [name for name in parts if not (out / name).exists()] if last else []
    require(not missing, f"{out}: {len(missing)} parts are missing, {missing[:1]} first; all processes must write to one disk")
    if format == "npz" and index == 0:
        if not finished and all((out / name).exists() for name in parts):
            join_parts(out / NPZ, [out / name for name in parts], ids_n)
        if (out / NPZ).exists():
            shutil.rmtree(out / PARTS, ignore_errors=True)
    return out


def _settings(pipeline: Pipeline, num: int, asked: dict, format: str, seed: int, grid, ar_ratio: float, part_size: int) -> dict:
    """All that the images depend on, as the manifest records it.

    Not batch size, devices or processes. asked: the requests.
    """
    values = {
        "format": MANIFEST_FORMAT,
        "files": format,
        "num": num,
        **asked,
        "seed": int(seed),
        "canvas": [int(side) for side in grid],
        "rope_scaling": pipeline.generator.cfg.rope_scaling,
        "generator": fingerprint(params_of(pipeline.generator)),
        "tokenizer": fingerprint(params_of(pipeline.tokenizer)),
        "ar_ratio": float(ar_ratio),
        "part_size": part_size if format in ("npz", "array_record") else 1,
        **{f"decode.{name}": value for name, value in to_dict(pipeline.cfg).items()},
    }
    if pipeline.canvas is not None:
        values["padded_canvas"] = list(pipeline.canvas)
    if ar_ratio:
        values["ar"] = fingerprint(params_of(pipeline.ar))
        values |= {f"ar_decode.{name}": value for name, value in to_dict(pipeline.ar_cfg).items()}
    return values


def _check_grid(pipeline: Pipeline, grid) -> None:
    """Checks with `jax.eval_shape` that the generator supports `grid`; raises its error before anything is written."""
    if grid is None or tuple(grid) == tuple(pipeline.generator.cfg.grid):
        return
    tokens_bl = jax.ShapeDtypeStruct((1, math.prod(grid)), np.int32)
    jax.eval_shape(
        lambda network, tokens, condition: network(tokens, condition, grid=grid),
        pipeline.generator,
        tokens_bl,
        pipeline.conditioner.examples(1),
    )


def _create_or_resume(out: pathlib.Path, settings: dict, overwrite: bool) -> None:
    """Writes the manifest of a new job, or raises if the folder holds a job with other settings."""
    if (out / MANIFEST).exists():
        found = read_manifest(out)
        if found == settings:
            return
        if not overwrite:
            names = (name for name in {**settings, **found} if found.get(name) != settings.get(name))
            name = next(names)
            raise ConfigError(
                f"{out}: holds other samples: {name} is {_short(found.get(name))} there, {_short(settings.get(name))} now; "
                "give another --out, or --overwrite"
            )
        (out / MANIFEST).unlink()  # first of all: one manifest must never describe files of two jobs
        for name in (*part_files(found), NPZ):
            (out / name).unlink(missing_ok=True)
    else:
        stray = next((n for n in (*part_files(settings), NPZ) if (out / n).exists()), None)
        require(stray is None, f"{out}: holds {stray}, but no {MANIFEST} with its settings; give another --out")
    write_json(out / MANIFEST, settings)


def _short(value) -> str:
    return text if len(text := repr(value)) <= 60 else text[:57] + "..."


def _process_share() -> tuple[int, int]:
    return jax.process_index(), jax.process_count()


def _sync_processes(what: str, share) -> None:
    if share is None and jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"maskgil samples {what}")


def _images(pipeline: Pipeline, ids_n, parts: list[np.ndarray], seed, batch_size, grid, ar_ratio) -> Iterator[np.ndarray]:
    """Yields the images of each part. Batches may span the boundary of two parts."""
    if not parts:
        return
    indices_m = np.concatenate(parts)
    options = dict(seed=seed, batch_size=batch_size, grid=grid, ar_ratio=ar_ratio, indices=indices_m)
    batches = pipeline.batches(ids_n[indices_m], **options)
    images = itertools.chain.from_iterable(_with_progress(batches, len(indices_m), len(ids_n)))
    for rows in parts:
        yield np.stack(list(itertools.islice(images, len(rows))))


def _prompt_images(pipeline: Pipeline, requests, parts: list[np.ndarray], seed, batch_size, ar_ratio) -> Iterator[np.ndarray]:
    """Yields the image of each part, (1, height, width, 3)."""
    if parts:
        batches = draw_prompts(pipeline, requests, np.concatenate(parts), seed=seed, batch_size=batch_size, ar_ratio=ar_ratio)
        for batch in _with_progress(batches, len(parts), len(requests)):
            yield from batch[:, None]


def _with_progress(batches: Iterable[np.ndarray], todo: int, total: int) -> Iterator[np.ndarray]:
    """Yields the batches and shows progress."""
    with Progress("sampling", total, done=total - todo, log=_log) as progress:
        for batch in batches:
            progress.update(len(batch))
            yield batch
