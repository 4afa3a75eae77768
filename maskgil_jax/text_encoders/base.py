"""What every text encoder offers, whoever made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from maskgil_jax.models.condition import TextCondition


class TextEncoder(Protocol):
    """Texts -> features of a fixed number of positions with a mask."""

    @property
    def name(self) -> str:
        """Identifies the network: its kind and sizes."""

    @property
    def about(self) -> dict[str, Any]:
        """What the features depend on, as plain values: path, name, options and "hash"."""

    @property
    def width(self) -> int:
        """Size of a feature vector."""

    @property
    def max_tokens(self) -> int:
        """Number of positions; longer texts are cut."""

    def __call__(self, texts: Sequence[str]) -> TextCondition:
        """Features (b, max_tokens, width) and mask (b, max_tokens) of b texts."""
