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
    """One number of a result, and how tables show it."""

    key: str  # its name in JSON
    label: str  # its name in tables
    position: int  # its place in tables, ascending
    digits: int = 4  # after the decimal point
    scale: float = 1.0  # tables show the value times this
    other_label: str = ""  # its name in tables if the features are not those of the FID Inception


@dataclasses.dataclass(frozen=True)
class MetricResult:
    """The outcome of a metric."""

    values: dict[str, float]  # {key of a figure: value}, and {key}_std for a deviation
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # options that change the values
    warnings: list[str] = dataclasses.field(default_factory=list)  # reasons why a value means little


@dataclasses.dataclass(frozen=True)
class MetricInputs:
    """What a metric of samples is computed from."""

    samples: Any  # a `FeatureSet`: moments(tap), rows[tap], count
    reference: Any  # a `Reference`: moments[tap], features
    labels: Callable[[], Any] | None = None  # returns the classes of the samples (n,), where they are known
    clip: Any = None  # a `ClipScorer` that has embedded the samples


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of samples against a reference, as `--metrics` offers it."""

    name: str
    help: str  # one line
    compute: Callable[[MetricInputs], MetricResult]
    figures: tuple[Figure, ...]
    moments: tuple[str, ...] = ()  # taps whose mean and covariance it needs, of samples and reference
    rows: tuple[str, ...] = ()  # taps of which it needs all rows of the samples
    reference_rows: bool = False  # whether it needs all rows of "features" of the reference
    needs: tuple[str, ...] = ()  # "labels": samples of the extractor's classes; "texts": one text per sample
    min_images: int = 2
    default: bool = True  # computed without --metrics, if its needs are met


@dataclasses.dataclass(frozen=True)
class Reconstructions:
    """A batch of images and their reconstructions."""

    originals_bhwc: Any  # uint8
    copies_bhwc: Any  # uint8
    codes_bhw: Any
    lpips_b: Any  # None without an LPIPS network
    codebook_size: int


@dataclasses.dataclass(frozen=True)
class ReconstructionMetric:
    """A metric of a tokenizer, accumulated over batches of reconstructions."""

    name: str
    accumulate: Callable[[Reconstructions], dict[str, Any]]  # {name: value}, which are summed over batches
    finish: Callable[[dict[str, Any], int], MetricResult]  # (sums, number of images) -> result
    figures: tuple[Figure, ...]
    needs: tuple[str, ...] = ()  # "lpips": an LPIPS network
