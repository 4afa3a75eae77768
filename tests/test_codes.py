"""The code store: bytes, round trip, resuming, refusals, batches."""

import errno
import itertools
import json
import os
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from maskgil_jax.data import code_format
from maskgil_jax.data import transforms as crops
from maskgil_jax.data.code_store import CodeStore, code_batches, encode_dataset


class Pictures:
    """25 images of 20 x 16, each filled with codes we can foresee."""

    name, class_names = "pictures", ("one", "two", "trois é")

    def __len__(self):
        return 25

    def __getitem__(self, i):
        image = np.random.default_rng(i).integers(0, 256, (20, 16, 3), np.uint8)
        return {"image": image, "label": i % 3, "id": f"ü/{i}.png"}


def toy_encode(images_bhwc, codebook_size=1024):
    """8 x 8 means of the pixels, spread over the codebook: (b, 16, 16, 3) -> (b, 2, 2)."""
    assert images_bhwc.shape == (4, 16, 16, 3) and images_bhwc.dtype == np.uint8
    sums = images_bhwc.astype(np.int64).reshape(4, 2, 8, 2, 8, 3).sum((2, 4, 5))
    return (sums * 7919) % codebook_size


SETTINGS = {
    "tokenizer_hash": "aaaa",
    "grid": (2, 2),
    "codebook_size": 1024,
    "image_size": 16,
    "batch_size": 4,
    "shard_size": 10,
}


def encode(out, encode_fn=toy_encode, **changes):
    return encode_dataset(encode_fn, Pictures(), out, **{**SETTINGS, **changes}, progress=False)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return CodeStore(encode(tmp_path_factory.mktemp("codes") / "store"))


def expected_codes(i, codebook_size=1024):
    image = crops.adm_center_crop(Pictures()[i]["image"], 16)
    return toy_encode(np.repeat(image[None], 4, 0), codebook_size)[0]


# ------------------------------------------------------------------------------------------------ round trip
def test_round_trip(store):
    assert len(store) == 25 and store.class_names == ("one", "two", "trois é") and store.variants == ((0, 0),)
    for i, record in enumerate(store):
        np.testing.assert_array_equal(record["codes"], expected_codes(i)[None])
        assert record["codes"].dtype == np.int32
        assert (record["label"], record["id"], record["variants"]) == (i % 3, f"ü/{i}.png", [(0, 0)])
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert [entry["records"] for entry in manifest["shards"]] == [10, 10, 5]
    assert manifest["dtype"] == "uint16" and manifest["grid"] == [2, 2] and manifest["source"] == "pictures"
    assert sorted(files(store.path)) == [*(f"codes-0000{n}.array_record" for n in range(3)), "manifest.json"]
    store.verify()


def test_record_layout_is_as_documented():
    codes = np.arange(8).reshape(2, 2, 2) * 300
    found = code_format.pack(codes, -3, "é", [[4, 0], [4, 1]], "uint16")
    assert found == struct.pack("<iHH4B2s8H", -3, 2, 2, 4, 0, 4, 1, "é".encode(), *codes.ravel())
    with pytest.raises(ValueError, match="28 bytes, expected 38"):
        code_format.unpack(found[:12] + found[12:28], (2, 3), "uint16")


def test_large_codebooks_take_uint32(tmp_path):
    size = 262144
    store = CodeStore(encode(tmp_path / "big", lambda images: toy_encode(images, size), codebook_size=size))
    assert store.manifest["dtype"] == "uint32"
    assert max(store[i]["codes"].max() for i in range(25)) > 65535
    np.testing.assert_array_equal(store[7]["codes"][0], expected_codes(7, size))
    assert (code_format.codes_dtype(65536), code_format.codes_dtype(65537)) == ("uint16", "uint32")


@pytest.mark.parametrize(("options", "count"), [({"flip": True}, 2), ({"ten_crop": True}, 10)])
def test_variants_are_crops_and_mirror_images(tmp_path, options, count):
    store = CodeStore(encode(tmp_path / "s", **options))
    assert len(store.variants) == count == len(set(store.variants))
    image = Pictures()[11]["image"]
    five = crops.five_crops(image, 16) if count == 10 else crops.adm_center_crop(image, 16)[None]
    for codes, (crop, mirrored) in zip(store[11]["codes"], store.variants, strict=True):
        view = five[crop][:, ::-1] if mirrored else five[crop]
        np.testing.assert_array_equal(codes, toy_encode(np.repeat(view[None], 4, 0))[0])


