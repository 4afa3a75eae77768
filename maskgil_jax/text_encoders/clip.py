"""CLIP's text network and image network as functions of their parameters.

Sources: Radford et al. 2021; names and numerics of transformers' `CLIPModel`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from maskgil_jax.config.encoders import CLIPTextConfig, CLIPVisionConfig
from maskgil_jax.runtime.mesh import constrain_batch
from maskgil_jax.text_encoders.folder import Table, refuse_unless
from maskgil_jax.text_encoders.layers import ACTIVATION_NAMES, ACTIVATIONS, attend, causal, layer_norm, linear, split_heads
from maskgil_jax.text_encoders.placement import look_up

TEXT_IGNORED = r"vision_model\..*|visual_projection\.weight|text_projection\.weight|logit_scale|.*\.position_ids"


def _sizes(values: dict, where: str, default: Any) -> dict:
    activation = values.get("hidden_act", default.activation)
    refuse_unless(where, "hidden_act", activation, ACTIVATION_NAMES)
    return dict(
        width=values.get("hidden_size", default.width),
        mlp_width=values.get("intermediate_size", default.mlp_width),
        depth=values.get("num_hidden_layers", default.depth),
        heads=values.get("num_attention_heads", default.heads),
        activation=ACTIVATION_NAMES[activation],
        eps=values.get("layer_norm_eps", default.eps),
    )


def read_text_config(values: dict, where: str) -> CLIPTextConfig:
    """`config.json` of CLIP or of its text network -> sizes of the text network."""
    text, default = values.get("text_config") or values, CLIPTextConfig()
    both = values if "text_config" in values else text
    return CLIPTextConfig(
        vocabulary=text.get("vocab_size", default.vocabulary),
        positions=text.get("max_position_embeddings", default.positions),
        projection=both.get("projection_dim", default.projection),
        end_id=text.get("eos_token_id", default.end_id),
        **_sizes(text, where, default),
    )


def read_vision_config(values: dict, where: str) -> CLIPVisionConfig:
    """`config.json` of CLIP or of its image network -> sizes of the image network."""
    vision, default = values.get("vision_config") or values, CLIPVisionConfig()
    both = values if "vision_config" in values else vision
    return CLIPVisionConfig(
        image_size=vision.get("image_size", default.image_size),
        patch=vision.get("patch_size", default.patch),
        channels=vision.get("num_channels", default.channels),
        projection=both.get("projection_dim", default.projection),
        **_sizes(vision, where, default),
    )


def _layer_names(cfg: CLIPTextConfig | CLIPVisionConfig, model: str) -> Table:
    d, f = cfg.width, cfg.mlp_width
    parts = {
        "attn_norm": ("layer_norm1", (d,)),
        "q": ("self_attn.q_proj", (d, d)),
        "k": ("self_attn.k_proj", (d, d)),
        "v": ("self_attn.v_proj", (d, d)),
        "o": ("self_attn.out_proj", (d, d)),
        "mlp_norm": ("layer_norm2", (d,)),
        "up": ("mlp.fc1", (f, d)),
        "down": ("mlp.fc2", (d, f)),
    }
    names: Table = {}
    for i in range(cfg.depth):
        for part, (name, shape) in parts.items():
            names[f"layers/{i}/{part}/weight"] = (f"{model}.encoder.layers.{i}.{name}.weight", shape)
            names[f"layers/{i}/{part}/bias"] = (f"{model}.encoder.layers.{i}.{name}.bias", shape[:1])
    return names


def text_table(cfg: CLIPTextConfig) -> Table:
    """Parameter of the text network -> (name in the file, shape), without the projection."""
    return {
        "embed/weight": ("text_model.embeddings.token_embedding.weight", (cfg.vocabulary, cfg.width)),
        "positions/weight": ("text_model.embeddings.position_embedding.weight", (cfg.positions, cfg.width)),
        **_layer_names(cfg, "text_model"),
        "norm/weight": ("text_model.final_layer_norm.weight", (cfg.width,)),
        "norm/bias": ("text_model.final_layer_norm.bias", (cfg.width,)),
    }


def vision_table(cfg: CLIPVisionConfig) -> Table:
    """Parameter of the image network -> (name in the file, shape), without the projection."""
    d, embeddings = cfg.width, "vision_model.embeddings"
    return {
        "class_token/weight": (f"{embeddings}.class_embedding", (d,)),
        "patches/weight": (f"{embeddings}.patch_embedding.weight", (d, cfg.channels, cfg.patch, cfg.patch)),
        "positions/weight": (f"{embeddings}.position_embedding.weight", (cfg.tokens, d)),
        "first_norm/weight": ("vision_model.pre_layrnorm.weight", (d,)),
        "first_norm/bias": ("vision_model.pre_layrnorm.bias", (d,)),
        **_layer_names(cfg, "vision_model"),
        "norm/weight": ("vision_model.post_layernorm.weight", (d,)),
        "norm/bias": ("vision_model.post_layernorm.bias", (d,)),
    }


def _layers(layers: list, x_btd: jax.Array, cfg: CLIPTextConfig | CLIPVisionConfig, **visible) -> jax.Array:
    head_width = cfg.width // cfg.heads
    for layer in layers:
        y = layer_norm(layer["attn_norm"], x_btd, cfg.eps)
        q, k, v = (split_heads(linear(layer[name], y), head_width) for name in "qkv")
        x_btd = x_btd + linear(layer["o"], attend(q, k, v, scale=head_width**-0.5, **visible))
        y = layer_norm(layer["mlp_norm"], x_btd, cfg.eps)
        x_btd = x_btd + linear(layer["down"], ACTIVATIONS[cfg.activation](linear(layer["up"], y)))
    return x_btd


def text_apply(params: dict, ids_bt: jax.Array, mask_bt: jax.Array | None, cfg: CLIPTextConfig) -> jax.Array:
    """Text states after the layers that `params` holds, and after the final norm if it holds that.

    mask_bt: None as CLIP was trained: padding after the text is seen by nothing but later padding.
    """
    x = look_up(params["embed"]["weight"], ids_bt)
    x = x + jnp.broadcast_to(params["positions"]["weight"][: ids_bt.shape[1]], x.shape)
    return text_layers(params, x, mask_bt, cfg)


def text_layers(params: dict, x_btd: jax.Array, mask_bt: jax.Array | None, cfg: CLIPTextConfig) -> jax.Array:
    """Text states after the layers of `params`, which may be the last ones,
    and after the final norm if it holds that."""
    x_btd = _layers(params["layers"], x_btd, cfg, keys_bs=mask_bt, visible_ts=causal(x_btd.shape[1]))
    return layer_norm(params["norm"], x_btd, cfg.eps) if "norm" in params else x_btd


def vision_apply(params: dict, pixels_bhwc: jax.Array, cfg: CLIPVisionConfig) -> jax.Array:
    """Image states (b, tokens, width), the class token first, before the final norm."""
    weight_dcij, b, p = params["patches"]["weight"], pixels_bhwc.shape[0], cfg.patch
    side = cfg.image_size // p
    patches = pixels_bhwc.astype(weight_dcij.dtype).reshape(b, side, p, side, p, cfg.channels)
    x = jnp.einsum("byixjc,dcij->byxd", patches, weight_dcij).reshape(b, side * side, cfg.width)
    first = jnp.broadcast_to(params["class_token"]["weight"], (b, 1, cfg.width))
    x = jnp.concatenate([first, x], axis=1)
    x = constrain_batch(x + jnp.broadcast_to(params["positions"]["weight"], x.shape))
    return _layers(params["layers"], layer_norm(params["first_norm"], x, cfg.eps), cfg)
