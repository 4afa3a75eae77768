"""Google's MaskGIT Transformer (Chang et al. 2022): BERT over one table of codes, classes and [MASK].

It shares attention and MLP with `Bert`; the rest differs in six ways (where the norms stand, the input, the head, its
bias, the table, no null class), of which only this combination was ever trained: a network of its own instead of six
options.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from maskgil_jax.config import ConfigError, MaskGITConfig
from maskgil_jax.models.bert import Attention, Mlp
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.models.generator import TransformerGenerator, check_inputs
from maskgil_jax.models.layers import LayerNorm, apply_layers, check_learned_grid, dropout, embedding, linear, stack_layers
from maskgil_jax.runtime.rng import fold_keys

EPS = 1e-12  # of every norm, as published


class Block(nnx.Module):
    """Post-norm residual block: norm(x + f(x)); GELU by its tanh approximation."""

    def __init__(self, cfg: MaskGITConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.attn = Attention(cfg.width, cfg.heads, dtype=cfg.dtype, rngs=rngs)
        self.attn_norm = LayerNorm(cfg.width, eps=EPS, rngs=rngs)
        self.mlp = Mlp(cfg.width, cfg.mlp_width, cfg.width, approximate_gelu=True, dtype=cfg.dtype, rngs=rngs)
        self.mlp_norm = LayerNorm(cfg.width, eps=EPS, rngs=rngs)

    def __call__(self, x_bld: jax.Array, key_b: jax.Array | None) -> jax.Array:
        x_bld = self.attn_norm(x_bld + dropout(self.attn(x_bld), self.cfg.dropout, fold_keys(key_b, 0)))
        return self.mlp_norm(x_bld + dropout(self.mlp(x_bld), self.cfg.dropout, fold_keys(key_b, 1)))


class MaskGIT(TransformerGenerator):
    """Tokens and a class -> logits over the codebook; the same interface as `Llama`, for the training grid only."""

    def __init__(self, cfg: MaskGITConfig, *, rngs: nnx.Rngs, stacked: bool = True):
        self.cfg = cfg
        self.tokens = embedding(cfg.vocabulary, cfg.width, rngs=rngs)  # codes, then classes, then [MASK]
        self.positions = embedding(cfg.grid[0] * cfg.grid[1] + 1, cfg.width, rngs=rngs)  # the class's first
        self.input_norm = LayerNorm(cfg.width, eps=EPS, rngs=rngs)
        self.layers = stack_layers(lambda r: Block(cfg, rngs=r), rngs, cfg.depth, stacked)
        self.last_linear = linear(cfg.width, cfg.width, dtype=cfg.dtype, rngs=rngs, bias=True)
        self.head_norm = LayerNorm(cfg.width, eps=EPS, rngs=rngs)
        # The published network scores its whole table, classes and [MASK] too; only the codes' scores are ever used
        # here.
        self.head_bias = nnx.Param(jnp.zeros((cfg.vocabulary,), jnp.float32))

    def null_condition(self, condition: ClassCondition) -> ClassCondition:
        """Raises ConfigError: there is no null class to guide away from."""
        raise ConfigError(
            "guidance: this MaskGIT has no null class to guide away from; decode with guidance=1 and guidance_ramp='constant'"
        )

    def hidden(
        self, tokens_bl: jax.Array, condition: ClassCondition, *, grid=None, key_b: jax.Array | None = None
    ) -> jax.Array:
        """Final normalised states (b, l, d) at the image tokens.

        `key_b`: one dropout key per image; None outside training.
        """
        cfg = self.cfg
        check_learned_grid(cfg, grid)
        check_inputs(cfg, tokens_bl, condition, cfg.grid)
        rows_bl = jnp.where(tokens_bl == cfg.mask_id, cfg.vocabulary - 1, tokens_bl)
        rows_bl = jnp.concatenate([cfg.codebook_size + condition.label_b[:, None], rows_bl], axis=1)
        x = self.input_norm(self.tokens(rows_bl) + self.positions.embedding[...][None]).astype(cfg.dtype)
        x = dropout(x, cfg.dropout, fold_keys(key_b, cfg.depth))  # the layers take the keys before
        x = apply_layers(
            self.layers,
            x,
            key_b,
            depth=cfg.depth,
            layers_mode=cfg.layers,
            remat=cfg.remat,
            call=lambda layer, x, key: layer(x, key),
        )
        return self.head_norm(jax.nn.gelu(self.last_linear(x[:, 1:]), approximate=True))

    def logits(self, hidden_bld: jax.Array, at_bl: jax.Array | None = None) -> jax.Array:
        """float32 logits (b, l, codebook_size): products with the codes' rows of the table, and a bias per code.

        `at_bl`: which positions the states are of, if not all; every position has the same head here.
        """
        size = self.cfg.codebook_size
        table_vd = self.tokens.embedding[:size].astype(self.cfg.dtype)
        return jnp.einsum("bld,vd->blv", hidden_bld, table_vd).astype(jnp.float32) + self.head_bias[:size][None, None]
