"""uint8 images <-> codes through any tokenizer; compiled once per shape however often they are called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def to_unit(images_bhwc):
    """uint8 pixels -> float32 in [-1, 1]; NumPy and JAX arrays, also under jit."""
    return images_bhwc.astype("float32") / 127.5 - 1.0


def to_uint8(images_bhwc):
    """Pixels in [-1, 1] (values outside are clipped) -> uint8, rounded to the nearest; NumPy and JAX arrays."""
    return ((images_bhwc.astype("float32") + 1.0) * 127.5).clip(0.0, 255.0).round().astype("uint8")


@functools.partial(jax.jit, static_argnames="grid")
def to_pixels(tokenizer: Any, tokens_bl: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Codes (b, rows * columns) -> uint8 images (b, height, width, 3)."""
    return to_uint8(tokenizer.decode(tokens_bl.reshape(-1, *grid)))


@jax.jit
def to_tokens(tokenizer: Any, images_bhwc) -> jax.Array:
    """uint8 images -> codes int32 (b, rows * columns)."""
    return tokenizer.encode(to_unit(images_bhwc)).reshape(len(images_bhwc), -1)


@jax.jit
def reconstruct(tokenizer: Any, images_bhwc) -> jax.Array:
    """uint8 images through the tokenizer and back, uint8."""
    return to_uint8(tokenizer.decode(tokenizer.encode(to_unit(images_bhwc))))


def encoder_of(tokenizer: Any, devices: Sequence[Any] | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """A function of uint8 images (b, h, w, 3) that gives codes (b, rows, columns) on the host.

    Compiled per batch shape.

    devices: those among which a batch is split; None: all of this process. A batch is padded with black images to a
    multiple of their number.
    """
    encode = jax.jit(lambda network, images: network.encode(to_unit(images)))
    devices = jax.local_devices() if devices is None else list(devices)
    mesh = Mesh(np.asarray(devices), ("data",))
    tokenizer = jax.device_put(tokenizer, NamedSharding(mesh, PartitionSpec()))
    split = NamedSharding(mesh, PartitionSpec("data"))

    def codes(images_bhwc: np.ndarray) -> np.ndarray:
        count = len(images_bhwc)
        padded_bhwc = np.pad(images_bhwc, [(0, -count % len(devices)), (0, 0), (0, 0), (0, 0)])
        return jax.device_get(encode(tokenizer, jax.device_put(padded_bhwc, split)))[:count]

    return codes
