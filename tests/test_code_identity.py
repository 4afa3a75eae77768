"""Code stores: image sizes, changed images, and one writer at a time."""

import itertools
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from helpers.toy_codes import SETTINGS, damage_manifest, encode, files, toy_encode
from PIL import Image

from maskgil_jax.config import ConfigError
from maskgil_jax.data.code_store import CodeStore, encode_dataset
from maskgil_jax.data.sources.folder import ImageFolder
from maskgil_jax.files.lock import folder_lock


def test_store_of_rectangles_has_both_sides(tmp_path):
    def encode_fn(images_bhwc):
        assert images_bhwc.shape == (4, 16, 24, 3)
        return np.zeros((4, 2, 3), int)

    store = CodeStore(encode(tmp_path / "s", encode_fn, size=(16, 24), grid=(2, 3)))
    assert store.manifest["image_size"] == [16, 24] and store.size == (16, 24) and store[3]["codes"].shape == (1, 2, 3)
    with pytest.raises(ValueError, match=r"grid is \(2, 3\), expected \(2, 2\); its images were encoded at 24 x 16 pixels"):
        store.check(grid=(2, 2))


def test_store_with_one_number_as_image_size_is_a_square(tmp_path):
    """As older versions wrote it: opened, found finished, and continued if it is not."""
    folder = encode(tmp_path / "s")
    damage_manifest(folder, image_size=16)
    assert CodeStore(folder).size == (16, 16)
    old = files(folder)
    encode(folder, lambda images: pytest.fail("encoded again"))
    assert files(folder) == old
    (folder / "manifest.json").rename(folder / "progress.json")
    encode(folder, lambda images: pytest.fail("encoded again"))
    encode(tmp_path / "fresh")
    assert files(folder) == files(tmp_path / "fresh")


@pytest.fixture
def photos(tmp_path):
    """12 PNG files of one class, and a function that encodes them to tmp_path/store: (codes,
    calls of the tokenizer)."""
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "a" / f"{i:02d}.png")

    def encode_photos(out="store"):
        count = itertools.count()
        source = ImageFolder(tmp_path / "photos")
        options = {**SETTINGS, "shard_size": 4}
        encode_dataset(lambda x: (next(count), toy_encode(x))[1], source, tmp_path / out, **options, progress=False)
        return [record["codes"] for record in CodeStore(tmp_path / out)], next(count)

    return tmp_path, encode_photos


def test_shards_of_changed_images_are_encoded_again(photos, caplog):
    folder, encode_photos = photos
    assert encode_photos()[1] == 3 and encode_photos()[1] == 0
    Image.fromarray(np.full((16, 16, 3), 77, np.uint8)).save(folder / "photos" / "a" / "05.png")
    codes, calls = encode_photos()
    assert calls == 1 and "images of 1 of 3 shards have changed; encoding these again" in caplog.text
    np.testing.assert_array_equal(codes, encode_photos("fresh")[0])
    assert files(folder / "store") == files(folder / "fresh")
    os.utime(folder / "photos" / "a" / "05.png")  # another time, the same content
    assert encode_photos()[1] == 0
    (folder / "photos" / "a" / "05.png").rename(folder / "photos" / "a" / "5.png")
    with pytest.raises(ValueError, match=r"files were added, removed or renamed\): source_fingerprint"):
        encode_photos()


def test_store_without_content_hashes_is_kept_with_a_warning(photos, caplog):
    folder, encode_photos = photos
    encode_photos()
    manifest = json.loads((folder / "store" / "manifest.json").read_text())
    shards = [{name: entry[name] for name in ("name", "records", "bytes", "crc32")} for entry in manifest["shards"]]
    damage_manifest(folder / "store", shards=shards)
    assert encode_photos()[1] == 0 and "whether images have changed since is not known" in caplog.text


def test_second_writer_of_a_store_is_refused(tmp_path):
    def encode_fn(images):
        with pytest.raises(ConfigError, match=rf"s: in use by process {os.getpid()} on .*; wait for it to end"):
            encode(tmp_path / "s")
        return toy_encode(images)

    encode(tmp_path / "s", encode_fn)
    assert not (tmp_path / "s" / ".lock").exists()


def test_lock_of_a_killed_process_is_free(tmp_path):
    script = f"""
        import os, signal
        from maskgil_jax.files.lock import folder_lock
        with folder_lock({str(tmp_path)!r}):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)]).returncode == -9
    assert (tmp_path / ".lock").exists()
    with folder_lock(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()
