"""What checkpoints record of a generator's network and texts, to be compared when a run is continued."""

from __future__ import annotations

from maskgil_jax.conditioning import Conditioner
from maskgil_jax.config import GeneratorConfig, to_dict


def model_identity(cfg: GeneratorConfig) -> dict:
    """The network's options as checkpoints record them: of options newer than version 0.1.0, those that are not default."""
    added = {"caption_norm": False, "null_text": "random"}
    return {name: value for name, value in to_dict(cfg).items() if name not in added or value != added[name]}


def text_identity(conditioner: Conditioner) -> dict:
    """The text encoder and the captions of a run, as checkpoints record them; empty without texts."""
    encoder = conditioner.metadata().get("text_encoder", {})
    return {"text": {name: encoder.get(name) for name in ("hash", "layer", "template", "texts")}} if encoder else {}
