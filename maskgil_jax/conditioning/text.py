"""Prompts -> `TextCondition`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.models.condition import TextCondition


@dataclasses.dataclass(frozen=True)
class TextConditioner:
    """Conditions on the states of a frozen text encoder, `tokens` positions of width `width`.

    encoder: texts -> `TextCondition`; without one only a `TextCondition` can be asked for.
    """

    tokens: int
    width: int
    encoder: Callable[[Sequence[str]], TextCondition] | None = None
    batch_keys = ("text_features", "text_mask")

    def encode(self, requests: str | Sequence[str] | TextCondition) -> TextCondition:
        """Prompts -> their condition. A `TextCondition` is returned as it is."""
        if isinstance(requests, TextCondition):
            return requests
        prompts = [requests] if isinstance(requests, str) else list(requests)
        require(bool(prompts), "prompts: none given")
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise ConfigError(f"prompts: expected text, got {type(prompt).__name__} {prompt!r:.40}")
        if self.encoder is None:
            raise ConfigError("prompts: this generator is conditioned on text, and no text encoder is loaded with it")
        return self.encoder(prompts)

    def from_batch(self, batch: dict) -> TextCondition:
        return TextCondition(batch["text_features"], batch["text_mask"])

    def examples(self, count: int) -> TextCondition:
        if self.encoder is not None:
            return self.encoder([""] * count)
        return TextCondition(np.zeros((count, self.tokens, self.width), np.float32), np.ones((count, self.tokens), bool))

    def network_options(self) -> dict[str, Any]:
        return {"condition": "text", "text_tokens": self.tokens, "text_dim": self.width}

    def metadata(self) -> dict[str, Any]:
        return {}
