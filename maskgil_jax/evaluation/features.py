"""Feature extractors: a network with features, and the protocol by which images enter it.

Distances from different extractors cannot be compared; every result names its extractor. Only distances of the FID
Inception are called FID.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.checkpoints.weights import Weights, load_weights
from maskgil_jax.config import ConfigError, choose
from maskgil_jax.models.classifier import Classifier
from maskgil_jax.models.inception import InceptionV3
from maskgil_jax.tokenizers.images import to_unit

PROTOCOLS = ("adm", "pytorch-fid", "torch-fidelity")
TAPS = ("pool3", "spatial", "logits", "logits_unbiased")  # outputs of the FID InceptionV3
INCEPTION_SIDE = 299  # the image size that Inception was trained at


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """`apply(network, uint8 images_bhwc) -> {"features": (b, d), "logits": (b, c), "spatial": (b, s) if it has one}`.

    protocol: how images enter the network. hash: of its weights. class_names: the classes of its logits, where known.
    """

    name: str
    family: str
    hash: str
    protocol: str
    network: Any
    apply: Callable[[Any, jax.Array], dict]
    taps: tuple[str, ...]
    class_names: tuple[str, ...] = ()

    @property
    def is_inception(self) -> bool:
        """Whether its distances are the FID (and its scores the IS) of the literature."""
        return self.family == "inception"

    def width(self, tap: str) -> int:
        """Number of features of a tap, from shapes alone."""
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
        return jax.eval_shape(self.apply, self.network, images)[tap].shape[1]

    def metadata(self) -> dict:
        """Its entry in a result."""
        return {"name": self.name, "family": self.family, "hash": self.hash, "protocol": self.protocol}


def load_feature_extractor(path, protocol: str | None = None) -> FeatureExtractor:
    """Loads the extractor of a weights folder, of a pipeline folder's `classifier/`,
    a shipped name or a hub address."""
    if not path:
        raise ConfigError(
            "--features: give the weights folder of the network whose features are compared: a converted FID Inception for FID "
            "as papers quote it, or demo for the shipped classifier of the built-in emoji"
        )
    return feature_extractor_of(load_weights(path, "classifier"), protocol, str(path))


def feature_extractor_of(weights: Weights, protocol: str | None = None, name: str = "") -> FeatureExtractor:
    """Makes the extractor of loaded weights.

    protocol: one of `PROTOCOLS` for Inception (default adm); a classifier has a single one. Raises a `ConfigError` for
    a network without features or a protocol that the network does not have.
    """
    network = weights.build()
    common = dict(name=name or str(weights.path), hash=weights.hash, network=network)
    if isinstance(network, InceptionV3):
        protocol = choose("protocol", protocol or "adm", PROTOCOLS)
        return FeatureExtractor(
            family="inception",
            protocol=protocol,
            apply=functools.partial(_inception, protocol=protocol),
            taps=("features", "spatial", "logits"),
            **common,
        )
    if isinstance(network, Classifier):
        side = weights.cfg.image_size
        only = f"classifier-{side}"
        choose(f"protocol of {common['name']}", protocol or only, (only,))
        return FeatureExtractor(
            family="classifier",
            protocol=only,
            apply=functools.partial(_classifier, side=side),
            taps=("features", "logits"),
            class_names=tuple(weights.about.get("class_names") or ()),
            **common,
        )
    raise ConfigError(f"{weights.path}: a {type(network).__name__} has no features to compare images by; give a classifier")


def _inception(network: InceptionV3, images_bhwc: jax.Array, protocol: str) -> dict:
    outputs = inception_features(network, images_bhwc, protocol, ("pool3", "spatial", "logits_unbiased"))
    return {"features": outputs["pool3"], "spatial": outputs["spatial"], "logits": outputs["logits_unbiased"]}


def _classifier(network: Classifier, images_bhwc: jax.Array, side: int) -> dict:
    """Scales pixels to [-1, 1], and images of another size to that of the training images (antialiased bilinear)."""
    x_bhwc = to_unit(images_bhwc)
    if x_bhwc.shape[1:3] != (side, side):
        x_bhwc = jax.image.resize(x_bhwc, (x_bhwc.shape[0], side, side, x_bhwc.shape[3]), "linear", antialias=True)
    features_bd = network.features(x_bhwc)
    return {"features": features_bd, "logits": network.output(features_bd)}


# ------------------------------------------------------------------------------------------------ FID Inception
def inception_features(network: InceptionV3, images_bhwc: jax.Array, protocol: str, taps: tuple[str, ...] = TAPS) -> dict:
    """Preprocesses images by a protocol and returns {tap: float32 array}. Not jitted: call it inside `jit`."""
    outputs = network(preprocess(images_bhwc, protocol))
    return {choose("tap", tap, outputs): outputs[tap] for tap in taps}


def preprocess(images_bhwc: jax.Array, protocol: str) -> jax.Array:
    """Converts uint8 RGB images (b, h, w, 3) to Inception's float32 input (b, 299, 299, 3) by a protocol.

    `adm` (guided-diffusion's evaluator) and `torch-fidelity`: TF1 bilinear on 0..255, then (x - 128) / 128. Both give
    the same pixels; the names differ because a report states whose scores (splits, order) it follows.
    `pytorch-fid`: x / 255, PyTorch bilinear, 2x - 1; it also accepts float images in [0, 1], as that tool does.
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


def resize(images_bhwc: jax.Array, *, half_pixel: bool) -> jax.Array:
    """Resizes float32 images to (b, 299, 299, c), bilinearly and without anti-aliasing.

    `half_pixel=False` is TF1's `ResizeBilinear` (output i samples input i * scale), `half_pixel=True` is PyTorch's
    `interpolate(align_corners=False)` (output i samples input (i + 0.5) * scale - 0.5).
    """
    for axis in (2, 1):
        low, high, weight = _axis_weights(images_bhwc.shape[axis], half_pixel)
        shape = [1, 1, 1, 1]
        shape[axis] = INCEPTION_SIDE
        lower, upper = (jnp.take(images_bhwc, index, axis=axis) for index in (low, high))
        images_bhwc = lower + (upper - lower) * weight.reshape(shape)
    return images_bhwc


def _axis_weights(size: int, half_pixel: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower index, upper index and weight of the upper one for each output, in float32 as in the original tools."""
    scale = np.float32(size) / np.float32(INCEPTION_SIDE)
    out = np.arange(INCEPTION_SIDE, dtype=np.float32)
    at = np.maximum((out + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0)) if half_pixel else out * scale
    low = np.minimum(np.floor(at).astype(np.int32), size - 1)
    return low, np.minimum(low + 1, size - 1), (at - low).astype(np.float32)
