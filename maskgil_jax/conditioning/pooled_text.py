"""Texts with a pooled embedding and micro-conditioning -> `PooledTextCondition`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.models.condition import GuidedCondition, PooledTextCondition


@dataclasses.dataclass(frozen=True)
class PooledTextConditioner:
    """Conditions on states (`tokens` x `width`) and the embedding (`pooled`) of a text, and `micro` numbers about the image.

    encoder: texts -> `PooledTextCondition`; without one only a `PooledTextCondition` can be asked for.
    """

    tokens: int
    width: int
    pooled: int
    micro: int = 5
    encoder: Callable[[Sequence[str]], PooledTextCondition] | None = None
    batch_keys, frozen = ("text_features", "text_mask", "text_pooled", "micro"), None

    def encode(self, requests: Any) -> Any:
        """Prompts -> their `PooledTextCondition`. A condition is returned as it is."""
        if isinstance(requests, PooledTextCondition | GuidedCondition):
            return requests
        prompts = [requests] if isinstance(requests, str) else requests
        if not isinstance(prompts, (list, tuple, np.ndarray)) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ConfigError(f"prompts: expected text or a list of texts, got {requests!r:.40}")
        require(len(prompts) > 0, "prompts: none given")
        if self.encoder is None:
            raise ConfigError("prompts: no text encoder is loaded with this generator; give a PooledTextCondition")
        return self.encoder(list(prompts))

    def from_batch(self, batch: dict, frozen: Any = None) -> PooledTextCondition:
        return PooledTextCondition(*(batch[name] for name in self.batch_keys))

    def examples(self, count: int) -> PooledTextCondition:
        if self.encoder is not None:
            return self.encoder([""] * count)
        features = np.zeros((count, self.tokens, self.width), np.float32)
        pooled, micro = (np.zeros((count, size), np.float32) for size in (self.pooled, self.micro))
        return PooledTextCondition(features, np.ones((count, self.tokens), bool), pooled, micro)

    def fixed_parameters(self, cfg: Any) -> dict[str, Any]:
        return {}

    def network_options(self) -> dict[str, Any]:
        sizes = {"text_tokens": self.tokens, "text_dim": self.width, "pooled_dim": self.pooled}
        return sizes | {"micro_values": self.micro}

    def metadata(self) -> dict[str, Any]:
        return {}
