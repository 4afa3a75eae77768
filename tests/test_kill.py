"""A killed training process is continued by the same command, bit for bit."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest

from maskgil_jax import cli
from maskgil_jax.checkpoints.step_folders import steps_in
from maskgil_jax.checkpoints.train_state import CheckpointError, Checkpoints
from maskgil_jax.checkpoints.weights import load_weights, save_weights
from maskgil_jax.config import VQConfig
from maskgil_jax.networks import create, params_of

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "debug.py"
VQ = VQConfig(channels=4, multipliers=(1, 1, 1), res_blocks=1, latent_dim=4, codebook_size=32, codebook_dim=4, image_size=16)
OPTIONS = ["--config.total_steps=18", "--config.log_every=1", "--config.checkpoint.every=3", "--config.sample_every=0"]
OPTIONS += ["--config.model.width=32", "--config.model.heads=2", "--config.model.mlp_width=32"]
OPTIONS += ["--config.data.image_size=16", "--config.data.crop=center"]


def command(workdir, tokenizer):
    return ["train", "--config", str(CONFIG), "--workdir", str(workdir), f"--config.tokenizer={tokenizer}", *OPTIONS]


def start(*paths):
    return subprocess.Popen(
        [sys.executable, "-m", "maskgil_jax", *command(*paths)], env=dict(os.environ), stderr=subprocess.PIPE, text=True
    )


def losses(workdir):
    return {line["step"]: line["masked_loss"] for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())}


@pytest.mark.slow
def test_killed_run_continues_bit_for_bit(tmp_path):
    save_weights(tmp_path / "tokenizer", VQ, params_of(create(VQ, jax.random.key(0))))
    assert cli.main(command(tmp_path / "whole", tmp_path / "tokenizer")) == 0

    victim = start(tmp_path / "parts", tmp_path / "tokenizer")
    checkpoints, deadline = tmp_path / "parts" / "checkpoints", time.monotonic() + 300
    while not [p for p in checkpoints.glob("*") if p.name.isdigit()]:
        assert victim.poll() is None and time.monotonic() < deadline, victim.stderr.read()
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (tmp_path / "parts" / "weights").exists(), "killed on the way"
    again = start(tmp_path / "parts", tmp_path / "tokenizer")
    assert again.wait(timeout=300) == 0
    assert "continuing from step" in again.stderr.read()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    hashes = [load_weights(tmp_path / run / "weights", "generator").hash for run in ("whole", "parts")]
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_full_disk_is_one_line_and_keeps_earlier_checkpoint(tmp_path, monkeypatch):
    state = {"norm": {"scale": jax.numpy.ones(4)}}
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state, {}, wait=True)

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing local file: No space left on device")

    monkeypatch.setattr(checkpoints.manager, "save", full)
    with pytest.raises(CheckpointError, match=r"step 2 could not be written .*No space left.* earlier checkpoints are kept"):
        checkpoints.save(2, state, {})
    checkpoints.close()
    assert steps_in(tmp_path / "checkpoints") == [1]
