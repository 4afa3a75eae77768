"""Metrics: formulas by topic, one module each, and the rows under which `maskgil evaluate` offers them.

`sample_metrics()` and `reconstruction_metrics()` collect the rows that the modules list; the formulas are the public
functions below.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Any

from maskgil_jax.evaluation.metrics.base import Figure, Metric, ReconstructionMetric
from maskgil_jax.evaluation.metrics.classifier_scores import IS_CONVENTIONS, inception_score
from maskgil_jax.evaluation.metrics.clip import CLIP_CONVENTIONS, clip_score, clip_similarity
from maskgil_jax.evaluation.metrics.codebook import codebook_perplexity, codebook_usage, count_codes
from maskgil_jax.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from maskgil_jax.evaluation.metrics.image_quality import SSIM_CONVENTIONS, psnr, ssim
from maskgil_jax.evaluation.metrics.kernel_distance import kid
from maskgil_jax.evaluation.metrics.nearest_neighbours import PRDC, PrecisionRecall, prdc, precision_recall

__all__ = [
    "CLIP_CONVENTIONS",
    "IS_CONVENTIONS",
    "PRDC",
    "SSIM_CONVENTIONS",
    "FeatureStatistics",
    "PrecisionRecall",
    "clip_score",
    "clip_similarity",
    "codebook_perplexity",
    "codebook_usage",
    "count_codes",
    "figures",
    "frechet_distance",
    "inception_score",
    "kid",
    "prdc",
    "precision_recall",
    "psnr",
    "reconstruction_metrics",
    "sample_metrics",
    "ssim",
]


@functools.cache
def sample_metrics() -> dict[str, Metric]:
    """{name: row} of the metrics of samples against a reference, in the order of their figures in tables."""
    return _collect("METRICS")


@functools.cache
def reconstruction_metrics() -> dict[str, ReconstructionMetric]:
    """{name: row} of the metrics of a tokenizer, in the order of their figures in tables."""
    return _collect("RECONSTRUCTION_METRICS")


@functools.cache
def figures() -> dict[str, Figure]:
    """{key: figure} of all metrics and of the modules' `FIGURES`, in the order of tables."""
    rows: list[Any] = [*sample_metrics().values(), *reconstruction_metrics().values()]
    found: list[Figure] = [*_listed("FIGURES"), *(figure for row in rows for figure in row.figures)]
    keys = [figure.key for figure in found]
    assert len(set(keys)) == len(keys), f"two metrics give one figure: {sorted(keys)}"
    return {figure.key: figure for figure in sorted(found, key=lambda figure: figure.position)}


def _collect(attribute: str) -> dict[str, Any]:
    return {row.name: row for row in sorted(_listed(attribute), key=lambda row: row.figures[0].position)}


def _listed(attribute: str) -> list[Any]:
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return [row for module in modules for row in vars(module).get(attribute, ())]
