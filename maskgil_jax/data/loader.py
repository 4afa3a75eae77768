"""Batches as a pure function of (seed, global step), for images and for codes.

Batch k is element k of a random-access grain data set. Shuffling, augmentation and the split over processes depend on
(seed, position in the global stream) alone. So a run resumes at any step without saved loader state, with another
number of worker processes or of processes. Worker processes return whole batches, in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import grain
import numpy as np

from maskgil_jax.config import LoaderConfig, require

THREADS = 4  # that prepare batches ahead in this process; a worker process uses at most 2


class _Numbered:
    """The source with each record's number as "index". grain pickles it for worker processes,
    so it holds nothing else."""

    def __init__(self, source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> dict:
        return {**self._source[i], "index": i}


class _SelectRows:
    """Some rows of every global batch, in the order given."""

    def __init__(self, stream, batch_size: int, rows: Sequence[int]):
        self._stream, self._batch_size, self._rows = stream, batch_size, tuple(rows)

    def __len__(self) -> int:
        return len(self._stream) // self._batch_size * len(self._rows)

    def __getitem__(self, i: int) -> dict:
        step, row = divmod(i, len(self._rows))
        return self._stream[step * self._batch_size + self._rows[row]]


class _Stack:
    """Stacks the fields named in `dtypes` of some records to one batch, with fixed types."""

    def __init__(self, dtypes: dict):
        self._dtypes = dtypes

    def __call__(self, records: Sequence[dict]) -> dict:
        return {name: np.stack([r[name] for r in records]).astype(dtype, copy=False) for name, dtype in self._dtypes.items()}


def batches(
    source,
    transforms: Sequence,
    dtypes: dict,
    loader: LoaderConfig,
    *,
    start_step: int = 0,
    threads: int = THREADS,
) -> grain.DatasetIterator:
    """Iterates over batches {name: array} of the fields in `dtypes`, from global step `start_step` on.

    source: random access to records, which are dicts; each also gets "index", its number in the source.
    transforms: grain Map or RandomMap of records. dtypes: the fields to keep of a record, and their types.
    threads: more than one helps only where records are made outside of Python, as decoded images are.
    Raises a ConfigError if the sizes do not fit together. The iterator has `close()`.
    """
    name = getattr(source, "name", "data")
    batch_size, rows = loader.batch_size, loader.rows
    require(len(source) > 0, f"{name}: no records")
    require(start_step >= 0, f"start_step: must be at least 0, got {start_step}")
    total = None if loader.num_epochs is None else len(source) * loader.num_epochs
    if loader.drop_remainder:
        require(
            total is None or batch_size <= total,
            f"batch_size: {batch_size} is more than the {total} records of {name} in {loader.num_epochs} epoch(s), which "
            "leaves no whole batch; use a smaller batch or drop_remainder=False",
        )
    else:
        require(
            total is None or rows is None or total % batch_size == 0,
            f"drop_remainder=False: {total} records in batches of {batch_size} end with a batch that lacks some of the rows "
            "asked for",
        )

    stream = grain.MapDataset.source(_Numbered(source)).seed(loader.seed)
    if loader.shuffle:
        stream = stream.shuffle()
    stream = stream.repeat(loader.num_epochs)
    for transform in transforms:
        random = isinstance(transform, grain.transforms.RandomMap)
        stream = stream.random_map(transform) if random else stream.map(transform)
    if rows is not None:
        stream = grain.MapDataset.source(_SelectRows(stream, batch_size, rows))
    count = batch_size if rows is None else len(rows)
    steps = stream.batch(count, drop_remainder=loader.drop_remainder, batch_fn=_Stack(dtypes))[start_step:]
    return read_ahead(steps, loader.num_workers, threads)


def read_ahead(dataset: grain.MapDataset, num_workers: int, threads: int = THREADS) -> grain.DatasetIterator:
    """Iterates over the elements in order and prepares them ahead: in threads, or in `num_workers` processes."""
    if not num_workers:
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=THREADS)))
    _parse_absl_flags()
    ahead = grain.ReadOptions(num_threads=min(threads, 2), prefetch_buffer_size=2)
    options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
    return iter(dataset.to_iter_dataset(ahead).mp_prefetch(options))


def _parse_absl_flags() -> None:
    """Marks absl flags as parsed: grain's workers read them, and only an absl app parses them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
