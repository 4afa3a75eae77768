"""Halton-MaskGIT's Transformer (Besnier et al. 2025): the class acts through the norms (AdaLN-zero, as in DiT).

Learned positions, so one grid; register tokens after the image's; queries and keys normalised over all heads; a tied
head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maskgil_jax.config import AdaLNConfig
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.models.generator import TransformerGenerator, check_inputs
from maskgil_jax.models.layers import (
    ATTENTION_OUT,
    RMSNorm,
    apply_layers,
    check_learned_grid,
    dot_product_attention,
    dropout,
    embedding,
    stack_layers,
    unit_rms,
)
from maskgil_jax.runtime.rng import fold_keys

EPS = 1e-5


def _linear(d_in: int, d_out: int, *, dtype: str, rngs: nnx.Rngs, bias: bool = False, zero: bool = False) -> nnx.Linear:
    """A linear map that starts as published: Glorot's uniform initialisation, or zero."""
    init = nnx.initializers.zeros if zero else nnx.initializers.xavier_uniform()
    return nnx.Linear(d_in, d_out, use_bias=bias, kernel_init=init, dtype=jnp.dtype(dtype), rngs=rngs)


def modulate(x_bld: jax.Array, shift_b1d: jax.Array, scale_b1d: jax.Array) -> jax.Array:
    """x * (1 + scale) + shift, the same for every token of an image."""
    return x_bld * (1 + scale_b1d) + shift_b1d


class Attention(nnx.Module):
    """Multi-head self-attention; queries and keys are divided by their root mean square over all heads together."""

    def __init__(self, cfg: AdaLNConfig, *, rngs: nnx.Rngs):
        self.heads, inner = cfg.heads, cfg.heads * cfg.head_dim
        self.q, self.k, self.v = (_linear(cfg.width, inner, dtype=cfg.dtype, rngs=rngs) for _ in range(3))
        self.o = _linear(inner, cfg.width, dtype=cfg.dtype, rngs=rngs)

    def __call__(self, x_bld: jax.Array) -> jax.Array:
        b, l, _ = x_bld.shape
        q, k, v = unit_rms(self.q(x_bld), EPS), unit_rms(self.k(x_bld), EPS), self.v(x_bld)
        q, k, v = (y.reshape(b, l, self.heads, -1) for y in (q, k, v))
        return self.o(checkpoint_name(dot_product_attention(q, k, v).reshape(b, l, -1), ATTENTION_OUT))


class Mlp(nnx.Module):
    """down(dropout(silu(gate(x)) * up(x)))."""

    def __init__(self, cfg: AdaLNConfig, *, rngs: nnx.Rngs):
        self.dropout = cfg.dropout
        self.gate, self.up = (_linear(cfg.width, cfg.hidden, dtype=cfg.dtype, rngs=rngs) for _ in range(2))
        self.down = _linear(cfg.hidden, cfg.width, dtype=cfg.dtype, rngs=rngs)

    def __call__(self, x_bld: jax.Array, key_b: jax.Array | None) -> jax.Array:
        return self.down(dropout(jax.nn.silu(self.gate(x_bld)) * self.up(x_bld), self.dropout, key_b))


class Block(nnx.Module):
    """x + gate * f(modulate(norm(x))) for attention and MLP. Shifts, scales and gates come from the class and start at
    zero, so that a new block passes its input on.
    """

    def __init__(self, cfg: AdaLNConfig, *, rngs: nnx.Rngs):
        self.dropout = cfg.dropout
        self.modulation = _linear(cfg.width, 6 * cfg.width, dtype=cfg.dtype, rngs=rngs, bias=True, zero=True)
        self.attn_norm, self.mlp_norm = (RMSNorm(cfg.width, eps=EPS, rngs=rngs) for _ in range(2))
        self.attn, self.mlp = Attention(cfg, rngs=rngs), Mlp(cfg, rngs=rngs)

    def __call__(self, x_bld: jax.Array, class_b1d: jax.Array, key_b: jax.Array | None) -> jax.Array:
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.modulation(class_b1d), 6, axis=-1)
        y_bld = self.attn(modulate(self.attn_norm(x_bld), shift1, scale1))
        x_bld = x_bld + gate1 * dropout(y_bld, self.dropout, fold_keys(key_b, 0))
        return x_bld + gate2 * self.mlp(modulate(self.mlp_norm(x_bld), shift2, scale2), fold_keys(key_b, 1))


