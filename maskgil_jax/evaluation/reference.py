"""What samples are compared with: an ADM reference batch, a stats file of `maskgil stats`, or images; and writing stats files.

A stats file is an `.npz` with `mu`, `sigma` (and `mu_s`, `sigma_s` where the extractor has a spatial tap), the names other
tools use too, and `maskgil_stats`, JSON that says how they came about. With `features` it serves precision and recall.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from maskgil_jax.config import require
from maskgil_jax.evaluation.collect import collect
from maskgil_jax.evaluation.extractor import Extractor
from maskgil_jax.evaluation.image_sets import ImageSet, open_set
from maskgil_jax.evaluation.npz_files import load_array, npz_headers, read_note
from maskgil_jax.files.atomic import writing

FORMAT = "maskgil_jax stats 1"
NAMES = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # tap -> keys of its mean and covariance


@dataclasses.dataclass
class Reference:
    """Moments by tap (mean (d,), covariance (d, d)), features (n, d) where they are known, and where all of it is from.

    count and size are None where a file does not say. images: the set to be read for what is not there yet.
    """

    name: str
    kind: str
    hash: str
    count: int | None
    size: tuple[int, int] | None
    moments: dict[str, tuple[np.ndarray, np.ndarray]]
    features: np.ndarray | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def about(self) -> dict:
        """What the output says of it."""
        size = f"{self.size[1]}x{self.size[0]}" if self.size else None
        feature_rows = None if self.features is None else len(self.features)
        return {
            "path": self.name,
            "kind": self.kind,
            "hash": self.hash,
            "count": self.count,
            "size": size,
            "feature_rows": feature_rows,
        }


def open_reference(
    spec: str | os.PathLike,
    extractor: Extractor,
    *,
    moments: Iterable[str],
    keep: bool,
    image_size: int | None = None,
    batch_size: int = 64,
    mesh: Mesh | None = None,
    **options,
) -> Reference:
    """Opens a reference and works out what is wanted of it: `moments` of these taps and, with `keep`, the features.

    spec: an ADM `.npz` (`mu`, `sigma`, `mu_s`, `sigma_s`, `arr_0`: given moments are used as they are if the extractor is the
      Inception they are from, everything else is computed from `arr_0`), a stats file, or images as in `open_set`, which
      takes `options`. image_size: side to which images of a folder or data set are centre-cropped.
    Raises a `ValueError` naming the file for wrong keys, widths, or another extractor or protocol than this run's.
    """
    run = dict(batch_size=batch_size, mesh=mesh)
    if str(spec).endswith(".npz") and Path(spec).is_file():
        headers = npz_headers(spec)
        if "maskgil_stats" in headers:
            return _from_stats(Path(spec), headers, extractor)
        return _from_adm(Path(spec), headers, extractor, tuple(moments), keep, run)
    images = open_set(spec, image_size=image_size, **options)
    return measured(images, extractor, moments=moments, keep=keep, **run)


def measured(images: ImageSet, extractor: Extractor, *, moments: Iterable[str], keep: bool, **run) -> Reference:
    """The reference that a set of images is; what it is made of is read once."""
    require_two(images.name, images.count)
    desc = f"reference {images.name}"
    found = collect(images, extractor, moments=moments, keep=("features",) if keep else (), desc=desc, **run)
    return Reference(
        name=images.name,
        kind=images.about.get("kind", "images"),
        hash=found.watch.hash,
        count=found.watch.count,
        size=images.size,
        moments={tap: found.moments(tap) for tap in found.statistics},
        features=found.kept.get("features"),
        notes=[f"reference: {note}" for note in images.notes],
        warnings=found.watch.warnings("reference"),
    )


def require_two(name: str, count: int) -> None:
    """A covariance of one image does not exist."""
    require(count >= 2, f"{name}: holds {count} image; distances between sets need at least 2 (papers take 50000)")


def _from_stats(path: Path, headers: dict, extractor: Extractor) -> Reference:
    note = read_note(path, "maskgil_stats")
    if note.get("format") != FORMAT:
        raise ValueError(f"{path}: expected {FORMAT!r}, found {note.get('format')!r}")
    made_with = note.get("extractor", {})
    for what in ("hash", "protocol"):
        if made_with.get(what) != getattr(extractor, what):
            raise ValueError(
                f"{path}: made with the extractor {made_with.get('name')} ({made_with.get('hash')}, protocol "
                f"{made_with.get('protocol')}), this run has {extractor.name} ({extractor.hash}, {extractor.protocol}); "
                "use the same --features and --protocol, or make the file anew with maskgil stats"
            )
    moments = {tap: _moments(path, *names) for tap, names in NAMES.items() if set(names) <= headers.keys()}
    require("features" in moments, f"{path}: has no mu and sigma; make the file anew with maskgil stats")
    return Reference(
        name=str(path),
        kind="stats",
        hash=file_hash(path),
        count=note.get("count"),
        size=tuple(note["size"]) if note.get("size") else None,
        moments=moments,
        features=load_array(path, "features") if "features" in headers else None,
        notes=[f"reference: {path.name} was made of {note.get('source')}", *note.get("notes", [])],
    )


def _from_adm(path: Path, headers: dict, extractor: Extractor, taps: tuple[str, ...], keep: bool, run: dict) -> Reference:
    if "arr_0" not in headers and not {"mu", "sigma"} <= headers.keys():
        raise ValueError(
            f"{path}: has the keys {', '.join(sorted(headers)) or '(none)'}; a reference has mu and sigma "
            "(and mu_s, sigma_s), or images as arr_0, or both"
        )
    notes, warnings, moments, images = [], [], {}, None
    if extractor.is_inception:
        moments = {tap: _moments(path, *names) for tap, names in NAMES.items() if set(names) <= headers.keys()}
        if moments:
            notes.append(f"reference: {', '.join(sorted(moments))}: mean and covariance as {path.name} gives them")
        if moments and extractor.protocol != "adm":
            warnings.append(f"{path}: its mu and sigma are taken for those of protocol adm, this run is {extractor.protocol}")
    elif "arr_0" not in headers:
        raise ValueError(
            f"{path}: its mu and sigma are of the FID Inception, {extractor.name} is a {extractor.family}; it has no images "
            "(arr_0) to compute others from"
        )
    missing, features, found_hash, count, size = [tap for tap in taps if tap not in moments], None, file_hash(path), None, None
    if "arr_0" in headers:
        images = open_set(path)
        count, size = images.count, images.size
    if missing or keep:
        if images is None:
            raise ValueError(
                f"{path}: has no images (arr_0), which {' and '.join([*missing, *['precision and recall'] * keep])} need; "
                "leave those metrics out with --metrics"
            )
        made = measured(images, extractor, moments=missing, keep=keep, **run)
        moments.update(made.moments)
        features, warnings = made.features, [*warnings, *made.warnings]
        notes += made.notes
        if missing:
            notes.append(f"reference: {', '.join(missing)}: mean and covariance from the {count} images of {path.name}")
    return Reference(str(path), "npz", found_hash, count, size, moments, features, notes, warnings)


def _moments(path: Path, mean_key: str, covariance_key: str) -> tuple[np.ndarray, np.ndarray]:
    mean_d, covariance_dd = (load_array(path, key).astype(np.float64) for key in (mean_key, covariance_key))
    if mean_d.ndim != 1 or covariance_dd.shape != 2 * mean_d.shape:
        raise ValueError(
            f"{path}: {mean_key} is {mean_d.shape}, {covariance_key} {covariance_dd.shape}; expected (d,) and (d, d)"
        )
    return mean_d, covariance_dd


def file_hash(path: str | os.PathLike) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def write_stats(images: ImageSet, extractor: Extractor, out: str | os.PathLike, *, keep: bool = False, **run) -> Reference:
    """Makes the stats file `out` of a set, whole or not at all. keep: with the features, for precision and recall."""
    taps = [tap for tap in NAMES if tap in extractor.taps]
    made = measured(images, extractor, moments=taps, keep=keep, **run)
    note = {
        "format": FORMAT,
        "source": made.name,
        "source_hash": made.hash,
        "count": made.count,
        "size": made.size,
        "extractor": extractor.about(),
        "notes": made.notes,
    }
    arrays = {key: array for tap, pair in made.moments.items() for key, array in zip(NAMES[tap], pair, strict=True)}
    if made.features is not None:
        arrays["features"] = made.features
    with writing(out) as part, open(part, "wb") as file:
        np.savez(file, allow_pickle=False, maskgil_stats=np.array(json.dumps(note)), **arrays)
    return made