# ------------------------------------------------------------------------------------------------ interruption
@pytest.mark.parametrize("calls", [1, 4, 6, 7])
def test_an_interrupted_run_resumes_to_the_same_bytes(store, tmp_path, calls):
    """25 images by 4 in shards of 10, 10 and 5: 3 + 3 + 2 calls of the tokenizer."""
    left = iter(range(calls))

    def stops(images):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return toy_encode(images)

    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path / "s", stops)
    with pytest.raises(ValueError, match="an unfinished code store; run the same encode command again"):
        CodeStore(tmp_path / "s")
    done = [name for name in files(tmp_path / "s") if name.startswith("codes")]
    assert len(done) == calls // 3 and not any(name.endswith(".part") for name in files(tmp_path / "s"))
    count = itertools.count()
    encode(tmp_path / "s", lambda images: (next(count), toy_encode(images))[1])
    assert next(count) == 8 - 3 * len(done)  # finished shards are not encoded again
    assert files(tmp_path / "s") == files(store.path)


def test_a_full_disk_keeps_the_finished_shards(store, tmp_path, monkeypatch):
    real, calls = os.replace, []

    def full(source, target):
        calls.append(target)
        if "codes-00001" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device.*1 of 3 shards are finished"):
        encode(tmp_path / "s")
    assert sorted(files(tmp_path / "s")) == ["codes-00000.array_record", "progress.json"]
    monkeypatch.setattr(os, "replace", real)
    encode(tmp_path / "s")
    assert files(tmp_path / "s") == files(store.path)


