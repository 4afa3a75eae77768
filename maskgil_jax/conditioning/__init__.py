"""Requests (labels, prompts) -> conditions: one conditioner for each kind of condition."""

from __future__ import annotations

import pathlib
from typing import Any

from maskgil_jax.conditioning.base import Conditioner
from maskgil_jax.conditioning.classes import ClassConditioner
from maskgil_jax.conditioning.pooled_text import PooledTextConditioner, beside, pooled_conditioner
from maskgil_jax.conditioning.text import TextConditioner, stored_texts, text_conditioner
from maskgil_jax.config import require

__all__ = ["ClassConditioner", "Conditioner", "PooledTextConditioner", "TextConditioner", "conditioner_of", "stored_texts"]


def conditioner_of(
    cfg: Any, metadata: dict[str, Any], text_encoder: Any = None, folder: pathlib.Path | None = None
) -> Conditioner:
    """The conditioner of a generator with these options (a `GeneratorConfig`) and this `config.json`.

    text_encoder: instead of the encoder that `config.json` names, for a text-conditional generator: a folder or name for
    `load_text_encoder`, or an encoder (`text_encoders.TextEncoder`). folder: of that `config.json`, from which the path of
    an encoder that lies beside it ("../text_encoder") is counted.
    """
    metadata = {**metadata, "text_encoder": beside(metadata.get("text_encoder"), folder)}
    if cfg.condition == "text":
        return text_conditioner(cfg, metadata.get("text_encoder"), text_encoder)
    if cfg.condition == "pooled_text":
        return pooled_conditioner(cfg, metadata, text_encoder)
    require(text_encoder is None, f"text_encoder: this generator is conditioned on a {cfg.condition}, and takes no text")
    return ClassConditioner(tuple(metadata.get("class_names") or map(str, range(cfg.num_classes))))
