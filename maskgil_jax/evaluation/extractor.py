"""The network whose features images are compared by, any weights folder that has features; every output names it.

Distances from different extractors cannot be compared: only those of the FID Inception are called FID.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maskgil_jax.checkpoints.weights import Weights, load_weights
from maskgil_jax.config import ConfigError, choose
from maskgil_jax.evaluation.inception import inception_features
from maskgil_jax.evaluation.protocols import PROTOCOLS
from maskgil_jax.models.classifier import Classifier
from maskgil_jax.models.inception import InceptionV3
from maskgil_jax.tokenizers.images import to_unit


@dataclasses.dataclass(frozen=True)
class Extractor:
    """`apply(network, uint8 images_bhwc) -> {"features": (b, d), "logits": (b, c), "spatial": (b, s) if it has one}`.

    protocol: how images enter the network. hash: of its weights. class_names: what its logits mean, where that is known.
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
        """Number of features of a tap; nothing is computed."""
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
        return jax.eval_shape(self.apply, self.network, images)[tap].shape[1]

    def about(self) -> dict:
        """What the output says of it."""
        return {"name": self.name, "family": self.family, "hash": self.hash, "protocol": self.protocol}


def load_extractor(path, protocol: str | None = None) -> Extractor:
    """The extractor of a weights folder (a pipeline folder's `classifier/`), shipped name or hub address."""
    if not path:
        raise ConfigError(
            "--features: give the weights folder of the network whose features are compared: a converted FID Inception for FID "
            "as papers quote it, or demo for the shipped classifier of the built-in emoji"
        )
    return extractor_of(load_weights(path, "classifier"), protocol, str(path))


def extractor_of(weights: Weights, protocol: str | None = None, name: str = "") -> Extractor:
    """The extractor of loaded weights.

    protocol: for Inception one of `PROTOCOLS` (default adm); a classifier has one only. Raises a `ConfigError` for a
    network without features or a protocol it does not have.
    """
    network = weights.build()
    common = dict(name=name or str(weights.path), hash=weights.hash, network=network)
    if isinstance(network, InceptionV3):
        protocol = choose("protocol", protocol or "adm", PROTOCOLS)
        return Extractor(
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
        return Extractor(
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
    """Pixels to [-1, 1], and to the side the classifier was trained at (antialiased bilinear) if they have another."""
    x_bhwc = to_unit(images_bhwc)
    if x_bhwc.shape[1:3] != (side, side):
        x_bhwc = jax.image.resize(x_bhwc, (x_bhwc.shape[0], side, side, x_bhwc.shape[3]), "linear", antialias=True)
    features_bd = network.features(x_bhwc)
    return {"features": features_bd, "logits": network.output(features_bd)}
