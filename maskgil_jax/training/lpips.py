"""LPIPS perceptual distance: VGG16 features compared channel by channel (Zhang et al. 2018). The weights are optional."""

from __future__ import annotations

import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # VGG16, pooled between the stages
_SHIFT = (-0.030, -0.088, -0.188)  # mean and deviation of ImageNet pixels on the [-1, 1] scale
_SCALE = (0.458, 0.448, 0.450)


class LPIPS(nnx.Module):
    """`vgg/STAGE/CONV` are the convolutions of VGG16, `heads/STAGE` the non-negative weight of each of a stage's channels."""

    def __init__(self, *, rngs: nnx.Rngs):
        # Never trained: the zeros are only places for the weights of `load_lpips`.
        def conv(inputs, outputs):
            zeros = nnx.initializers.zeros
            return nnx.Conv(inputs, outputs, (3, 3), padding=((1, 1), (1, 1)), kernel_init=zeros, rngs=rngs)

        inputs, self.vgg, self.heads = 3, nnx.Dict(), nnx.Dict()
        for i, widths in enumerate(_WIDTHS):
            stage = nnx.Dict()
            for j, width in enumerate(widths):
                stage[str(j)] = conv(inputs, width)
                inputs = width
            self.vgg[str(i)] = stage
            self.heads[str(i)] = nnx.Param(jnp.zeros(inputs))

    def features(self, images_bhwc: jax.Array) -> list[jax.Array]:
        """The last activation of each of the five stages, for images in [-1, 1] with sides of at least 16."""
        x_bhwc = (images_bhwc - jnp.array(_SHIFT)[None, None, None]) / jnp.array(_SCALE)[None, None, None]
        outputs = []
        for i, widths in enumerate(_WIDTHS):
            if i > 0:
                x_bhwc = nnx.max_pool(x_bhwc, (2, 2), strides=(2, 2))
            for j in range(len(widths)):
                x_bhwc = jax.nn.relu(self.vgg[str(i)][str(j)](x_bhwc))
            outputs.append(x_bhwc)
        return outputs

    def __call__(self, images_bhwc: jax.Array, others_bhwc: jax.Array) -> jax.Array:
        """Distance (b,) of each pair of images in [-1, 1]; 0 for equal ones."""
        distance_b = jnp.zeros(images_bhwc.shape[0])
        # Two passes, not one of twice the batch: in training one side needs no gradient.
        for i, (a_bhwc, b_bhwc) in enumerate(zip(self.features(images_bhwc), self.features(others_bhwc), strict=True)):
            difference_bhwc = jnp.square(_unit_channels(a_bhwc) - _unit_channels(b_bhwc))
            distance_b += jnp.mean(difference_bhwc @ self.heads[str(i)][...], axis=(1, 2))
        return distance_b


def _unit_channels(x_bhwc: jax.Array) -> jax.Array:
    squared = jnp.sum(jnp.square(x_bhwc), axis=-1, keepdims=True)
    # Where every channel is 0 the result is 0 either way; dividing by 1 there keeps the gradient from being infinite.
    active = squared > 0
    return x_bhwc / jnp.where(active, jnp.sqrt(jnp.where(active, squared, 1.0)) + 1e-10, 1.0)


def load_lpips(path: str | os.PathLike | None) -> LPIPS | None:
    """LPIPS with the weights of a .safetensors or .npz file, or None, with a line in the log, if `path` is None.

    The file holds float arrays under this network's parameter paths ("vgg/0/0/kernel", "heads/0", ...). Raises a ValueError
    naming the file if it is missing, of another kind, or does not hold exactly these arrays.
    """
    if path is None:
        logging.info("perceptual loss off: no LPIPS weights file was given")
        return None
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such LPIPS weights file; give a .safetensors or .npz file, or none to train without it")
    flat = _read(path)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: LPIPS(rngs=nnx.Rngs(0))))
    expected = traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/")
    for name in sorted(expected.keys() | flat.keys()):
        found = flat[name].shape if name in flat else "missing"
        wanted = expected[name].shape if name in expected else "not part of LPIPS"
        if found != wanted:
            raise ValueError(f"{path}: not LPIPS weights: {name} is {found}, expected {wanted}")
    weights = {name: jnp.asarray(array, jnp.float32) for name, array in flat.items()}
    return nnx.merge(graphdef, traverse_util.unflatten_dict(weights, sep="/"))


def _read(path: str) -> dict[str, np.ndarray]:
    if path.endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    if path.endswith(".npz"):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: not a readable npz file ({error})") from None
    raise ValueError(f"{path}: LPIPS weights must be a .safetensors or .npz file")
