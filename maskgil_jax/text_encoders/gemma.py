"""Gemma 1 and Gemma 2 as text encoders: the decoder's hidden states, causal attention kept, padding masked.

Sources: the Gemma and Gemma 2 reports (2024); names and numerics of transformers' `GemmaModel` and `Gemma2Model`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maskgil_jax.config import require
from maskgil_jax.config.base import MAX_LAYERS, shown
from maskgil_jax.config.encoders import GemmaConfig
from maskgil_jax.text_encoders.folder import Table, refuse_unless
from maskgil_jax.text_encoders.layers import attend, causal, linear, rms_norm, split_heads
from maskgil_jax.text_encoders.placement import look_up

IGNORED = r"lm_head\.weight|.*rotary_emb\.inv_freq"  # the head is the table again
PREFIXES = ("model.", "")


def read_config(values: dict, where: str) -> GemmaConfig:
    """`config.json` -> sizes. Old files say "gelu" and mean its tanh form."""
    second = values["model_type"] == "gemma2"
    default = GemmaConfig(width=2304, mlp_width=9216, depth=26, heads=8, kv_heads=4) if second else GemmaConfig()
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    activation = values.get("hidden_activation") or values.get("hidden_act") or "gelu_pytorch_tanh"
    refuse_unless(where, "hidden_act", activation, ("gelu_pytorch_tanh", "gelu_new", "gelu"))
    refuse_unless(where, "rope_type", rope.get("rope_type", rope.get("type", "default")), ("default",))
    refuse_unless(where, "attention_bias", values.get("attention_bias") or False, (False,))
    refuse_unless(where, "use_bidirectional_attention", values.get("use_bidirectional_attention") or False, (False,))
    depth, head_width = values.get("num_hidden_layers", default.depth), values.get("head_dim", default.head_width)
    sound = type(depth) is int and 1 <= depth <= MAX_LAYERS
    require(sound, f"{where}: num_hidden_layers is {shown(depth)}, expected a whole number in [1, {MAX_LAYERS}]")
    sliding: tuple[bool, ...] = ()
    if second:
        kinds = values.get("layer_types") or [("sliding_attention", "full_attention")[i % 2] for i in range(depth)]
        for kind in kinds:
            refuse_unless(where, "layer_types", kind, ("sliding_attention", "full_attention"))
        require(len(kinds) == depth, f"{where}: layer_types has {len(kinds)} entries for {depth} layers; fetch the file again")
        sliding = tuple(kind == "sliding_attention" for kind in kinds)
    return GemmaConfig(
        vocabulary=values.get("vocab_size", default.vocabulary),
        width=values.get("hidden_size", default.width),
        mlp_width=values.get("intermediate_size", default.mlp_width),
        depth=depth,
        heads=values.get("num_attention_heads", default.heads),
        kv_heads=values.get("num_key_value_heads", default.kv_heads),
        head_width=head_width,
        eps=values.get("rms_norm_eps", default.eps),
        rope_theta=rope.get("rope_theta") or values.get("rope_theta") or default.rope_theta,
        scores_scale=float(values.get("query_pre_attn_scalar", 256) if second else head_width) ** -0.5,
        soft_cap=values.get("attn_logit_softcapping", 50.0) if second else None,
        window=values.get("sliding_window", 4096) if second else None,
        sliding=sliding,
        four_norms=second,
    )


def table(cfg: GemmaConfig) -> Table:
    """Parameter -> (name in the file without prefix, shape)."""
    d, q, kv, f = cfg.width, cfg.heads * cfg.head_width, cfg.kv_heads * cfg.head_width, cfg.mlp_width
    names: Table = {"embed/weight": ("embed_tokens.weight", (cfg.vocabulary, d))}
    parts = {
        "attn_norm": ("input_layernorm", (d,)),
        "q": ("self_attn.q_proj", (q, d)),
        "k": ("self_attn.k_proj", (kv, d)),
        "v": ("self_attn.v_proj", (kv, d)),
        "o": ("self_attn.o_proj", (d, q)),
        "gate": ("mlp.gate_proj", (f, d)),
        "up": ("mlp.up_proj", (f, d)),
        "down": ("mlp.down_proj", (d, f)),
    }
    if cfg.four_norms:
        parts["attn_out_norm"] = ("post_attention_layernorm", (d,))
        parts["mlp_norm"] = ("pre_feedforward_layernorm", (d,))
        parts["mlp_out_norm"] = ("post_feedforward_layernorm", (d,))
    else:
        parts["mlp_norm"] = ("post_attention_layernorm", (d,))
    for i in range(cfg.depth):
        for part, (name, shape) in parts.items():
            names[f"layers/{i}/{part}/weight"] = (f"layers.{i}.{name}.weight", shape)
    names["norm/weight"] = ("norm.weight", (d,))
    return names


def rotate(x_bthk: jax.Array, theta: float) -> jax.Array:
    """Rotary positions over all of the head: entry i turns with entry i + k/2, positions count from the row's start."""
    t, k = x_bthk.shape[1], x_bthk.shape[3]
    rate_f = theta ** (-jnp.arange(0, k, 2, dtype=jnp.float32) / k)
    angle = (jnp.arange(t, dtype=jnp.float32)[:, None] * rate_f[None, :])[None, :, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x_bthk.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_bthk.dtype)


def apply(params: dict, ids_bt: jax.Array, mask_bt: jax.Array, cfg: GemmaConfig) -> jax.Array:
    """States after the layers that `params` holds, and after the final norm if it holds that."""
    weight = params["embed"]["weight"]
    x = look_up(weight, ids_bt) * jnp.asarray(cfg.width**0.5, weight.dtype)  # the factor is rounded to the weights' dtype
    before = causal(ids_bt.shape[1])
    near = before if cfg.window is None else before & ~jnp.tril(before, -cfg.window)

    def norm(part, x):
        return rms_norm(part, x, cfg.eps, shift=1.0)

    for i, layer in enumerate(params["layers"]):
        y = norm(layer["attn_norm"], x)
        q, k, v = (split_heads(linear(layer[name], y), cfg.head_width) for name in "qkv")
        y = attend(
            rotate(q, cfg.rope_theta),
            rotate(k, cfg.rope_theta),
            v,
            scale=cfg.scores_scale,
            keys_bs=mask_bt,
            visible_ts=near if cfg.sliding and cfg.sliding[i] else before,
            soft_cap=cfg.soft_cap,
        )
        y = linear(layer["o"], y)
        x = x + (norm(layer["attn_out_norm"], y) if cfg.four_norms else y)
        y = norm(layer["mlp_norm"], x)
        y = linear(layer["down"], jax.nn.gelu(linear(layer["gate"], y), approximate=True) * linear(layer["up"], y))
        x = x + (norm(layer["mlp_out_norm"], y) if cfg.four_norms else y)
    return norm(params["norm"], x) if "norm" in params else x
