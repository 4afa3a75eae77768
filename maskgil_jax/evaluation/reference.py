"""References of evaluations: an ADM reference batch, a stats file of `maskgil stats`, or images.

A stats file is an `.npz` with `mu`, `sigma` (and `mu_s`, `sigma_s` where the extractor has a spatial tap), the keys
that other tools use, and `maskgil_stats`, JSON with their provenance. With `features` it serves precision, recall and
KID.
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
from maskgil_jax.evaluation.extraction import extract
from maskgil_jax.evaluation.features import FeatureExtractor
from maskgil_jax.evaluation.images import ImageSet, Size, open_image_set
from maskgil_jax.files.atomic import writing
from maskgil_jax.files.npz import load_array, load_json, npz_headers

FORMAT = "maskgil_jax stats 1"
KEYS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # tap -> keys of its mean and covariance


@dataclasses.dataclass
class Reference:
    """Moments by tap (mean (d,), covariance (d, d)), features (n, d) where available, and their provenance.

    count and size ((height, width)) are None where a file does not state them.
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

    def metadata(self) -> dict:
        """Its entry in a result."""
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
    extractor: FeatureExtractor,
    *,
    moments: Iterable[str],
    keep: bool,
    image_size: Size | None = None,
    batch_size: int = 64,
    mesh: Mesh | None = None,
    **options,
) -> Reference:
    """Opens a reference and computes what is missing: the `moments` of these taps and, with `keep`, the features.

    spec: an ADM `.npz` (`mu`, `sigma`, `mu_s`, `sigma_s`, `arr_0`: given moments are used as they are if the extractor
      is the Inception they are from, everything else is computed from `arr_0`), a stats file, or images as in
      `open_image_set`, which takes `options`. image_size: (height, width), or the side of a square, to which images of
      other sizes are centre-cropped.
    Raises a `ValueError` that names the file for wrong keys, widths, or another extractor or protocol than this run's.
    """
    run = dict(batch_size=batch_size, mesh=mesh)
    if str(spec).endswith(".npz") and Path(spec).is_file():
        headers = npz_headers(spec)
        if "maskgil_stats" in headers:
            return _from_stats(Path(spec), headers, extractor)
        return _from_adm(Path(spec), headers, extractor, tuple(moments), keep, run)
    images = open_image_set(spec, image_size=image_size, **options)
    return reference_of(images, extractor, moments=moments, keep=keep, **run)


def reference_of(images: ImageSet, extractor: FeatureExtractor, *, moments: Iterable[str], keep: bool, **run) -> Reference:
    """Makes a reference of an image set, in one pass over it."""
    require_two(images.name, images.count)
    desc = f"reference {images.name}"
    found = extract(images, extractor, moments=moments, keep=("features",) if keep else (), desc=desc, **run)
    return Reference(
        name=images.name,
        kind=images.provenance.get("kind", "images"),
        hash=found.checks.hash,
        count=found.count,
        size=images.size,
        moments={tap: found.moments(tap) for tap in found.statistics},
        features=found.rows.get("features"),
        notes=[f"reference: {note}" for note in images.notes],
        warnings=found.checks.warnings("reference"),
    )


def require_two(name: str, count: int) -> None:
    """Raises a `ConfigError` for a set of one image, which has no covariance."""
    require(count >= 2, f"{name}: holds {count} image; distances between sets need at least 2 (papers take 50000)")


def _from_stats(path: Path, headers: dict, extractor: FeatureExtractor) -> Reference:
    note = load_json(path, "maskgil_stats")
    if note.get("format") != FORMAT:
        raise ValueError(f"{path}: expected {FORMAT!r}, found {note.get('format')!r}")
    made_with = note.get("extractor", {})
    for what in ("hash", "protocol"):
        if made_with.get(what) != getattr(extractor, what):
            raise ValueError(
                f"{path}: made with the extractor {made_with.get('name')} ({made_with.get('hash')}, protocol "
                f"{made_with.get('protocol')}), this run has {extractor.name} ({extractor.hash}, {extractor.protocol}); "
                "use the same --features and --protocol, or make the file again with maskgil stats"
            )
    moments = {tap: _moments(path, *keys) for tap, keys in KEYS.items() if set(keys) <= headers.keys()}
    require("features" in moments, f"{path}: has no mu and sigma; make the file again with maskgil stats")
    return Reference(
        name=str(path),
        kind="stats",
        hash=file_hash(path),
        count=note.get("count"),
        size=tuple(note["size"]) if note.get("size") else None,
        moments=moments,
        features=load_array(path, "features") if "features" in headers else None,
        notes=[f"reference: {path.name} was computed from {note.get('source')}", *note.get("notes", [])],
    )


def _from_adm(
    path: Path, headers: dict, extractor: FeatureExtractor, taps: tuple[str, ...], keep: bool, run: dict
) -> Reference:
    if "arr_0" not in headers and not {"mu", "sigma"} <= headers.keys():
        raise ValueError(
            f"{path}: has the keys {', '.join(sorted(headers)) or '(none)'}; a reference has mu and sigma "
            "(and mu_s, sigma_s), or images as arr_0, or both"
        )
    notes, warnings, moments, images = [], [], {}, None
    if extractor.is_inception:
        moments = {tap: _moments(path, *keys) for tap, keys in KEYS.items() if set(keys) <= headers.keys()}
        if moments:
            notes.append(f"reference: {', '.join(sorted(moments))}: mean and covariance as stored in {path.name}")
        if moments and extractor.protocol != "adm":
            warnings.append(f"{path}: its mu and sigma are assumed to be of protocol adm, this run is {extractor.protocol}")
    elif "arr_0" not in headers:
        raise ValueError(
            f"{path}: its mu and sigma are of the FID Inception, {extractor.name} is a {extractor.family}; it has no images "
            "(arr_0) to compute others from"
        )
    missing, features, found_hash, count, size = [tap for tap in taps if tap not in moments], None, file_hash(path), None, None
    if "arr_0" in headers:
        images = open_image_set(path)
        count, size = images.count, images.size
    if missing or keep:
        if images is None:
            raise ValueError(
                f"{path}: has no images (arr_0), which {' and '.join([*missing, *['precision and recall'] * keep])} need; "
                "leave those metrics out with --metrics"
            )
        made = reference_of(images, extractor, moments=missing, keep=keep, **run)
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


def write_stats(
    images: ImageSet, extractor: FeatureExtractor, out: str | os.PathLike, *, keep: bool = False, **run
) -> Reference:
    """Writes the stats file `out` of a set atomically. keep: with the features, for precision, recall and KID."""
    taps = [tap for tap in KEYS if tap in extractor.taps]
    made = reference_of(images, extractor, moments=taps, keep=keep, **run)
    note = {
        "format": FORMAT,
        "source": made.name,
        "source_hash": made.hash,
        "count": made.count,
        "size": made.size,
        "extractor": extractor.metadata(),
        "notes": made.notes,
    }
    arrays = {key: array for tap, pair in made.moments.items() for key, array in zip(KEYS[tap], pair, strict=True)}
    if made.features is not None:
        arrays["features"] = made.features
    with writing(out) as part, open(part, "wb") as file:
        np.savez(file, allow_pickle=False, maskgil_stats=np.array(json.dumps(note)), **arrays)
    return made
