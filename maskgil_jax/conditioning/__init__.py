"""Requests (labels, prompts) -> conditions: one conditioner for each kind of condition."""

from __future__ import annotations

from typing import Any

from maskgil_jax.conditioning.base import Conditioner
from maskgil_jax.conditioning.classes import ClassConditioner
from maskgil_jax.conditioning.pooled_text import PooledTextConditioner, beside, pooled_conditioner, pooled_texts
from maskgil_jax.conditioning.text import TextConditioner, online_texts, stored_texts, text_conditioner
from maskgil_jax.conditioning.tokens import TokenConditioner, token_conditioner
from maskgil_jax.config import require

__all__ = [
    "ClassConditioner",
    "Conditioner",
    "PooledTextConditioner",
    "TextConditioner",
    "TokenConditioner",
    "conditioner_of",
    "online_texts",
    "pooled_texts",
    "stored_texts",
]


def conditioner_of(cfg: Any, metadata: dict[str, Any], text_encoder: Any = None, folder: Any = None) -> Conditioner:
    """The conditioner of a generator with these options (a `GeneratorConfig`) and this `config.json`.

    text_encoder: instead of the encoder that `config.json` names, for a text-conditional generator: a folder or name
    for `load_text_encoder`, or an encoder (`text_encoders.TextEncoder`); for one that reads prompts as tokens, the
    folder of `tokenizer.json`. folder: that of the generator's weights, from which the path of an encoder beside it
    ("../text_encoder") is counted.
    """
    metadata = {**metadata, "text_encoder": beside(metadata.get("text_encoder"), folder)}
    if cfg.condition == "text":
        return text_conditioner(cfg, metadata.get("text_encoder"), text_encoder)
    if cfg.condition == "tokens":
        return token_conditioner(cfg, text_encoder or folder)
    if cfg.condition == "pooled_text":
        return pooled_conditioner(cfg, metadata, text_encoder)
    require(text_encoder is None, f"text_encoder: this generator is conditioned on a {cfg.condition}, and takes no text")
    return ClassConditioner(tuple(metadata.get("class_names") or map(str, range(cfg.num_classes))))
