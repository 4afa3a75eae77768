"""Convolutional VQ tokenizer of the LlamaGen / taming family: images <-> grids of codes.

Sources: Esser et al. 2021 (VQGAN), Sun et al. 2024 (LlamaGen, whose VQ-16 the paper uses). Layout is NHWC throughout.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskgil_jax.config import MagvitConfig, VQConfig, require
from maskgil_jax.runtime.platform import map_batch, platform, prefer_sequential
from maskgil_jax.tokenizers.patches import fold_patches, unfold_patches
from maskgil_jax.tokenizers.quantizers import Quantized, VectorQuantizer


def draw_kernels(module: nnx.Module, key: jax.Array) -> None:
    """Fills every convolution kernel below `module`: uniform, mean 0, variance 1 / fan-in.

    One draw, cut up: XLA compiles random draws slowly. One per kernel would take longer than the first steps.
    """
    convs = [m for _, m in nnx.iter_modules(module) if isinstance(m, nnx.Conv)]
    sizes = [math.prod(conv.kernel.shape) for conv in convs]
    draws = jax.random.uniform(key, (sum(sizes),), jnp.float32, -1.0, 1.0)
    start = 0
    for conv, size in zip(convs, sizes, strict=True):
        shape = conv.kernel.shape
        conv.kernel[...] = draws[start : start + size].reshape(shape) * math.sqrt(3.0 / math.prod(shape[:-1]))
        start += size


def numbered(modules) -> nnx.Dict:
    """Modules under the names "0", "1", ...: parameter paths stay strings, in memory and in files."""
    return nnx.Dict({str(i): module for i, module in enumerate(modules)})


def conv_of(
    cfg: VQConfig | MagvitConfig, inputs: int, outputs: int, size: int, *, bias: bool = True, rngs: nnx.Rngs
) -> nnx.Conv:
    return nnx.Conv(inputs, outputs, (size, size), padding="SAME", use_bias=bias, dtype=cfg.dtype, rngs=rngs)


class GroupNorm(nnx.GroupNorm):
    """Flax's GroupNorm for images, with sums over the places of each channel first and over a group's channels then.

    XLA's CPU code takes twice as long for one sum over both: places and channels of a group do not lie side by side.
    """

    def __call__(self, x_bhwc: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        b, h, w, c = x_bhwc.shape
        wide_bnc = x_bhwc.astype(jnp.float32).reshape(b, h * w, c)

        def mean(y_bnc):
            mean_bg = y_bnc.sum(axis=1).reshape(b, self.num_groups, -1).sum(axis=-1) / (h * w * c // self.num_groups)
            return jnp.repeat(mean_bg, c // self.num_groups, axis=1)[:, None]

        wide_bnc = wide_bnc - mean(wide_bnc)
        factor_b1c = jax.lax.rsqrt(mean(jnp.square(wide_bnc)) + self.epsilon)
        if self.scale is not None:
            factor_b1c = factor_b1c * self.scale[...][None, None]
        y_bnc = wide_bnc * factor_b1c
        if self.bias is not None:
            y_bnc = y_bnc + self.bias[...][None, None]
        return y_bnc.reshape(x_bhwc.shape).astype(self.dtype or x_bhwc.dtype)


def norm_of(cfg, channels: int, *, affine: bool = True, rngs: nnx.Rngs) -> GroupNorm:
    """GroupNorm with `cfg.norm_groups` groups, or the most that divide both; statistics in float32."""
    groups = math.gcd(cfg.norm_groups, channels)
    return GroupNorm(
        channels,
        num_groups=groups,
        epsilon=1e-6,
        use_bias=affine,
        use_scale=affine,
        use_fast_variance=False,
        dtype=cfg.dtype,
        rngs=rngs,
    )


class ResBlock(nnx.Module):
    """Two normalised 3x3 convolutions beside the identity (a 1x1 convolution where the width changes)."""

    def __init__(self, cfg: VQConfig | MagvitConfig, inputs: int, outputs: int, *, bias: bool = True, rngs: nnx.Rngs):
        self.norm1 = norm_of(cfg, inputs, rngs=rngs)
        self.conv1 = conv_of(cfg, inputs, outputs, 3, bias=bias, rngs=rngs)
        self.norm2 = norm_of(cfg, outputs, rngs=rngs)
        self.conv2 = conv_of(cfg, outputs, outputs, 3, bias=bias, rngs=rngs)
        self.shortcut = conv_of(cfg, inputs, outputs, 1, bias=bias, rngs=rngs) if inputs != outputs else None

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        y_bhwc = self.conv1(nnx.silu(self.norm1(x_bhwc)))
        y_bhwc = self.conv2(nnx.silu(self.norm2(y_bhwc)))
        return y_bhwc + (self.shortcut(x_bhwc) if self.shortcut is not None else x_bhwc)


class AttentionBlock(nnx.Module):
    """Single-head self-attention over all positions, added to its input; softmax in float32."""

    def __init__(self, cfg: VQConfig, channels: int, *, rngs: nnx.Rngs):
        self.norm = norm_of(cfg, channels, rngs=rngs)
        self.q = conv_of(cfg, channels, channels, 1, rngs=rngs)
        self.k = conv_of(cfg, channels, channels, 1, rngs=rngs)
        self.v = conv_of(cfg, channels, channels, 1, rngs=rngs)
        self.out = conv_of(cfg, channels, channels, 1, rngs=rngs)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        b, h, w, c = x_bhwc.shape
        y_bhwc = self.norm(x_bhwc)
        q_bld, k_bld, v_bld = (conv(y_bhwc).reshape(b, h * w, c) for conv in (self.q, self.k, self.v))
        scores_blm = jnp.einsum("bld,bmd->blm", q_bld, k_bld, preferred_element_type=jnp.float32) / math.sqrt(c)
        weights_blm = jax.nn.softmax(scores_blm, axis=-1).astype(v_bld.dtype)
        return x_bhwc + self.out(jnp.einsum("blm,bmd->bld", weights_blm, v_bld).reshape(b, h, w, c))


class Level(nnx.Module):
    """Residual blocks of one resolution, each followed by attention if `attention`."""

    def __init__(
        self,
        cfg: VQConfig,
        inputs: int,
        outputs: int,
        blocks: int,
        attention: bool,
        *,
        rngs: nnx.Rngs,
    ):
        self.res = numbered(ResBlock(cfg, inputs if j == 0 else outputs, outputs, rngs=rngs) for j in range(blocks))
        self.attn = numbered(AttentionBlock(cfg, outputs, rngs=rngs) for _ in range(blocks if attention else 0))

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        for j in map(str, range(len(self.res))):
            x_bhwc = self.res[j](x_bhwc)
            if j in self.attn:
                x_bhwc = self.attn[j](x_bhwc)
        return x_bhwc


class Middle(nnx.Module):
    """Residual block, attention (if `cfg.middle_attention`), residual block at the lowest resolution."""

    def __init__(self, cfg: VQConfig, channels: int, *, rngs: nnx.Rngs):
        self.res1 = ResBlock(cfg, channels, channels, rngs=rngs)
        self.attn = AttentionBlock(cfg, channels, rngs=rngs) if cfg.middle_attention else None
        self.res2 = ResBlock(cfg, channels, channels, rngs=rngs)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        x_bhwc = self.res1(x_bhwc)
        return self.res2(x_bhwc if self.attn is None else self.attn(x_bhwc))


def _attention_levels(cfg: VQConfig) -> set[int]:
    depth = len(cfg.multipliers)
    for level in cfg.attention_levels:
        require(
            -depth <= level < depth,
            f"attention_levels: {level} is not one of the {depth} levels (0 to {depth - 1}, or -1 up)",
        )
    return {level % depth for level in cfg.attention_levels}


class Encoder(nnx.Module):
    """Images (b, H, W, 3) -> features (b, h, w, latent_dim). `levels/0` is full resolution; all but the last halve."""

    def __init__(self, cfg: VQConfig, *, rngs: nnx.Rngs):
        widths = [cfg.channels * m for m in cfg.multipliers]
        inputs, attention = [cfg.channels, *widths[:-1]], _attention_levels(cfg)
        self.patch = cfg.patch
        self.conv_in = conv_of(cfg, 3 * cfg.patch**2, cfg.channels, 3, rngs=rngs)
        self.levels = numbered(
            Level(cfg, inputs[i], widths[i], cfg.res_blocks, i in attention, rngs=rngs) for i in range(len(widths))
        )
        # One pixel of padding on the right and at the bottom only, as published checkpoints of this family expect.
        self.downsample = numbered(
            nnx.Conv(
                c,
                c,
                (3, 3),
                strides=2,
                padding=((0, 1), (0, 1)),
                dtype=cfg.dtype,
                rngs=rngs,
            )
            for c in widths[:-1]
        )
        self.mid = Middle(cfg, widths[-1], rngs=rngs)
        self.norm_out = norm_of(cfg, widths[-1], rngs=rngs)
        self.conv_out = conv_of(cfg, widths[-1], cfg.latent_dim, 3, rngs=rngs)

    def __call__(self, images_bhwc: jax.Array) -> jax.Array:
        x_bhwc = self.conv_in(fold_patches(images_bhwc, self.patch))
        for i in map(str, range(len(self.levels))):
            x_bhwc = self.levels[i](x_bhwc)
            if i in self.downsample:
                x_bhwc = self.downsample[i](x_bhwc)
        return self.conv_out(nnx.silu(self.norm_out(self.mid(x_bhwc))))


class Decoder(nnx.Module):
    """Features (b, h, w, latent_dim) -> images. `levels/0` is the *lowest* resolution; all but the last double."""

    def __init__(self, cfg: VQConfig, *, rngs: nnx.Rngs):
        widths = [cfg.channels * m for m in reversed(cfg.multipliers)]
        inputs, attention = (
            [widths[0], *widths[:-1]],
            {len(widths) - 1 - i for i in _attention_levels(cfg)},
        )
        self.conv_in = conv_of(cfg, cfg.latent_dim, widths[0], 3, rngs=rngs)
        self.mid = Middle(cfg, widths[0], rngs=rngs)
        self.levels = numbered(
            Level(cfg, inputs[i], widths[i], cfg.res_blocks + 1, i in attention, rngs=rngs) for i in range(len(widths))
        )
        self.upsample = numbered(conv_of(cfg, c, c, 3, rngs=rngs) for c in widths[:-1])
        self.norm_out = norm_of(cfg, widths[-1], rngs=rngs)
        self.patch = cfg.patch
        self.conv_out = conv_of(cfg, widths[-1], 3 * cfg.patch**2, 3, rngs=rngs)

    def features(self, z_bhwd: jax.Array) -> jax.Array:
        """Everything but `conv_out`, whose kernel the adaptive adversarial weight is measured on."""
        x_bhwc = self.mid(self.conv_in(z_bhwd))
        for i in map(str, range(len(self.levels))):
            x_bhwc = self.levels[i](x_bhwc)
            if i in self.upsample:
                x_bhwc = doubled(self.upsample[i], x_bhwc)
        return nnx.silu(self.norm_out(x_bhwc))

    def __call__(self, z_bhwd: jax.Array) -> jax.Array:
        return unfold_patches(self.conv_out(self.features(z_bhwd)), self.patch)


def double(x_bhwc: jax.Array) -> jax.Array:
    """Nearest-neighbour enlargement by two."""
    b, h, w, c = x_bhwc.shape
    return jnp.broadcast_to(x_bhwc[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def doubled(conv: nnx.Conv, x_bhwc: jax.Array, fold: bool | None = None) -> jax.Array:
    """`conv(double(x))` for a 3x3 convolution. `fold`: without making the enlarged image; default: on a CPU.

    Two of three rows (and columns) that a 3x3 kernel sees of an enlarged image are the same, so every pixel is a 2x2
    convolution of the small image, with a kernel of its own for each of the four places in a cell: 4/9 of the products.
    """
    if not (platform() == "cpu" if fold is None else fold):
        return conv(double(x_bhwc))
    (b, h, w, _), dtype = x_bhwc.shape, jnp.dtype(conv.dtype or x_bhwc.dtype)
    near = jnp.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], jnp.float32)  # which of 3 rows fall on which of 2
    kernel = jnp.einsum("pyi,qxj,ijcd->yxcpqd", near, near, conv.kernel[...], precision="highest").astype(dtype)
    # Padded apart: with padding of its own, XLA's gradient of this kernel is a convolution that its CPU library does
    # not have, and a plain loop takes its place, a hundred times slower.
    padded_bhwc = jnp.pad(x_bhwc.astype(dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
    y_bhwd = jax.lax.conv_general_dilated(
        padded_bhwc, kernel.reshape(*kernel.shape[:3], -1), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y_bhwpqd = y_bhwd.reshape(b, h + 1, w + 1, 2, 2, -1)
    rows = [jnp.stack([y_bhwpqd[:, p : p + h, q : q + w, p, q] for q in (0, 1)], axis=3) for p in (0, 1)]
    y_bhwd = jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, -1)
    return y_bhwd if conv.bias is None else y_bhwd + conv.bias[...].astype(dtype).reshape(1, 1, 1, -1)


def check_images(images_bhwc: jax.Array, factor: int) -> None:
    """Raises ValueError unless images are (b, H, W, 3) with both sides multiples of `factor`."""
    if images_bhwc.ndim != 4 or images_bhwc.shape[-1] != 3:
        raise ValueError(f"images: expected (batch, height, width, 3), got shape {images_bhwc.shape}")
    h, w = images_bhwc.shape[1:3]
    if h % factor or w % factor or 0 in (h, w):
        raise ValueError(
            f"images: size {h}x{w} is not a multiple of the tokenizer's downsampling factor {factor}; resize or crop to "
            f"{max(factor, h // factor * factor)}x{max(factor, w // factor * factor)}"
        )


def check_codes(codes_bhw: jax.Array) -> None:
    """Raises ValueError unless codes are whole numbers on a (batch, rows, columns) grid."""
    if codes_bhw.ndim != 3 or not jnp.issubdtype(codes_bhw.dtype, jnp.integer):
        raise ValueError(f"codes: expected integers (batch, rows, columns), got {codes_bhw.dtype} {codes_bhw.shape}")


class VQGAN(nnx.Module):
    """The tokenizer. Images are float in [-1, 1], (b, H, W, 3), with H and W multiples of `cfg.downsample`.

    Weights of the same family are expressed by `VQConfig`: LlamaGen (the default), taming (`l2_normalize=False`),
    Chameleon (also `attention_levels=()`: only the middle attends), aMUSEd (also `middle_attention=False`).
    """

    def __init__(self, cfg: VQConfig, *, rngs: nnx.Rngs):
        self.cfg: Any = cfg
        self.encoder: Any = Encoder(cfg, rngs=rngs)
        self.quant_conv = conv_of(cfg, cfg.latent_dim, cfg.codebook_dim, 1, rngs=rngs)
        self.codebook: Any = VectorQuantizer(cfg.codebook_size, cfg.codebook_dim, cfg.l2_normalize, rngs=rngs)
        self.post_quant_conv = conv_of(cfg, cfg.codebook_dim, cfg.latent_dim, 1, rngs=rngs)
        self.decoder: Any = Decoder(cfg, rngs=rngs)
        draw_kernels(self, rngs.params())

    def latents(self, images_bhwc: jax.Array) -> jax.Array:
        """Latents (b, h, w, codebook_dim) before quantisation (and before any scaling to unit length).

        Raises ValueError unless the images are (b, H, W, 3) with both sides multiples of `cfg.downsample`.
        """
        check_images(images_bhwc, self.cfg.downsample)
        return self.encode_features(images_bhwc).astype(jnp.float32)

    def encode_features(self, images_bhwc: jax.Array) -> jax.Array:
        """Images, already checked -> what the codebook is given, in the compute dtype."""
        return self.quant_conv(self.encoder(images_bhwc))

    def quantize(self, z_bhwd: jax.Array, *, entropy: bool = False) -> Quantized:
        """Latents -> nearest codes, their vectors with straight-through gradient, and the codebook losses."""
        return self.codebook(z_bhwd, entropy=entropy)

    def decode_features(self, z_bhwd: jax.Array) -> jax.Array:
        """Code vectors -> the input of the decoder's last convolution (b, H / patch, W / patch, channels)."""
        return self.decoder.features(self.post_quant_conv(z_bhwd))

    def decode_latents(self, z_bhwd: jax.Array) -> jax.Array:
        """Code vectors (b, h, w, codebook_dim) -> images float32, not clamped."""
        return unfold_patches(self.decoder.conv_out(self.decode_features(z_bhwd)), self.cfg.patch).astype(jnp.float32)

    def render(self, features_bhwc: jax.Array, kernel: jax.Array) -> jax.Array:
        """Images of `decode_features` with `kernel` as the last convolution's: for losses measured against it."""
        dtype, conv = jnp.dtype(self.cfg.dtype), self.decoder.conv_out
        layout = ("NHWC", "HWIO", "NHWC")
        images = jax.lax.conv_general_dilated(
            features_bhwc.astype(dtype), kernel.astype(dtype), (1, 1), "SAME", dimension_numbers=layout
        )
        bias = conv.bias[...] if conv.bias is not None else jnp.zeros(())
        return unfold_patches(images + bias.astype(dtype).reshape(1, 1, 1, -1), self.cfg.patch).astype(jnp.float32)

    def encode(self, images_bhwc: jax.Array) -> jax.Array:
        """Images -> codes (b, h, w), int32 in 0..codebook_size-1. Raises ValueError as `latents` does."""
        return self.codebook.search(self.latents(images_bhwc))

    def decode(self, codes_bhw: jax.Array) -> jax.Array:
        """Codes (b, h, w) -> images (b, H, W, 3) float32, about [-1, 1] but not clamped.

        Codes outside the codebook (a [MASK] left over) are taken as the nearest valid one.
        Raises ValueError unless the codes are whole numbers on a (batch, rows, columns) grid.
        """
        check_codes(codes_bhw)

        def images(codes_bhw):
            return self.decode_latents(self.codebook.lookup(codes_bhw))

        apart = prefer_sequential(codes_bhw, math.prod(codes_bhw.shape[1:]))
        return map_batch(images, codes_bhw) if apart else images(codes_bhw)
