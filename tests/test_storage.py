"""Workdirs and weights in a bucket.

The bucket is a stand-in (fsspec's memory, under the name of Google's file system).
"""

import concurrent.futures
import itertools
import json
import sys

import fsspec.registry  # noqa: F401
import jax
import numpy as np
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from helpers.toy_codes import encode, files, toy_encode

from maskgil_jax.checkpoints import train_state as training
from maskgil_jax.checkpoints.weights import load_weights, save_weights
from maskgil_jax.config import ConfigError, VQConfig
from maskgil_jax.data.code_store import CodeStore
from maskgil_jax.files import paths as storage
from maskgil_jax.networks import create, params_of
from maskgil_jax.training.metrics_log import MetricWriter

VQ = VQConfig(channels=4, multipliers=(1, 1), res_blocks=1, latent_dim=4, codebook_size=8, codebook_dim=4, image_size=8)


class Bucket(MemoryFileSystem):
    """Like Google's: names without a leading slash, whole objects only."""

    protocol = ("gcs", "gs")
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return str(path).removeprefix("gs://").strip("/")

    def _open(self, path, mode="rb", **options):
        if "a" in mode:
            raise NotImplementedError("objects cannot be appended to")
        return super()._open(path, mode, **options)


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gcs", Bucket)
    find = storage.importlib.util.find_spec
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name, *rest: name == "gcsfs" or find(name, *rest))
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield Bucket
    backend.fsspec_backend._get_filesystem.cache_clear()


class NoEvents:
    """TensorBoard's own writer talks to Google itself."""

    def __init__(self, folder, **_):
        assert folder == "gs://bucket/run/tensorboard"

    add_scalar = add_image = close = lambda *_, **__: None


def test_metric_writer_writes_lines_and_images_to_bucket(bucket, monkeypatch):
    monkeypatch.setattr("tensorboardX.SummaryWriter", NoEvents)

    def steps():
        lines = bucket.store["bucket/run/metrics.jsonl"].getvalue().decode().splitlines()
        return [json.loads(line)["step"] for line in lines]

    writer = MetricWriter("gs://bucket/run")
    for step in (1, 2, 3):
        writer.write_scalars(step, {"loss": 0.5})
    writer.write_images(3, {"samples": np.zeros((4, 5, 3), np.uint8)})
    assert steps() == [1, 2, 3]
    assert bucket.store["bucket/run/images/samples_0000003.png"].getvalue()[:4] == b"\x89PNG"
    again = MetricWriter("gs://bucket/run", resume_step=2)
    again.write_scalars(4, {"loss": 0.25})
    assert steps() == [1, 2, 4]


@pytest.mark.slow
def test_weights_round_trip_through_bucket(bucket):
    params = params_of(create(VQ, jax.random.key(0)))
    save_weights("gs://bucket/run/weights/tokenizer", VQ, params)
    assert list(bucket.store) == [f"bucket/run/weights/tokenizer/{name}" for name in ("model.safetensors", "config.json")]
    for address in ("gs://bucket/run/weights", "gs://bucket/run/weights/tokenizer"):
        loaded = load_weights(address, "tokenizer")
        assert loaded.cfg == VQ
        jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


def test_code_store_in_bucket_is_copied_once_and_checked(bucket, tmp_path, monkeypatch):
    """Copied once, by one of those who ask, and checked; an interrupted copy is continued."""
    made, fetched, open_object = encode(tmp_path / "made"), [], Bucket._open

    def watched(self, path, mode="rb", **options):
        fetched.extend([path.rpartition("/")[2]] * (mode == "rb" and path.endswith(".array_record")))
        return open_object(self, path, mode, **options)

    storage.upload(made, "gs://bucket/codes")
    monkeypatch.setattr(Bucket, "_open", watched)
    monkeypatch.setenv("MASKGIL_CACHE_DIR", str(tmp_path / "cache"))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = pool.map(CodeStore, ["gs://bucket/codes"] * 2)
    shards = sorted(entry["name"] for entry in first.manifest["shards"])
    assert sorted(fetched) == shards and first.path == second.path
    first.verify()
    for name in (*shards, "manifest.json"):
        assert (first.path / name).read_bytes() == (made / name).read_bytes()

    fetched.clear()
    (first.path / "manifest.json").unlink()
    (first.path / shards[0]).unlink()
    (first.path / shards[1]).write_bytes(b"half")
    np.testing.assert_array_equal(CodeStore("gs://bucket/codes")[24]["codes"], first[24]["codes"])
    assert sorted(fetched) == shards[:2]

    monkeypatch.setenv("MASKGIL_CACHE_DIR", str(tmp_path / "another"))
    (storage.open_folder("gs://bucket/codes") / shards[2]).write_bytes(b"x" * (made / shards[2]).stat().st_size)
    with pytest.raises(ValueError, match=rf"gs://bucket/codes/{shards[2]}: damaged \(checksum differs"):
        CodeStore("gs://bucket/codes")
    with pytest.raises(ValueError, match=r"gs://bucket/none: not a finished code store"):
        CodeStore("gs://bucket/none")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(OSError, match=r"0\.0 kB are free; set MASKGIL_CACHE_DIR"):
        CodeStore("gs://bucket/codes")


def test_codes_are_written_to_a_bucket_and_continued_there(bucket, tmp_path):
    made, folder = encode(tmp_path / "made"), storage.open_folder("gs://bucket/new")
    calls = iter(range(5))

    def stops(images):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return toy_encode(images)

    with pytest.raises(KeyboardInterrupt):
        encode("gs://bucket/new", stops)
    assert sorted(file.name for file in folder.iterdir()) == ["codes-00000.array_record", "progress.json"]
    count = itertools.count()
    encode("gs://bucket/new", lambda images: (next(count), toy_encode(images))[1])
    assert next(count) == 5  # two of three shards
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files(made)
    encode("gs://bucket/new", lambda images: pytest.fail("encoded again"))
    (folder / "codes-00001.array_record").write_bytes(b"short")
    encode("gs://bucket/new")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files(made)


def test_checkpoints_keep_bucket_address(bucket, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "open_manager", lambda folder: seen.append(str(folder)))
    training.Checkpoints("gs://bucket/run", keep=1)
    training.Checkpoints("runs/x", keep=1)
    assert seen[0] == "gs://bucket/run/checkpoints" and seen[1].startswith("/") and seen[1].endswith("/runs/x/checkpoints")


def test_impossible_address_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(ConfigError, match=r'gs://b/run: buckets need an extra: pip install "maskgil_jax\[gcs\]"'):
        MetricWriter("gs://b/run")
    with pytest.raises(ConfigError, match="s3://b/run: expected a local path or gs://"):
        storage.open_folder("s3://b/run")
    with pytest.raises(ConfigError, match=r"gs://b/codes: buckets need an extra: pip install"):
        CodeStore("gs://b/codes")
    assert storage.open_folder(tmp_path) == tmp_path
