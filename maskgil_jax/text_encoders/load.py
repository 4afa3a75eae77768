"""`load_text_encoder`: a Hugging Face folder -> a frozen text encoder."""

from __future__ import annotations

import os
import pathlib

import jax
import numpy as np
from jax.sharding import Mesh

from maskgil_jax.config.encoders import TextEncoderOptions
from maskgil_jax.text_encoders import bert, clip, gemma, t5
from maskgil_jax.text_encoders.encoder import FrozenTextEncoder, Network
from maskgil_jax.text_encoders.folder import (
    chosen_layers,
    is_used,
    locate,
    network_options,
    read_config,
    read_params,
    stored_tensors,
)
from maskgil_jax.text_encoders.identity import sample_digest
from maskgil_jax.text_encoders.packed import is_packed, packed_shapes, read_packed
from maskgil_jax.text_encoders.placement import putter

SHIPPED_NAME, SHIPPED = "minilm", pathlib.Path(__file__).parent / "minilm"

_GEMMA = Network(gemma.read_config, gemma.table, gemma.apply, gemma.PREFIXES, gemma.IGNORED, norm_is_last=True)
_T5 = Network(t5.read_config, t5.table, t5.apply, t5.PREFIXES, t5.IGNORED, True, tuple(t5.ALIASES.items()))
_CLIP = Network(clip.read_text_config, clip.text_table, clip.text_apply, ("",), clip.TEXT_IGNORED)
_BERT = Network(bert.read_config, bert.table, bert.apply, bert.PREFIXES, bert.IGNORED)
NETWORKS: dict[str, Network] = {  # by `model_type` of config.json
    "gemma": _GEMMA,
    "gemma2": _GEMMA,
    "t5": _T5,
    "clip": _CLIP,
    "clip_text_model": _CLIP,
    "bert": _BERT,
}


def load_text_encoder(
    path,
    *,
    layer: int | None = None,
    max_tokens: int = 128,
    padding: str = "right",
    template: str = "",
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> FrozenTextEncoder:
    """Reads a text encoder from a Hugging Face folder or "hf://owner/repo[@revision]"; `config.json` says which one.

    "minilm" is the encoder that the package brings along: all-MiniLM-L6-v2 with fewer words and 4-bit weights. A local
    folder of that name is "./minilm".

    layer: which of transformers' `hidden_states`; -2 needs neither the last layer nor the final norm, which are not
    read then.
    None: `last_hidden_state`. For CLIP, -1 is before the final norm and None after it.
    max_tokens: positions of the features; longer texts are cut with a warning. CLIP and BERT take at most as many as
    they have.
    padding: "right" or "left". template: stands before every text. dtype: "float32" or "bfloat16".
    mesh: of `make_mesh`; each tensor goes to its devices as it is read. The tokenizer is read at the first text.
    Raises: ConfigError, one line that names the folder and the file, key or tensor.
    """
    options = TextEncoderOptions(layer, max_tokens, padding, template, dtype)
    folder = SHIPPED if os.fspath(path) == SHIPPED_NAME else locate(path)
    values = read_config(folder, NETWORKS)
    kind = values["model_type"]
    network = NETWORKS[kind]
    cfg = network_options(network.read_config, values, folder / "config.json")
    count, norm = chosen_layers(layer, cfg.depth, network.norm_is_last, folder)
    stored = stored_tensors(folder)
    packed = is_packed(values)
    shapes = packed_shapes(folder, stored) if packed else {name: tensor.shape for name, tensor in stored.items()}
    names = network.names_in_file(folder, cfg, shapes)
    names = {parameter: name for parameter, name in names.items() if is_used(parameter, count, norm)}
    put, digests = putter(mesh), {}

    def put_and_digest(parameter: str, value: np.ndarray) -> jax.Array:
        digests[parameter] = sample_digest(value)
        return put(parameter, value)

    params = (read_packed if packed else read_params)(stored, names, dtype, put_and_digest)
    params.setdefault("layers", [])
    return FrozenTextEncoder(kind, network, cfg, params, options, folder, values.get("pad_token_id"), os.fspath(path), digests)
