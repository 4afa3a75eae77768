"""FID and sFID: accumulates mean and covariance of features, and computes the Frechet distance."""

from __future__ import annotations

import functools

import jax
import numpy as np

from maskgil_jax.evaluation.metrics.base import Figure, Metric, MetricInputs, MetricResult


def check_features(features, name: str = "features") -> np.ndarray:
    """Features as an (n, d) array. Raises a `ValueError` that names `name` for another shape, NaN or infinity."""
    features_nd = np.asarray(features)
    if features_nd.ndim != 2 or 0 in features_nd.shape:
        raise ValueError(f"{name}: expected a non-empty (images, features) array, got shape {features_nd.shape}")
    bad_n = ~np.isfinite(features_nd).all(axis=1)
    if bad_n.any():
        raise ValueError(
            f"{name}: {bad_n.sum()} of {len(features_nd)} rows hold NaN or infinity, the first is row {int(bad_n.argmax())}; "
            "look at that image and at the weights of the feature network"
        )
    return features_nd


def check_same_width(first_nd: np.ndarray, second_nd: np.ndarray, first: str = "reference", second: str = "samples") -> None:
    """Raises a `ValueError` unless both have the same number of features."""
    if first_nd.shape[-1] != second_nd.shape[-1]:
        raise ValueError(
            f"{first} has {first_nd.shape[-1]} features a row, {second} has {second_nd.shape[-1]}: "
            "both must come from the same tap of the same network"
        )


class FeatureStatistics:
    """Mean and covariance of features, accumulated in batches.

    float64 throughout and centred block by block (Chan, Golub and LeVeque's update), so the result equals the in-memory
    one to rounding even when the mean is far larger than the standard deviation. Rows are buffered until there are
    `BLOCK_ROWS` of them, because one matrix product of that many rows costs little more than one of a small batch.
    """

    BLOCK_ROWS = 1024

    def __init__(self):
        self._count, self._mean_d, self._scatter_dd = 0, None, None
        self._buffer: list[np.ndarray] = []

    @property
    def count(self) -> int:
        """Number of rows seen."""
        return self._count + sum(len(rows_nd) for rows_nd in self._buffer)

    def update(self, features_nd) -> FeatureStatistics:
        """Adds rows (n, d). Raises a `ValueError` (and adds nothing) for NaN, infinity or another width."""
        rows_nd = check_features(features_nd).astype(np.float64)
        known = self._buffer[0] if self._buffer else self._mean_d
        if known is not None:
            check_same_width(known, rows_nd, "the first batch", "this batch")
        self._buffer.append(rows_nd)
        if sum(map(len, self._buffer)) >= self.BLOCK_ROWS:
            self._flush()
        return self

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Adds the rows of `other` (of another shard or host)."""
        self._flush()
        other._flush()
        if other._count:
            self._combine(other._count, other._mean_d, other._scatter_dd)
        return self

    def _flush(self) -> None:
        if self._buffer:
            rows_nd, self._buffer = np.concatenate(self._buffer), []
            mean_d = rows_nd.mean(axis=0)
            rows_nd -= mean_d
            self._combine(len(rows_nd), mean_d, rows_nd.T @ rows_nd)

    def _combine(self, count: int, mean_d: np.ndarray, scatter_dd: np.ndarray) -> None:
        if self._count == 0:
            self._count, self._mean_d, self._scatter_dd = count, mean_d.copy(), scatter_dd.copy()
            return
        check_same_width(self._mean_d, mean_d, "these statistics", "the others")
        total, step_d = self._count + count, mean_d - self._mean_d
        self._scatter_dd += scatter_dd
        self._scatter_dd += np.outer(step_d, step_d * (self._count * count / total))
        self._mean_d = self._mean_d + step_d * (count / total)
        self._count = total

    @property
    def mean(self) -> np.ndarray:
        """(d,) float64. Raises a `ValueError` before the first row."""
        self._flush()
        if self._count == 0:
            raise ValueError("statistics of no images: no features were added")
        return self._mean_d.copy()

    @property
    def covariance(self) -> np.ndarray:
        """(d, d) float64, divided by count - 1 as `np.cov` does. Raises a `ValueError` for fewer than two rows."""
        self._flush()
        if self._count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self._count}")
        return self._scatter_dd / (self._count - 1)

    def gather(self) -> FeatureStatistics:
        """The statistics over all processes, the same on each (every process must call it, with at least one row).

        float64 values are sent as pairs of uint32: JAX would round them to float32.
        """
        if jax.process_count() == 1:
            return self
        from jax.experimental import multihost_utils

        own = np.concatenate([[float(self.count)], self.mean, self._scatter_dd.ravel()])  # `mean` flushes the buffer
        everyone = np.asarray(multihost_utils.process_allgather(own.view(np.uint32)))
        width, result = len(self._mean_d), FeatureStatistics()
        for packed in np.ascontiguousarray(everyone).view(np.float64):
            result._combine(int(packed[0]), packed[1 : 1 + width], packed[1 + width :].reshape(width, width))
        return result


def _root(name: str, sigma: np.ndarray) -> np.ndarray:
    """R (d, rank) with R R^T = sigma; eigenvalues that are zero up to rounding are dropped."""
    if not np.isfinite(sigma).all():
        raise ValueError(f"{name}: a covariance holds NaN or infinity")
    top = np.abs(sigma).max()
    if np.abs(sigma - sigma.T).max() > 1e-6 * top:
        raise ValueError(f"{name}: a covariance must be symmetric")
    values_d, vectors_dd = np.linalg.eigh((sigma + sigma.T) / 2)
    # 1e-6: files may hold covariances that were rounded to float32.
    if values_d[0] < -1e-6 * top:
        raise ValueError(
            f"{name}: a covariance has no negative eigenvalues, found {values_d[0]:.3g} (largest {values_d[-1]:.3g})"
        )
    keep = values_d > len(values_d) * np.finfo(np.float64).eps * values_d[-1]
    return vectors_dd[:, keep] * np.sqrt(values_d[keep]).reshape(1, -1)


def frechet_distance(mu1, sigma1, mu2, sigma2) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), the squared Frechet distance of two normal distributions (FID).

    mu (d,), sigma (d, d), computed in float64. With S = R R^T the trace of the root is the sum of the singular values
    of R1^T R2 (the square roots of the eigenvalues of S1^(1/2) S2 S1^(1/2)): no complex root can appear, no value is
    squared before its root is taken, and singular covariances (fewer images than features) need no offset on the
    diagonal.

    Raises a `ValueError` for shapes that do not match, NaN or infinity, or a sigma that is not a covariance.
    """
    mu1, sigma1, mu2, sigma2 = (np.asarray(a, np.float64) for a in (mu1, sigma1, mu2, sigma2))
    shapes = mu1.shape, sigma1.shape, mu2.shape, sigma2.shape
    if mu1.ndim != 1 or mu1.shape != mu2.shape or sigma1.shape != 2 * mu1.shape or sigma2.shape != 2 * mu1.shape:
        raise ValueError(f"frechet_distance: expected shapes (d,), (d, d), (d,), (d, d) with one d, got {shapes}")
    for name, mu in (("mu1", mu1), ("mu2", mu2)):
        if not np.isfinite(mu).all():
            raise ValueError(f"{name}: a mean holds NaN or infinity")
    cross = np.linalg.svd(_root("sigma1", sigma1).T @ _root("sigma2", sigma2), compute_uv=False).sum()
    step_d = mu1 - mu2
    return max(float(step_d @ step_d + np.trace(sigma1) + np.trace(sigma2) - 2 * cross), 0.0)


