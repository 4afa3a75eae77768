"""Text encoders without values: shapes and options alone, for planning a run on a machine that has no weights."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maskgil_jax.config import ConfigError
from maskgil_jax.config.encoders import TextEncoderOptions
from maskgil_jax.text_encoders.encoder import FrozenTextEncoder
from maskgil_jax.text_encoders.folder import chosen_layers, is_used, nested, network_options, read_config
from maskgil_jax.text_encoders.load import NETWORKS, SHIPPED, SHIPPED_NAME
from maskgil_jax.text_encoders.placement import sharding_of

# Name of a published encoder, as its folder or repository is called -> what its `config.json` says.
PUBLISHED: dict[str, dict[str, Any]] = {
    "gemma-2b": dict(
        model_type="gemma",
        hidden_size=2048,
        intermediate_size=16384,
        num_hidden_layers=18,
        num_attention_heads=8,
        num_key_value_heads=1,
    ),
    "gemma-2-2b": dict(model_type="gemma2"),
    "flan-t5-xl": dict(
        model_type="t5", feed_forward_proj="gated-gelu", d_model=2048, d_ff=5120, num_layers=24, num_heads=32, d_kv=64
    ),
    "clip-vit-large-patch14": dict(
        model_type="clip_text_model",
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
    ),
}


def abstract_text_encoder(
    path,
    *,
    layer: int | None = None,
    max_tokens: int = 128,
    padding: str = "right",
    template: str = "",
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> FrozenTextEncoder:
    """As `load_text_encoder`, but every parameter is a `jax.ShapeDtypeStruct`, with its sharding on the mesh.

    The sizes are those of the folder's `config.json`, which needs no weights beside it, or those of the published
    encoder of that name (`PUBLISHED`). Only `condition` can be called, inside a traced function.
    """
    options = TextEncoderOptions(layer, max_tokens, padding, template, dtype)
    text = os.fspath(path)
    folder = SHIPPED if text == SHIPPED_NAME else pathlib.Path(text)
    name = text.rstrip("/").rpartition("/")[2].partition("@")[0]
    if (folder / "config.json").is_file():
        values = read_config(folder, NETWORKS)
    elif name in PUBLISHED:
        values = PUBLISHED[name]
    else:
        raise ConfigError(f"{text}: no config.json there, and no known encoder is called {name!r} ({', '.join(PUBLISHED)})")
    network = NETWORKS[values["model_type"]]
    cfg = network_options(network.read_config, values, folder / "config.json")
    count, norm = chosen_layers(layer, cfg.depth, network.norm_is_last, folder)
    leaves = {
        parameter: jax.ShapeDtypeStruct(
            shape, jnp.dtype(dtype), sharding=None if mesh is None else sharding_of(parameter, shape, mesh)
        )
        for parameter, (_, shape) in network.table(cfg).items()
        if is_used(parameter, count, norm)
    }
    params = {"layers": []} | nested(leaves)
    return FrozenTextEncoder(values["model_type"], network, cfg, params, options, folder, None, text, {})
