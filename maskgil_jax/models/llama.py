"""LLaMA over VQ tokens: the bidirectional MaskGIL generator (paper 3.2), or the causal AR model with `causal=True`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from maskgil_jax.config import ConfigError, LlamaConfig
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.models.layers import LayerNorm, RMSNorm, dropout, embedding, fold_keys, linear, walk_layers
from maskgil_jax.models.rope import rotate, rotation_table


def check_inputs(cfg, tokens_bl: jax.Array, condition, grid: tuple[int, int]) -> None:
    """Raises a `ConfigError` unless tokens, condition and grid fit together."""
    if not isinstance(condition, ClassCondition):
        raise ConfigError(f"condition: this generator is class-conditional, got {type(condition).__name__}")
    if tokens_bl.ndim != 2 or tokens_bl.shape[1] != grid[0] * grid[1]:
        raise ConfigError(f"tokens: expected (batch, {grid[0]} * {grid[1]}) for grid {grid}, got shape {tokens_bl.shape}")
    if condition.label_b.shape != tokens_bl.shape[:1]:
        raise ConfigError(f"condition: {condition.label_b.shape} labels for a batch of {tokens_bl.shape[0]} images")


class Attention(nnx.Module):
    """Multi-head attention with rotary positions, optional grouped queries and QK-Norm (before the rotation)."""

    def __init__(self, cfg: LlamaConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        kv_width = (cfg.kv_heads or cfg.heads) * cfg.head_dim
        self.q = linear(cfg.width, cfg.width, dtype=cfg.dtype, rngs=rngs)
        self.k = linear(cfg.width, kv_width, dtype=cfg.dtype, rngs=rngs)
        self.v = linear(cfg.width, kv_width, dtype=cfg.dtype, rngs=rngs)
        self.o = linear(cfg.width, cfg.width, dtype=cfg.dtype, rngs=rngs)
        if cfg.qk_norm != "none":
            norm = LayerNorm if cfg.qk_norm_kind == "layer" else RMSNorm
            per_head = cfg.qk_norm == "per_head"
            self.q_norm = norm(cfg.head_dim if per_head else cfg.width, eps=cfg.norm_eps, rngs=rngs)
            self.k_norm = norm(cfg.head_dim if per_head else kv_width, eps=cfg.norm_eps, rngs=rngs)

    def __call__(self, x_bld: jax.Array, rotation) -> jax.Array:
        b, l, _ = x_bld.shape
        q, k, v = self.q(x_bld), self.k(x_bld), self.v(x_bld)
        if self.cfg.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.reshape(b, l, -1, self.cfg.head_dim) for y in (q, k, v))
        if self.cfg.qk_norm == "per_head":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        return self.o(jax.nn.dot_product_attention(q, k, v, is_causal=self.cfg.causal).reshape(b, l, -1))


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, cfg: LlamaConfig, *, rngs: nnx.Rngs):
        self.gate = linear(cfg.width, cfg.hidden, dtype=cfg.dtype, rngs=rngs)
        self.up = linear(cfg.width, cfg.hidden, dtype=cfg.dtype, rngs=rngs)
        self.down = linear(cfg.hidden, cfg.width, dtype=cfg.dtype, rngs=rngs)

    def __call__(self, x_bld: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x_bld)) * self.up(x_bld))


class Block(nnx.Module):
    """x + f(norm(x)) for attention and MLP; Post-Norm norms f's output, with ("sandwich") or without ("swin") the first."""

    def __init__(self, cfg: LlamaConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.attn, self.mlp = Attention(cfg, rngs=rngs), SwiGLU(cfg, rngs=rngs)
        if cfg.post_norm != "swin":
            self.attn_norm = RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
            self.mlp_norm = RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
        if cfg.post_norm != "none":
            self.attn_post_norm = RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
            self.mlp_post_norm = RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)

    def __call__(self, x_bld: jax.Array, rotation, key_b: jax.Array | None) -> jax.Array:
        y = self.attn(x_bld if self.cfg.post_norm == "swin" else self.attn_norm(x_bld), rotation)
        y = y if self.cfg.post_norm == "none" else self.attn_post_norm(y)
        x_bld = x_bld + dropout(y, self.cfg.dropout, fold_keys(key_b, 0))
        y = self.mlp(x_bld if self.cfg.post_norm == "swin" else self.mlp_norm(x_bld))
        y = y if self.cfg.post_norm == "none" else self.mlp_post_norm(y)
        return x_bld + dropout(y, self.cfg.dropout, fold_keys(key_b, 1))