def _compute(inputs: MetricInputs, key: str, tap: str) -> MetricResult:
    moments, reference = inputs.samples.moments(tap), inputs.reference.moments[tap]
    warnings = singular_warnings(key, inputs.samples.count, len(moments[0]))
    return MetricResult({key: frechet_distance(*reference, *moments)}, warnings=warnings)


def singular_warnings(key: str, count: int, width: int) -> list[str]:
    """A warning if `count` images give a singular covariance of `width` features."""
    if count > width:
        return []
    return [f"{key}: {count} images for {width} features: the covariance is singular and the distance strongly biased upwards"]


# Figures of tokenizers, which `evaluation.reconstruction` computes from the features of originals and reconstructions.
FIGURES = (
    Figure("rfid", "rFID", 110, other_label="reconstruction Frechet distance"),
    Figure("rfid_train", "rFID (train ref.)", 120, other_label="reconstruction Frechet distance (train ref.)"),
)

METRICS = (
    Metric(
        name="fid",
        help="Frechet distance of the features",
        compute=functools.partial(_compute, key="fid", tap="features"),
        figures=(Figure("fid", "FID", 10, other_label="Frechet distance"),),
        moments=("features",),
    ),
    Metric(
        name="sfid",
        help="Frechet distance of spatial features (FID Inception only)",
        compute=functools.partial(_compute, key="sfid", tap="spatial"),
        figures=(Figure("sfid", "sFID", 20),),
        moments=("spatial",),
    ),
)
