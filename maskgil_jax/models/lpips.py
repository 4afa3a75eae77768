"""LPIPS perceptual distance: VGG16 features compared channel by channel (Zhang et al. 2018)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from maskgil_jax.config import LPIPSConfig

SHIFT = (-0.030, -0.088, -0.188)  # mean and deviation of ImageNet pixels on the [-1, 1] scale
SCALE = (0.458, 0.448, 0.450)


class LPIPS(nnx.Module):
    """`vgg/STAGE/CONV` are the convolutions of the VGG, `heads/STAGE` the non-negative weight of each of a stage's
    channels, as the kernel of a 1x1 convolution.
    """

    def __init__(self, cfg: LPIPSConfig, *, rngs: nnx.Rngs):
        # Not trained here: published weights replace these zeros.
        def conv(inputs, outputs):
            zeros = nnx.initializers.zeros
            return nnx.Conv(inputs, outputs, (3, 3), padding=((1, 1), (1, 1)), kernel_init=zeros, rngs=rngs)

        self.cfg = cfg
        inputs, self.vgg, self.heads = 3, nnx.Dict(), nnx.Dict()
        for i, (width, count) in enumerate(zip(cfg.channels, cfg.convolutions, strict=True)):
            stage = nnx.Dict()
            for j in range(count):
                stage[str(j)] = conv(inputs, width)
                inputs = width
            self.vgg[str(i)] = stage
            self.heads[str(i)] = nnx.Param(jnp.zeros((1, 1, width, 1)))

    def features(self, images_bhwc: jax.Array) -> list[jax.Array]:
        """The last activation of each stage, for images in [-1, 1]; VGG16 has five and needs sides of at least 16."""
        x_bhwc = (images_bhwc - jnp.array(SHIFT)[None, None, None]) / jnp.array(SCALE)[None, None, None]
        outputs = []
        for i, count in enumerate(self.cfg.convolutions):
            if i > 0:
                x_bhwc = nnx.max_pool(x_bhwc, (2, 2), strides=(2, 2))
            for j in range(count):
                x_bhwc = jax.nn.relu(self.vgg[str(i)][str(j)](x_bhwc))
            outputs.append(x_bhwc)
        return outputs

    def __call__(self, images_bhwc: jax.Array, others_bhwc: jax.Array) -> jax.Array:
        """Distance (b,) of each pair of images in [-1, 1]; 0 for equal ones."""
        distance_b = jnp.zeros(images_bhwc.shape[0])
        # Two passes, not one of twice the batch: in training one side needs no gradient.
        for i, (a_bhwc, b_bhwc) in enumerate(zip(self.features(images_bhwc), self.features(others_bhwc), strict=True)):
            difference_bhwc = jnp.square(_unit_channels(a_bhwc) - _unit_channels(b_bhwc))
            distance_b += jnp.mean(difference_bhwc @ self.heads[str(i)][0, 0], axis=(1, 2, 3))
        return distance_b


def _unit_channels(x_bhwc: jax.Array) -> jax.Array:
    squared = jnp.sum(jnp.square(x_bhwc), axis=-1, keepdims=True)
    # Where every channel is 0 the result is 0 either way; dividing by 1 there keeps the gradient from being infinite.
    active = squared > 0
    return x_bhwc / jnp.where(active, jnp.sqrt(jnp.where(active, squared, 1.0)) + 1e-10, 1.0)
