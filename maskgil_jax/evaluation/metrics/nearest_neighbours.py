"""Precision, recall, density and coverage from k-nearest-neighbour balls; distances are computed block by block."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import choose
from maskgil_jax.evaluation.metrics.base import Figure, Metric, MetricInputs, MetricResult
from maskgil_jax.evaluation.metrics.frechet import check_features, check_same_width

BLOCK = 4096  # rows of either set per block of distances: 134 MB in float64
K = 3
HOST_PAIRS = 25_000_000  # up to so many pairs of rows, distances are computed in float64 on the host


class PrecisionRecall(NamedTuple):
    """Fraction of the samples inside the reference's balls, and fraction of the reference inside the samples' balls."""

    precision: float
    recall: float


class PRDC(NamedTuple):
    """Precision, recall, density, coverage."""

    precision: float
    recall: float
    density: float
    coverage: float


def _host_distances(x_nd: np.ndarray, y_md: np.ndarray) -> np.ndarray:
    x_nd, y_md = x_nd.astype(np.float64), y_md.astype(np.float64)
    squares_nm = (x_nd * x_nd).sum(1).reshape(-1, 1) + (y_md * y_md).sum(1).reshape(1, -1)
    squares_nm -= 2 * (x_nd @ y_md.T)
    return np.maximum(squares_nm, 0, out=squares_nm)


@jax.jit
def _device_squares(x_nd: jax.Array, y_md: jax.Array) -> jax.Array:
    inner_nm = jnp.dot(x_nd, y_md.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum((x_nd * x_nd).sum(1).reshape(-1, 1) + (y_md * y_md).sum(1).reshape(1, -1) - 2 * inner_nm, 0)


def _device_distances(x_nd: np.ndarray, y_md: np.ndarray) -> np.ndarray:
    return np.asarray(_device_squares(x_nd.astype(np.float32), y_md.astype(np.float32)))


DISTANCES: dict[str, Callable] = {"float64": _host_distances, "float32": _device_distances}


def _blocks(count: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, count)) for start in range(0, count, block)]


def squared_radii(features_nd: np.ndarray, k: int = 3, *, dtype: str = "float64", block: int = BLOCK) -> np.ndarray:
    """Squared distance of each row to its k-th nearest other row, (n,); copies are neighbours at distance 0."""
    distances, n = DISTANCES[choose("dtype", dtype, DISTANCES)], len(features_nd)
    if not 1 <= k < n:
        raise ValueError(f"k: the {k}-th neighbour among {n} rows does not exist; k must be from 1 to {n - 1}")
    radii = []
    for rows in _blocks(n, block):
        nearest = np.full((rows.stop - rows.start, k), np.inf)
        for columns in _blocks(n, block):
            squares = distances(features_nd[rows], features_nd[columns])
            shared = np.arange(max(rows.start, columns.start), min(rows.stop, columns.stop))
            if len(shared):  # a row is not its own neighbour
                squares = np.array(squares)
                squares[shared - rows.start, shared - columns.start] = np.inf
            nearest = np.partition(np.concatenate([nearest, squares], axis=1), k - 1, axis=1)[:, :k]
        radii.append(nearest[:, k - 1])
    return np.concatenate(radii)


def _compare(reference, samples, k: int, strict: bool, dtype: str, block: int) -> PRDC:
    reference_nd, samples_md = check_features(reference, "reference"), check_features(samples, "samples")
    check_same_width(reference_nd, samples_md)
    # Distances do not depend on the origin, but their rounding error does.
    centre_d = reference_nd.mean(axis=0, dtype=np.float64).astype(reference_nd.dtype)
    if dtype == "float32":
        reference_nd, samples_md = reference_nd - centre_d.reshape(1, -1), samples_md - centre_d.reshape(1, -1)
    n, m, inside = len(reference_nd), len(samples_md), np.less if strict else np.less_equal
    radii_n = squared_radii(reference_nd, k, dtype=dtype, block=block)
    radii_m = squared_radii(samples_md, k, dtype=dtype, block=block)
    balls_m, found_n, closest_n = np.zeros(m, np.int64), np.zeros(n, bool), np.full(n, np.inf)
    for columns in _blocks(m, block):
        for rows in _blocks(n, block):
            squares = DISTANCES[dtype](reference_nd[rows], samples_md[columns])
            balls_m[columns] += inside(squares, radii_n[rows].reshape(-1, 1)).sum(axis=0)
            found_n[rows] |= inside(squares, radii_m[columns].reshape(1, -1)).any(axis=1)
            closest_n[rows] = np.minimum(closest_n[rows], squares.min(axis=1))
    return PRDC(
        float((balls_m > 0).mean()),
        float(found_n.mean()),
        float(balls_m.sum() / (k * m)),
        float(inside(closest_n, radii_n).mean()),
    )


def precision_recall(reference, samples, k: int = 3, *, dtype: str = "float64", block: int = BLOCK) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019) in the convention of the ADM evaluator: squared
    distances, a point on the surface of a ball is inside (<=), and a point is not its own neighbour.

    reference (n, d), samples (m, d): `pool3` features; the paper's figures compare 10 000 reference with 50 000 sample
    images. `dtype="float64"` computes on the host, "float32" on the default device (much faster for 50 000 rows; ADM
    itself uses float16). Memory beyond the features is a few blocks of `block` x `block` distances.

    Raises a `ValueError` for NaN or infinity, other widths, or fewer than k + 1 rows on either side.
    """
    result = _compare(reference, samples, k, False, dtype, block)
    return PrecisionRecall(result.precision, result.recall)


