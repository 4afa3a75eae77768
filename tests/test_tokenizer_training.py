"""Tokenizer training: both networks are updated, dead codes restart, an interrupted run continues bit for bit."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgil_jax import cli
from maskgil_jax.checkpoints.weights import load_tokenizer, load_weights
from maskgil_jax.training.tokenizer import restart_codes

SMALL = ["--config.model.preset=tiny", "--config.data.image_size=16", "--config.data.crop=center", "--config.batch_size=8"]
SHORT = ["--config.log_every=1", "--config.sample_every=0", "--config.checkpoint.every=2", "--config.restart_after=2"]
GAN = ["--config.loss.adversarial=0.5", "--config.loss.disc_start=2", "--config.loss.entropy=0.1"]
GAN += ["--config.discriminator.net.width=8", "--config.optimizer.ema_decay=0.5"]
RUN = [*GAN, "--config.total_steps=4", "--config.optimizer.decay=constant", "--config.checkpoint.keep=2"]


pytestmark = pytest.mark.usefixtures("tiny_preset")


def train(workdir, *more):
    return cli.main(["train", "--config", "demo_tokenizer", "--workdir", str(workdir), *SMALL, *SHORT, *more])


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_adversarial_run_continues_bit_for_bit(tmp_path):
    assert train(tmp_path / "whole", *RUN) == 0
    whole = lines(tmp_path / "whole")
    assert [line["step"] for line in whole] == [1, 2, 3, 4]
    assert [line["discriminator"] > 0 for line in whole] == [False, False, True, True], "it starts at step 2, counted from 0"
    assert [line["adversarial_weight"] > 0 for line in whole] == [False, False, True, True]
    usage = [line["codebook_usage"] for line in whole]
    assert 0 < usage[0] < 1 and usage == sorted(usage), "inside the window, codes once used stay counted"
    assert all(np.isfinite(line["loss"]) for line in whole)
    assert whole[-1]["reconstruction"] < whole[0]["reconstruction"]

    # a run that was stopped after step 2, at its first checkpoint
    shutil.copytree(tmp_path / "whole", tmp_path / "parts", ignore=lambda *_: {"weights", "4"})
    assert train(tmp_path / "parts", *RUN) == 0
    parts = lines(tmp_path / "parts")
    for a, b in zip(whole, parts, strict=True):
        assert {k: v for k, v in a.items() if k != "images_per_second"} == {
            k: v for k, v in b.items() if k != "images_per_second"
        }
    assert load_weights(tmp_path / "whole" / "weights").hash == load_weights(tmp_path / "parts" / "weights").hash

    tokenizer = load_tokenizer(tmp_path / "whole" / "weights")
    assert tokenizer.decode(tokenizer.encode(jnp.zeros((1, 16, 16, 3)))).shape == (1, 16, 16, 3)


def test_restarted_codes_are_near_latents_and_distinct():
    table, latents = jnp.zeros((4, 2)), jnp.ones((3, 2))
    moved = restart_codes(jax.random.key(0), table, latents, jnp.asarray([False, True, True, False]))
    np.testing.assert_array_equal(moved[jnp.asarray([0, 3])], 0.0)
    np.testing.assert_allclose(moved[1:3], 1.0, atol=0.1)
    assert (moved[1] != moved[2]).any()


MISTAKES = {
    "preset": (["--config.model.preset=VQ16"], "config.model.preset: unknown value 'VQ16'"),
    "size": (["--config.data.image_size=61"], "61"),
    "weight": (["--config.loss.l2=-1.0"], "config.loss.l2: must be a finite number >= 0"),
    "gan": (["--config.loss.adversarial_kind=hing"], "Did you mean 'hinge'"),
    "lpips": (["--config.loss.perceptual=1.0", "--config.lpips=/nowhere.safetensors"], "/nowhere.safetensors"),
}


@pytest.mark.parametrize("argv,message", MISTAKES.values(), ids=MISTAKES)
def test_impossible_tokenizer_option_raises_naming_it(argv, message, tmp_path, capsys):
    assert train(tmp_path / "run", *argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()
