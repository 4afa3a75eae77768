"""The mask schedules: one row each.

Decoding plans, training mask ratios and the names that options accept come from here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any


@dataclasses.dataclass(frozen=True)
class Schedule:
    """gamma: (t, array module) -> share of tokens still masked at progress t, 1 at t = 0 and 0 at t = 1 (paper,
    appendix B).

    release_complement: whether the published code trains with the mask ratio 1 - gamma(r) instead of gamma(r). That
    differs where it matters for "square": r^2 (a third masked on average) instead of 1 - r^2 (two thirds).
    """

    gamma: Callable[[Any, ModuleType], Any]
    release_complement: bool = False


SCHEDULES = {
    "root": Schedule(lambda t, xp: 1 - xp.sqrt(t), release_complement=True),
    "linear": Schedule(lambda t, xp: 1 - t, release_complement=True),
    "square": Schedule(lambda t, xp: 1 - t**2, release_complement=True),
    "cosine": Schedule(lambda t, xp: xp.cos(xp.pi / 2 * t)),
    "arccos": Schedule(lambda t, xp: xp.arccos(t) * (2 / math.pi)),
}
