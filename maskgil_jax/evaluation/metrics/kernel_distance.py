"""Kernel Inception Distance: the unbiased squared maximum mean discrepancy of features."""

from __future__ import annotations

import numpy as np

from maskgil_jax.evaluation.metrics.base import Figure, Metric, MetricInputs, MetricResult
from maskgil_jax.evaluation.metrics.frechet import check_features, check_same_width

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020


def _kernel_mean(first_nd: np.ndarray, second_nd: np.ndarray | None = None) -> float:
    """Mean of (x.y / d + 1)^3 over all pairs; for a single set without the pairs of a row with itself."""
    other_nd = first_nd if second_nd is None else second_nd
    kernel = (first_nd @ other_nd.T / first_nd.shape[1] + 1.0) ** 3
    if second_nd is None:
        n = len(first_nd)
        return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))
    return float(kernel.mean())


def kid(reference, samples, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = SEED) -> tuple[float, float]:
    """Kernel Inception Distance: mean and standard deviation (ddof 0) over random subsets of the unbiased squared MMD
    with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018, arXiv:1801.01401); often quoted times 1000.

    reference (n, d) and samples (m, d), any float type, computed in float64; rows are drawn without replacement by
    `np.random.RandomState(seed)`, reference first, so the defaults give torch-fidelity's figure for its inputs in that
    order.
    Raises a `ValueError` for features that do not match, or a `subset_size` below 2 or above n or m.
    """
    reference_nd, samples_md = check_features(reference, "reference"), check_features(samples, "samples")
    check_same_width(reference_nd, samples_md)
    if not 2 <= subset_size <= min(len(reference_nd), len(samples_md)) or subsets < 1:
        raise ValueError(
            f"kid: {subsets} subsets of {subset_size} rows cannot be drawn from {len(reference_nd)} reference and "
            f"{len(samples_md)} sample rows; choose subset_size between 2 and the smaller count"
        )
    rng, values = np.random.RandomState(seed), []
    for _ in range(subsets):
        a, b = (
            rows[rng.choice(len(rows), subset_size, replace=False)].astype(np.float64) for rows in (reference_nd, samples_md)
        )
        values.append(_kernel_mean(a) + _kernel_mean(b) - 2 * _kernel_mean(a, b))
    return float(np.mean(values)), float(np.std(values))


def _compute(inputs: MetricInputs) -> MetricResult:
    samples, reference = inputs.samples.rows["features"], inputs.reference.features
    size = min(SUBSET_SIZE, len(samples), len(reference))
    mean, deviation = kid(reference, samples, subset_size=size)
    warnings = []
    if size < SUBSET_SIZE:
        warnings.append(
            f"kid: subsets of {size} rows instead of {SUBSET_SIZE}, as there are no more; the deviation is too small, since "
            "all subsets of the smaller set are the same rows"
        )
    settings = {"subsets": SUBSETS, "subset_size": size, "seed": SEED}
    return MetricResult({"kid": mean, "kid_std": deviation}, settings, warnings)


METRICS = (
    Metric(
        name="kid",
        help="kernel distance of the features, with the deviation over subsets",
        compute=_compute,
        figures=(Figure("kid", "KID x 1000", 80, scale=1000.0, other_label="MMD x 1000"),),
        rows=("features",),
        reference_rows=True,
        default=False,
    ),
)
