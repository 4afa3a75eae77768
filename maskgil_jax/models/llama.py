"""LLaMA over VQ tokens: the bidirectional MaskGIL generator (paper 3.2), or the causal AR model with `causal=True`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maskgil_jax.config import ConfigError, LlamaConfig
from maskgil_jax.models.condition import (
    ClassCondition,
    SizedCondition,
    TextCondition,
    patch_places,
    patch_tokens,
    token_places,
)
from maskgil_jax.models.experimental.flash_attention import flash_attention
from maskgil_jax.models.generator import TransformerGenerator, check_condition, check_inputs
from maskgil_jax.models.kv_cache import KVCache, attention_mask
from maskgil_jax.models.layers import (
    ATTENTION_OUT,
    ATTENTION_RESIDUAL,
    LayerNorm,
    RMSNorm,
    apply_layers,
    dot_product_attention,
    dropout,
    embedding,
    linear,
    masked_mean,
    padded_attention,
    stack_layers,
)
from maskgil_jax.models.rope import rotate, rotation_at, rotation_table
from maskgil_jax.runtime.platform import platform
from maskgil_jax.runtime.rng import fold_keys


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

    def __call__(self, x_bld: jax.Array, rotation, mask=None, past=None) -> tuple[jax.Array, KVCache | None]:
        """`mask`: bool (b, 1, l, s), what each query looks at; None: everything, or if causal everything before it.

        `past`: (cache, layer, start) when the sequence goes on at position `start`; the written cache comes back.
        """
        b, l, _ = x_bld.shape
        q, k, v = self.q(x_bld), self.k(x_bld), self.v(x_bld)
        if self.cfg.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.reshape(b, l, -1, self.cfg.head_dim) for y in (q, k, v))
        if self.cfg.qk_norm == "per_head":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.cfg.attention == "flash" and past is None and not jax.sharding.get_abstract_mesh().empty:
            q, k, v = (y.reshape(b, l, -1) for y in (q, k, v))
            out = flash_attention(q, k, v, rotation, self.cfg.head_dim, self.cfg.causal)
            return self.o(checkpoint_name(out, ATTENTION_OUT)), None
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        cache = None
        if past is not None:
            cache, layer, start = past
            cache = cache.put(layer, start, k, v)
            k, v = cache.of(layer)
        causal = self.cfg.causal and mask is None
        fused = self.cfg.attention == "cudnn" and platform() == "gpu" and past is None
        out = (padded_attention if fused else dot_product_attention)(q, k, v, mask, causal).reshape(b, l, -1)
        return self.o(checkpoint_name(out, ATTENTION_OUT)), cache


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, cfg: LlamaConfig, *, rngs: nnx.Rngs):
        self.gate = linear(cfg.width, cfg.hidden, dtype=cfg.dtype, rngs=rngs)
        self.up = linear(cfg.width, cfg.hidden, dtype=cfg.dtype, rngs=rngs)
        self.down = linear(cfg.hidden, cfg.width, dtype=cfg.dtype, rngs=rngs)

    def __call__(self, x_bld: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x_bld)) * self.up(x_bld))


class Block(nnx.Module):
    """x + f(norm(x)) for attention and MLP. Post-Norm norms f's output, with ("sandwich") or without the first norm."""

    def __init__(self, cfg: LlamaConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.attn, self.mlp = Attention(cfg, rngs=rngs), SwiGLU(cfg, rngs=rngs)
        if cfg.post_norm != "swin":
            self.attn_norm = RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
            self.mlp_norm = RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
        if cfg.post_norm != "none":
            self.attn_post_norm = RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
            self.mlp_post_norm = RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)

    def __call__(
        self, x_bld: jax.Array, rotation, key_b: jax.Array | None, mask=None, past=None
    ) -> tuple[jax.Array, KVCache | None]:
        with jax.named_scope("attention"):  # names by which profiles and `maskgil plan --top` tell the parts
            y, cache = self.attn(x_bld if self.cfg.post_norm == "swin" else self.attn_norm(x_bld), rotation, mask, past)
            y = y if self.cfg.post_norm == "none" else self.attn_post_norm(y)
            x_bld = checkpoint_name(x_bld + dropout(y, self.cfg.dropout, fold_keys(key_b, 0)), ATTENTION_RESIDUAL)
        with jax.named_scope("mlp"):
            y = self.mlp(x_bld if self.cfg.post_norm == "swin" else self.mlp_norm(x_bld))
            y = y if self.cfg.post_norm == "none" else self.mlp_post_norm(y)
            return x_bld + dropout(y, self.cfg.dropout, fold_keys(key_b, 1)), cache