def test_the_writer_failing_is_an_os_error(tmp_path):
    """A real short write: the process may not make files above 300 bytes."""
    script = f"""
        import resource
        from pathlib import Path
        from maskgil_jax.data import code_format
        folder = Path({str(tmp_path)!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))
        try:
            code_format.write_shard(folder / "x.array_record", [bytes([i]) * 5000 for i in range(40)])
        except OSError as error:
            print("OSError", error, list(folder.iterdir()))
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert run.stdout.startswith("OSError") and "too large" in run.stdout and run.stdout.endswith("[]\n"), run


def test_a_disk_that_is_too_small_is_refused_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"needs 6\.6 kB, 1\.0 kB are free"):
        encode(tmp_path / "s", lambda images: pytest.fail("encoded"))
    assert not (tmp_path / "s").exists()


def test_a_killed_run_resumes(store, tmp_path):
    script = f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import test_codes
        calls = iter(range(7))
        def dies(images):
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return test_codes.toy_encode(images)
        test_codes.encode({str(tmp_path / "s")!r}, dies)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert run.returncode == -9, run
    (tmp_path / "s" / ".codes-00002.array_record.0123abcd.part").write_bytes(b"what the kill left")
    encode(tmp_path / "s")
    assert files(tmp_path / "s") == files(store.path)


def test_a_finished_store_is_reused_and_repaired(store, tmp_path):
    encode(tmp_path / "s")
    encode(tmp_path / "s", lambda images: pytest.fail("encoded again"))
    shard = tmp_path / "s" / "codes-00001.array_record"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"codes-00001\.array_record: damaged"):
        CodeStore(tmp_path / "s").verify()
    encode(tmp_path / "s")
    assert files(tmp_path / "s") == files(store.path)


# ------------------------------------------------------------------------------------------------ refusals
def test_another_tokenizers_store_is_refused_by_name(store, tmp_path):
    with pytest.raises(ValueError, match="another tokenizer: tokenizer_hash is 'aaaa' there, 'bbbb' now"):
        encode(store.path, tokenizer_hash="bbbb")
    with pytest.raises(ValueError, match="other settings: crops is 'center' there, 'ten_crop' now"):
        encode(store.path, ten_crop=True)
    with pytest.raises(ZeroDivisionError):
        encode(tmp_path / "s", lambda images: 1 // 0)
    with pytest.raises(ValueError, match="another tokenizer"):  # an unfinished store too
        encode(tmp_path / "s", tokenizer_hash="bbbb")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"photos: not empty \(it has cat.jpg\) and not a code store"):
        encode(tmp_path / "photos")


def test_check_names_the_difference(store):
    store.check(tokenizer_hash="aaaa", grid=(2, 2), codebook_size=1024)
    with pytest.raises(ValueError, match="tokenizer_hash is aaaa, expected bbbb"):
        store.check(tokenizer_hash="bbbb")
    with pytest.raises(ValueError, match=r"grid is \(2, 2\), expected \(16, 16\)"):
        store.check(grid=[16, 16])
    with pytest.raises(ValueError, match="codebook_size is 1024, expected 16384"):
        store.check(codebook_size=16384)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((4, 4), int), r"grid: the tokenizer gave codes of shape \(4, 4\)"),
        (np.full((4, 2, 2), 1024), r"codebook_size: the tokenizer gave codes 1024\.\.1024"),
        (np.zeros((4, 2, 2)), "float64 codes, expected integers"),
    ],
)
def test_wrong_codes_are_refused(tmp_path, codes, message):
    with pytest.raises(ValueError, match=message):
        encode(tmp_path / "s", lambda images: codes)


def damage_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_damaged_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not a code store \(no manifest.json\)"):
        CodeStore(tmp_path)
    folder = encode(tmp_path / "s")
    good = files(folder)

    def refused(message):
        with pytest.raises(ValueError, match=message):
            CodeStore(folder)
        for name, data in good.items():
            (folder / name).write_bytes(data)

    (folder / "manifest.json").write_text("{")
    refused(r"manifest\.json: not a JSON file")
    damage_manifest(folder, format="other")
    refused("format is 'other', expected 'maskgil-codes-1'")
    damage_manifest(folder, codebook_size="many")
    refused("codebook_size is 'many', expected a int")
    damage_manifest(folder, dtype="uint32")
    refused("dtype is 'uint32', expected 'uint16'")
    damage_manifest(folder, shards=[{"name": "../x", "records": 25, "bytes": 1, "crc32": 1}])
    refused("not a plain file name")
    damage_manifest(folder, num_images=26)
    refused("shards hold 25 images, num_images is 26")
    (folder / "codes-00002.array_record").write_bytes(good["codes-00002.array_record"][:-1])
    refused(r"codes-00002\.array_record: \d+ bytes, expected \d+")
    (folder / "codes-00000.array_record").unlink()
    refused(r"codes-00000\.array_record: missing")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"] = manifest["shards"][::-1]
    manifest["shards"][0]["records"] = 6  # sizes fit, counts do not
    manifest["num_images"] = 26
    damage_manifest(folder, **manifest)
    refused("shards hold 25 images, the manifest says 26")


def test_codes_outside_the_codebook_are_refused(tmp_path):
    folder = encode(tmp_path / "s")
    damage_manifest(folder, codebook_size=300)
    with pytest.raises(ValueError, match=r"image \d+ has 1 variants of codes .* expected 1 of 0\.\.299"):
        list(CodeStore(folder))


# ------------------------------------------------------------------------------------------------ batches
@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    return CodeStore(encode(tmp_path_factory.mktemp("codes") / "varied", ten_crop=True))


def test_code_batches(varied):
    batch = next(code_batches(varied, batch_size=8, seed=5))
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == {
        "codes": ((8, 2, 2), "int32"),
        "label": ((8,), "int32"),
        "index": ((8,), "int64"),
    }
    for codes, label, index in zip(batch["codes"], batch["label"], batch["index"], strict=True):
        record = varied[int(index)]
        assert record["label"] == label and any(np.array_equal(codes, v) for v in record["codes"])


def test_each_epoch_picks_variants_anew(varied):
    """The variant is drawn by (seed, place in the stream): over epochs an image shows most of its variants."""
    seen = {i: set() for i in range(25)}
    for batch in itertools.islice(code_batches(varied, batch_size=25, seed=1), 30):
        for codes, index in zip(batch["codes"], batch["index"], strict=True):
            seen[int(index)].add(codes.tobytes())
    distinct = sum(len({codes.tobytes() for codes in record["codes"]}) for record in varied)
    assert sum(map(len, seen.values())) > 0.9 * distinct
    fixed = next(code_batches(varied, batch_size=25, shuffle=False, variant=4))
    np.testing.assert_array_equal(fixed["codes"][3], varied[3]["codes"][4])
    with pytest.raises(ValueError, match=r"variant: 10 is not in 0\.\.9"):
        code_batches(varied, batch_size=25, variant=10)


def test_code_batches_are_a_function_of_seed_and_step(varied):
    options = {"batch_size": 8, "seed": 5}
    straight = list(itertools.islice(code_batches(varied, **options), 9))
    for start in (2, 7):
        for a, b in zip(straight[start:], code_batches(varied, **options, start_step=start), strict=False):
            assert all(np.array_equal(a[k], b[k]) for k in a)
    parts = [list(itertools.islice(code_batches(varied, **options, rows=(2 * p, 2 * p + 1)), 9)) for p in range(4)]
    for step, batch in enumerate(straight):
        assert all(np.array_equal(batch[k], np.concatenate([part[step][k] for part in parts])) for k in batch)


@pytest.mark.slow
def test_workers_change_no_codes(varied, tmp_path, store):
    options = {"batch_size": 8, "seed": 5}
    straight = list(itertools.islice(code_batches(varied, **options), 6))
    workers = code_batches(varied, **options, start_step=1, num_workers=2)
    for a, b in zip(straight[1:], itertools.islice(workers, 5), strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a)
    workers.close()
    encode(tmp_path / "s", num_workers=1)
    assert files(tmp_path / "s") == files(store.path)
