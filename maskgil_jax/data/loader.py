"""The loader core shared by images and codes: batches as a pure function of (seed, global step).

Batch k is element k of a random-access grain data set, whole: shuffling, augmentation and the split over processes are decided
by (seed, position in the global stream) alone. So a run resumes at any step by asking for it, with another number of workers
or processes, without saving any loader state; and worker processes hand over finished batches, in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import grain
import numpy as np

from maskgil_jax.config import require

THREADS = 4  # that prepare batches ahead in this process, at most 2 of them in a worker process


class _Numbered:
    """The source with each record's number added; grain may ask from worker processes, so it holds nothing else."""

    def __init__(self, source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> dict:
        return {**self._source[i], "index": i}


class _OwnRows:
    """Some rows of every global batch, in the order given."""

    def __init__(self, stream, batch_size: int, rows: Sequence[int]):
        self._stream, self._batch_size, self._rows = stream, batch_size, tuple(rows)

    def __len__(self) -> int:
        return len(self._stream) // self._batch_size * len(self._rows)

    def __getitem__(self, i: int) -> dict:
        step, place = divmod(i, len(self._rows))
        return self._stream[step * self._batch_size + self._rows[place]]


class _Stack:
    """Records -> one batch of the wanted fields, with fixed types."""

    def __init__(self, dtypes: dict):
        self._dtypes = dtypes

    def __call__(self, records: Sequence[dict]) -> dict:
        return {name: np.stack([r[name] for r in records]).astype(dtype, copy=False) for name, dtype in self._dtypes.items()}


def batches(
    source,
    transforms: Sequence,
    dtypes: dict,
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    num_epochs: int | None = None,
    num_workers: int = 0,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
    drop_remainder: bool = True,
    threads: int = THREADS,
) -> grain.DatasetIterator:
    """Iterates over batches {name: array} of the fields in `dtypes`, from global step `start_step` on.

    source: random access, records are dicts; each also gets "index", its number in the source.
    transforms: grain Map / RandomMap of records. batch_size is global. rows: those of each batch that this process wants, for a
    run of several; None: all. dtypes: what to keep of a record, and the types.
    num_epochs: None goes on for ever; epochs follow one another without a break, each in its own order. With `drop_remainder`
    the records left over at the very end are not seen. num_workers: worker processes; 0 prepares batches in threads.
    threads: more than one only helps where records are made outside of Python, as images are.
    Raises a ConfigError for sizes that do not fit together. The iterator has `close()`.
    """
    require(len(source) > 0, f"{getattr(source, 'name', 'data')}: no records")
    require(batch_size >= 1, f"batch_size: must be at least 1, got {batch_size}")
    require(0 <= seed < 2**32, f"seed: must be in 0..2^32-1, got {seed}")
    require(num_epochs is None or num_epochs >= 1, f"num_epochs: must be None (no end) or at least 1, got {num_epochs}")
    require(start_step >= 0, f"start_step: must be at least 0, got {start_step}")
    require(num_workers >= 0, f"num_workers: must be at least 0, got {num_workers}")
    require(
        rows is None or (len(rows) > 0 and all(0 <= row < batch_size for row in rows)),
        f"rows: expected some of 0..{batch_size - 1}, got {rows}",
    )
    total = None if num_epochs is None else len(source) * num_epochs
    if drop_remainder:
        require(
            total is None or batch_size <= total,
            f"batch_size: {batch_size} is more than the {total} records of {getattr(source, 'name', 'the data')} in "
            f"{num_epochs} epoch(s), which leaves no whole batch; use a smaller batch or drop_remainder=False",
        )
    else:
        require(
            total is None or rows is None or total % batch_size == 0,
            f"drop_remainder=False: the last batch of {total} records by {batch_size} has not all rows asked for",
        )

    stream = grain.MapDataset.source(_Numbered(source)).seed(seed)
    if shuffle:
        stream = stream.shuffle()
    stream = stream.repeat(num_epochs)
    for transform in transforms:
        random = isinstance(transform, grain.transforms.RandomMap)
        stream = stream.random_map(transform) if random else stream.map(transform)
    if rows is not None:
        stream = grain.MapDataset.source(_OwnRows(stream, batch_size, rows))
    steps = stream.batch(batch_size if rows is None else len(rows), drop_remainder=drop_remainder, batch_fn=_Stack(dtypes))[
        start_step:
    ]
    return read_ahead(steps, num_workers, threads)


def read_ahead(dataset: grain.MapDataset, num_workers: int, threads: int = THREADS) -> grain.DatasetIterator:
    """Iterates over the elements in order, preparing them ahead in threads or, if `num_workers`, in processes."""
    if not num_workers:
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=THREADS)))
    _parse_absl_flags()
    ahead = grain.ReadOptions(num_threads=min(threads, 2), prefetch_buffer_size=2)
    options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
    return iter(dataset.to_iter_dataset(ahead).mp_prefetch(options))


def _parse_absl_flags() -> None:
    """grain's workers read absl flags, which nobody has parsed unless the program is an absl app."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