class Llama(TransformerGenerator):
    """Tokens and a class or a text -> logits over the codebook.

    Bidirectional: logits at position i see every token. Causal: they see the condition and tokens 0..i-1, so the same
    call gives the next-token logits of AR training, and `prefill` and `step` the same numbers one token at a time.
    """

    def __init__(self, cfg: LlamaConfig, *, rngs: nnx.Rngs, stacked: bool = True):
        if cfg.causal and cfg.class_position != "first":
            raise ConfigError("class_position: a causal model needs its class token first")
        self.cfg = cfg
        self.tokens = embedding(cfg.codebook_size + 1, cfg.width // cfg.patch**2, rngs=rngs)  # the last row is [MASK]
        if cfg.condition == "text":
            self.caption_up = linear(cfg.text_dim, cfg.width, dtype=cfg.dtype, rngs=rngs)
            self.caption_down = linear(cfg.width, cfg.width, dtype=cfg.dtype, rngs=rngs)
            null_td = jax.random.normal(rngs.params(), (cfg.text_tokens, cfg.text_dim)) * cfg.text_dim**-0.5
            if cfg.null_text == "encoder":  # zeros until training or a converter sets them to the encoder's output for ""
                null_td, self.caption_null_mask = jnp.zeros_like(null_td), nnx.Param(jnp.zeros(cfg.text_tokens))
            self.caption_null = nnx.Param(null_td)
            if cfg.caption_norm:
                self.caption_norm = RMSNorm(cfg.text_dim, eps=cfg.norm_eps, rngs=rngs)
        else:
            self.classes = embedding(cfg.num_classes + cfg.null_class, cfg.width, rngs=rngs)  # the last row is the null class
        self.layers: Any = stack_layers(lambda r: Block(cfg, rngs=r), rngs, cfg.depth, stacked)
        self.norm = RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
        if cfg.patch > 1:
            self.expand = linear(cfg.width, cfg.patch**2 * cfg.state_width, dtype=cfg.dtype, rngs=rngs)
            self.expand_norm = RMSNorm(cfg.state_width, eps=cfg.norm_eps, rngs=rngs)
        self.head = linear(cfg.state_width, cfg.codebook_size + cfg.mask_logit, dtype=cfg.dtype, rngs=rngs, zero=True)

    def null_condition(self, condition):
        """The same batch without its condition, for classifier-free guidance: the learned null class, or the null text.

        A random null text has the mask of the text it replaces, as in LlamaGen; that of the encoder has its own.
        Neither is trained. Raises: ConfigError for a network without a null class (`LlamaConfig.null_class`).
        """
        if not self.cfg.null_class:
            raise ConfigError("guidance: this network has no null class (null_class=False); decode with guidance=1")
        if isinstance(condition, SizedCondition):
            return condition.replace(condition=self.null_condition(condition.condition))
        if self.cfg.condition == "class":
            return ClassCondition(jnp.full_like(condition.label_b, self.cfg.num_classes))
        null_td = jax.lax.stop_gradient(self.caption_null[...]).astype(condition.features_btd.dtype)
        mask_bt = condition.mask_bt
        if self.cfg.null_text == "encoder":
            mask_t = jax.lax.stop_gradient(self.caption_null_mask[...]) > 0.5
            mask_bt = jnp.broadcast_to(mask_t, mask_bt.shape).astype(mask_bt.dtype)
        return TextCondition(jnp.broadcast_to(null_td, condition.features_btd.shape), mask_bt)

    def prefix(self, condition) -> jax.Array:
        """What stands before the image's tokens (b, p, d): the class's vector, or a text's features through the MLP."""
        if self.cfg.condition == "class":
            return self.classes(condition.label_b)[:, None]
        features_btd = condition.features_btd
        if self.cfg.caption_norm:
            features_btd = self.caption_norm(features_btd)
        return self.caption_down(jax.nn.gelu(self.caption_up(features_btd), approximate=True))

    def hidden(self, tokens_bl: jax.Array, condition, *, grid=None, key_b: jax.Array | None = None) -> jax.Array:
        """Final normalised states (b, l, d) at the image tokens. `key_b`: one dropout key per image, or None."""
        return self.states(self.last_output(tokens_bl, condition, grid=grid, key_b=key_b), condition, grid=grid)

    def states(self, output_bnd: jax.Array, condition=None, *, grid=None) -> jax.Array:
        """`last_output` -> normalised states (b, l, state_width) of single tokens, in raster order per image."""
        output_bnd, patch = self.norm(output_bnd), self.cfg.patch
        if patch == 1:
            return output_bnd
        states_bnd, b = self.expand(output_bnd), len(output_bnd)
        if isinstance(condition, SizedCondition):
            states_bld = states_bnd.reshape(b, -1, self.cfg.state_width)
            place_bl = patch_places(condition, states_bld.shape[1], patch)
            states_bld = jnp.take_along_axis(states_bld, place_bl[..., None], axis=1)
        else:
            rows, columns = (side // patch for side in grid or self.cfg.grid)
            states_bld = (
                states_bnd.reshape(b, rows, columns, patch, patch, -1).swapaxes(2, 3).reshape(b, -1, self.cfg.state_width)
            )
        return self.expand_norm(states_bld)

    def embedded(self, tokens_bl: jax.Array, condition, grid: tuple[int, int]) -> jax.Array:
        """Vectors (b, n, width) of the positions: one for every token, or for every `patch` by `patch` of them."""
        patch, (b, l), (rows, columns) = self.cfg.patch, tokens_bl.shape, grid
        if patch > 1 and isinstance(condition, SizedCondition):
            token_bl = patch_tokens(condition, l, patch).reshape(b, l)
            return self.tokens(jnp.take_along_axis(tokens_bl, token_bl, axis=1)).reshape(b, l // patch**2, -1)
        x_bld = self.tokens(tokens_bl)
        if patch == 1:
            return x_bld
        if rows % patch or columns % patch:
            raise ConfigError(f"grid: sides must be multiples of patch {patch}, got {grid}")
        x_brpcqd = x_bld.reshape(b, rows // patch, patch, columns // patch, patch, -1)
        return x_brpcqd.swapaxes(2, 3).reshape(b, l // patch**2, -1)

    def training_states(self, tokens_bl, condition, *, grid=None, key_b=None) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`hidden`, and the summed norms before the last RMSNorm, whose growth shows instability (Fig. 4c)."""
        output_bnd = self.last_output(tokens_bl, condition, grid=grid, key_b=key_b)
        hidden_bld = self.states(output_bnd, condition, grid=grid)
        norm_bn = jnp.linalg.norm(jax.lax.stop_gradient(output_bnd).astype(jnp.float32), axis=-1)
        counted_bn = jnp.ones_like(norm_bn)
        if isinstance(condition, SizedCondition):  # padding counts nowhere
            counted_bn = counted_bn * self._places(condition, norm_bn.shape[1])[2]
        return hidden_bld, {"output_norm": jnp.sum(norm_bn * counted_bn), "outputs": jnp.sum(counted_bn)}

    def last_output(self, tokens_bl: jax.Array, condition, *, grid=None, key_b: jax.Array | None = None) -> jax.Array:
        """The output of the last layer (b, n, width) at n positions; `states` makes `hidden` of it."""
        cfg = self.cfg
        grid = tuple(grid or cfg.grid)
        check_inputs(cfg, tokens_bl, condition, grid)
        count, first, sized = tokens_bl.shape[1] // cfg.patch**2, cfg.class_position == "first", None
        if isinstance(condition, SizedCondition):
            sized, condition = condition, condition.condition
        prefix, positions = self.prefix(condition), self.embedded(tokens_bl, condition if sized is None else sized, grid)
        if cfg.text_pool == "mean":
            positions = positions + masked_mean(prefix, condition.mask_bt)[:, None]
        parts = [prefix, positions]
        x = jnp.concatenate(parts if first else parts[::-1], axis=1).astype(cfg.dtype)
        rotation, start = self._rotation(grid), cfg.prefix_tokens if first else 0
        if cfg.causal:  # the state that predicts token i stands where token i - 1 (or the end of the prefix) went in
            start, x, rotation = start - 1, x[:, :-1], tuple(table[:-1] for table in rotation)
        visible_bs = _visible(condition, x.shape[1]) if cfg.condition == "text" else None
        if sized is not None:
            rotation, valid_bs = self._rotation_of_sizes(sized, count)
            visible_bs = valid_bs if visible_bs is None else visible_bs & valid_bs
        mask = None if visible_bs is None else attention_mask(visible_bs, jnp.arange(x.shape[1]), cfg.causal)
        x = apply_layers(
            self.layers,
            x,
            key_b,
            depth=cfg.depth,
            layers_mode=cfg.layers,
            remat=cfg.remat,
            call=lambda layer, x, key: layer(x, rotation, key, mask)[0],
        )
        return x[:, start : start + count]

    def logits(self, hidden_bld: jax.Array, at_bl: jax.Array | None = None) -> jax.Array:
        """float32 logits over the head's classes: the codebook, and [MASK] too if trained with `mask_logit`.

        `at_bl`: which positions the states are of, if not all; every position has the same head here.
        """
        return self.head(hidden_bld).astype(jnp.float32)

    def prefill(self, tokens_bn: jax.Array, condition, *, grid=None) -> tuple[jax.Array, KVCache]:
        """Causal only: the condition and the first n tokens of a canvas (0 to all but one) -> what `step` needs.

        Returns logits (b, codebook_size), float32, of token n, and the cache. It has a place for the prefix and every
        token but the last, which nothing follows: `prefix_tokens + rows * columns - 1` positions (`KVCache`).
        """
        cfg, b = self.cfg, tokens_bn.shape[0]
        grid = tuple(grid or cfg.grid)
        check_condition(cfg, condition, b)
        if not cfg.causal:
            raise ConfigError("prefill: this generator is bidirectional; only a causal one writes token by token")
        length = cfg.prefix_tokens + grid[0] * grid[1] - 1
        x = jnp.concatenate([self.prefix(condition), self.tokens(tokens_bn)], axis=1).astype(cfg.dtype)
        if x.shape[1] > length:
            raise ConfigError(f"prefill: {tokens_bn.shape[1]} tokens given, at most {grid[0] * grid[1] - 1} for grid {grid}")
        empty = jnp.zeros((b, cfg.depth, length, cfg.kv_heads or cfg.heads, cfg.head_dim), cfg.dtype)
        visible_bs = _visible(condition, length) if cfg.condition == "text" else jnp.ones((b, length), bool)
        return self._extend(x, KVCache(empty, empty, visible_bs), 0, grid)

    def step(self, token_b: jax.Array, cache: KVCache, index, *, grid=None) -> tuple[jax.Array, KVCache]:
        """Causal only: token `index` of each canvas -> logits (b, codebook_size) of the next token, and the cache."""
        grid = tuple(grid or self.cfg.grid)
        x = self.tokens(token_b)[:, None].astype(self.cfg.dtype)
        return self._extend(x, cache, self.cfg.prefix_tokens + index, grid)

    def _extend(self, x_bqd: jax.Array, cache: KVCache, start, grid: tuple[int, int]) -> tuple[jax.Array, KVCache]:
        """Runs the q positions from `start` on and returns the logits after the last one."""
        cfg, q = self.cfg, x_bqd.shape[1]
        tables = (jnp.asarray(table) for table in self._rotation(grid))
        rotation = tuple(jax.lax.dynamic_slice_in_dim(table, start, q) for table in tables)
        mask = attention_mask(cache.visible_bs, start + jnp.arange(q), causal=True)

        def call(place, carry, _):
            (number, layer), (x, cache) = place, carry
            return layer(x, rotation, None, mask, (cache, number, start))

        layers: Any = self.layers  # stacked, or a list of them (`unstack_layers`)
        x_bqd, cache = apply_layers(
            list(enumerate(layers)) if isinstance(layers, nnx.List) else (jnp.arange(cfg.depth), layers),
            (x_bqd, cache),
            None,
            depth=cfg.depth,
            layers_mode=cfg.layers,
            remat="none",
            call=call,
        )
        return self.logits(self.norm(x_bqd[:, -1:]))[:, 0, : cfg.codebook_size], cache

    def _rotation_of_sizes(self, sized: SizedCondition, count: int) -> tuple[Any, jax.Array]:
        """((cos, sin), visible positions) of the sequence for images of different sizes; the prefix is visible."""
        cfg = self.cfg
        if (cfg.positions, cfg.class_position) != ("2d", "first"):
            raise ConfigError('condition: sizes of single images need positions "2d" and class_position "first"')
        row_bn, column_bn, valid_bn = self._places(sized, count)
        rotation = rotation_at(row_bn, column_bn, cfg.head_dim, cfg.rope_base, cfg.prefix_tokens, cfg.prefix_rotation)
        return rotation, jnp.pad(valid_bn, ((0, 0), (cfg.prefix_tokens, 0)), constant_values=True)

    def _places(self, sized: SizedCondition, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(row, column, whether it is no padding) of every position or, with patches, of every patch: (b, count)."""
        patch = self.cfg.patch
        return token_places(SizedCondition(None, sized.rows_b // patch, sized.columns_b // patch), count)

    def _rotation(self, grid: tuple[int, int]):
        """(cos, sin) of the whole sequence, prefix included."""
        cfg = self.cfg
        (rows, columns), (trained_rows, trained_columns), patch = grid, cfg.grid, cfg.patch
        return rotation_table(
            (rows // patch, columns // patch),
            cfg.head_dim,
            cfg.rope_base,
            positions=cfg.positions,
            prefix=cfg.prefix_tokens,
            prefix_rotation=cfg.prefix_rotation,
            class_position=cfg.class_position,
            trained=(trained_rows // patch, trained_columns // patch),
            scaling=cfg.rope_scaling,
        )


def _visible(condition: TextCondition, length: int) -> jax.Array:
    """Bool (b, length): a text's real tokens and, after it, everything."""
    mask_bt = condition.mask_bt.astype(bool)
    return jnp.pad(mask_bt, ((0, 0), (0, length - mask_bt.shape[1])), constant_values=True)
