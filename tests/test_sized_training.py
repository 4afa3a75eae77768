"""Training on captioned images of several sizes: one program, the same on any devices, and continued exactly."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import maskgil_jax
from maskgil_jax import cli
from maskgil_jax.checkpoints.weights import load_weights, save_weights
from maskgil_jax.config import VQConfig
from maskgil_jax.data.code_store import CodeStore
from maskgil_jax.decoding.masked import _decode
from maskgil_jax.networks import create, params_of
from maskgil_jax.training import generator

pytestmark = pytest.mark.slow

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "emoji_text.py"
VQ = VQConfig(
    channels=4, multipliers=(1, 1, 1, 1, 1), res_blocks=1, latent_dim=4, codebook_size=32, codebook_dim=4, image_size=64
)
SCENES = "64x64,64x96,96x64,64x128,128x64"
OPTIONS = ["--config.batch_size=8", "--config.log_every=1", "--config.checkpoint.every=3", "--config.sample_every=0"]
OPTIONS += ["--config.model.width=32", "--config.model.heads=2", "--config.model.mlp_width=32", "--config.model.depth=2"]
# The encoder in the train step, instead of stored features.
OPTIONS += ["--config.data.texts=", "--config.text_encoder.path=minilm", "--config.text_encoder.max_tokens=16"]
OPTIONS += ["--config.data.path=scenes:40"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer and the codes of 40 scenes of five sizes."""
    path = tmp_path_factory.mktemp("scenes")
    save_weights(path / "tokenizer", VQ, params_of(create(VQ, jax.random.key(0))))
    argv = ["encode", "--tokenizer", str(path / "tokenizer"), "--data.path", "scenes:40", "--captions", "--sizes", SCENES]
    assert cli.main([*argv, "--out", str(path / "codes")]) == 0
    return path


def command(folder, workdir, *more, steps=6):
    argv = ["train", "--config", str(CONFIG), "--workdir", str(folder / workdir)]
    argv += [f"--config.tokenizer={folder / 'tokenizer'}", f"--config.data.codes={folder / 'codes'}", *OPTIONS]
    return [*argv, f"--config.total_steps={steps}", *more]


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["masked_loss"] for line in lines if "masked_loss" in line}


def start(argv, devices):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": ""}
    return subprocess.Popen([sys.executable, "-m", "maskgil_jax", *argv], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def steps(folder):
    """Runs `whole` on the devices of the tests; returns the jitted steps that it made."""
    made, make = [], generator.jitted_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "jitted_step", lambda *args, **options: made.append(make(*args, **options)) or made[-1])
        assert cli.main(command(folder, "whole", "--config.sample_every=6")) == 0
    return made


def test_store_holds_several_sizes_and_the_step_compiles_once(folder, steps):
    assert len(CodeStore(folder / "codes").grids) == 5
    assert len(steps) == 1 and steps[0]._cache_size() == 1


def test_prompts_of_every_size_are_drawn(folder, steps):
    pipeline = maskgil_jax.load(folder / "whole" / "weights")
    assert pipeline.generator.cfg.patch == 2 and pipeline.canvas == (8, 4), "tokens of the largest size"
    before = _decode._cache_size()
    for size in SCENES.split(","):
        height, width = map(int, size.split("x"))
        images = pipeline(prompts=["two cats above a dog"], height=height, width=width, steps=2)
        assert images.shape == (1, height, width, 3)
    assert _decode._cache_size() == before + 1, "one program for all sizes"


def test_losses_on_one_and_eight_devices_are_equal_to_rounding(folder, steps):
    runs = {devices: start(command(folder, f"on{devices}"), devices) for devices in (1, 8)}
    for run in runs.values():
        assert run.wait(timeout=600) == 0, run.stderr.read()
    one, eight = (losses(folder / f"on{devices}") for devices in runs)
    assert one.keys() == eight.keys() == set(range(1, 7))
    np.testing.assert_allclose([one[step] for step in one], [eight[step] for step in one], rtol=2e-5)


def test_killed_run_with_sizes_and_captions_continues_bit_for_bit(folder):
    argv = command(folder, "unbroken", steps=18)
    unbroken = start(argv, 1)
    assert unbroken.wait(timeout=600) == 0, unbroken.stderr.read()
    victim, deadline = start(command(folder, "killed", steps=18), 1), time.monotonic() + 300
    while not [path for path in (folder / "killed" / "checkpoints").glob("*") if path.name.isdigit()]:
        assert victim.poll() is None and time.monotonic() < deadline, victim.stderr.read()
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (folder / "killed" / "weights").exists(), "killed on the way"
    again = start(command(folder, "killed", steps=18), 1)
    assert again.wait(timeout=600) == 0
    assert "continuing from step" in again.stderr.read()
    assert losses(folder / "killed") == losses(folder / "unbroken")
    hashes = [load_weights(folder / run / "weights", "generator").hash for run in ("killed", "unbroken")]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    "option, words",
    [
        ("--config.data.buckets=64", "holds 5 sizes, which are not the .* buckets of 64"),
        ("--config.model.patch=4", "patch: 4 does not divide the 4x6 codes"),
        ("--config.text_encoder.path=", "have no classes; set config.text_encoder.path"),
    ],
)
def test_store_that_does_not_fit_the_run_is_one_line(folder, option, words, capsys):
    assert cli.main(command(folder, "refused", option)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(words, last), last
