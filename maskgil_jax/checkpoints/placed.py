"""Weights that go to their devices tensor by tensor, in the type in which the network computes:
for networks of many GB."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from maskgil_jax.checkpoints.weights import Weights, open_weights, require_finite
from maskgil_jax.config import ChameleonConfig, require
from maskgil_jax.models.int8 import quantize
from maskgil_jax.networks import abstract_params, flatten, unflatten
from maskgil_jax.runtime.mesh import place, shardings


def load_placed(path, part: str | None = None, *, mesh: Mesh | None = None, kernels: str | None = None) -> Weights:
    """Reads a weights folder onto the devices of `mesh`, sharded by the path rules,
    or without one onto the default device.

    Kernels and tables get the network's compute type, to which every use casts them anyway; all else stays float32. A
    Chameleon's head keeps the rows of image tokens alone. kernels: "int8" quantises the layers of a Chameleon.
    Host memory in use is a few times the largest tensor. Raises: as `load_weights`, and for axes that the mesh does not
    divide.
    """
    cfg, metadata, tensors = open_weights(path, part)
    if isinstance(cfg, ChameleonConfig):
        cfg = dataclasses.replace(cfg, text_head=False, kernels=kernels or cfg.kernels)
    else:
        require(
            kernels in (None, "float"), f"kernels: {path} holds a network of {type(cfg).__name__}, {kernels!r} is Chameleon's"
        )
    expected = abstract_params(cfg)
    layout = flatten(shardings(expected, mesh)) if mesh is not None else {}
    flat: dict[str, Any] = {}
    for name in (name for name in tensors if name in flatten(expected)):
        array = tensors[name]
        require_finite(str(tensors.file), name, array)
        for leaf, value in _leaves(name, array, cfg):
            flat[leaf] = jnp.asarray(value) if mesh is None else place(value, layout[leaf])
    return Weights(cfg, unflatten(flat), metadata, tensors.file.parent)


def _leaves(name: str, array: np.ndarray, cfg: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(path, value) of what one stored tensor becomes."""
    matrix = name.endswith(("/kernel", "/embedding"))
    if getattr(cfg, "kernels", "float") == "int8" and name.startswith("layers/") and name.endswith("/kernel"):
        layers = [jax.device_get(quantize(layer)) for layer in array]  # one after the other: quantising takes float32 copies
        yield name, np.stack([kernel for kernel, _ in layers])
        yield name.removesuffix("kernel") + "scale", np.stack([scale for _, scale in layers])
    else:
        yield name, array.astype(cfg.dtype if matrix else np.float32)
