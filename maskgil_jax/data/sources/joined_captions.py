"""Several sources of captioned images as one, each as often as is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskgil_jax.config import require


class JoinedCaptions:
    """The images of `sources`, one source after the other; those of source k come `repeats[k]` times.

    Repeating is how a small set keeps its share beside a large one: an epoch holds each of its images that often.
    """

    def __init__(self, sources: Sequence[Any], repeats: Sequence[int]):
        require(len(sources) == len(repeats) > 0, f"sources: expected one repeat each, got {len(sources)} and {len(repeats)}")
        require(min(repeats) >= 1, f"repeats: must be at least 1, got {tuple(repeats)}")
        self._sources, self._ends = tuple(sources), np.cumsum([len(s) * n for s, n in zip(sources, repeats)])
        self.name = ",".join(f"{s.name}*{n}" if n > 1 else s.name for s, n in zip(sources, repeats))
        for identity in ("fingerprint", "content_hash"):
            if any(hasattr(source, identity) for source in sources):
                parts = [getattr(source, identity, source.name) for source in sources]
                setattr(self, identity, hashlib.sha256("\n".join([self.name, *parts]).encode()).hexdigest()[:16])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _of(self, i: int) -> tuple[Any, int]:
        """(source, number in it) of image `i`."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        part = int(np.searchsorted(self._ends, i, side="right"))
        source = self._sources[part]
        return source, (i - (int(self._ends[part - 1]) if part else 0)) % len(source)

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of image `i`, without reading it."""
        source, number = self._of(i)
        return source.captions(number)

    def __getitem__(self, i: int) -> dict:
        source, number = self._of(i)
        return source[number]
