"""Encoding and sampling jobs killed at random moments: the same command continues,
and the result has the same bytes."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers.tiny_pipeline import VQ, save_pipeline
from PIL import Image

from maskgil_jax.checkpoints.weights import save_weights
from maskgil_jax.networks import create, params_of

ROUNDS = int(os.environ.get("KILL_ROUNDS", "3"))
pytestmark = pytest.mark.slow

ENCODE = """
import sys
from maskgil_jax.checkpoints.weights import load_weights
from maskgil_jax.data.images import open_images
from maskgil_jax.pipelines.encoding import encode_source
tokenizer, folder, out = sys.argv[1:]
print("started", flush=True)
encode_source(load_weights(tokenizer, "tokenizer"), open_images(folder), out, size=16, batch_size=4, shard_size=3, flip=True)
"""
SAMPLE = """
import sys
import numpy as np
from maskgil_jax.pipelines.jobs import sample_to_folder
from maskgil_jax.pipelines.pipeline import load
weights, form, out = sys.argv[1:]
print("started", flush=True)
sample_to_folder(load(weights), np.arange(36) % 3, out, format=form, seed=3, batch_size=4, part_size=3)
"""


def bytes_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def run(program: str, *arguments, kill_after: float | None = None) -> float:
    """Seconds from the start of the work to its end; it is killed `kill_after` seconds after its start."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None and process.stdout.readline() == "started\n", process.communicate()[1]
    began = time.monotonic()
    try:
        _, said = process.communicate(timeout=kill_after if kill_after is not None else 300)
        assert process.returncode == 0, said
    except subprocess.TimeoutExpired:
        assert kill_after is not None, "the work did not end"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return time.monotonic() - began


def killed_and_continued(program: str, whole: pathlib.Path, parts: pathlib.Path, *arguments) -> None:
    seconds = run(program, *arguments, whole)
    rng = random.Random(0)
    for _ in range(ROUNDS):
        run(program, *arguments, parts, kill_after=rng.uniform(0.3, 1.0) * seconds)
    run(program, *arguments, parts)
    assert bytes_of(parts) == bytes_of(whole)


def test_encoding_killed_at_random_moments_gives_the_same_bytes(tmp_path):
    save_weights(tmp_path / "tokenizer", VQ, params_of(create(VQ, jax.random.key(2))))
    rng = np.random.default_rng(0)
    for i in range(30):
        file = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 17, 3), np.uint8)).save(file)
    arguments = tmp_path / "tokenizer", tmp_path / "photos"
    killed_and_continued(ENCODE, tmp_path / "whole", tmp_path / "parts", *arguments)


@pytest.mark.parametrize("form", ["png", "npz", "array_record"])
def test_job_killed_at_random_moments_gives_the_same_bytes(form, tmp_path):
    weights = save_pipeline(tmp_path / "weights")
    killed_and_continued(SAMPLE, tmp_path / "whole", tmp_path / "parts", weights, form)
