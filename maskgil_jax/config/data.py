"""Options of the data loader, and image sizes as (height, width)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .base import ConfigError, check_ranges, option, require


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """How records become batches. The batches are a function of the source, these options and the step.

    batch_size: of the global batch, over all processes. rows: the rows of each global batch that this process loads;
    None: all.
    num_epochs: None repeats the data without end. Epochs follow one another without a gap, each in its own order.
    drop_remainder: leaves out the records at the very end that do not fill a batch.
    num_workers: worker processes that prepare batches; 0 prepares them in threads of this process.
    """

    batch_size: int
    seed: int = option(0, "seed of the order and of random crops", low=0, high=2**32 - 1)
    shuffle: bool = True
    num_epochs: int | None = None
    num_workers: int = option(0, "processes that prepare batches; 0: threads of this process", low=0)
    rows: tuple[int, ...] | None = option(None, "rows of each global batch that this process loads", low=0)
    drop_remainder: bool = True

    def __post_init__(self):
        if isinstance(self.rows, Sequence) and not isinstance(self.rows, str):
            object.__setattr__(self, "rows", tuple(self.rows))
        check_ranges(self)
        require(
            self.rows is None or (len(self.rows) > 0 and max(self.rows) < self.batch_size),
            f"rows: expected some of 0..{self.batch_size - 1}, got {self.rows}",
        )


def height_width(size: int | Sequence[int], name: str = "size") -> tuple[int, int]:
    """`size` as (height, width); one number is a square.

    Raises a ConfigError naming `name` unless both are at least 1.
    """
    sides = (size, size) if isinstance(size, int) else size
    valid = isinstance(sides, list | tuple) and len(sides) == 2
    if not valid or not all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in sides):
        raise ConfigError(f"{name}: must be a whole number >= 1, or (height, width), got {size!r}")
    return sides[0], sides[1]
