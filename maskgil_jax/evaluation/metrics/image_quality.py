"""PSNR, SSIM and LPIPS between originals and reconstructions, with the conventions of published figures."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import numpy as np

from maskgil_jax.config import choose
from maskgil_jax.evaluation.metrics.base import Figure, MetricResult, ReconstructionMetric, Reconstructions


class SsimConvention(NamedTuple):
    """`sigma=None`: a flat window with sample (n / (n - 1)) variances. data_range: L, for pixels in [0, 1]."""

    window: int
    sigma: float | None
    data_range: float


SSIM_CONVENTIONS = {
    "wang": SsimConvention(11, 1.5, 1.0),
    "skimage": SsimConvention(7, None, 1.0),
    # LlamaGen passes scikit-image a range of 2 for images in [0, 1]: the constants are four times too large and the
    # score is too high (its published 0.675 would be about 0.54). For comparison with those tables, not to be quoted.
    "llamagen": SsimConvention(7, None, 2.0),
}


def _pair(reference, images) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 (b, h, w, c) in [0, 1]."""
    pair = []
    for name, array in (("reference", reference), ("images", images)):
        array = np.asarray(array)
        if array.ndim != 4 or 0 in array.shape:
            raise ValueError(f"{name}: expected a non-empty (batch, height, width, channels) array, got {array.shape}")
        if array.dtype == np.uint8:
            array = array / 255
        elif not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{name}: expected uint8 or floats in [0, 1], got {array.dtype}")
        elif not (array.min() >= 0 and array.max() <= 1):  # also false for NaN
            raise ValueError(
                f"{name}: floats must lie in [0, 1], found {array.min():.4g} to {array.max():.4g}; "
                "map [-1, 1] with x / 2 + 0.5 and clip, or give uint8"
            )
        pair.append(array.astype(np.float64))
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"reference is {pair[0].shape}, images {pair[1].shape}: they must be the same size, pair by pair")
    return pair[0], pair[1]


def psnr(reference, images) -> np.ndarray:
    """Peak signal-to-noise ratio of each image in dB, (b,) float64: -10 log10(mean squared error on [0, 1]).

    Both (b, h, w, c), uint8 or floats in [0, 1] (a peak of 255 or 1: the two agree). Equal images give infinity. Papers
    quote the mean of this over images (scikit-image, LlamaGen), not the PSNR of the mean error.
    """
    reference_bhwc, images_bhwc = _pair(reference, images)
    error_b = np.square(reference_bhwc - images_bhwc).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return -10 * np.log10(error_b)


def _window(convention: SsimConvention) -> np.ndarray:
    if convention.sigma is None:
        return np.full(convention.window, 1 / convention.window)
    at = np.arange(convention.window) - convention.window // 2
    weights = np.exp(-0.5 * (at / convention.sigma) ** 2)
    return weights / weights.sum()


@functools.partial(jax.jit, static_argnames="convention")
def _ssim(reference_bhwc: jax.Array, images_bhwc: jax.Array, convention: SsimConvention) -> jax.Array:
    weights = _window(convention)

    def blur(x_bhwc):  # separable filter, without padding
        for axis in (1, 2):
            count = x_bhwc.shape[axis] - len(weights) + 1
            x_bhwc = sum(
                float(weight) * jax.lax.slice_in_dim(x_bhwc, start, start + count, axis=axis)
                for start, weight in enumerate(weights)
            )
        return x_bhwc

    # Variances do not depend on the origin, but E[x^2] - E[x]^2 loses fewer digits around each channel's own mean.
    origin_x, origin_y = (a.mean(axis=(1, 2), keepdims=True) for a in (reference_bhwc, images_bhwc))
    x, y = reference_bhwc - origin_x, images_bhwc - origin_y
    mean_x, mean_y = blur(x), blur(y)
    sample = 1.0 if convention.sigma is not None else convention.window**2 / (convention.window**2 - 1)
    var_x, var_y = ((blur(a * a) - m * m) * sample for a, m in ((x, mean_x), (y, mean_y)))
    cov = (blur(x * y) - mean_x * mean_y) * sample
    mean_x, mean_y = mean_x + origin_x, mean_y + origin_y
    c1, c2 = (0.01 * convention.data_range) ** 2, (0.03 * convention.data_range) ** 2
    maps = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return maps.mean(axis=(1, 2, 3))


def ssim(reference, images, *, convention: str = "wang") -> np.ndarray:
    """Structural similarity of each image, (b,) float32, averaged over channels and over all windows inside the image.

    Both (b, h, w, c), uint8 or floats in [0, 1]. Conventions: `wang`, the paper's 11x11 Gaussian window (sigma 1.5),
    range 1 (Wang et al. 2004); `skimage`, a flat 7x7 window, range 1; `llamagen`, the same with a range of 2 on [0, 1]
    images.

    Raises a `ValueError` for other shapes, values outside [0, 1] or images smaller than the window.
    """
    chosen = SSIM_CONVENTIONS[choose("convention", convention, SSIM_CONVENTIONS)]
    pair = _pair(reference, images)
    if min(pair[0].shape[1:3]) < chosen.window:
        raise ValueError(
            f"ssim: images of {pair[0].shape[1]}x{pair[0].shape[2]} are smaller than the {chosen.window} pixel window"
        )
    return np.asarray(_ssim(*(a.astype(np.float32) for a in pair), chosen))


# ------------------------------------------------------------------------------------------------ rows
def _psnr_sums(batch: Reconstructions) -> dict[str, float]:
    decibels_b = psnr(batch.originals_bhwc, batch.copies_bhwc)
    finite_b = np.isfinite(decibels_b)
    return {"decibels": float(decibels_b[finite_b].sum()), "perfect": int((~finite_b).sum())}


def _psnr_result(sums: dict, count: int) -> MetricResult:
    """Images that come back unchanged have no PSNR; they are counted apart."""
    value = sums["decibels"] / (count - sums["perfect"]) if count > sums["perfect"] else float("inf")
    settings = {"of": "mean over images, data range 255", "images without loss": sums["perfect"]}
    return MetricResult({"psnr": value}, {"psnr": settings})


def _ssim_sums(batch: Reconstructions) -> dict[str, float]:
    pair = batch.originals_bhwc, batch.copies_bhwc
    return {name: float(ssim(*pair, convention=name).sum()) for name in SSIM_CONVENTIONS}


def _ssim_result(sums: dict, count: int) -> MetricResult:
    by_name = {f"by {name}": sums[name] / count for name in SSIM_CONVENTIONS}
    return MetricResult({"ssim": sums["wang"] / count}, {"ssim": {"convention": "wang", **by_name}})


RECONSTRUCTION_METRICS = (
    ReconstructionMetric("psnr", _psnr_sums, _psnr_result, (Figure("psnr", "PSNR dB", 130, digits=3),)),
    ReconstructionMetric("ssim", _ssim_sums, _ssim_result, (Figure("ssim", "SSIM", 140),)),
    ReconstructionMetric(
        "lpips",
        lambda batch: {"lpips": float(batch.lpips_b.sum())},
        lambda sums, count: MetricResult({"lpips": sums["lpips"] / count}),
        (Figure("lpips", "LPIPS", 150),),
        needs=("lpips",),
    ),
)
