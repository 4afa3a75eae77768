"""How images enter the FID InceptionV3: three named protocols, each with the exact resize of the tool it is named after."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import choose

PROTOCOLS = ("adm", "pytorch-fid", "torch-fidelity")
SIZE = 299  # side of the image the network was trained on


def _axis_weights(size: int, half_pixel: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower index, upper index and weight of the upper for each of `SIZE` outputs, in float32 as the originals compute them."""
    scale = np.float32(size) / np.float32(SIZE)
    out = np.arange(SIZE, dtype=np.float32)
    at = np.maximum((out + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0)) if half_pixel else out * scale
    low = np.minimum(np.floor(at).astype(np.int32), size - 1)
    return low, np.minimum(low + 1, size - 1), (at - low).astype(np.float32)


def resize(images_bhwc: jax.Array, *, half_pixel: bool) -> jax.Array:
    """Bilinear resize without anti-aliasing, float32 (b, h, w, c) -> (b, 299, 299, c).

    `half_pixel=False` is TF1's `ResizeBilinear` (output i is read at i * scale), `half_pixel=True` is PyTorch's
    `interpolate(align_corners=False)` (at (i + 0.5) * scale - 0.5).
    """
    for axis in (2, 1):
        low, high, weight = _axis_weights(images_bhwc.shape[axis], half_pixel)
        shape = [1, 1, 1, 1]
        shape[axis] = SIZE
        lower, upper = (jnp.take(images_bhwc, index, axis=axis) for index in (low, high))
        images_bhwc = lower + (upper - lower) * weight.reshape(shape)
    return images_bhwc


def preprocess(images_bhwc: jax.Array, protocol: str) -> jax.Array:
    """uint8 RGB images (b, h, w, 3) -> float32 network input (b, 299, 299, 3) by one of three protocols.

    `adm` (guided-diffusion's evaluator) and `torch-fidelity`: TF1 bilinear on 0..255, then (x - 128) / 128. The pixels of
    the two are the same; the names stay apart because a report states which tool's scores (splits, order) it follows.
    `pytorch-fid`: x / 255, PyTorch bilinear, 2x - 1; float images in [0, 1] are taken too, as that tool does.
    Raises a `ConfigError` for another protocol and a `ValueError` for another shape or dtype.
    """
    choose("protocol", protocol, PROTOCOLS)
    floats = jnp.issubdtype(images_bhwc.dtype, jnp.floating) and protocol == "pytorch-fid"
    if images_bhwc.dtype != jnp.uint8 and not floats:
        raise ValueError(f"protocol {protocol}: images must be uint8, got {images_bhwc.dtype}; convert them first")
    if images_bhwc.ndim != 4 or images_bhwc.shape[-1] != 3:
        raise ValueError(f"images: expected (batch, height, width, 3), got {images_bhwc.shape}")
    pixels_bhwc = images_bhwc.astype(jnp.float32)
    if protocol == "pytorch-fid":
        return 2.0 * resize(pixels_bhwc if floats else pixels_bhwc / 255.0, half_pixel=True) - 1.0
    return (resize(pixels_bhwc, half_pixel=False) - 128.0) / 128.0
