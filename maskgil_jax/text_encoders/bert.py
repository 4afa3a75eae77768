"""BERT and its small relatives (MiniLM) as text encoders: token states without the pooler.

Sources: Devlin et al. 2019; names and numerics of transformers' `BertModel`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maskgil_jax.config.encoders import TextBertConfig
from maskgil_jax.text_encoders.folder import Table, refuse_unless
from maskgil_jax.text_encoders.layers import ACTIVATION_NAMES, ACTIVATIONS, attend, layer_norm, linear, split_heads
from maskgil_jax.text_encoders.placement import look_up

IGNORED = r"(.*\.)?(pooler|cls)\..*|(.*\.)?embeddings\.position_ids"
PREFIXES = ("bert.", "")


def read_config(values: dict, where: str) -> TextBertConfig:
    """`config.json` -> sizes."""
    default = TextBertConfig()
    activation = values.get("hidden_act", default.activation)
    refuse_unless(where, "hidden_act", activation, ACTIVATION_NAMES)
    refuse_unless(where, "position_embedding_type", values.get("position_embedding_type", "absolute"), ("absolute",))
    return TextBertConfig(
        vocabulary=values.get("vocab_size", default.vocabulary),
        positions=values.get("max_position_embeddings", default.positions),
        token_types=values.get("type_vocab_size", default.token_types),
        width=values.get("hidden_size", default.width),
        mlp_width=values.get("intermediate_size", default.mlp_width),
        depth=values.get("num_hidden_layers", default.depth),
        heads=values.get("num_attention_heads", default.heads),
        activation=ACTIVATION_NAMES[activation],
        eps=values.get("layer_norm_eps", default.eps),
    )


def table(cfg: TextBertConfig) -> Table:
    """Parameter -> (name in the file without prefix, shape)."""
    d, f = cfg.width, cfg.mlp_width
    names: Table = {
        "embed/weight": ("embeddings.word_embeddings.weight", (cfg.vocabulary, d)),
        "positions/weight": ("embeddings.position_embeddings.weight", (cfg.positions, d)),
        "types/weight": ("embeddings.token_type_embeddings.weight", (cfg.token_types, d)),
        "embed_norm/weight": ("embeddings.LayerNorm.weight", (d,)),
        "embed_norm/bias": ("embeddings.LayerNorm.bias", (d,)),
    }
    parts = {
        "q": ("attention.self.query", (d, d)),
        "k": ("attention.self.key", (d, d)),
        "v": ("attention.self.value", (d, d)),
        "o": ("attention.output.dense", (d, d)),
        "attn_norm": ("attention.output.LayerNorm", (d,)),
        "up": ("intermediate.dense", (f, d)),
        "down": ("output.dense", (d, f)),
        "mlp_norm": ("output.LayerNorm", (d,)),
    }
    for i in range(cfg.depth):
        for part, (name, shape) in parts.items():
            names[f"layers/{i}/{part}/weight"] = (f"encoder.layer.{i}.{name}.weight", shape)
            names[f"layers/{i}/{part}/bias"] = (f"encoder.layer.{i}.{name}.bias", shape[:1])
    return names


def apply(params: dict, ids_bt: jax.Array, mask_bt: jax.Array, cfg: TextBertConfig) -> jax.Array:
    """States after the layers that `params` holds. All tokens are of type 0."""
    x = look_up(params["embed"]["weight"], ids_bt)
    places_td = params["positions"]["weight"][: ids_bt.shape[1]] + params["types"]["weight"][:1]
    x = layer_norm(params["embed_norm"], x + jnp.broadcast_to(places_td, x.shape), cfg.eps)
    head_width = cfg.width // cfg.heads
    for layer in params["layers"]:
        q, k, v = (split_heads(linear(layer[name], x), head_width) for name in "qkv")
        y = linear(layer["o"], attend(q, k, v, scale=head_width**-0.5, keys_bs=mask_bt))
        x = layer_norm(layer["attn_norm"], x + y, cfg.eps)
        y = linear(layer["down"], ACTIVATIONS[cfg.activation](linear(layer["up"], x)))
        x = layer_norm(layer["mlp_norm"], x + y, cfg.eps)
    return x
