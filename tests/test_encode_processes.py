"""Encoding by several processes, also after a kill; random crops; captions into a text store; what is left out."""

import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from helpers.toy_codes import files
from helpers.two_processes import both, free_port
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.data import code_format
from maskgil_jax.data.buckets import crop_to_bucket
from maskgil_jax.data.code_store import CodeStore, encode_dataset
from maskgil_jax.data.scenes import Scenes
from maskgil_jax.data.text_store import TextStore
from maskgil_jax.text_encoders import load_text_encoder

SIZES = [(64, 64), (64, 96), (96, 64), (64, 128), (128, 64)]
OPTIONS = dict(tokenizer_hash="toy", grid=(8, 8), codebook_size=256, size=(64, 64), batch_size=4, shard_size=4, progress=False)


def toy_encode(images_bhwc):
    b, h, w, _ = images_bhwc.shape
    return images_bhwc[..., 0].reshape(b, h // 8, 8, w // 8, 8).mean((2, 4)).astype(np.int32)


def encode_scenes(out, encode_fn=toy_encode, **changes):
    return encode_dataset(encode_fn, Scenes(22), out, **{**OPTIONS, "sizes": SIZES, "captions": True, **changes})


PROGRAM = f"""
    import os, signal, sys
    sys.path.insert(0, {os.path.dirname(__file__)!r})
    from maskgil_jax.runtime import distributed
    out, port, process, dies = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    distributed.initialize(f"127.0.0.1:{{port}}", 2, process, heartbeat_timeout_seconds=3)
    import jax
    assert jax.process_count() == 2 and jax.local_device_count() == 4
    import test_encode_processes as here
    calls = [0]
    def encode_fn(images):
        calls[0] += 1
        if dies and calls[0] > dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return here.toy_encode(images)
    here.encode_scenes(out, encode_fn)
    print("calls", calls[0])
"""


def two(out, dies=(0, 0)):
    """Two processes that encode to `out`, of which the second is killed in its call number `dies`: their exit codes."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    port, program = str(free_port()), textwrap.dedent(PROGRAM)
    runs = [
        subprocess.Popen([sys.executable, "-c", program, str(out), port, str(i), str(dies[i])], env=env, stderr=subprocess.PIPE)
        for i in range(2)
    ]
    try:
        errors = [run.communicate(timeout=200)[1].decode()[-2000:] for run in runs]
    finally:
        for run in runs:
            run.kill()
    return [run.returncode for run in runs], errors


@pytest.mark.slow
def test_two_processes_write_the_store_of_one_also_after_a_kill(tmp_path):
    expected = files(encode_scenes(tmp_path / "one"))
    codes, errors = two(tmp_path / "two")
    assert codes == [0, 0], errors
    assert files(tmp_path / "two") == expected

    codes, errors = two(tmp_path / "killed", dies=(0, 3))
    assert codes[1] == -9 and codes[0] != 0, errors
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert code_format.MANIFEST not in left and {"progress.json", "progress-0.json", "progress-1.json"} <= left
    with pytest.raises(ValueError, match="an unfinished code store"):
        CodeStore(tmp_path / "killed")
    codes, errors = two(tmp_path / "killed")
    assert codes == [0, 0], errors
    assert files(tmp_path / "killed") == expected

    two(tmp_path / "alone", dies=(0, 3))  # continued by one process
    encode_scenes(tmp_path / "alone")
    assert files(tmp_path / "alone") == expected


@pytest.mark.slow
def test_command_of_two_processes_writes_the_store_of_one(tmp_path):
    command = ["encode", "--tokenizer", "demo", "--data.path", "scenes:12", "--captions", "--sizes", "64x64,64x128,128x64"]
    command += ["--batch-size", "4"]
    printed = both(*command, "--out", str(tmp_path / "two"), devices=4)
    assert [stdout.count("codes:") for stdout, _ in printed] == [1, 0]
    assert cli.main([*command, "--out", str(tmp_path / "one")]) == 0
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_manifest_counts_the_images_of_each_size(tmp_path):
    store = CodeStore(encode_scenes(tmp_path / "s"))
    shapes = [Scenes(22)[i]["image"].shape[:2] for i in range(22)]
    assert store.manifest["counts"] == [shapes.count(size) for size in SIZES] == [store.counts[grid] for grid in store.grids]


def test_random_crop_is_a_function_of_the_image_number(tmp_path):
    sizes = [(64, 64), (48, 64)]
    store = CodeStore(encode_scenes(tmp_path / "s", sizes=sizes, random_crop=True, batch_size=3))
    centre = CodeStore(encode_scenes(tmp_path / "c", sizes=sizes))
    for i, record in enumerate(store):
        image = crop_to_bucket(Scenes(22)[i]["image"], sizes, np.random.default_rng(i))
        np.testing.assert_array_equal(record["codes"], toy_encode(image[None]))
    assert any(not np.array_equal(a["codes"], b["codes"]) for a, b in zip(store, centre, strict=True))
    with pytest.raises(ValueError, match="crops is 'random' there, 'center' now"):
        encode_scenes(tmp_path / "s", sizes=sizes)


@pytest.mark.slow
def test_command_encodes_captions_of_a_source_and_of_a_code_store_alike(tmp_path, capsys):
    encode_scenes(tmp_path / "codes")
    command = ["encode", "--text-encoder", "minilm", "--max-tokens", "24"]
    assert cli.main([*command, "--data.path", str(tmp_path / "codes"), "--out", str(tmp_path / "a")]) == 0
    captions = {f"{Scenes(22)[i]['id']}#{k}": text for i in range(22) for k, text in enumerate(Scenes(22).captions(i))}
    assert f"({len(captions)} captions of 22 images, {len(set(captions.values()))} different ones)" in capsys.readouterr().out
    assert cli.main([*command, "--data.path", "scenes:22", "--out", str(tmp_path / "b")]) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    store, encoder = TextStore(tmp_path / "a"), load_text_encoder("minilm", max_tokens=24)
    assert store.about == encoder.about and set(store.ids) == {"", *captions}
    name = list(captions)[5]
    features, mask = store[name]
    expected = encoder([captions[name]])
    np.testing.assert_array_equal(mask, expected.mask_bt[0])
    np.testing.assert_allclose(features[mask].astype(np.float32), np.asarray(expected.features_btd)[0][mask], atol=2e-2)
    assert cli.main([*command, "--data.path", "scenes:22", "--out", str(tmp_path / "b"), "--flip"]) == 2
    assert "--flip: is for images; leave it out beside --text-encoder" in capsys.readouterr().err


@pytest.mark.slow
def test_command_prints_what_a_source_leaves_out(tmp_path, capsys):
    photos = pathlib.Path(tmp_path, "photos")
    photos.mkdir()
    for name, caption in {"a": "a cat", "b": " ", "c": "x" * 5000}.items():
        Image.new("RGB", (64, 64), "red").save(photos / f"{name}.png")
        (photos / f"{name}.txt").write_text(caption)
    command = ["encode", "--tokenizer", "demo", "--captions", "--data.path", str(photos), "--out", str(tmp_path / "codes")]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "(1 images, on cpu)" in printed and "left out: " in printed
    assert "1 empty captions (b.png)" in printed and "2 images without a usable caption (b.png, c.png)" in printed
