"""Manifests of code stores, text stores and sampling jobs with one wrong entry: the store is read as before, or refused
by a `ValueError` of one line that names the file and the entry.
"""

import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.mutate import DELETE, changed, damaged, replaced
from helpers.toy_codes import encode
from hypothesis import given
from hypothesis import strategies as st

from maskgil_jax.data.code_store import CodeStore
from maskgil_jax.data.text_store import TextStore, write_text_store
from maskgil_jax.evaluation.images import open_image_set
from maskgil_jax.files.atomic import write_json
from maskgil_jax.files.sample_formats import FORMATS, MANIFEST, part_files, read_manifest, read_samples, write_part

ABOUT = {"path": "toy", "name": "toy", "padding": "right", "hash": "0"}
TEXTS = {f"{i}.png#0": "word " * i for i in range(7)}


def toy_encoder(texts):
    count = np.array([min(len(text.split()), 4) for text in texts])
    return SimpleNamespace(features_btd=np.ones((len(texts), 4, 3), np.float32), mask_bt=np.arange(4) < count[:, None])


def write_job(folder: pathlib.Path, files: str) -> None:
    """The folder of a finished job of five images."""
    manifest = {"format": "maskgil samples 1", "files": files, "num": 5, "labels": [[0, 2], [1, 3]], "seed": 0, "part_size": 2}
    manifest |= {"canvas": [4, 4], "part_size": 2 if files in ("npz", "array_record") else 1}
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    (folder / "parts").mkdir(parents=True)
    for name, rows in part_files(manifest).items():
        write_part(folder / name, images[rows], np.array([0, 0, 1, 1, 1])[rows])
    if files == "npz":
        np.savez(folder / "samples.npz", images, np.array([0, 0, 1, 1, 1]))
    shutil.rmtree(folder / "parts")
    write_json(folder / MANIFEST, manifest)


def read_code_store(folder) -> list:
    store = CodeStore(folder)
    store.verify()
    return [(record["codes"].tolist(), record["label"], record["id"]) for record in store]


def read_text_store(folder) -> list:
    store = TextStore(folder)
    return [store[name][1].sum() for name in store.ids]


def read_job(folder) -> list:
    read_manifest(folder)
    images = open_image_set(folder)
    found = np.concatenate(list(images.batches(2)))
    if images.labels is not None:
        images.labels()
    return [read_samples(folder).tolist(), found.tolist()]


KINDS: dict[str, tuple[Callable, str, Callable]] = {
    "codes": (lambda folder: encode(folder, flip=True), "manifest.json", read_code_store),
    "texts": (
        lambda folder: write_text_store(TEXTS, folder, toy_encoder, about=ABOUT, shard_size=3),
        "manifest.json",
        read_text_store,
    ),
    **{f"job {files}": (lambda folder, files=files: write_job(folder, files), MANIFEST, read_job) for files in FORMATS},
}


@pytest.fixture(scope="module", params=KINDS)
def store(request, tmp_path_factory) -> tuple[str, pathlib.Path, dict, list]:
    """(kind, folder, manifest, what reading it gives)."""
    make, name, read = KINDS[request.param]
    folder = tmp_path_factory.mktemp("store") / "s"
    make(folder)
    return request.param, folder, json.loads((folder / name).read_text()), read(folder)


@contextmanager
def with_manifest(store, text: str | bytes) -> Iterator[pathlib.Path]:
    """A copy of the store with this manifest."""
    kind, folder, _, _ = store
    with tempfile.TemporaryDirectory() as place:
        copy = pathlib.Path(place, "copied")
        shutil.copytree(folder, copy)
        raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        (copy / KINDS[kind][1]).write_bytes(raw)
        yield copy


def read_or_refused(store, folder: pathlib.Path) -> str | None:
    """The refusal, or None if the store was read."""
    kind = store[0]
    try:
        KINDS[kind][2](folder)
    except ValueError as error:
        line = str(error)
        assert line.startswith(f"{folder}"), line
        assert "\n" not in line and line.isprintable() and len(line) < len(str(folder)) + 400, line
        return line.removeprefix(str(folder))
    return None


# Entries that only tell how a store was made: any value that JSON can hold does not change what is read.
FREE = {
    "codes": {"source_fingerprint", "crops", "shard_size", "tokenizer_hash", "source", "content"},
    "texts": {"encoder", "texts", "shard_size"},
    "job": {"canvas", "seed", "labels"},
}


