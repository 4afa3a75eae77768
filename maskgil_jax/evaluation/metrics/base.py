"""What a metric is: one row with its figures, what it needs, how it is computed and its help text.

A module of this package lists its rows in `METRICS` (sets against a reference) or `RECONSTRUCTION_METRICS`
(tokenizers); the package finds them there, so a new metric is one file. This module imports neither JAX nor NumPy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of a result.

    key: its name in JSON. label: its name in tables. position: its place in tables, ascending. digits: after the
    decimal point.
    scale: tables show the value times this. other_label: the label if the features are not those of the FID Inception,
    whose FID and IS have those names.
    """

    key: str
    label: str
    position: int
    digits: int = 4
    scale: float = 1.0
    other_label: str = ""


@dataclasses.dataclass(frozen=True)
class MetricResult:
    """The outcome of a metric.

    values: {key of a figure: value}, and {key}_std for a deviation. settings: options that change the values. warnings:
    conditions under which the values mean little.
    """

    values: dict[str, float]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class MetricInputs:
    """What a metric is computed from.

    samples: the `FeatureSet` of the samples, with `moments(tap)`, `rows[tap]` and `count`. reference: the `Reference`,
    with `moments[tap]` and `features`. labels: returns the classes of the samples (n,), None where unknown. clip: a
    `ClipScorer` that has embedded the samples. class_count: number of classes of the extractor's logits, 0 where
    unknown.
    """

    samples: Any
    reference: Any
    labels: Callable[[], Any] | None = None
    clip: Any = None


@dataclasses.dataclass(frozen=True)
class Metric:
    """A row of `--metrics`.

    name: as `--metrics` takes it. help: one line. compute: `MetricInputs` -> `MetricResult`. figures: what it gives.
    moments: taps whose mean and covariance samples and reference need. rows: taps of which the samples' rows are kept.
    reference_rows: whether the reference's own rows of "features" are needed. needs: "labels" (samples of the
    extractor's classes) or "texts" (one per sample). min_images: the fewest images it is defined for. default: measured
    unless `--metrics` says otherwise, where its needs are met.
    """

    name: str
    help: str
    compute: Callable[[MetricInputs], MetricResult]
    figures: tuple[Figure, ...]
    moments: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    reference_rows: bool = False
    needs: tuple[str, ...] = ()
    min_images: int = 2
    default: bool = True


@dataclasses.dataclass(frozen=True)
class ReconstructionMetric:
    """A metric of a tokenizer. accumulate: `Reconstructions` -> {name: array}, summed over batches; finish: (sums,
    number of images) -> `MetricResult`. needs: "lpips" if it needs that network."""

    name: str
    accumulate: Callable[[Reconstructions], dict[str, Any]]
    finish: Callable[[dict[str, Any], int], MetricResult]
    figures: tuple[Figure, ...]
    needs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Reconstructions:
    """A batch: originals and copies uint8 (b, h, w, 3), codes (b, h, w), LPIPS distances (b,) or None, the codebook's
    size."""

    originals_bhwc: Any
    copies_bhwc: Any
    codes_bhw: Any
    lpips_b: Any
    codebook_size: int
