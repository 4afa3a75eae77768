"""Samples against a reference: one pass over each, the figures asked for, and everything needed to make them again."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from maskgil_jax.config import ConfigError, choose, require
from maskgil_jax.evaluation.collect import USUAL_COUNT, USUAL_SIDE, Collected, collect
from maskgil_jax.evaluation.extractor import Extractor
from maskgil_jax.evaluation.image_sets import ImageSet
from maskgil_jax.evaluation.manifold import prdc, precision_recall
from maskgil_jax.evaluation.metrics import frechet_distance, inception_score, kid
from maskgil_jax.evaluation.reference import Reference, require_two
from maskgil_jax.evaluation.results import provenance

# metric -> (taps whose moments it takes, taps it takes whole); density and coverage come with their own convention.
METRICS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "fid": (("features",), ()),
    "sfid": (("spatial",), ()),
    "is": ((), ("logits",)),
    "precision_recall": ((), ("features",)),
    "density_coverage": ((), ("features",)),
    "kid": ((), ("features",)),
    "agreement": ((), ("logits",)),
    "clipscore": ((), ()),
}
NEIGHBOURS = ("precision_recall", "density_coverage", "kid")  # need the reference's own features, not only their moments
K, SPLITS = 3, 10
HOST_PAIRS = 25_000_000  # up to so many pairs of rows, distances are computed in float64 on the host


def needs(metrics: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """(taps whose moments the reference must have, whether it must have features) for some metrics."""
    for name in metrics:
        choose("--metrics", name, METRICS)
    return tuple(tap for name in metrics for tap in METRICS[name][0]), any(name in NEIGHBOURS for name in metrics)


def default_metrics(extractor: Extractor, labels: bool) -> tuple[str, ...]:
    """What is measured unless somebody asks for something else."""
    sfid, agreement = ("sfid",) * ("spatial" in extractor.taps), ("agreement",) * (labels and bool(extractor.class_names))
    return ("fid", *sfid, "is", "precision_recall", *agreement)


def evaluate(
    samples: ImageSet,
    reference: Reference,
    extractor: Extractor,
    metrics: Sequence[str],
    *,
    batch_size: int = 64,
    mesh: Mesh | None = None,
    clip=None,
) -> dict:
    """The figures of `samples` against `reference`, and where they are from, as plain nested dicts ready for JSON.

    metrics: of `METRICS`. clip: images -> CLIPScore, for "clipscore" (see `clip_scores`). Raises a `ValueError` for metrics
    that extractor, reference or samples cannot give.
    """
    began = time.perf_counter()
    moments, _ = needs(metrics)
    _check(samples, reference, extractor, metrics, clip)
    require_two(samples.name, samples.count)
    whole = dict.fromkeys(tap for name in metrics for tap in METRICS[name][1])
    scored = clip.watch(samples) if clip is not None and "clipscore" in metrics else samples
    found = collect(
        scored, extractor, moments=moments or ("features",), keep=whole, batch_size=batch_size, mesh=mesh, desc=samples.name
    )
    figures, settings = {}, {}
    for name in dict.fromkeys(metrics):
        values, how = _figure(name, found, reference, samples, clip)
        figures.update(values)
        settings.update({name: how} if how else {})
    return {
        **provenance(),
        "figures": figures,
        "settings": settings,
        "samples": {
            **samples.about,
            "name": samples.name,
            "count": found.watch.count,
            "size": f"{samples.size[1]}x{samples.size[0]}",
            "hash": found.watch.hash,
            "duplicates": found.watch.duplicates,
        },
        "reference": reference.about(),
        "extractor": extractor.about(),
        "warnings": [*warnings_of(samples, reference, extractor), *found.watch.warnings("samples"), *reference.warnings],
        "notes": [*(f"samples: {note}" for note in samples.notes), *reference.notes],
        "seconds": round(time.perf_counter() - began, 1),
    }


def _check(samples: ImageSet, reference: Reference, extractor: Extractor, metrics: Sequence[str], clip) -> None:
    require(bool(metrics), f"--metrics: none given; choose from {', '.join(METRICS)}")
    for name in metrics:
        for tap in METRICS[name][0]:
            if tap not in extractor.taps:
                raise ConfigError(f"--metrics {name}: needs the FID Inception, {extractor.name} is a {extractor.family}")
            if tap not in reference.moments:
                raise ConfigError(f"--metrics {name}: {reference.name} has no mean and covariance of the {tap} tap")
            widths = len(reference.moments[tap][0]), extractor.width(tap)
            if widths[0] != widths[1]:
                raise ConfigError(
                    f"{reference.name}: its mean has {widths[0]} features, those of {extractor.name} ({extractor.family}) are "
                    f"{widths[1]}: they are from different networks or taps"
                )
        if name in NEIGHBOURS and reference.features is None:
            raise ConfigError(
                f"--metrics {name}: {reference.name} has no features of single images; "
                "make it anew with maskgil stats --features-too, give images, or leave the metric out"
            )
    if "agreement" in metrics and (samples.labels is None or tuple(samples.class_names) != extractor.class_names):
        raise ConfigError(
            f"--metrics agreement: needs samples of known classes, the same as those of {extractor.name} "
            f"({len(extractor.class_names)} classes)"
        )
    require("clipscore" not in metrics or clip is not None, "--metrics clipscore: needs --texts, one line per image")


def _figure(name: str, found: Collected, reference: Reference, samples: ImageSet, clip) -> tuple[dict, dict]:
    """({figure: value}, settings that change the value) of one metric."""
    if name in ("fid", "sfid"):
        tap = METRICS[name][0][0]
        return {name: frechet_distance(*reference.moments[tap], *found.moments(tap))}, {}
    if name == "is":
        splits = min(SPLITS, found.watch.count)
        mean, deviation = inception_score(found.kept["logits"], splits)
        return {"is": mean, "is_std": deviation}, {"splits": splits, "convention": "even", "order": "as given"}
    if name == "agreement":
        labels = np.asarray(samples.labels()) if samples.labels else np.empty(0)
        return {"agreement": float((found.kept["logits"].argmax(axis=1) == labels).mean())}, {}
    if name == "clipscore":
        return clip.figures()
    ours, theirs = found.kept["features"], reference.features
    assert theirs is not None  # as `_check` made sure
    pairs = {"reference_rows": len(theirs), "sample_rows": len(ours)}
    if name == "kid":
        size = min(1000, *pairs.values())
        mean, deviation = kid(theirs, ours, subset_size=size)
        return {"kid": mean, "kid_std": deviation}, {"subsets": 100, "subset_size": size, "seed": 2020}
    dtype = "float64" if max(pairs.values()) ** 2 <= HOST_PAIRS else "float32"
    settings = {"k": K, "distances": dtype, **pairs}
    if name == "precision_recall":
        precision, recall = precision_recall(theirs, ours, K, dtype=dtype)
        return {"precision": precision, "recall": recall}, settings
    result = prdc(theirs, ours, K, dtype=dtype)
    return {"density": result.density, "coverage": result.coverage}, settings


def warnings_of(samples: ImageSet, reference: Reference, extractor: Extractor) -> list[str]:
    """Where this comparison differs from the ones that papers quote."""
    found = []
    if samples.count < USUAL_COUNT:
        found.append(
            f"{samples.count} samples: distances are biased upwards by small sets (papers take 50000); "
            "compare only with figures of as many"
        )
    if extractor.is_inception and samples.size != (USUAL_SIDE, USUAL_SIDE):
        found.append(f"samples are {_size(samples.size)}, the usual figures are of {USUAL_SIDE}x{USUAL_SIDE}")
    if reference.size and reference.size != samples.size:
        found.append(f"the reference is {_size(reference.size)}, the samples are {_size(samples.size)}: resizing moves FID")
    if reference.count is not None and reference.kind != "npz" and reference.count != samples.count:
        found.append(f"the reference has {reference.count} images, the samples are {samples.count}: name both counts")
    if reference.kind == "npz" and reference.count is not None and reference.count != USUAL_COUNT:
        found.append(f"{reference.name} holds {reference.count} images, ADM's 256x256 reference batch holds {USUAL_COUNT}")
    if not extractor.is_inception:
        found.append(f"features are those of {extractor.name} ({extractor.family}): not the FID and IS of the literature")
    return found


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
