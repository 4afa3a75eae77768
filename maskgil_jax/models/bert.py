"""The bidirectional Transformer baseline (paper 3.1.2): learned positions, LayerNorm, GELU,
head tied to the token table.

It is MaskGIT-pytorch's network: a small MLP before and after the blocks, and one bias per (position, class).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maskgil_jax.config import BertConfig
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.models.generator import TransformerGenerator, check_inputs
from maskgil_jax.models.layers import (
    ATTENTION_OUT,
    LayerNorm,
    apply_layers,
    check_learned_grid,
    dot_product_attention,
    dropout,
    embedding,
    linear,
    stack_layers,
)
from maskgil_jax.runtime.rng import fold_keys

OUTER_EPS = 1e-12  # norms outside the blocks, as published
BLOCK_EPS = 1e-5


class Attention(nnx.Module):
    """Plain multi-head self-attention with biases."""

    def __init__(self, width: int, heads: int, *, dtype: str, rngs: nnx.Rngs):
        self.heads = heads
        self.q, self.k, self.v, self.o = (linear(width, width, dtype=dtype, rngs=rngs, bias=True) for _ in range(4))

    def __call__(self, x_bld: jax.Array) -> jax.Array:
        b, l, _ = x_bld.shape
        q, k, v = (f(x_bld).reshape(b, l, self.heads, -1) for f in (self.q, self.k, self.v))
        return self.o(checkpoint_name(dot_product_attention(q, k, v).reshape(b, l, -1), ATTENTION_OUT))


class Mlp(nnx.Module):
    """Linear, GELU (exact, or its tanh approximation), linear."""

    def __init__(self, d_in: int, d_hidden: int, d_out: int, *, approximate_gelu: bool = False, dtype: str, rngs: nnx.Rngs):
        self.approximate_gelu = approximate_gelu
        self.up = linear(d_in, d_hidden, dtype=dtype, rngs=rngs, bias=True)
        self.down = linear(d_hidden, d_out, dtype=dtype, rngs=rngs, bias=True)

    def __call__(self, x_bld: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(x_bld), approximate=self.approximate_gelu))


class Block(nnx.Module):
    """Pre-norm residual block."""

    def __init__(self, cfg: BertConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.attn_norm = LayerNorm(cfg.width, eps=BLOCK_EPS, rngs=rngs)
        self.attn = Attention(cfg.width, cfg.heads, dtype=cfg.dtype, rngs=rngs)
        self.mlp_norm = LayerNorm(cfg.width, eps=BLOCK_EPS, rngs=rngs)
        self.mlp = Mlp(cfg.width, cfg.mlp_width, cfg.width, dtype=cfg.dtype, rngs=rngs)

    def __call__(self, x_bld: jax.Array, key_b: jax.Array | None) -> jax.Array:
        x_bld = x_bld + dropout(self.attn(self.attn_norm(x_bld)), self.cfg.dropout, fold_keys(key_b, 0))
        return x_bld + dropout(self.mlp(self.mlp_norm(x_bld)), self.cfg.dropout, fold_keys(key_b, 1))


class Bert(TransformerGenerator):
    """Tokens and a class -> logits over the codebook; the same interface as `Llama`, for the training grid only."""

    def __init__(self, cfg: BertConfig, *, rngs: nnx.Rngs, stacked: bool = True):
        self.cfg = cfg
        count, rows = cfg.grid[0] * cfg.grid[1] + 1, cfg.codebook_size + 1
        self.tokens = embedding(rows, cfg.width, rngs=rngs)  # the last row is [MASK]
        self.classes = embedding(cfg.num_classes + 1, cfg.width, rngs=rngs)  # the last row is the null class
        self.positions = embedding(count, cfg.width, rngs=rngs)
        self.first_norm = LayerNorm(cfg.width, eps=OUTER_EPS, rngs=rngs)
        self.first_up = linear(cfg.width, cfg.width, dtype=cfg.dtype, rngs=rngs, bias=True)
        self.first_mid_norm = LayerNorm(cfg.width, eps=OUTER_EPS, rngs=rngs)
        self.first_down = linear(cfg.width, cfg.width, dtype=cfg.dtype, rngs=rngs, bias=True)
        self.layers = stack_layers(lambda r: Block(cfg, rngs=r), rngs, cfg.depth, stacked)
        self.last_norm = LayerNorm(cfg.width, eps=OUTER_EPS, rngs=rngs)
        self.last_linear = linear(cfg.width, cfg.width, dtype=cfg.dtype, rngs=rngs, bias=True)
        self.head_norm = LayerNorm(cfg.width, eps=OUTER_EPS, rngs=rngs)
        # One bias per position and token, classes included: the published network scores its whole joint table.
        self.head_bias = nnx.Param(jnp.zeros((count, rows + cfg.num_classes + 1), jnp.float32))

    def hidden(
        self, tokens_bl: jax.Array, condition: ClassCondition, *, grid=None, key_b: jax.Array | None = None
    ) -> jax.Array:
        """Final normalised states (b, l, d) at the image tokens.

        `key_b`: one dropout key per image; None outside training.
        """
        cfg = self.cfg
        check_learned_grid(cfg, grid)
        check_inputs(cfg, tokens_bl, condition, cfg.grid)
        parts = [self.classes(condition.label_b)[:, None], self.tokens(tokens_bl)]
        x = jnp.concatenate(parts if cfg.class_position == "first" else parts[::-1], axis=1)
        x = self.first_norm(x + self.positions.embedding[...][None]).astype(cfg.dtype)
        x = self.first_down(self.first_mid_norm(jax.nn.gelu(self.first_up(x), approximate=False)))
        x = apply_layers(
            self.layers,
            x,
            key_b,
            depth=cfg.depth,
            layers_mode=cfg.layers,
            remat=cfg.remat,
            call=lambda layer, x, key: layer(x, key),
        )
        x = self.head_norm(jax.nn.gelu(self.last_linear(self.last_norm(x)), approximate=False))
        return x[:, 1:] if cfg.class_position == "first" else x[:, :-1]

    def logits(self, hidden_bld: jax.Array, at_bl: jax.Array | None = None) -> jax.Array:
        """float32 logits over the head's classes: the codebook, and [MASK] too if trained with `mask_logit`.

        `at_bl`: which positions the states are of, if not all (every position has its own bias).
        """
        cfg = self.cfg
        classes, count = cfg.codebook_size + cfg.mask_logit, hidden_bld.shape[1]
        table = self.tokens.embedding[:classes].astype(cfg.dtype)
        start = 1 if cfg.class_position == "first" else 0
        bias_blv = (
            self.head_bias[start : start + count, :classes][None] if at_bl is None else self.head_bias[start + at_bl, :classes]
        )
        return jnp.einsum("bld,vd->blv", hidden_bld, table).astype(jnp.float32) + bias_blv