class Llama(nnx.Module):
    """Tokens and a class -> logits over the codebook.

    Bidirectional: logits at position i see every token. Causal: they see the class and tokens 0..i-1, so the same call
    gives the next-token logits of AR training.
    """

    def __init__(self, cfg: LlamaConfig, *, rngs: nnx.Rngs):
        if cfg.causal and cfg.class_position != "first":
            raise ConfigError("class_position: a causal model needs its class token first")
        self.cfg = cfg
        self.tokens = embedding(cfg.codebook_size + 1, cfg.width, rngs=rngs)  # the last row is [MASK]
        self.classes = embedding(cfg.num_classes + 1, cfg.width, rngs=rngs)  # the last row is the null class
        self.layers = jax.vmap(lambda r: Block(cfg, rngs=r))(rngs.split(cfg.depth))
        self.norm = RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
        self.head = linear(cfg.width, cfg.codebook_size + cfg.mask_logit, dtype=cfg.dtype, rngs=rngs, zero=True)

    def null_condition(self, condition: ClassCondition) -> ClassCondition:
        """The same batch with the learned null class, for classifier-free guidance."""
        return ClassCondition(jnp.full_like(condition.label_b, self.cfg.num_classes))

    def hidden(
        self, tokens_bl: jax.Array, condition: ClassCondition, *, grid=None, key_b: jax.Array | None = None
    ) -> jax.Array:
        """Final normalised states (b, l, d) at the image tokens. `key_b`: one dropout key per image; None outside training."""
        return self.norm(self.last_output(tokens_bl, condition, grid=grid, key_b=key_b))

    def last_output(
        self, tokens_bl: jax.Array, condition: ClassCondition, *, grid=None, key_b: jax.Array | None = None
    ) -> jax.Array:
        """What the last layer gives, before the final norm: `hidden` is `norm` of it. Its size tells how stable training is."""
        cfg = self.cfg
        grid = tuple(grid or cfg.grid)
        check_inputs(cfg, tokens_bl, condition, grid)
        count = tokens_bl.shape[1]
        parts = [self.classes(condition.label_b)[:, None], self.tokens(tokens_bl)]
        x = jnp.concatenate(parts if cfg.class_position == "first" else parts[::-1], axis=1).astype(cfg.dtype)
        rotation = rotation_table(
            grid,
            cfg.head_dim,
            cfg.rope_base,
            positions=cfg.positions,
            prefix=1,
            prefix_rotation=cfg.prefix_rotation,
            class_position=cfg.class_position,
        )
        if cfg.causal:  # the state that predicts token i stands where token i - 1 (or the class) went in
            x, rotation = x[:, :count], (rotation[0][:count], rotation[1][:count])
        x = walk_layers(
            self.layers,
            x,
            key_b,
            depth=cfg.depth,
            layers_mode=cfg.layers,
            remat=cfg.remat,
            call=lambda layer, x, key: layer(x, rotation, key),
        )
        start = 0 if cfg.causal or cfg.class_position == "last" else 1
        return x[:, start : start + count]

    def logits(self, hidden_bld: jax.Array) -> jax.Array:
        """float32 logits over the head's classes: the codebook, and [MASK] too if trained with `mask_logit`."""
        return self.head(hidden_bld).astype(jnp.float32)

    def __call__(
        self, tokens_bl: jax.Array, condition: ClassCondition, *, grid=None, key_b: jax.Array | None = None
    ) -> jax.Array:
        """Logits (b, l, codebook_size), float32, for tokens (b, rows * columns) in raster order; [MASK] = codebook_size."""
        return self.logits(self.hidden(tokens_bl, condition, grid=grid, key_b=key_b))[..., : self.cfg.codebook_size]