def prdc(reference, samples, k: int = 3, *, splits: int = 1, dtype: str = "float64", block: int = BLOCK) -> PRDC:
    """Precision, recall, density and coverage in the PRDC convention (Naeem et al. 2020): strictly inside (<) a ball.

    `splits > 1` splits both sets, in order, into that many parts (of ceil(n / splits) rows, as `torch.chunk` does) and
    averages
    over the pairs: the published MaskGIL code reports five. Arguments and errors otherwise as in `precision_recall`.
    """
    if splits < 1:
        raise ValueError(f"splits: must be at least 1, got {splits}")
    reference, samples = check_features(reference, "reference"), check_features(samples, "samples")
    bounds = [_blocks(len(rows), -(-len(rows) // splits)) for rows in (reference, samples)]
    parts = [_compare(reference[a], samples[b], k, True, dtype, block) for a, b in zip(*bounds, strict=True)]
    return PRDC(*np.mean(parts, axis=0).tolist())


def copied_rows(features_nd: np.ndarray, k: int = K) -> int:
    """Number of rows that have at least k exact copies, so that the distance to their k-th neighbour is 0."""
    counts = collections.Counter(row.tobytes() for row in np.ascontiguousarray(features_nd))
    return sum(count for count in counts.values() if count > k)


def _compute(inputs: MetricInputs, name: str) -> MetricResult:
    reference_nd, samples_md = inputs.reference.features, inputs.samples.rows["features"]
    rows = {"reference_rows": len(reference_nd), "sample_rows": len(samples_md)}
    dtype = "float64" if max(rows.values()) ** 2 <= HOST_PAIRS else "float32"
    warnings = [
        f"{name}: {copied} of the {len(features_nd)} {side} have {K} or more exact copies; their balls have radius 0 and "
        "the figure means little: remove duplicates"
        for side, features_nd in (("reference images", reference_nd), ("samples", samples_md))
        if (copied := copied_rows(features_nd))
    ]
    measure = precision_recall if name == "precision_recall" else prdc
    found = measure(reference_nd, samples_md, K, dtype=dtype)._asdict()
    keys = ("precision", "recall") if name == "precision_recall" else ("density", "coverage")
    return MetricResult({key: found[key] for key in keys}, {"k": K, "distances": dtype, **rows}, warnings)


METRICS = (
    Metric(
        name="precision_recall",
        help="improved precision and recall, k = 3, in ADM's convention",
        compute=functools.partial(_compute, name="precision_recall"),
        figures=(Figure("precision", "Precision", 40), Figure("recall", "Recall", 50)),
        rows=("features",),
        reference_rows=True,
        min_images=K + 1,
    ),
    Metric(
        name="density_coverage",
        help="density and coverage, k = 3, in the PRDC convention",
        compute=functools.partial(_compute, name="density_coverage"),
        figures=(Figure("density", "Density", 60), Figure("coverage", "Coverage", 70)),
        rows=("features",),
        reference_rows=True,
        min_images=K + 1,
        default=False,
    ),
)
