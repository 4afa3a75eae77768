"""Features of the FID InceptionV3 for FID, IS, sFID and Precision/Recall: its weights folder, and images in by one protocol."""

from __future__ import annotations

import jax

from maskgil_jax.checkpoints.weights import load_network
from maskgil_jax.config import choose
from maskgil_jax.evaluation.protocols import preprocess
from maskgil_jax.models.inception import InceptionV3

TAPS = ("pool3", "spatial", "logits", "logits_unbiased")


def load_inception(path) -> InceptionV3:
    """The network of a weights folder, as `maskgil convert pt_inception-2015-12-05-6726825d.pth OUT` writes it.

    Raises a `ValueError` naming the folder if it holds anything else.
    """
    return load_network(path, "inception")


def inception_features(network: InceptionV3, images_bhwc: jax.Array, protocol: str, taps: tuple[str, ...] = TAPS) -> dict:
    """Images of one protocol -> {tap: float32 array}. Not jitted: give it to `FeatureExtractor` or to your own `jit`."""
    outputs = network(preprocess(images_bhwc, protocol))
    return {choose("tap", tap, outputs): outputs[tap] for tap in taps}