class LastNorm(nnx.Module):
    """modulate(norm(x) + bias), shift and scale from the class."""

    def __init__(self, cfg: AdaLNConfig, *, rngs: nnx.Rngs):
        self.modulation = _linear(cfg.width, 2 * cfg.width, dtype=cfg.dtype, rngs=rngs, bias=True)
        self.norm = RMSNorm(cfg.width, eps=EPS, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((cfg.width,), jnp.float32))

    def __call__(self, x_bld: jax.Array, class_b1d: jax.Array) -> jax.Array:
        shift, scale = jnp.split(self.modulation(class_b1d), 2, axis=-1)
        bias_bld = jnp.broadcast_to(self.bias[...].astype(x_bld.dtype), x_bld.shape)
        return modulate(self.norm(x_bld) + bias_bld, shift, scale)


class AdaLN(TransformerGenerator):
    """Tokens and a class -> logits over the codebook; the same interface as `Llama`, for the training grid only.

    Dropout acts on the output of attention and inside the MLP. The published trainer also drops attention weights; here
    they never exist as an array, so that attention can be computed in one fused operation.
    """

    def __init__(self, cfg: AdaLNConfig, *, rngs: nnx.Rngs, stacked: bool = True):
        self.cfg = cfg
        self.tokens = embedding(cfg.codebook_size + 1, cfg.width, rngs=rngs)  # the last row is [MASK]
        self.classes = embedding(cfg.num_classes + 1, cfg.width, rngs=rngs)  # the last row is the null class
        self.positions = embedding(cfg.grid[0] * cfg.grid[1], cfg.width, rngs=rngs)
        if cfg.registers:
            self.registers = embedding(cfg.registers, cfg.width, rngs=rngs)
        self.layers = stack_layers(lambda r: Block(cfg, rngs=r), rngs, cfg.depth, stacked)
        self.last_norm = LastNorm(cfg, rngs=rngs)
        self.head_bias = nnx.Param(jnp.zeros((cfg.codebook_size + 1,), jnp.float32))

    def hidden(
        self, tokens_bl: jax.Array, condition: ClassCondition, *, grid=None, key_b: jax.Array | None = None
    ) -> jax.Array:
        """Final normalised states (b, l, d) at the image tokens.

        `key_b`: one dropout key per image; None outside training.
        """
        cfg = self.cfg
        check_learned_grid(cfg, grid)
        check_inputs(cfg, tokens_bl, condition, cfg.grid)
        class_b1d = jax.nn.silu(self.classes(condition.label_b)[:, None].astype(cfg.dtype))
        x = self.tokens(tokens_bl) + self.positions.embedding[...][None]
        if cfg.registers:
            registers_1rd = self.registers.embedding[...][None]
            x = jnp.concatenate([x, jnp.broadcast_to(registers_1rd, (x.shape[0], *registers_1rd.shape[1:]))], axis=1)
        x = apply_layers(
            self.layers,
            x.astype(cfg.dtype),
            key_b,
            depth=cfg.depth,
            layers_mode=cfg.layers,
            remat=cfg.remat,
            call=lambda layer, x, key: layer(x, class_b1d, key),
        )
        return self.last_norm(x[:, : tokens_bl.shape[1]], class_b1d)

    def logits(self, hidden_bld: jax.Array, at_bl: jax.Array | None = None) -> jax.Array:
        """float32 logits over the head's classes: the codebook, and [MASK] too if trained with `mask_logit`.

        `at_bl`: which positions the states are of, if not all; every position has the same head here.
        """
        classes = self.cfg.codebook_size + self.cfg.mask_logit
        table = self.tokens.embedding[:classes].astype(self.cfg.dtype)
        logits_blv = jnp.einsum("bld,vd->blv", hidden_bld, table).astype(jnp.float32)
        return logits_blv + self.head_bias[:classes][None, None]
