"""Code stores of captioned images and of several sizes: records, padded batches, resuming, and the command."""

import json

import numpy as np
import pytest

from maskgil_jax import cli
from maskgil_jax.commands.encode import parse_sizes
from maskgil_jax.config import LoaderConfig
from maskgil_jax.data import code_format
from maskgil_jax.data.buckets import buckets
from maskgil_jax.data.code_store import CodeStore, code_batches, encode_dataset
from maskgil_jax.data.scenes import CANVASES, Scenes

SIZES = list(CANVASES)
OPTIONS = dict(tokenizer_hash="toy", grid=(8, 8), codebook_size=256, size=(64, 64), batch_size=4, shard_size=8, progress=False)


def toy_encode(images_bhwc):
    """The code of an 8x8 patch is the mean of its red channel."""
    b, h, w, _ = images_bhwc.shape
    return images_bhwc[..., 0].reshape(b, h // 8, 8, w // 8, 8).mean((2, 4)).astype(np.int32)


def encoded(out, count=20, **changes):
    return encode_dataset(toy_encode, Scenes(count), out, **{**OPTIONS, "sizes": SIZES, "captions": True, **changes})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_store_holds_codes_captions_and_grid_of_every_image(tmp_path):
    store, source = CodeStore(encoded(tmp_path / "codes")), Scenes(20)
    assert store.captioned and store.sized and set(store.grids) == {(8, 8), (8, 12), (12, 8), (8, 16), (16, 8)}
    assert store.canvas in ((8, 16), (16, 8))
    for i in range(20):
        image = source[i]["image"]
        np.testing.assert_array_equal(store[i]["codes"], toy_encode(image[None]))
        assert store[i]["captions"] == list(source.captions(i)) == store.captions(i) and store[i]["id"] == source[i]["id"]


def test_bytes_do_not_depend_on_batch_size_or_interruption(tmp_path):
    expected = contents(encoded(tmp_path / "a"))
    assert contents(encoded(tmp_path / "b", batch_size=7)) == expected

    calls = iter(range(100))

    def failing(images_bhwc):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return toy_encode(images_bhwc)

    with pytest.raises(KeyboardInterrupt):
        encode_dataset(failing, Scenes(20), tmp_path / "c", **{**OPTIONS, "sizes": SIZES, "captions": True})
    assert (tmp_path / "c" / code_format.PROGRESS).is_file()
    assert contents(encoded(tmp_path / "c")) == expected


def test_batches_are_padded_and_hold_a_caption_of_each_image(tmp_path):
    store = CodeStore(encoded(tmp_path / "codes"))
    batch = next(code_batches(store, LoaderConfig(batch_size=8, seed=0, num_epochs=None)))
    assert batch["codes"].shape == (8, *store.canvas)
    for codes, rows, columns, caption, index in zip(*(batch[n] for n in ("codes", "rows", "columns", "caption", "index"))):
        record = store[int(index)]
        assert record["codes"].shape[1:] == (rows, columns) and caption in record["captions"]
        flat = codes.reshape(-1)
        np.testing.assert_array_equal(flat[: rows * columns], record["codes"][0].reshape(-1))
        assert not flat[rows * columns :].any()


def test_captions_of_an_image_differ_between_epochs(tmp_path):
    store = CodeStore(encoded(tmp_path / "codes", count=4))
    stream = code_batches(store, LoaderConfig(batch_size=4, seed=0, num_epochs=None, shuffle=False))
    assert len({str(next(stream)["caption"][0]) for _ in range(16)}) > 1


def test_one_size_with_captions_is_not_padded(tmp_path):
    store = CodeStore(encoded(tmp_path / "codes", sizes=None))
    batch = next(code_batches(store, LoaderConfig(batch_size=4, seed=0)))
    assert not store.sized and batch["codes"].shape == (4, 8, 8) and "rows" not in batch and len(batch["caption"]) == 4


def test_other_sizes_are_refused(tmp_path):
    encoded(tmp_path / "codes")
    with pytest.raises(ValueError, match=r"sizes is .* there, .* now; give another folder"):
        encoded(tmp_path / "codes", sizes=SIZES[:2])
    with pytest.raises(ValueError, match="sizes: 64x90 are not multiples of the tokenizer's downsampling factor 8"):
        encoded(tmp_path / "other", sizes=[(64, 64), (64, 90)])


def test_record_of_another_grid_is_named(tmp_path):
    folder = encoded(tmp_path / "codes")
    manifest = json.loads((folder / code_format.MANIFEST).read_text())
    manifest["sizes"] = [[64, 64]]
    (folder / code_format.MANIFEST).write_text(json.dumps(manifest))
    store = CodeStore(folder)
    other = next(i for i in range(20) if Scenes(20)[i]["image"].shape[:2] != (64, 64))
    with pytest.raises(ValueError, match=f"image {other} cannot be read .its grid"):
        store[other]


def test_sizes_option_reads_lists_and_buckets():
    assert parse_sizes("64x64,64x96") == [(64, 64), (64, 96)]
    found = parse_sizes("256")
    assert found[0] == (256, 256) and sorted(found) == sorted(buckets(256)) and len(found) == 25


@pytest.mark.slow
def test_command_encodes_captions_in_several_sizes(tmp_path, capsys):
    arguments = ["encode", "--tokenizer", "demo", "--data.path", "scenes:12", "--captions", "--sizes", "64x64,64x128,128x64"]
    assert cli.main([*arguments, "--batch-size", "4", "--out", str(tmp_path / "codes")]) == 0
    store = CodeStore(tmp_path / "codes")
    assert (
        len(store) == 12
        and set(store.grids) == {(8, 8), (8, 16), (16, 8)}
        and store.captions(3) == list(Scenes(12).captions(3))
    )
    assert cli.main([*arguments, "--out", str(tmp_path / "codes"), "--image-size", "64"]) == 2
    assert "--sizes, --image-size: give one of them" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["encode", "--sizes", "64by64", "--tokenizer", "demo", "--data.path", "emoji", "--out", "x"])
    assert "expected HEIGHTxWIDTH,... in pixels" in capsys.readouterr().err
