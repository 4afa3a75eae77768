"""Google's MaskGIT tokenizer: a convolutional VQGAN without attention, averaged down, on pixels in [0, 1].

Source: Chang et al. 2022 (MaskGIT) and its published weights. Layout is NHWC throughout.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from maskgil_jax.config import MaskGITVQConfig
from maskgil_jax.tokenizers.quantizers import VectorQuantizer
from maskgil_jax.tokenizers.vqgan import check_codes, check_images, doubled, draw_kernels, numbered


def _conv(cfg: MaskGITVQConfig, inputs: int, outputs: int, size: int, *, bias: bool = True, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(inputs, outputs, (size, size), padding="SAME", use_bias=bias, dtype=cfg.dtype, rngs=rngs)


def _norm(cfg: MaskGITVQConfig, channels: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    groups = math.gcd(cfg.norm_groups, channels)
    return nnx.GroupNorm(channels, num_groups=groups, epsilon=1e-6, use_fast_variance=False, dtype=cfg.dtype, rngs=rngs)


class ResBlock(nnx.Module):
    """Two normalised 3x3 convolutions, none with a bias, beside the identity.

    Where the width changes, the 1x1 convolution of the shortcut reads what the two convolutions put out, not what went
    in: y + W y. The published network was trained like this, so it must be kept.
    """

    def __init__(self, cfg: MaskGITVQConfig, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.norm1 = _norm(cfg, inputs, rngs=rngs)
        self.conv1 = _conv(cfg, inputs, outputs, 3, bias=False, rngs=rngs)
        self.norm2 = _norm(cfg, outputs, rngs=rngs)
        self.conv2 = _conv(cfg, outputs, outputs, 3, bias=False, rngs=rngs)
        self.shortcut = _conv(cfg, outputs, outputs, 1, bias=False, rngs=rngs) if inputs != outputs else None

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        y_bhwc = self.conv1(nnx.silu(self.norm1(x_bhwc)))
        y_bhwc = self.conv2(nnx.silu(self.norm2(y_bhwc)))
        return y_bhwc + (self.shortcut(y_bhwc) if self.shortcut is not None else x_bhwc)


def _blocks(cfg: MaskGITVQConfig, inputs: int, widths: list[int], *, rngs: nnx.Rngs) -> nnx.Dict:
    """`cfg.res_blocks` blocks for each of `widths`, numbered through as they run."""
    outputs = [width for width in widths for _ in range(cfg.res_blocks)]
    return numbered(ResBlock(cfg, i, o, rngs=rngs) for i, o in zip([inputs, *outputs], outputs, strict=False))


class Encoder(nnx.Module):
    """Images (b, H, W, 3) in [0, 1] -> latents (b, h, w, codebook_dim).

    Blocks of the levels, full resolution first, then the middle's; all levels but the last end by averaging 2x2.
    """

    def __init__(self, cfg: MaskGITVQConfig, *, rngs: nnx.Rngs):
        widths = [cfg.channels * m for m in cfg.multipliers]
        # After these blocks the resolution halves.
        self.ends = tuple(cfg.res_blocks * level - 1 for level in range(1, len(widths)))
        self.conv_in = _conv(cfg, 3, cfg.channels, 3, bias=False, rngs=rngs)
        self.blocks = _blocks(cfg, cfg.channels, [*widths, widths[-1]], rngs=rngs)
        self.norm_out = _norm(cfg, widths[-1], rngs=rngs)
        self.conv_out = _conv(cfg, widths[-1], cfg.codebook_dim, 1, rngs=rngs)

    def __call__(self, images_bhwc: jax.Array) -> jax.Array:
        x_bhwc = self.conv_in(images_bhwc)
        for n in range(len(self.blocks)):
            x_bhwc = self.blocks[str(n)](x_bhwc)
            if n in self.ends:
                x_bhwc = nnx.avg_pool(x_bhwc, (2, 2), strides=(2, 2))
        return self.conv_out(nnx.silu(self.norm_out(x_bhwc)))


class Decoder(nnx.Module):
    """Code vectors (b, h, w, codebook_dim) -> images in [0, 1].

    Blocks of the middle, then of the levels, *lowest* resolution first; all levels but the last end by doubling and a
    3x3 convolution.
    """

    def __init__(self, cfg: MaskGITVQConfig, *, rngs: nnx.Rngs):
        widths = [cfg.channels * m for m in reversed(cfg.multipliers)]
        self.ends = tuple(cfg.res_blocks * (level + 1) - 1 for level in range(1, len(widths)))
        self.conv_in = _conv(cfg, cfg.codebook_dim, widths[0], 3, rngs=rngs)
        self.blocks = _blocks(cfg, widths[0], [widths[0], *widths], rngs=rngs)
        self.upsample = numbered(_conv(cfg, c, c, 3, rngs=rngs) for c in widths[:-1])
        self.norm_out = _norm(cfg, widths[-1], rngs=rngs)
        self.conv_out = _conv(cfg, widths[-1], 3, 3, rngs=rngs)

    def __call__(self, z_bhwd: jax.Array) -> jax.Array:
        x_bhwc = self.conv_in(z_bhwd)
        for n in range(len(self.blocks)):
            x_bhwc = self.blocks[str(n)](x_bhwc)
            if n in self.ends:
                x_bhwc = doubled(self.upsample[str(self.ends.index(n))], x_bhwc)
        return self.conv_out(nnx.silu(self.norm_out(x_bhwc)))


class MaskGITVQGAN(nnx.Module):
    """The tokenizer.

    Images are float in [-1, 1], (b, H, W, 3), with H and W multiples of `cfg.downsample`; the network itself works on
    [0, 1], which never shows outside.
    """

    def __init__(self, cfg: MaskGITVQConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.encoder = Encoder(cfg, rngs=rngs)
        self.codebook = VectorQuantizer(cfg.codebook_size, cfg.codebook_dim, False, rngs=rngs)
        self.decoder = Decoder(cfg, rngs=rngs)
        draw_kernels(self, rngs.params())

    def latents(self, images_bhwc: jax.Array) -> jax.Array:
        """Latents (b, h, w, codebook_dim) float32 before quantisation.

        Raises ValueError unless the images are (b, H, W, 3) with both sides multiples of `cfg.downsample`.
        """
        check_images(images_bhwc, self.cfg.downsample)
        return self.encoder((images_bhwc + 1.0) / 2.0).astype(jnp.float32)

    def encode(self, images_bhwc: jax.Array) -> jax.Array:
        """Images -> codes (b, h, w), int32 in 0..codebook_size-1. Raises ValueError as `latents` does."""
        return self.codebook.search(self.latents(images_bhwc))

    def decode_latents(self, z_bhwd: jax.Array) -> jax.Array:
        """Code vectors (b, h, w, codebook_dim) -> images float32, not clamped."""
        return 2.0 * self.decoder(z_bhwd).astype(jnp.float32) - 1.0

    def decode(self, codes_bhw: jax.Array) -> jax.Array:
        """Codes (b, h, w) -> images (b, H, W, 3) float32, about [-1, 1] but not clamped.

        Codes outside the codebook (a [MASK] left over) are taken as the nearest valid one.
        Raises ValueError unless the codes are whole numbers on a (batch, rows, columns) grid.
        """
        check_codes(codes_bhw)
        return self.decode_latents(self.codebook.lookup(codes_bhw))
