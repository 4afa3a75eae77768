"""The code store: bytes, round trip, resuming, refusals."""

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
from helpers.toy_codes import Pictures, damage_manifest, encode, expected_codes, files, toy_encode

from maskgil_jax.data import code_format
from maskgil_jax.data import transforms as crops
from maskgil_jax.data.code_store import CodeStore


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return CodeStore(encode(tmp_path_factory.mktemp("codes") / "store"))


# ------------------------------------------------------------------------------------------------ round trip
def test_store_round_trip_keeps_codes_labels_and_ids(store):
    assert len(store) == 25 and store.class_names == ("one", "two", "trois é") and store.variants == ((0, 0),)
    for i, record in enumerate(store):
        np.testing.assert_array_equal(record["codes"], expected_codes(i)[None])
        assert record["codes"].dtype == np.int32
        assert (record["label"], record["id"], record["variants"]) == (i % 3, f"ü/{i}.png", [(0, 0)])
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert [entry["records"] for entry in manifest["shards"]] == [10, 10, 5]
    assert (
        manifest["dtype"] == "uint16"
        and manifest["grid"] == [2, 2]
        and manifest["image_size"] == [16, 16]
        and manifest["source"] == "pictures"
    )
    assert sorted(files(store.path)) == [*(f"codes-0000{n}.array_record" for n in range(3)), "manifest.json"]
    store.verify()


def test_record_layout_matches_documentation():
    codes = np.arange(8).reshape(2, 2, 2) * 300
    found = code_format.pack(codes, -3, "é", [[4, 0], [4, 1]], "uint16")
    assert found == struct.pack("<iHH4B2s8H", -3, 2, 2, 4, 0, 4, 1, "é".encode(), *codes.ravel())
    with pytest.raises(ValueError, match="28 bytes, expected 38"):
        code_format.unpack(found[:12] + found[12:28], (2, 3), "uint16")


def test_large_codebook_is_stored_as_uint32(tmp_path):
    size = 262144
    store = CodeStore(encode(tmp_path / "big", lambda images: toy_encode(images, size), codebook_size=size))
    assert store.manifest["dtype"] == "uint32"
    assert max(store[i]["codes"].max() for i in range(25)) > 65535
    np.testing.assert_array_equal(store[7]["codes"][0], expected_codes(7, size))
    assert (code_format.codes_dtype(65536), code_format.codes_dtype(65537)) == ("uint16", "uint32")


@pytest.mark.parametrize(("options", "count"), [({"flip": True}, 2), ({"ten_crop": True}, 10)])
def test_variants_are_crops_and_their_mirror_images(tmp_path, options, count):
    store = CodeStore(encode(tmp_path / "s", **options))
    assert len(store.variants) == count == len(set(store.variants))
    image = Pictures()[11]["image"]
    five = crops.five_crops(image, 16) if count == 10 else crops.adm_center_crop(image, 16)[None]
    for codes, (crop, mirrored) in zip(store[11]["codes"], store.variants, strict=True):
        view = five[crop][:, ::-1] if mirrored else five[crop]
        np.testing.assert_array_equal(codes, toy_encode(np.repeat(view[None], 4, 0))[0])


# ------------------------------------------------------------------------------------------------ interruption
@pytest.mark.parametrize("calls", [1, 4, 6, 7])
def test_interrupted_encoding_resumes_to_the_same_bytes(store, tmp_path, calls):
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


def test_full_disk_keeps_finished_shards(store, tmp_path, monkeypatch):
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


def test_failing_shard_writer_raises_os_error(tmp_path):
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


def test_too_small_disk_raises_before_encoding(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"needs 6\.6 kB, 1\.0 kB are free"):
        encode(tmp_path / "s", lambda images: pytest.fail("encoded"))
    assert not (tmp_path / "s").exists()


def test_killed_encoding_resumes_to_the_same_bytes(store, tmp_path):
    script = f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from helpers import toy_codes
        calls = iter(range(7))
        def dies(images):
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return toy_codes.toy_encode(images)
        toy_codes.encode({str(tmp_path / "s")!r}, dies)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert run.returncode == -9, run
    (tmp_path / "s" / ".codes-00002.array_record.0123abcd.part").write_bytes(b"what the kill left")
    encode(tmp_path / "s")
    assert files(tmp_path / "s") == files(store.path)


def test_finished_store_is_reused_and_damaged_shard_replaced(store, tmp_path):
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
def test_store_with_other_settings_raises_naming_the_setting(store, tmp_path):
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


def test_store_check_names_the_difference(store):
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
def test_codes_of_wrong_shape_or_range_raise(tmp_path, codes, message):
    with pytest.raises(ValueError, match=message):
        encode(tmp_path / "s", lambda images: codes)


def test_damaged_store_raises_naming_the_file(tmp_path):
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
    refused("codebook_size is 'many', expected a whole number")
    damage_manifest(folder, dtype="uint32")
    refused("dtype is 'uint32', expected 'uint16'")
    damage_manifest(folder, shards=[{"name": "../x", "records": 25, "bytes": 1, "crc32": 1}])
    refused("expected a plain file name")
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


def test_codes_outside_the_codebook_raise(tmp_path):
    folder = encode(tmp_path / "s")
    damage_manifest(folder, codebook_size=300)
    with pytest.raises(ValueError, match=r"image \d+ has 1 variants of codes .* expected 1 of 0\.\.299"):
        list(CodeStore(folder))
