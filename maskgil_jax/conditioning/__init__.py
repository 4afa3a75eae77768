"""Requests (labels, prompts) -> conditions: one conditioner for each kind of condition."""

from __future__ import annotations

from typing import Any

from maskgil_jax.conditioning.base import Conditioner
from maskgil_jax.conditioning.classes import ClassConditioner
from maskgil_jax.conditioning.pooled_text import PooledTextConditioner
from maskgil_jax.conditioning.text import TextConditioner

__all__ = ["ClassConditioner", "Conditioner", "PooledTextConditioner", "TextConditioner", "conditioner_of"]


def conditioner_of(cfg: Any, metadata: dict[str, Any]) -> Conditioner:
    """The conditioner of a generator with these options (a `GeneratorConfig`) and this `config.json`."""
    if cfg.condition == "text":
        return TextConditioner(cfg.text_tokens, cfg.text_dim)
    if cfg.condition == "pooled_text":
        return PooledTextConditioner(cfg.text_tokens, cfg.text_dim, cfg.pooled_dim, cfg.micro_values)
    return ClassConditioner(tuple(metadata.get("class_names") or map(str, range(cfg.num_classes))))
