"""Many images as a job: made in parts, each written whole, so that an interrupted job goes on where it stopped.

An image depends on the job's seed and its own number. So it does not matter which process makes it, on how many devices, in
what batch, before or after an interruption. A folder of samples holds, by format:

    png, webp       000000.png, 000001.png, ...
    npz             samples.npz: arr_0 uint8 (n, height, width, 3), arr_1 int64 (n,) classes, as ADM's evaluation reads it
    array_record    samples-00000-of-00050.array_record, ...: record = class (int32, little-endian), then a PNG file

and samples.json, which says what they were made with. Only a job with the same settings may go on in it.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import math
import pathlib
import shutil
import struct
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from maskgil_jax.config import ConfigError, choose, require, to_dict
from maskgil_jax.data.code_format import write_shard
from maskgil_jax.files.atomic import clear, write_json, writing
from maskgil_jax.files.images import png_bytes, read_image, save_png, save_webp
from maskgil_jax.files.paths import is_remote
from maskgil_jax.networks import fingerprint, params_of
from maskgil_jax.pipelines.pipeline import Pipeline

_log = logging.getLogger(__name__)
FORMATS = ("png", "webp", "npz", "array_record")
MANIFEST, NPZ, PARTS = "samples.json", "samples.npz", "parts"
_LABEL = struct.Struct("<i")
_QUIET_SECONDS = 30.0


def balanced_labels(ids: np.ndarray, *, num: int | None = None, per_class: int | None = None) -> np.ndarray:
    """The classes of a job, in the order given: `per_class` images of each, or `num` in all, as evenly as they go."""
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
    format: str = "png",
    seed: int = 0,
    batch_size: int = 32,
    grid: tuple[int, int] | None = None,
    ar_ratio: float = 0.0,
    part_size: int = 1000,
    overwrite: bool = False,
    share: tuple[int, int] | None = None,
) -> pathlib.Path:
    """Makes one image per label and writes them to the folder `out`; what an earlier run finished is kept.

    format: one of `FORMATS`. part_size: images in a part of npz and array_record, the most that an interruption loses.
    overwrite: take the samples of other settings away first. share: (which, of how many) shares of the job this process makes;
    default: its own among the processes of the run. The first one joins the parts once all are there.

    Raises a ValueError if `out` holds samples that were made with other settings, which it names, if the generator knows no
    such canvas, and if parts are missing once all processes are done: they must write to one disk.
    """
    choose("--format", format, FORMATS)
    require(
        not is_remote(out), f"--out: {out}: samples are written to a disk that all processes see; copy them to a bucket after"
    )
    require(part_size >= 1, f"part_size: must be at least 1, got {part_size}")
    ids_n, out = pipeline.label_ids(labels), pathlib.Path(out)
    pipeline.request(len(ids_n), seed, None, batch_size)  # refuses a bad seed or batch size before anything is written
    _check_canvas(pipeline, grid)
    number, count = share or _own_share()
    settings = _settings(pipeline, ids_n, format, seed, grid or pipeline.generator.cfg.grid, ar_ratio, part_size)
    if number == 0:
        _claim(out, settings, overwrite)
    _wait_for_all("claimed", share)
    parts = part_names(settings)
    mine = list(itertools.islice(parts.items(), number, None, count))
    finished = (out / NPZ).exists() and format == "npz"
    todo = [] if finished else [(name, rows) for name, rows in mine if not (out / name).exists()]
    images = _images(pipeline, ids_n, [rows for _, rows in todo], seed, batch_size, grid, ar_ratio)
    for (name, rows), images_bhwc in zip(todo, images):
        _write_part(out / name, images_bhwc, ids_n[rows])
    _wait_for_all("made", share)
    look = number == 0 and not share and not finished
    missing = [name for name in parts if not (out / name).exists()] if look else []
    require(not missing, f"{out}: {len(missing)} parts are missing, {missing[:1]} first; all processes must write to one disk")
    if format == "npz" and number == 0:
        if not finished and all((out / name).exists() for name in parts):
            _join(out, list(parts), ids_n)
        if (out / NPZ).exists():
            shutil.rmtree(out / PARTS, ignore_errors=True)
    return out


def part_names(settings: dict) -> dict[str, np.ndarray]:
    """The files of a job before they are joined, and the numbers of the images in each."""
    kind, numbers = settings["files"], np.arange(settings["num"])
    if kind in ("png", "webp"):
        return {f"{i:06d}.{kind}": numbers[i : i + 1] for i in numbers}
    size, total = settings["part_size"], -(-len(numbers) // settings["part_size"])
    name = f"{PARTS}/{{:05d}}.npy" if kind == "npz" else f"samples-{{:05d}}-of-{total:05d}.array_record"
    return {name.format(k): numbers[k * size : (k + 1) * size] for k in range(total)}


def read_samples(out, limit: int | None = None) -> np.ndarray:
    """The first images of a finished job, uint8 (n, height, width, 3); default all."""
    out = pathlib.Path(out)
    settings = _read_manifest(out)
    if settings["files"] == "npz":
        with np.load(out / NPZ, allow_pickle=False) as arrays:
            return arrays["arr_0"][:limit]
    images: list[np.ndarray] = []
    for name in part_names(settings):
        if limit is not None and len(images) >= limit:
            break
        images += _read_records(out / name) if settings["files"] == "array_record" else [read_image(out / name)]
    return np.stack(images[:limit])


def _settings(pipeline: Pipeline, ids_n, format: str, seed: int, grid, ar_ratio: float, part_size: int) -> dict:
    """All that the images depend on, as it stands in the manifest. Batch size, devices and processes are not of it."""
    values = {
        "format": "maskgil samples 1",
        "files": format,
        "num": len(ids_n),
        "labels": [[int(label), len(list(run))] for label, run in itertools.groupby(ids_n)],  # [class, images in a row]
        "seed": int(seed),
        "canvas": [int(side) for side in grid],
        "rope_scaling": pipeline.generator.cfg.rope_scaling,
        "generator": fingerprint(params_of(pipeline.generator)),
        "tokenizer": fingerprint(params_of(pipeline.tokenizer)),
        "ar_ratio": float(ar_ratio),
        "part_size": part_size if format in ("npz", "array_record") else 1,
        **{f"decode.{name}": value for name, value in to_dict(pipeline.cfg).items()},
    }
    if ar_ratio:
        values["ar"] = fingerprint(params_of(pipeline.ar))
        values |= {f"ar_decode.{name}": value for name, value in to_dict(pipeline.ar_cfg).items()}
    return values


def _check_canvas(pipeline: Pipeline, grid) -> None:
    """Raises what the generator has against a canvas before anything is written, without computing anything."""
    if grid is None or tuple(grid) == tuple(pipeline.generator.cfg.grid):
        return
    tokens_bl = jax.ShapeDtypeStruct((1, math.prod(grid)), np.int32)
    jax.eval_shape(
        lambda network, tokens, condition: network(tokens, condition, grid=grid),
        pipeline.generator,
        tokens_bl,
        pipeline.conditioner.examples(1),
    )


def _claim(out: pathlib.Path, settings: dict, overwrite: bool) -> None:
    """Makes the folder this job's, or raises if it is another's."""
    if (out / MANIFEST).exists():
        found = _read_manifest(out)
        if found == settings:
            return
        if not overwrite:
            names = (name for name in {**settings, **found} if found.get(name) != settings.get(name))
            name = next(names)
            raise ConfigError(
                f"{out}: holds other samples: {name} is {_short(found.get(name))} there, {_short(settings.get(name))} now; "
                "give another --out, or --overwrite"
            )
        (out / MANIFEST).unlink()  # first of all: files of two jobs must never stand under one manifest
        for name in (*part_names(found), NPZ):
            (out / name).unlink(missing_ok=True)
    else:
        stray = next((n for n in (*part_names(settings), NPZ) if (out / n).exists()), None)
        require(stray is None, f"{out}: holds {stray}, but no {MANIFEST} that says what it was made with; give another --out")
    write_json(out / MANIFEST, settings)


def _read_manifest(out: pathlib.Path) -> dict:
    path = out / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not a JSON file ({error}); give another --out") from None
    sound = isinstance(values, dict) and values.get("format") == "maskgil samples 1" and values.get("files") in FORMATS
    sizes = sound and all(isinstance(values.get(name), int) and values[name] >= 1 for name in ("num", "part_size"))
    require(sizes, f"{path}: does not describe samples of this version; give another --out")
    return values


def _short(value) -> str:
    return text if len(text := repr(value)) <= 60 else text[:57] + "..."


def _own_share() -> tuple[int, int]:
    return jax.process_index(), jax.process_count()


def _wait_for_all(what: str, share) -> None:
    if share is None and jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"maskgil samples {what}")


def _images(pipeline: Pipeline, ids_n, parts: list[np.ndarray], seed, batch_size, grid, ar_ratio) -> Iterator[np.ndarray]:
    """The images of each part, made in batches that take no notice of where a part ends."""
    if not parts:
        return
    places_m = np.concatenate(parts)
    batches = pipeline.batches(
        ids_n[places_m], seed=seed, batch_size=batch_size, grid=grid, ar_ratio=ar_ratio, indices=places_m
    )
    flow = itertools.chain.from_iterable(_with_progress(batches, len(places_m), len(ids_n)))
    for rows in parts:
        yield np.stack(list(itertools.islice(flow, len(rows))))


def _with_progress(batches: Iterable[np.ndarray], todo: int, total: int) -> Iterator[np.ndarray]:
    """Passes batches on; a bar with images/s and the time left on a terminal, elsewhere a line every half minute."""
    from tqdm import tqdm

    began = said = time.monotonic()
    done, terminal = 0, sys.stderr.isatty()
    with tqdm(total=total, initial=total - todo, unit="image", disable=not terminal) as bar:
        for batch in batches:
            done += len(batch)
            bar.update(len(batch))
            now = time.monotonic()
            if not terminal and now - said > _QUIET_SECONDS:
                said, rate = now, done / (now - began)
                _log.info("%d/%d images, %.2f images/s, %.0f min left", done, todo, rate, (todo - done) / rate / 60)
            yield batch


def _write_part(path: pathlib.Path, images_bhwc: np.ndarray, label_b: np.ndarray) -> None:
    if path.suffix == ".png":
        save_png(path, images_bhwc[0])
    elif path.suffix == ".webp":
        save_webp(path, images_bhwc[0])
    elif path.suffix == ".array_record":
        write_shard(path, [_LABEL.pack(label) + png_bytes(image) for image, label in zip(images_bhwc, label_b)])
    else:
        with writing(path) as part, open(part, "wb") as file:
            np.save(file, images_bhwc)


def _read_records(path: pathlib.Path) -> list[np.ndarray]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    return [read_image(io.BytesIO(record[_LABEL.size :])) for record in records]


def _join(out: pathlib.Path, parts: list[str], ids_n: np.ndarray) -> None:
    """The npz of all parts, one part in memory at a time."""
    clear(out, NPZ)  # it may be large
    shape = (len(ids_n), *np.load(out / parts[0], mmap_mode="r", allow_pickle=False).shape[1:])
    with writing(out / NPZ) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:  # ZipInfo: no clock in the bytes
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for name in parts:
                file.write(np.load(out / name, allow_pickle=False).tobytes())
        with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as file:
            np.lib.format.write_array(file, ids_n.astype(np.int64), allow_pickle=False)
