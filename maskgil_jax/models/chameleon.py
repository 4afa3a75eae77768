"""Chameleon as a causal generator of images: a prompt of token ids, then an image as rows of codes with newline tokens.

Sources: Chameleon (Meta, arXiv 2405.09818), Lumina-mGPT (arXiv 2408.02657), and the published code of both.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskgil_jax.config import ChameleonConfig, ConfigError
from maskgil_jax.models.condition import TokenCondition
from maskgil_jax.models.generator import TransformerGenerator, check_condition, check_inputs
from maskgil_jax.models.int8 import Int8Linear
from maskgil_jax.models.kv_cache import KVCache, attention_mask
from maskgil_jax.models.layers import RMSNorm, apply_layers, dot_product_attention, dropout, embedding, linear, stack_layers
from maskgil_jax.models.rope import angles_1d, rotate
from maskgil_jax.runtime.mesh import constrain_batch, constrain_heads
from maskgil_jax.runtime.rng import fold_keys

FRAME = 3  # tokens between prompt and codes: begin of image, rows, columns


def _kernel(d_in: int, d_out: int, cfg: ChameleonConfig, rngs: nnx.Rngs) -> Any:
    """A linear map of a layer."""
    if cfg.kernels == "int8":
        return Int8Linear(d_in, d_out, dtype=cfg.dtype)
    return linear(d_in, d_out, dtype=cfg.dtype, rngs=rngs)


class HeadNorm(nnx.Module):
    """LayerNorm over the width of a head, with one scale and bias for each group of neighbouring heads."""

    def __init__(self, groups: int, head_dim: int, *, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((groups, head_dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((groups, head_dim), jnp.float32))

    def __call__(self, x_blhk: jax.Array) -> jax.Array:
        wide = x_blhk.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.eps)
        repeats = x_blhk.shape[2] // self.scale.shape[0]
        parts = (part[...].astype(jnp.float32) for part in (self.scale, self.bias))
        scale, bias = (jnp.broadcast_to(jnp.repeat(part, repeats, axis=0), x_blhk.shape) for part in parts)
        return (normed * scale + bias).astype(x_blhk.dtype)


class Attention(nnx.Module):
    """Multi-head attention with QK-Norm before one-dimensional rotary positions."""

    def __init__(self, cfg: ChameleonConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        kv_width = (cfg.kv_heads or cfg.heads) * cfg.head_dim
        self.q = _kernel(cfg.width, cfg.width, cfg, rngs)
        self.k = _kernel(cfg.width, kv_width, cfg, rngs)
        self.v = _kernel(cfg.width, kv_width, cfg, rngs)
        self.o = _kernel(cfg.width, cfg.width, cfg, rngs)
        self.q_norm = HeadNorm(cfg.qk_norm_groups, cfg.head_dim, eps=1e-5)
        self.k_norm = HeadNorm(cfg.k_norm_groups, cfg.head_dim, eps=1e-5)

    def __call__(self, x_bld: jax.Array, rotation, mask, past=None) -> tuple[jax.Array, KVCache | None]:
        """`mask`: bool (b, 1, l, s). `past`: (cache, layer, start) when the sequence goes on at the place `start`."""
        b, l, _ = x_bld.shape
        q, k, v = (y.reshape(b, l, -1, self.cfg.head_dim) for y in (self.q(x_bld), self.k(x_bld), self.v(x_bld)))
        q, k = rotate(self.q_norm(q), *rotation), rotate(self.k_norm(k), *rotation)
        cache = None
        if past is not None:
            cache, layer, start = past
            cache = cache.put(layer, start, k, v)
            k, v = cache.of(layer)
        return self.o(dot_product_attention(q, k, v, mask).reshape(b, l, -1)), cache


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, cfg: ChameleonConfig, *, rngs: nnx.Rngs):
        self.gate = _kernel(cfg.width, cfg.mlp_width, cfg, rngs)
        self.up = _kernel(cfg.width, cfg.mlp_width, cfg, rngs)
        self.down = _kernel(cfg.mlp_width, cfg.width, cfg, rngs)

    def __call__(self, x_bld: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x_bld)) * self.up(x_bld))


class Block(nnx.Module):
    """x + f(norm(x)) for attention and MLP, or with `swin_norm` x + norm(f(x))."""

    def __init__(self, cfg: ChameleonConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.attn, self.mlp = Attention(cfg, rngs=rngs), SwiGLU(cfg, rngs=rngs)
        self.attn_norm = RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
        self.mlp_norm = RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)

    def __call__(self, x_bld: jax.Array, rotation, key_b, mask, past=None) -> tuple[jax.Array, KVCache | None]:
        swin, rate = self.cfg.swin_norm, self.cfg.dropout
        with jax.named_scope("attention"):
            y, cache = self.attn(x_bld if swin else self.attn_norm(x_bld), rotation, mask, past)
            x_bld = x_bld + dropout(self.attn_norm(y) if swin else y, rate, fold_keys(key_b, 0))
        with jax.named_scope("mlp"):
            y = self.mlp(x_bld if swin else self.mlp_norm(x_bld))
            return x_bld + dropout(self.mlp_norm(y) if swin else y, rate, fold_keys(key_b, 1)), cache


class Chameleon(TransformerGenerator):
    """Codes and a `TokenCondition` -> logits of the next code. Newline and frame tokens are fed and never sampled.

    Guidance's unconditional rows have no prompt: they start at the begin of image, with position 0.
    """

    def __init__(self, cfg: ChameleonConfig, *, rngs: nnx.Rngs, stacked: bool = True):
        self.cfg = cfg
        self.tokens = embedding(cfg.vocabulary, cfg.width, rngs=rngs)
        self.layers: Any = stack_layers(lambda r: Block(cfg, rngs=r), rngs, cfg.depth, stacked)
        self.norm = RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
        self.head = linear(cfg.width, cfg.codebook_size, dtype=cfg.dtype, rngs=rngs)  # the image tokens, by id
        if cfg.text_head:
            above = cfg.vocabulary - cfg.first_image_id - cfg.codebook_size
            if cfg.first_image_id:
                self.text_head_low = linear(cfg.width, cfg.first_image_id, dtype=cfg.dtype, rngs=rngs)
            if above:
                self.text_head_high = linear(cfg.width, above, dtype=cfg.dtype, rngs=rngs)

    def null_condition(self, condition: TokenCondition) -> TokenCondition:
        """No prompt: all padding."""
        return TokenCondition(condition.ids_bt, jnp.zeros_like(condition.mask_bt))

    def hidden(self, tokens_bl: jax.Array, condition, *, grid=None, key_b: jax.Array | None = None) -> jax.Array:
        """Final normalised states (b, l, d) that predict the codes.

        `key_b`: one dropout key per image; None: no training.
        """
        grid = tuple(grid or self.cfg.grid)
        check_inputs(self.cfg, tokens_bl, condition, grid)
        ids_bs, visible_bs = self._sequence(condition, tokens_bl[:, :-1], grid)
        code = np.arange(tokens_bl.shape[1])
        before = condition.ids_bt.shape[1] + FRAME - 1 + code + code // grid[1]  # position of the token before each code
        return self.id_states(ids_bs, visible_bs, key_b)[:, before]

    def id_states(self, ids_bs: jax.Array, visible_bs: jax.Array, key_b: jax.Array | None = None) -> jax.Array:
        """Final normalised states (b, s, d) of any token ids; padding, on the left, is not visible."""
        cfg, count = self.cfg, ids_bs.shape[1]
        rotation = self._rotation(visible_bs, jnp.arange(count))
        mask = attention_mask(visible_bs, jnp.arange(count), causal=True)
        x_bsd = apply_layers(
            self.layers,
            self._embedded(ids_bs),
            key_b,
            depth=cfg.depth,
            layers_mode=cfg.layers,
            remat=cfg.remat,
            call=lambda layer, x, key: layer(x, rotation, key, mask)[0],
        )
        return self.norm(x_bsd)

    def logits(self, hidden_bmd: jax.Array, at_bm: jax.Array | None = None) -> jax.Array:
        """float32 logits (b, m, codebook_size) in the order of the codes."""
        logits_bmv = self.head(hidden_bmd).astype(jnp.float32)
        return logits_bmv[..., self._code_ids() - self.cfg.first_image_id] if self.cfg.image_ids else logits_bmv

    def prefill(self, tokens_bn: jax.Array, condition, *, grid=None) -> tuple[jax.Array, KVCache]:
        """The prompt, the frame and the first n codes (n may be 0) -> float32 logits (b, codebook_size)
        of code n, cache."""
        cfg, b = self.cfg, tokens_bn.shape[0]
        grid = tuple(grid or cfg.grid)
        check_condition(cfg, condition, b)
        if tokens_bn.shape[1] >= grid[0] * grid[1]:
            raise ConfigError(f"prefill: {tokens_bn.shape[1]} tokens given, at most {grid[0] * grid[1] - 1} for grid {grid}")
        length = condition.ids_bt.shape[1] + FRAME + grid[0] * (grid[1] + 1)
        ids_bs, visible_bs = self._sequence(condition, tokens_bn, grid)
        x_bsd = self._embedded(ids_bs)
        empty = jnp.zeros((b, cfg.depth, length, cfg.kv_heads or cfg.heads, cfg.head_dim), cfg.dtype)
        empty = constrain_heads(empty, x_bsd)
        visible_bs = jnp.pad(visible_bs, ((0, 0), (0, length - visible_bs.shape[1])), constant_values=True)
        states_bsd, cache = self._extend(x_bsd, KVCache(empty, empty, visible_bs), 0)
        return self.logits(states_bsd[:, -1:])[:, 0], cache

    def step(self, token_b: jax.Array, cache: KVCache, index, *, grid=None) -> tuple[jax.Array, KVCache]:
        """Code `index` of each canvas goes in; float32 logits (b, codebook_size) of code `index + 1`, and the cache.

        A newline is fed with every code. It counts at the end of a row; elsewhere the next step overwrites it. Weights
        are read once either way, which is what a step's time goes to.
        """
        rows, columns = grid or self.cfg.grid
        start = cache.visible_bs.shape[1] - rows * (columns + 1) + index + index // columns
        newline_b = jnp.full_like(token_b, self.cfg.newline)
        ids_b2 = jnp.stack([self._code_ids()[token_b], newline_b], axis=1)
        states_b2d, cache = self._extend(self._embedded(ids_b2), cache, start)
        last = ((index + 1) % columns == 0).astype(jnp.int32)
        return self.logits(jax.lax.dynamic_slice_in_dim(states_b2d, last, 1, axis=1))[:, 0], cache

    def _extend(self, x_bqd: jax.Array, cache: KVCache, start) -> tuple[jax.Array, KVCache]:
        """Runs the q places from `start` on: their final normalised states and the cache."""
        cfg, places_q = self.cfg, start + jnp.arange(x_bqd.shape[1])
        rotation = self._rotation(cache.visible_bs, places_q)
        mask = attention_mask(cache.visible_bs, places_q, causal=True)

        def call(place, carry, _):
            (number, layer), (x, cache) = place, carry
            return layer(constrain_batch(x), rotation, None, mask, (cache, number, start))

        layers: Any = self.layers
        x_bqd, cache = apply_layers(
            list(enumerate(layers)) if isinstance(layers, nnx.List) else (jnp.arange(cfg.depth), layers),
            (x_bqd, cache),
            None,
            depth=cfg.depth,
            layers_mode=cfg.layers,
            remat="none",
            call=call,
        )
        return self.norm(x_bqd), cache

    def _sequence(self, condition: TokenCondition, tokens_bn: jax.Array, grid) -> tuple[jax.Array, jax.Array]:
        """(ids, whether visible), both (b, s): the prompt, the frame, and n codes with the newlines of whole rows."""
        (b, n), columns = tokens_bn.shape, grid[1]
        place = np.arange(n + n // columns)
        code = place - place // (columns + 1)
        newline = place % (columns + 1) == columns
        codes_bn = self._code_ids()[tokens_bn] if n else jnp.zeros((b, 1), jnp.int32)
        image_bp = jnp.where(newline, self.cfg.newline, codes_bn[:, np.where(newline, 0, code)])
        frame_bf = jnp.broadcast_to(jnp.asarray(self.cfg.frame(grid), jnp.int32), (b, FRAME))
        ids_bs = jnp.concatenate([jnp.asarray(condition.ids_bt, jnp.int32), frame_bf, image_bp], axis=1)
        mask_bt = jnp.asarray(condition.mask_bt).astype(bool)
        more = ids_bs.shape[1] - mask_bt.shape[1]
        return ids_bs, jnp.pad(mask_bt, ((0, 0), (0, more)), constant_values=True)

    def _embedded(self, ids_bs: jax.Array) -> jax.Array:
        return self.tokens(ids_bs).astype(self.cfg.dtype)

    def _code_ids(self) -> jax.Array:
        cfg = self.cfg
        first, codes = cfg.first_image_id, cfg.codebook_size
        return jnp.asarray(cfg.image_ids or range(first, first + codes), jnp.int32)

    def _rotation(self, visible_bs: jax.Array, places_q: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(cos, sin), each float32 (b, q, head_dim / 2): positions count the places from the first visible one of the
        row."""
        start_b1 = jnp.sum(~visible_bs, axis=1, keepdims=True)
        position_bq = jnp.maximum(places_q[None] - start_b1, 0)
        angles_sk = angles_1d(visible_bs.shape[1], self.cfg.head_dim, self.cfg.rope_base)
        cos, sin = (jnp.asarray(table.astype(np.float32))[position_bq] for table in (np.cos(angles_sk), np.sin(angles_sk)))
        return cos, sin
