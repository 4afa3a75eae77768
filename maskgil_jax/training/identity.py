"""What checkpoints record of a generator's texts, to be compared when a run is continued."""

from __future__ import annotations

from maskgil_jax.conditioning import Conditioner


def text_identity(conditioner: Conditioner) -> dict:
    """The text encoder and the captions of a run, as checkpoints record them; empty without texts."""
    encoder = conditioner.metadata().get("text_encoder", {})
    return {"text": {name: encoder.get(name) for name in ("hash", "layer", "template", "texts")}} if encoder else {}
