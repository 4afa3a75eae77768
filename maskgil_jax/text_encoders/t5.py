"""The encoder of T5 v1.1 and flan-T5.

Sources: Raffel et al. 2020; Shazeer 2020 (gated GELU); names and numerics of transformers' `T5EncoderModel`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config.encoders import T5Config
from maskgil_jax.text_encoders.folder import Table, refuse_unless
from maskgil_jax.text_encoders.layers import attend, linear, rms_norm, split_heads
from maskgil_jax.text_encoders.placement import look_up

IGNORED = r"decoder\..*|lm_head\.weight"
PREFIXES = ("",)
ALIASES = {"shared.weight": "encoder.embed_tokens.weight"}  # a file holds one of them, or the same table twice


def read_config(values: dict, where: str) -> T5Config:
    """`config.json` -> sizes. The first T5 (with ReLU) is another network."""
    default = T5Config()
    forward = values.get("feed_forward_proj", "relu")
    refuse_unless(where, "feed_forward_proj", forward, ("gated-gelu",))
    return T5Config(
        vocabulary=values.get("vocab_size", default.vocabulary),
        width=values.get("d_model", default.width),
        mlp_width=values.get("d_ff", default.mlp_width),
        depth=values.get("num_layers", default.depth),
        heads=values.get("num_heads", default.heads),
        head_width=values.get("d_kv", default.head_width),
        eps=values.get("layer_norm_epsilon", default.eps),
        buckets=values.get("relative_attention_num_buckets", default.buckets),
        max_distance=values.get("relative_attention_max_distance", default.max_distance),
    )


def table(cfg: T5Config) -> Table:
    """Parameter -> (name in the file, shape)."""
    d, q, f = cfg.width, cfg.heads * cfg.head_width, cfg.mlp_width
    first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    names: Table = {
        "embed/weight": ("shared.weight", (cfg.vocabulary, d)),
        "positions/weight": (first, (cfg.buckets, cfg.heads)),
    }
    parts = {
        "attn_norm": ("layer.0.layer_norm", (d,)),
        "q": ("layer.0.SelfAttention.q", (q, d)),
        "k": ("layer.0.SelfAttention.k", (q, d)),
        "v": ("layer.0.SelfAttention.v", (q, d)),
        "o": ("layer.0.SelfAttention.o", (d, q)),
        "mlp_norm": ("layer.1.layer_norm", (d,)),
        "gate": ("layer.1.DenseReluDense.wi_0", (f, d)),
        "up": ("layer.1.DenseReluDense.wi_1", (f, d)),
        "down": ("layer.1.DenseReluDense.wo", (d, f)),
    }
    for i in range(cfg.depth):
        for part, (name, shape) in parts.items():
            names[f"layers/{i}/{part}/weight"] = (f"encoder.block.{i}.{name}.weight", shape)
    names["norm/weight"] = ("encoder.final_layer_norm.weight", (d,))
    return names


def relative_buckets(length: int, cfg: T5Config) -> np.ndarray:
    """(t, s): the bucket of position s seen from t.

    Half of the buckets is for later positions; of each half, half is for single distances, the rest grows by equal
    ratios up to `max_distance`.
    """
    offset_ts = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = cfg.buckets // 2
    exact = half // 2
    distance_ts = np.abs(offset_ts)
    log_ts = np.log(np.maximum(distance_ts, 1).astype(np.float32) / np.float32(exact))  # float32, since it is truncated
    far_ts = exact + (log_ts / np.float32(np.log(cfg.max_distance / exact)) * np.float32(half - exact)).astype(np.int32)
    return half * (offset_ts > 0) + np.where(distance_ts < exact, distance_ts, np.minimum(far_ts, half - 1))


def apply(params: dict, ids_bt: jax.Array, mask_bt: jax.Array, cfg: T5Config) -> jax.Array:
    """States after the layers that `params` holds, and after the final norm if it holds that."""
    x = look_up(params["embed"]["weight"], ids_bt)
    bias_hts = jnp.transpose(params["positions"]["weight"][relative_buckets(ids_bt.shape[1], cfg)], (2, 0, 1))
    for layer in params["layers"]:
        y = rms_norm(layer["attn_norm"], x, cfg.eps)
        q, k, v = (split_heads(linear(layer[name], y), cfg.head_width) for name in "qkv")
        x = x + linear(layer["o"], attend(q, k, v, scale=1.0, keys_bs=mask_bt, bias_hts=bias_hts))
        y = rms_norm(layer["mlp_norm"], x, cfg.eps)
        x = x + linear(layer["down"], jax.nn.gelu(linear(layer["gate"], y), approximate=True) * linear(layer["up"], y))
    return rms_norm(params["norm"], x, cfg.eps) if "norm" in params else x
