"""Options of the data loader, and image sizes as (height, width)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .base import ConfigError, require


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """How records become batches. The batches are a function of the source, these options and the step.

    batch_size: of the global batch, over all processes. rows: the rows of each global batch that this process loads; None: all.
    num_epochs: None repeats the data without end. Epochs follow one another without a gap, each in its own order.
    drop_remainder: leaves out the records at the very end that do not fill a batch.
    num_workers: worker processes that prepare batches; 0 prepares them in threads of this process.
    """

    batch_size: int
    seed: int = 0
    shuffle: bool = True
    num_epochs: int | None = None
    num_workers: int = 0
    rows: tuple[int, ...] | None = None
    drop_remainder: bool = True

    def __post_init__(self):
        if self.rows is not None:
            object.__setattr__(self, "rows", tuple(self.rows))
        require(self.batch_size >= 1, f"batch_size: must be at least 1, got {self.batch_size}")
        require(0 <= self.seed < 2**32, f"seed: must be in 0..2^32-1, got {self.seed}")
        require(
            self.num_epochs is None or self.num_epochs >= 1,
            f"num_epochs: must be None (no end) or at least 1, got {self.num_epochs}",
        )
        require(self.num_workers >= 0, f"num_workers: must be at least 0, got {self.num_workers}")
        require(
            self.rows is None or (len(self.rows) > 0 and all(0 <= row < self.batch_size for row in self.rows)),
            f"rows: expected some of 0..{self.batch_size - 1}, got {self.rows}",
        )


def height_width(size: int | Sequence[int], name: str = "size") -> tuple[int, int]:
    """`size` as (height, width); one number is a square. Raises a ConfigError naming `name` unless both are at least 1."""
    sides = (size, size) if isinstance(size, int) else size
    valid = isinstance(sides, list | tuple) and len(sides) == 2
    if not valid or not all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in sides):
        raise ConfigError(f"{name}: must be a whole number >= 1, or (height, width), got {size!r}")
    return sides[0], sides[1]
