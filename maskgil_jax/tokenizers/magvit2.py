"""Open-MAGVIT2's tokenizer: convolutions without attention around a codebook of signs,
decoded with adaptive group norms.

Source: Luo et al. 2024 (Open-MAGVIT2), after Yu et al. 2023 (MAGVIT-v2). Layout is NHWC throughout.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from maskgil_jax.config import MagvitConfig
from maskgil_jax.tokenizers.quantizers import SignQuantizer
from maskgil_jax.tokenizers.vqgan import VQGAN, ResBlock, conv_of, draw_kernels, norm_of, numbered


class Chain(nnx.Module):
    """`cfg.res_blocks` residual blocks one after the other, without biases in their convolutions."""

    def __init__(self, cfg: MagvitConfig, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.res = numbered(
            ResBlock(cfg, inputs if j == 0 else outputs, outputs, bias=False, rngs=rngs) for j in range(cfg.res_blocks)
        )

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        for j in map(str, range(len(self.res))):
            x_bhwc = self.res[j](x_bhwc)
        return x_bhwc


class Encoder(nnx.Module):
    """Images (b, H, W, 3) -> latents (b, h, w, bits).

    `levels/0` is full resolution; all but the last end by halving.
    """

    def __init__(self, cfg: MagvitConfig, *, rngs: nnx.Rngs):
        widths = [cfg.channels * m for m in cfg.multipliers]
        inputs = [cfg.channels, *widths[:-1]]
        self.conv_in = conv_of(cfg, 3, cfg.channels, 3, bias=False, rngs=rngs)
        self.levels = numbered(Chain(cfg, i, o, rngs=rngs) for i, o in zip(inputs, widths))
        # A pixel of padding on every side, unlike taming's family.
        self.downsample = numbered(
            nnx.Conv(c, c, (3, 3), strides=2, padding=1, dtype=cfg.dtype, rngs=rngs) for c in widths[:-1]
        )
        self.mid = Chain(cfg, widths[-1], widths[-1], rngs=rngs)
        self.norm_out = norm_of(cfg, widths[-1], rngs=rngs)
        self.conv_out = conv_of(cfg, widths[-1], cfg.bits, 1, rngs=rngs)

    def __call__(self, images_bhwc: jax.Array) -> jax.Array:
        x_bhwc = self.conv_in(images_bhwc)
        for i in map(str, range(len(self.levels))):
            x_bhwc = self.levels[i](x_bhwc)
            if i in self.downsample:
                x_bhwc = self.downsample[i](x_bhwc)
        return self.conv_out(nnx.silu(self.norm_out(self.mid(x_bhwc))))


class AdaptiveNorm(nnx.Module):
    """GroupNorm whose scale and shift, per image and channel, are linear in the spread and the mean of the image's
    code.

    The spread is the root of the unbiased variance over the grid plus 1e-6; a grid of a single code has none (the
    published code gives NaN there). New weights start as a plain GroupNorm.
    """

    def __init__(self, cfg: MagvitConfig, channels: int, *, rngs: nnx.Rngs):
        self.norm = norm_of(cfg, channels, affine=False, rngs=rngs)
        zeros, ones = nnx.initializers.zeros, nnx.initializers.ones
        self.gamma = nnx.Linear(cfg.bits, channels, kernel_init=zeros, bias_init=ones, rngs=rngs)
        self.beta = nnx.Linear(cfg.bits, channels, kernel_init=zeros, rngs=rngs)

    def __call__(self, x_bhwc: jax.Array, z_bhwd: jax.Array) -> jax.Array:
        cells = z_bhwd.shape[1] * z_bhwd.shape[2]
        mean_b11d = jnp.mean(z_bhwd, axis=(1, 2), keepdims=True)
        variance_b11d = jnp.sum(jnp.square(z_bhwd - mean_b11d), axis=(1, 2), keepdims=True) / max(cells - 1, 1)
        scale_b11c, shift_b11c = self.gamma(jnp.sqrt(variance_b11d + 1e-6)), self.beta(mean_b11d)
        x_bhwc = self.norm(x_bhwc)
        return scale_b11c.astype(x_bhwc.dtype) * x_bhwc + shift_b11c.astype(x_bhwc.dtype)


class Decoder(nnx.Module):
    """Codes' signs (b, h, w, bits) -> images.

    `levels/0` is the *lowest* resolution; all but the last end by doubling.
    """

    def __init__(self, cfg: MagvitConfig, *, rngs: nnx.Rngs):
        widths = [cfg.channels * m for m in reversed(cfg.multipliers)]
        inputs = [widths[0], *widths[:-1]]
        self.conv_in = conv_of(cfg, cfg.bits, widths[0], 3, rngs=rngs)
        self.mid = Chain(cfg, widths[0], widths[0], rngs=rngs)
        self.adaptive = numbered(AdaptiveNorm(cfg, c, rngs=rngs) for c in inputs)
        self.levels = numbered(Chain(cfg, i, o, rngs=rngs) for i, o in zip(inputs, widths))
        self.upsample = numbered(conv_of(cfg, c, 4 * c, 3, rngs=rngs) for c in widths[:-1])
        self.norm_out = norm_of(cfg, widths[-1], rngs=rngs)
        self.conv_out = conv_of(cfg, widths[-1], 3, 3, rngs=rngs)

    def features(self, z_bhwd: jax.Array) -> jax.Array:
        """Everything but `conv_out`, whose kernel the adaptive adversarial weight is measured on."""
        x_bhwc = self.mid(self.conv_in(z_bhwd))
        for i in map(str, range(len(self.levels))):
            x_bhwc = self.levels[i](self.adaptive[i](x_bhwc, z_bhwd))
            if i in self.upsample:
                x_bhwc = depth_to_space(self.upsample[i](x_bhwc))
        return nnx.silu(self.norm_out(x_bhwc))


def depth_to_space(x_bhwc: jax.Array) -> jax.Array:
    """(b, h, w, 4c) -> (b, 2h, 2w, c): channel (2 dy + dx) c + i becomes channel i of the pixel at (dy, dx)
    of its block."""
    b, h, w, c = x_bhwc.shape
    blocks = x_bhwc.reshape(b, h, w, 2, 2, c // 4)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)


class Magvit2(VQGAN):
    """The tokenizer: a VQGAN in all but its two networks and its codebook, which needs no projections around it.

    Images are float in [-1, 1], (b, H, W, 3), with H and W multiples of `cfg.downsample`.
    """

    def __init__(self, cfg: MagvitConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.encoder = Encoder(cfg, rngs=rngs)
        self.codebook = SignQuantizer(cfg.bits)
        self.decoder = Decoder(cfg, rngs=rngs)
        draw_kernels(self, rngs.params())

    def encode_features(self, images_bhwc: jax.Array) -> jax.Array:
        """Images, already checked -> latents, in the compute dtype."""
        return self.encoder(images_bhwc)

    def decode_features(self, z_bhwd: jax.Array) -> jax.Array:
        """Codes' signs -> the input of the decoder's last convolution (b, H, W, channels)."""
        return self.decoder.features(z_bhwd)
