"""Weights of the feature networks, by recipe; the conversion tables know the published names."""

import json

import numpy as np

from helpers.gpt_weights import published_params
from helpers.torch_names import GOLDEN, draw_all, golden
from maskgil_jax.config import LPIPSConfig
from maskgil_jax.models.lpips import LPIPS
from maskgil_jax.networks import build

SCALING = {
    "scaling_layer.shift": np.array([-0.030, -0.088, -0.188], np.float32).reshape(1, 3, 1, 1),
    "scaling_layer.scale": np.array([0.458, 0.448, 0.450], np.float32).reshape(1, 3, 1, 1),
}
INCEPTION = json.loads((GOLDEN / "metrics" / "inception_recipe.json").read_text())


def lpips_state(recipe: dict) -> dict[str, np.ndarray]:
    """LPIPS over VGG16."""
    return draw_all(golden("vq_losses", "lpips_vgg16")[0]["shapes"], recipe, SCALING)


def lpips_network(recipe: dict) -> LPIPS:
    """The same, ready to call."""
    state = lpips_state(recipe)
    return build(LPIPSConfig(), published_params("lpips", LPIPSConfig(), lambda name, shape: state[name]))


def inception_state() -> dict[str, np.ndarray]:
    """The FID InceptionV3, its counters included."""
    shapes = {name: shape for name, (shape, _) in INCEPTION["keys"].items()}
    counters = {name: np.zeros((), np.int64) for name in shapes if name.endswith("num_batches_tracked")}
    return draw_all(shapes, INCEPTION["recipe"], counters)