@given(data=st.data())
def test_manifest_with_a_wrong_entry_is_read_or_refused_by_name(store, data):
    manifest, path = data.draw(changed(store[2]))
    check(store, manifest, path)


CASES = [
    ("codes", ("num_images",), True),
    ("codes", ("grid", 0), True),
    ("codes", ("grid",), [10**6, 10**6]),
    ("codes", ("variants",), [1, 2]),
    ("codes", ("variants", 0), "ab"),
    ("codes", ("variants", 0), [0]),
    ("codes", ("class_names", 0), None),
    ("codes", ("class_names",), []),
    ("codes", ("codebook_size",), -1),
    ("codes", ("codebook_size",), 2**63),
    ("codes", ("shards",), []),
    ("codes", ("shards", 0, "records"), -1),
    ("codes", ("shards", 0, "name"), "codes-00001.array_record"),
    ("codes", ("shards", 0, "name"), ".."),
    ("codes", ("shards", 0, "name"), ""),
    ("codes", ("shards", 0, "name"), "a\x00b"),
    ("texts", ("shards", 0), None),
    ("texts", ("shards",), []),
    ("texts", ("shards", 0, "name"), DELETE),
    ("texts", ("shards", 0, "name"), "../s/codes-00000.array_record"),
    ("texts", ("width",), -3),
    ("texts", ("width",), True),
    ("texts", ("max_tokens",), 1),
    ("texts", ("max_tokens",), 2**40),
    ("texts", ("num_texts",), 0),
    ("job png", ("num",), 2**40),
    ("job png", ("num",), 6),
    ("job npz", ("num",), 4),
    ("job array_record", ("num",), 4),
    ("job array_record", ("part_size",), True),
    ("job webp", ("files",), ["webp"]),
    ("job png", ("labels", 0), [0, -1]),
    ("job png", ("labels", 0), [0, 2**62]),
    ("job png", ("labels", 0), ["a", 2]),
    ("job png", (), []),
]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{i} {kind} {path}" for i, (kind, path, _) in enumerate(CASES)])
def test_manifest_entry_found_wrong_before_stays_refused(case, tmp_path):
    kind, path, value = CASES[case]
    make, name, read = KINDS[kind]
    make(tmp_path / "s")
    manifest = json.loads((tmp_path / "s" / name).read_text())
    check((kind, tmp_path / "s", manifest, read(tmp_path / "s")), replaced(manifest, path, value), path)


def check(store, manifest, path) -> None:
    kind = store[0]
    with with_manifest(store, json.dumps(manifest)) as folder:
        refusal = read_or_refused(store, folder)
        if refusal is None:
            if path and path[0] not in FREE[kind.split()[0]] and manifest != store[2]:
                found = KINDS[kind][2](folder)
                assert found == store[3], f"{path} was changed, accepted, and other contents were read"
            return
        keys = [str(key) for key in path if isinstance(key, str)]
        named = [*keys, "format"] if keys else ["format", "JSON", "not"]
        files = [entry["name"] for entry in store[2].get("shards", [])]
        assert any(key in refusal for key in [*named, *files, "shards", "num", "missing"]), (path, refusal)


@given(data=st.data())
def test_damaged_manifest_is_read_or_refused_in_one_line(store, data):
    raw = json.dumps(store[2]).encode()
    with with_manifest(store, data.draw(damaged(raw))) as folder:
        read_or_refused(store, folder)


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "null", '"', "{}", "\ufeff{}", "\ud800", "NaN", "1" * 5000])
def test_text_that_is_no_manifest_is_refused_in_one_line(store, text):
    with with_manifest(store, text) as folder:
        assert read_or_refused(store, folder) is not None


@given(data=st.data())
def test_damaged_shard_is_read_or_refused_in_one_line(store, data):
    _, folder, _, _ = store
    name = data.draw(st.sampled_from(sorted(p.name for p in folder.iterdir() if p.suffix != ".json")))
    with with_manifest(store, json.dumps(store[2])) as copy:
        raw = (copy / name).read_bytes()
        start = data.draw(st.integers(0, max(0, len(raw) - 512)))
        part = data.draw(damaged(raw[start : start + 512], most=3))
        (copy / name).write_bytes(raw[:start] + part + raw[start + 512 :])
        read_or_refused(store, copy)
