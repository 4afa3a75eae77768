"""Evaluates samples against a reference: one pass over each, the metrics asked for, and their provenance."""

from __future__ import annotations

import time
from collections.abc import Sequence

from jax.sharding import Mesh

from maskgil_jax.config import ConfigError, choose, require
from maskgil_jax.evaluation.extraction import extract
from maskgil_jax.evaluation.features import FeatureExtractor
from maskgil_jax.evaluation.images import ImageSet
from maskgil_jax.evaluation.metrics import sample_metrics
from maskgil_jax.evaluation.metrics.base import Metric, MetricInputs
from maskgil_jax.evaluation.metrics.clip import ClipScorer
from maskgil_jax.evaluation.reference import Reference, require_two
from maskgil_jax.evaluation.report import environment

USUAL_COUNT, USUAL_SIDE = 10_000, 256  # the fewest samples, and the image size, of published ImageNet figures


def rows_of(metrics: Sequence[str]) -> list[Metric]:
    """The rows of some metrics, each once. Raises a `ConfigError` for an unknown name."""
    return [sample_metrics()[choose("--metrics", name, sample_metrics())] for name in dict.fromkeys(metrics)]


def needs(metrics: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """(taps whose moments the reference must have, whether it must have features) for some metrics."""
    rows = rows_of(metrics)
    return tuple(tap for row in rows for tap in row.moments), any(row.reference_rows for row in rows)


def default_metrics(extractor: FeatureExtractor, labels: bool, texts: bool = False) -> tuple[str, ...]:
    """The metrics computed by default. labels: whether the samples' classes are the extractor's; texts: are given."""
    available = {"labels": labels and bool(extractor.class_names), "texts": texts}
    return tuple(
        name
        for name, row in sample_metrics().items()
        if row.default and set(row.moments + row.rows) <= set(extractor.taps) and all(available[need] for need in row.needs)
    )


def evaluate(
    samples: ImageSet,
    reference: Reference,
    extractor: FeatureExtractor,
    metrics: Sequence[str],
    *,
    batch_size: int = 64,
    mesh: Mesh | None = None,
    clip: ClipScorer | None = None,
) -> dict:
    """Computes metrics of `samples` against `reference`; returns them with their provenance, ready for JSON.

    metrics: names of `metrics.sample_metrics()`. clip: embeds images and texts for "clip_score". Raises a `ValueError`
    for metrics that extractor, reference or samples cannot give.
    """
    began, rows = time.perf_counter(), rows_of(metrics)
    _check(samples, reference, extractor, rows, clip)
    require_two(samples.name, samples.count)
    uses_clip = clip is not None and any("texts" in row.needs for row in rows)
    found = extract(
        clip.embedding(samples) if clip is not None and uses_clip else samples,
        extractor,
        moments=dict.fromkeys(tap for row in rows for tap in row.moments) or ("features",),
        keep=dict.fromkeys(tap for row in rows for tap in row.rows),
        batch_size=batch_size,
        mesh=mesh,
        desc=samples.name,
    )
    inputs, figures, settings, warnings = MetricInputs(found, reference, samples.labels, clip), {}, {}, []
    for row in rows:
        result = row.compute(inputs)
        figures.update(result.values)
        settings.update({row.name: result.settings} if result.settings else {})
        warnings += result.warnings
    return {
        **environment(),
        "figures": figures,
        "settings": settings,
        "samples": {
            **samples.provenance,
            "name": samples.name,
            "count": found.count,
            "size": _size(samples.size),
            "hash": found.checks.hash,
            "duplicates": found.checks.duplicates,
        },
        "reference": reference.metadata(),
        "extractor": extractor.metadata(),
        "warnings": [
            *comparison_warnings(samples, reference, extractor),
            *found.checks.warnings("samples"),
            *reference.warnings,
            *warnings,
        ],
        "notes": [*(f"samples: {note}" for note in samples.notes), *reference.notes],
        "seconds": round(time.perf_counter() - began, 1),
    }


def _check(samples: ImageSet, reference: Reference, extractor: FeatureExtractor, rows: list[Metric], clip) -> None:
    require(bool(rows), f"--metrics: none given; choose from {', '.join(sample_metrics())}")
    for row in rows:
        for tap in row.moments:
            if tap not in extractor.taps:
                raise ConfigError(f"--metrics {row.name}: needs the FID Inception, {extractor.name} is a {extractor.family}")
            if tap not in reference.moments:
                raise ConfigError(f"--metrics {row.name}: {reference.name} has no mean and covariance of the {tap} tap")
            widths = len(reference.moments[tap][0]), extractor.width(tap)
            if widths[0] != widths[1]:
                raise ConfigError(
                    f"{reference.name}: its mean has {widths[0]} features, those of {extractor.name} ({extractor.family}) are "
                    f"{widths[1]}: they are from different networks or taps"
                )
        if row.reference_rows and reference.features is None:
            raise ConfigError(
                f"--metrics {row.name}: {reference.name} has no features of single images; "
                "make it again with maskgil stats --features-too, give images, or leave the metric out"
            )
        counts = {samples.name: samples.count}
        if row.reference_rows and reference.features is not None:
            counts[reference.name] = len(reference.features)
        for name, count in counts.items():
            require(
                samples.count < 2 or count >= row.min_images,
                f"--metrics {row.name}: needs at least {row.min_images} images, {name} holds {count}",
            )
        if "labels" in row.needs and (samples.labels is None or tuple(samples.class_names) != extractor.class_names):
            raise ConfigError(
                f"--metrics {row.name}: needs samples of known classes, the same as those of {extractor.name} "
                f"({len(extractor.class_names)} classes)"
            )
        require("texts" not in row.needs or clip is not None, f"--metrics {row.name}: needs --clip and texts, one per image")


def comparison_warnings(samples: ImageSet, reference: Reference, extractor: FeatureExtractor) -> list[str]:
    """The differences between this comparison and those of published figures."""
    found = []
    if samples.count < USUAL_COUNT:
        found.append(
            f"{samples.count} samples: distances are biased upwards by small sets (papers take 50000); "
            "compare only with figures of as many"
        )
    if extractor.is_inception and samples.size != (USUAL_SIDE, USUAL_SIDE):
        found.append(f"samples are {_size(samples.size)}, the usual figures are of {USUAL_SIDE}x{USUAL_SIDE}")
    if reference.size and tuple(reference.size) != tuple(samples.size):
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
