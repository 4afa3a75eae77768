"""Batches of codes: variants, and a pure function of (seed, step)."""

import dataclasses
import itertools

import numpy as np
import pytest
from helpers.toy_codes import encode, files

from maskgil_jax.config import LoaderConfig
from maskgil_jax.data.code_store import CodeStore, code_batches


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    return CodeStore(encode(tmp_path_factory.mktemp("codes") / "varied", ten_crop=True))


def test_code_batches_have_fixed_types(varied):
    batch = next(code_batches(varied, LoaderConfig(8, seed=5)))
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == {
        "codes": ((8, 2, 2), "int32"),
        "label": ((8,), "int32"),
        "index": ((8,), "int64"),
    }
    for codes, label, index in zip(batch["codes"], batch["label"], batch["index"], strict=True):
        record = varied[int(index)]
        assert record["label"] == label and any(np.array_equal(codes, v) for v in record["codes"])


def test_variant_is_drawn_again_each_epoch(varied):
    """The variant is drawn by (seed, place in the stream): over epochs an image shows most of its variants."""
    seen = {i: set() for i in range(25)}
    for batch in itertools.islice(code_batches(varied, LoaderConfig(25, seed=1)), 30):
        for codes, index in zip(batch["codes"], batch["index"], strict=True):
            seen[int(index)].add(codes.tobytes())
    distinct = sum(len({codes.tobytes() for codes in record["codes"]}) for record in varied)
    assert sum(map(len, seen.values())) > 0.9 * distinct
    fixed = next(code_batches(varied, LoaderConfig(25, shuffle=False), variant=4))
    np.testing.assert_array_equal(fixed["codes"][3], varied[3]["codes"][4])
    with pytest.raises(ValueError, match=r"variant: 10 is not in 0\.\.9"):
        code_batches(varied, LoaderConfig(25), variant=10)


def test_code_batches_are_a_function_of_seed_and_step(varied):
    loader = LoaderConfig(8, seed=5)
    straight = list(itertools.islice(code_batches(varied, loader), 9))
    for start in (2, 7):
        for a, b in zip(straight[start:], code_batches(varied, loader, start_step=start), strict=False):
            assert all(np.array_equal(a[k], b[k]) for k in a)
    parts = [
        list(itertools.islice(code_batches(varied, dataclasses.replace(loader, rows=(2 * p, 2 * p + 1))), 9)) for p in range(4)
    ]
    for step, batch in enumerate(straight):
        assert all(np.array_equal(batch[k], np.concatenate([part[step][k] for part in parts])) for k in batch)


@pytest.mark.slow
def test_worker_count_does_not_change_codes(varied, tmp_path):
    loader = LoaderConfig(8, seed=5)
    straight = list(itertools.islice(code_batches(varied, loader), 6))
    workers = code_batches(varied, dataclasses.replace(loader, num_workers=2), start_step=1)
    for a, b in zip(straight[1:], itertools.islice(workers, 5), strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a)
    workers.close()
    encode(tmp_path / "worker", num_workers=1)
    encode(tmp_path / "threads")
    assert files(tmp_path / "worker") == files(tmp_path / "threads")
