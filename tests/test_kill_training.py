"""A generator's training killed at random moments: while compiling, in a step, while saving.

It ends as if never killed.
"""

import json
import os
import pathlib
import random
import time

import jax
import pytest
from helpers.killed_training import Training

from maskgil_jax.checkpoints.weights import save_weights
from maskgil_jax.config import VQConfig
from maskgil_jax.networks import create, params_of

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "debug.py"
VQ = VQConfig(channels=4, multipliers=(1, 1, 1), res_blocks=1, latent_dim=4, codebook_size=32, codebook_dim=4, image_size=16)
STEPS, EVERY, SEED = 24, 3, int(os.environ.get("KILL_SEED", "0"))
OPTIONS = [f"--config.total_steps={STEPS}", "--config.log_every=1", f"--config.checkpoint.every={EVERY}"]
OPTIONS += ["--config.model.width=32", "--config.model.heads=2", "--config.model.mlp_width=32", "--config.sample_every=0"]
OPTIONS += ["--config.data.image_size=16", "--config.data.crop=center", "--config.batch_size=8"]
TEMPORARY = ("tmp", ".part", ".old", ".trash", ".lock", ".damaged")
LEFT = "weights/.generator.0a1b2c3d.part/model.safetensors", "weights/.generator.0a1b2c3d.old/config.json"
LEFT += "weights/.tokenizer.0a1b2c3d.part/model.safetensors", ".metrics.jsonl.0a1b2c3d.part"


def start(workdir: pathlib.Path) -> Training:
    argv = ["train", "--config", str(CONFIG), "--workdir", str(workdir)]
    return Training([*argv, f"--config.tokenizer={workdir.parent / 'tokenizer'}", *OPTIONS], workdir.with_suffix(".log"))


def metrics(workdir: pathlib.Path) -> list[dict]:
    """The complete lines of the metrics, without the one that is a time."""
    file = workdir / "metrics.jsonl"
    lines = map(json.loads, file.read_text().split("\n")[:-1] if file.exists() else [])
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def temporary(workdir: pathlib.Path) -> list[str]:
    names = (str(path.relative_to(workdir)) for path in workdir.rglob("*"))
    return sorted(name for name in names if any(mark in name for mark in TEMPORARY))


@pytest.mark.slow
def test_training_killed_at_random_moments_ends_with_the_same_bytes(tmp_path):
    save_weights(tmp_path / "tokenizer", VQ, params_of(create(VQ, jax.random.key(0))))
    whole, parts, rng = tmp_path / "whole", tmp_path / "parts", random.Random(SEED)

    victim = start(parts)
    victim.until(lambda: victim.log.exists() and "compiling" in victim.log.read_text())
    time.sleep(rng.uniform(0.0, 0.5))
    victim.kill()
    assert not metrics(parts), "killed too late to be compiling"

    victim, goal = start(parts), rng.randint(EVERY + 1, 3 * EVERY)
    victim.until(lambda: len(metrics(parts)) >= goal)
    time.sleep(rng.uniform(0.0, 0.02))
    victim.kill()

    victim, goal = start(parts), len(metrics(parts)) + rng.randint(1, EVERY)
    victim.until(lambda: len(metrics(parts)) >= goal)
    victim.freeze_while(lambda: any("tmp" in path.name for path in parts.glob("checkpoints/*")))
    victim.kill()
    assert any("tmp" in name for name in temporary(parts)), "no save was interrupted"

    for name in LEFT:  # what a kill while the weights or the metrics are replaced leaves
        (parts / name).parent.mkdir(parents=True, exist_ok=True)
        (parts / name).write_bytes(b"unfinished")
    for running in [start(parts), start(whole)]:
        running.succeed()
    assert parts.with_suffix(".log").read_text().count("continuing from step") == 2
    assert [line["step"] for line in metrics(parts)] == list(range(1, STEPS + 1))
    assert metrics(parts) == metrics(whole)
    for name in ("weights/generator/model.safetensors", "weights/tokenizer/model.safetensors"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    assert temporary(whole) == temporary(parts) == []
    kept = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (parts, whole)]
    assert kept[0] == kept[1]
