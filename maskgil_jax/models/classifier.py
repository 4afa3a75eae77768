"""A small convolutional classifier: measures class agreement of generated images, and gives features for distances."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from maskgil_jax.config import ClassifierConfig
from maskgil_jax.tokenizers.vqgan import draw_kernels


def _conv(cfg: ClassifierConfig, inputs: int, outputs: int, size: int = 3, stride: int = 1, *, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(inputs, outputs, (size, size), stride, padding="SAME", use_bias=False, dtype=cfg.dtype, rngs=rngs)


def _norm(cfg: ClassifierConfig, channels: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=math.gcd(cfg.norm_groups, channels), epsilon=1e-5, dtype=cfg.dtype, rngs=rngs)


class Stage(nnx.Module):
    """Halves the resolution, then adds two normalised 3x3 convolutions to the result."""

    def __init__(self, cfg: ClassifierConfig, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.down = _conv(cfg, inputs, outputs, stride=2, rngs=rngs)
        self.norm1, self.norm2 = (_norm(cfg, outputs, rngs=rngs) for _ in range(2))
        self.conv1, self.conv2 = (_conv(cfg, outputs, outputs, rngs=rngs) for _ in range(2))

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        x_bhwc = self.down(x_bhwc)
        y_bhwc = self.conv1(nnx.silu(self.norm1(x_bhwc)))
        return x_bhwc + self.conv2(nnx.silu(self.norm2(y_bhwc)))


class Classifier(nnx.Module):
    """Images (b, h, w, 3), float in [-1, 1] -> logits over the classes; trained at `cfg.image_size`, any size runs.

    No state and no batch statistics: the output for an image depends on that image alone.
    """

    def __init__(self, cfg: ClassifierConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.stem = _conv(cfg, 3, cfg.channels[0], stride=2, rngs=rngs)
        widths = list(zip(cfg.channels, cfg.channels[1:]))
        self.stages = nnx.Dict({str(i): Stage(cfg, a, b, rngs=rngs) for i, (a, b) in enumerate(widths)})
        self.norm1 = _norm(cfg, cfg.channels[-1], rngs=rngs)
        self.mix = _conv(cfg, cfg.channels[-1], cfg.feature_dim, 1, rngs=rngs)
        self.norm2 = _norm(cfg, cfg.feature_dim, rngs=rngs)
        # Zero at first: every class is equally likely, whatever the size of the features.
        self.output = nnx.Linear(cfg.feature_dim, cfg.num_classes, kernel_init=nnx.initializers.zeros, rngs=rngs)
        draw_kernels(self, rngs.params())

    def features(self, images_bhwc: jax.Array) -> jax.Array:
        """Input of the output layer: float32 (b, feature_dim), averaged over the image."""
        x_bhwc = self.stem(images_bhwc)
        for i in range(len(self.stages)):
            x_bhwc = self.stages[str(i)](x_bhwc)
        x_bhwc = self.mix(nnx.silu(self.norm1(x_bhwc)))
        return jnp.mean(nnx.silu(self.norm2(x_bhwc)).astype(jnp.float32), axis=(1, 2))

    def __call__(self, images_bhwc: jax.Array) -> jax.Array:
        """Logits (b, num_classes), float32."""
        return self.output(self.features(images_bhwc))
