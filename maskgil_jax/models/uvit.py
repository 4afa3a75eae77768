"""aMUSEd's U-ViT (Patil et al. 2024, arXiv 2401.01808): a masked generator conditioned on CLIP texts.

ConvNeXt-V2 and cross-attention blocks before and after a Transformer with cross-attention. Pooled text and
micro-conditioning modulate every norm of the Transformer (AdaLN) and every residual block. No biases and no positions:
the depthwise convolutions tell the tokens where they are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maskgil_jax.config import ConfigError, UViTConfig
from maskgil_jax.models.adaln import modulate
from maskgil_jax.models.condition import PooledTextCondition
from maskgil_jax.models.generator import TransformerGenerator, check_inputs
from maskgil_jax.models.layers import (
    ATTENTION_OUT,
    LayerNorm,
    RMSNorm,
    apply_layers,
    dot_product_attention,
    dropout,
    embedding,
    linear,
    normal_init,
    stack_layers,
)
from maskgil_jax.runtime.rng import fold_keys

_MAX_PERIOD = 10000.0  # of the sinusoidal embedding of the micro-conditioning
_GRN_EPS = 1e-6


def sinusoids(value_bm: jax.Array, width: int) -> jax.Array:
    """Cosines, then sines, of each number at `width / 2` frequencies from 1 down: float32 (b, m, width)."""
    half = width // 2
    frequency_k = _MAX_PERIOD ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_bmk = value_bm.astype(jnp.float32)[..., None] * frequency_k[None, None]
    return jnp.concatenate([jnp.cos(angle_bmk), jnp.sin(angle_bmk)], axis=-1)


class PointConv(nnx.Module):
    """A 1x1 convolution over the last axis; its kernel has the shape of a convolution's, (1, 1, in, out)."""

    def __init__(self, d_in: int, d_out: int, *, dtype: str, rngs: nnx.Rngs):
        self.dtype = jnp.dtype(dtype)
        self.kernel = nnx.Param(normal_init(rngs.params(), (1, 1, d_in, d_out), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x.astype(self.dtype) @ self.kernel[0, 0].astype(self.dtype)


class Downsample(nnx.Module):
    """RMSNorm, then a 2x2 convolution with stride 2."""

    def __init__(self, cfg: UViTConfig, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(cfg.channels, eps=cfg.norm_eps, rngs=rngs)
        self.conv = nnx.Conv(
            cfg.channels,
            cfg.channels,
            (2, 2),
            strides=2,
            padding="VALID",
            use_bias=False,
            kernel_init=normal_init,
            dtype=jnp.dtype(cfg.dtype),
            rngs=rngs,
        )

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        return self.conv(self.norm(x_bhwc))


class Upsample(nnx.Module):
    """RMSNorm, then a transposed 2x2 convolution with stride 2: each position becomes four, none of which overlap."""

    def __init__(self, cfg: UViTConfig, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(cfg.channels, eps=cfg.norm_eps, rngs=rngs)
        self.kernel = nnx.Param(normal_init(rngs.params(), (2, 2, cfg.channels, cfg.channels), jnp.float32))

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        b, h, w, _ = x_bhwc.shape
        y_bhpwqd = jnp.einsum("bhwc,pqcd->bhpwqd", self.norm(x_bhwc), self.kernel[...].astype(x_bhwc.dtype))
        return y_bhpwqd.reshape(b, 2 * h, 2 * w, -1)


class ResponseNorm(nnx.Module):
    """Global response normalisation (ConvNeXt-V2) with scale, bias and a residual sum.

    Norms over the image in float32.
    """

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.zeros((1, 1, 1, channels), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((1, 1, 1, channels), jnp.float32))

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        wide_bhwc = x_bhwc.astype(jnp.float32)
        norm_b11c = jnp.sqrt(jnp.sum(jnp.square(wide_bhwc), axis=(1, 2), keepdims=True))
        share_b11c = norm_b11c / (jnp.mean(norm_b11c, axis=-1, keepdims=True) + _GRN_EPS)
        return (self.scale[...] * (wide_bhwc * share_b11c) + self.bias[...] + wide_bhwc).astype(x_bhwc.dtype)


class ResBlock(nnx.Module):
    """ConvNeXt-V2 block: depthwise 3x3, norm, MLP with response norm, residual sum; then the modulation."""

    def __init__(self, cfg: UViTConfig, *, rngs: nnx.Rngs):
        c = cfg.channels
        self.depthwise = nnx.Conv(
            c,
            c,
            (3, 3),
            padding="SAME",
            feature_group_count=c,
            use_bias=False,
            kernel_init=normal_init,
            dtype=jnp.dtype(cfg.dtype),
            rngs=rngs,
        )
        self.norm = RMSNorm(c, eps=cfg.norm_eps, rngs=rngs)
        self.up = linear(c, 4 * c, dtype=cfg.dtype, rngs=rngs)
        self.response_norm = ResponseNorm(4 * c)
        self.down = linear(4 * c, c, dtype=cfg.dtype, rngs=rngs)
        self.modulation = linear(cfg.width, 2 * c, dtype=cfg.dtype, rngs=rngs, zero=True)

    def __call__(self, x_bhwc: jax.Array, activated_bd: jax.Array) -> jax.Array:
        y_bhwc = jax.nn.gelu(self.up(self.norm(self.depthwise(x_bhwc))), approximate=False)
        y_bhwc = x_bhwc + self.down(self.response_norm(y_bhwc))
        scale_b11c, shift_b11c = jnp.split(self.modulation(activated_bd)[:, None, None], 2, axis=-1)
        return modulate(y_bhwc, shift_b11c, scale_b11c)


class Attention(nnx.Module):
    """Multi-head attention of `x_bld` to `memory_btm`, without biases."""

    def __init__(self, width: int, heads: int, memory_width: int, *, dtype: str, rngs: nnx.Rngs):
        self.heads = heads
        self.q, self.o = (linear(width, width, dtype=dtype, rngs=rngs) for _ in range(2))
        self.k, self.v = (linear(memory_width, width, dtype=dtype, rngs=rngs) for _ in range(2))

    def __call__(self, x_bld: jax.Array, memory_btm: jax.Array) -> jax.Array:
        b, l, _ = x_bld.shape
        q, k, v = self.q(x_bld), self.k(memory_btm), self.v(memory_btm)
        q, k, v = (y.reshape(b, y.shape[1], self.heads, -1) for y in (q, k, v))
        return self.o(checkpoint_name(dot_product_attention(q, k, v).reshape(b, l, -1), ATTENTION_OUT))


class TextBlock(nnx.Module):
    """Two pre-norm cross-attentions to the text, whose states are mapped to the width of the convolutional blocks."""

    def __init__(self, cfg: UViTConfig, *, rngs: nnx.Rngs):
        self.dropout = cfg.dropout
        c = cfg.channels
        self.text = linear(cfg.width, c, dtype=cfg.dtype, rngs=rngs)
        self.norm1, self.norm2 = (RMSNorm(c, eps=cfg.norm_eps, rngs=rngs) for _ in range(2))
        self.attn1, self.attn2 = (Attention(c, cfg.block_heads, c, dtype=cfg.dtype, rngs=rngs) for _ in range(2))

    def __call__(self, x_blc: jax.Array, text_btd: jax.Array, key_b: jax.Array | None) -> jax.Array:
        text_btc = self.text(jax.nn.silu(text_btd))
        x_blc = x_blc + dropout(self.attn1(self.norm1(x_blc), text_btc), self.dropout, fold_keys(key_b, 0))
        return x_blc + dropout(self.attn2(self.norm2(x_blc), text_btc), self.dropout, fold_keys(key_b, 1))


class Stage(nnx.Module):
    """Pairs of residual and text blocks at one resolution."""

    def __init__(self, cfg: UViTConfig, *, rngs: nnx.Rngs):
        count = range(cfg.res_blocks)
        self.res = nnx.Dict({str(i): ResBlock(cfg, rngs=rngs) for i in count})
        self.text = nnx.Dict({str(i): TextBlock(cfg, rngs=rngs) for i in count})

    def __call__(self, x_bhwc: jax.Array, text_btd: jax.Array, activated_bd: jax.Array, key_b: jax.Array | None) -> jax.Array:
        b, h, w, c = x_bhwc.shape
        for i in range(len(self.res)):
            x_bhwc = self.res[str(i)](x_bhwc, activated_bd)
            x_blc = self.text[str(i)](x_bhwc.reshape(b, h * w, c), text_btd, fold_keys(key_b, i))
            x_bhwc = x_blc.reshape(b, h, w, c)
        return x_bhwc


class ModulatedNorm(nnx.Module):
    """norm(x) * (1 + scale) + shift; scale and shift come from the pooled condition and start at zero."""

    def __init__(self, cfg: UViTConfig, norm: Any, *, rngs: nnx.Rngs):
        self.norm = norm
        self.modulation = linear(cfg.width, 2 * cfg.width, dtype=cfg.dtype, rngs=rngs, zero=True)

    def __call__(self, x_bld: jax.Array, activated_bd: jax.Array) -> jax.Array:
        scale_b1d, shift_b1d = jnp.split(self.modulation(activated_bd)[:, None], 2, axis=-1)
        return modulate(self.norm(x_bld), shift_b1d, scale_b1d)


class GatedMlp(nnx.Module):
    """down(up(x) * gelu(gate(x))), with the exact GELU."""

    def __init__(self, cfg: UViTConfig, *, rngs: nnx.Rngs):
        self.up, self.gate = (linear(cfg.width, cfg.mlp_width, dtype=cfg.dtype, rngs=rngs) for _ in range(2))
        self.down = linear(cfg.mlp_width, cfg.width, dtype=cfg.dtype, rngs=rngs)

    def __call__(self, x_bld: jax.Array) -> jax.Array:
        return self.down(self.up(x_bld) * jax.nn.gelu(self.gate(x_bld), approximate=False))


class Block(nnx.Module):
    """Self-attention, attention to the text and gated MLP, each after a modulated norm: RMSNorm, RMSNorm, LayerNorm."""

    def __init__(self, cfg: UViTConfig, *, rngs: nnx.Rngs):
        self.dropout = cfg.dropout
        width, eps = cfg.width, cfg.norm_eps
        self.attn_norm, self.text_norm = (ModulatedNorm(cfg, RMSNorm(width, eps=eps, rngs=rngs), rngs=rngs) for _ in range(2))
        self.mlp_norm = ModulatedNorm(cfg, LayerNorm(width, eps=eps, rngs=rngs, bias=False), rngs=rngs)
        self.attn, self.text_attn = (Attention(width, cfg.heads, width, dtype=cfg.dtype, rngs=rngs) for _ in range(2))
        self.mlp = GatedMlp(cfg, rngs=rngs)

    def __call__(self, x_bld: jax.Array, text_btd: jax.Array, activated_bd: jax.Array, key_b: jax.Array | None) -> jax.Array:
        y_bld = self.attn_norm(x_bld, activated_bd)
        x_bld = x_bld + dropout(self.attn(y_bld, y_bld), self.dropout, fold_keys(key_b, 0))
        y_bld = self.text_attn(self.text_norm(x_bld, activated_bd), text_btd)
        x_bld = x_bld + dropout(y_bld, self.dropout, fold_keys(key_b, 1))
        return x_bld + dropout(self.mlp(self.mlp_norm(x_bld, activated_bd)), self.dropout, fold_keys(key_b, 2))


class UViT(TransformerGenerator):
    """Tokens and a text -> logits over the codebook, for any grid.

    All `text_tokens` positions of a text are attended to, padding too, as published; `mask_bt` is not read. There is no
    null text among the parameters: guidance takes a negative condition, usually that of "".
    """

    def __init__(self, cfg: UViTConfig, *, rngs: nnx.Rngs, stacked: bool = True):
        self.cfg = cfg
        norm = lambda width: RMSNorm(width, eps=cfg.norm_eps, rngs=rngs)  # noqa: E731
        c, d, dtype = cfg.channels, cfg.width, cfg.dtype
        self.tokens = embedding(cfg.vocabulary, c, rngs=rngs)  # the last row is [MASK]
        self.input_norm = norm(c)
        self.input_conv = PointConv(c, c, dtype=dtype, rngs=rngs)
        self.text = linear(cfg.text_dim, d, dtype=dtype, rngs=rngs)
        self.text_norm = norm(d)
        self.pooled_up = linear(cfg.pooled_dim + cfg.micro_values * cfg.micro_dim, d, dtype=dtype, rngs=rngs)
        self.pooled_down = linear(d, d, dtype=dtype, rngs=rngs)
        self.down, self.up = Stage(cfg, rngs=rngs), Stage(cfg, rngs=rngs)
        if cfg.downsample:
            self.downsample, self.upsample = Downsample(cfg, rngs=rngs), Upsample(cfg, rngs=rngs)
        self.inner_norm, self.inner = norm(c), linear(c, d, dtype=dtype, rngs=rngs)
        self.layers: Any = stack_layers(lambda r: Block(cfg, rngs=r), rngs, cfg.depth, stacked)
        self.outer_norm, self.outer = norm(d), linear(d, c, dtype=dtype, rngs=rngs)
        self.head_conv, self.head_norm = PointConv(c, c, dtype=dtype, rngs=rngs), norm(c)
        self.out_conv = PointConv(c, cfg.codebook_size, dtype=dtype, rngs=rngs)

    def null_condition(self, condition: PooledTextCondition) -> PooledTextCondition:
        """Raises a `ConfigError`: the condition of no text is the encoder's output for "",
        which the network does not hold."""
        raise ConfigError(
            'guidance: a U-ViT holds no null text; decode with guidance=1, or give the condition of "" or of a negative prompt'
        )

    def pooled(self, condition: PooledTextCondition) -> jax.Array:
        """What modulates the network, (b, d): the pooled text and the micro-conditioning through an MLP."""
        micro_bk = sinusoids(condition.micro_bm, self.cfg.micro_dim).reshape(len(condition.micro_bm), -1)
        joint_bk = jnp.concatenate([condition.pooled_bp.astype(jnp.float32), micro_bk], axis=-1)
        return self.pooled_down(jax.nn.silu(self.pooled_up(joint_bk)))

    def hidden(
        self, tokens_bl: jax.Array, condition: PooledTextCondition, *, grid=None, key_b: jax.Array | None = None
    ) -> jax.Array:
        """Final normalised states (b, l, c) at the image tokens.

        `key_b`: one dropout key per image; None outside training.
        """
        cfg = self.cfg
        grid = tuple(grid or cfg.grid)
        check_inputs(cfg, tokens_bl, condition, grid)
        cfg.check_grid(grid)
        text_btd = self.text_norm(self.text(condition.features_btd))
        activated_bd = jax.nn.silu(self.pooled(condition))
        x = self.input_conv(self.input_norm(self.tokens(tokens_bl))).reshape(len(tokens_bl), *grid, cfg.channels)
        x = self.downsample(x) if cfg.downsample else x
        x = self.down(x, text_btd, activated_bd, fold_keys(key_b, cfg.depth))  # the layers take the keys before
        b, rows, columns, _ = x.shape
        x = apply_layers(
            self.layers,
            self.inner(self.inner_norm(x.reshape(b, rows * columns, -1))),
            key_b,
            depth=cfg.depth,
            layers_mode=cfg.layers,
            remat=cfg.remat,
            call=lambda layer, x, key: layer(x, text_btd, activated_bd, key),
        )
        x = self.outer(self.outer_norm(x)).reshape(b, rows, columns, -1)
        x = self.up(x, text_btd, activated_bd, fold_keys(key_b, cfg.depth + 1))
        x = self.upsample(x) if cfg.downsample else x
        return self.head_norm(self.head_conv(x.reshape(*tokens_bl.shape, -1)))

    def logits(self, hidden_bmc: jax.Array, at_bm: jax.Array | None = None) -> jax.Array:
        """float32 logits (b, m, codebook_size); every position has the same head."""
        return self.out_conv(hidden_bmc).astype(jnp.float32)
