"""Batch sizes of compiled programs: few of them, so that a call for another number of rows seldom compiles anything.

They are functions of the number of rows alone: what ran before changes no result, not even by rounding.
"""

from __future__ import annotations

SMALL, LARGE = 4, 32  # rows of a batch
FEW = 16  # rows that run in small batches: up to four of them
MAX_BATCH = 64  # rows of a single batch


def batch_size_of(count: int) -> int:
    """Rows of the batches that `count` rows are cut into; the last one is filled up."""
    return SMALL if count <= FEW else LARGE


def one_batch_of(count: int) -> int:
    """Rows of the batch that holds all `count` rows: `SMALL` or the next power of two, at most `MAX_BATCH`."""
    return min(max(SMALL, 1 << (count - 1).bit_length()), MAX_BATCH)
