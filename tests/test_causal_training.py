"""Training on the next token: the same loop and step as masked training, learned and continued exactly."""

import json
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from maskgil_jax.checkpoints.weights import load_weights, save_weights
from maskgil_jax.commands.run_files import read_run_file
from maskgil_jax.conditioning import ClassConditioner
from maskgil_jax.config import CausalConfig, ConfigError, LlamaConfig, VQConfig, from_dict
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.networks import create, params_of
from maskgil_jax.training.generator import Objective, corrupt_batch, jitted_step, train
from maskgil_jax.training.optimizer import make_optimizer
from maskgil_jax.training.state import init_state

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SMALL = LlamaConfig(
    codebook_size=16, num_classes=4, grid=(3, 4), width=32, depth=2, heads=2, mlp_width=48, dropout=0.0, causal=True
)
VQ = VQConfig(channels=8, multipliers=(1, 1, 2, 2), res_blocks=1, latent_dim=8, codebook_size=32, codebook_dim=4, image_size=64)
CLASSES = ClassConditioner(("a", "b", "c"))


@pytest.mark.slow
def test_causal_llama_memorises_four_sequences():
    rate = 3e-3
    options = types.SimpleNamespace(
        learning_rate=rate,
        beta1=0.9,
        beta2=0.95,
        weight_decay=0.0,
        decay_on="matrices",
        clip_norm=1.0,
        warmup_steps=0,
        decay="constant",
        ema_decay=0.0,
    )
    tx, objective = make_optimizer(options, 100), Objective(label_smoothing=0.0, class_dropout=0.0)
    state = jax.jit(init_state(lambda key: params_of(create(SMALL, key)), tx, ema=False))(jax.random.key(0))
    step = jitted_step(SMALL, objective, tx, lambda count: rate, 0.0, None, conditioner=CLASSES)
    codes = np.random.default_rng(0).integers(0, 16, (4, 3, 4), np.int32)
    batch, key, history = {"codes": jnp.asarray(codes), "label": jnp.arange(4, dtype=jnp.int32)}, jax.random.key(1), []
    for _ in range(100):
        state, metrics = step(state, batch, jax.random.clone(key), None)
        history.append({name: float(metric.compute()) for name, metric in metrics.items()})
    assert set(history[0]) >= {"loss", "accuracy", "grad_norm", "learning_rate"} and "masked_loss" not in history[0]
    assert abs(history[0]["loss"] - np.log(16)) < 1e-4, "a head of zeros: every code is as likely"
    assert history[-1]["accuracy"] == 1.0 and history[-1]["loss"] < 0.1
    assert step._cache_size() == 1


def test_corrupt_batch_of_a_causal_network_masks_nothing():
    codes = jax.random.randint(jax.random.key(0), (8, 12), 0, 16)
    batch = corrupt_batch(
        jax.random.key(1), codes, ClassCondition(jnp.zeros(8, jnp.int32)), SMALL, Objective(class_dropout=0.5)
    )
    np.testing.assert_array_equal(batch["inputs"], codes)
    assert batch["mask"].all() and set(np.unique(batch["drop"])) == {False, True}


def small_run(tokenizer, **changes):
    flags = [f"--config.tokenizer={tokenizer}", "--config.data.codes=", "--config.batch_size=8", "--config.log_every=1"]
    flags += ["--config.model.width=32", "--config.model.heads=2", "--config.model.mlp_width=32", "--config.model.depth=1"]
    flags += ["--config.optimizer.decay=constant", "--config.sample_count=8", "--config.checkpoint.every=2"]
    flags += ["--config.checkpoint.keep=2"]
    return read_run_file(str(CONFIGS / "emoji_ar.py"), flags + [f"--config.{name}={value}" for name, value in changes.items()])


@pytest.mark.slow
def test_causal_run_resumes_exactly(tmp_path):
    save_weights(tmp_path / "tokenizer", VQ, params_of(create(VQ, jax.random.key(0))))
    config, hashes, lines = small_run(tmp_path / "tokenizer", total_steps=4, sample_every=4), [], []
    for name in ("whole", "parts"):
        if name == "parts":  # as a run that was stopped after step 2, at its first checkpoint
            shutil.copytree(tmp_path / "whole", tmp_path / "parts", ignore=lambda *_: {"weights", "images", "4"})
        weights = train(config, tmp_path / name)
        found = load_weights(weights, "generator")
        hashes.append(found.hash)
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        lines.append({row["step"]: (row["loss"], row["accuracy"]) for row in rows})
    assert hashes[0] == hashes[1] and lines[0] == lines[1] and sorted(lines[0]) == [1, 2, 3, 4]
    assert Image.open(tmp_path / "parts" / "images" / "samples_0000004.png").size[0] > 64
    assert found.cfg.causal and from_dict(CausalConfig, found.about["decode"]) == CausalConfig()


def test_causal_run_files_differ_from_masked_ones_as_documented():
    for causal, masked in (("emoji_ar", "emoji"), ("c2i_ar_b", "c2i_b")):
        ours, theirs = (read_run_file(str(CONFIGS / f"{name}.py"), []).to_dict() for name in (causal, masked))
        assert ours["model"] == theirs["model"] | {"causal": True, "patch": None}, "a causal network has no token patches"
        assert ours["data"] == theirs["data"] and ours["tokenizer"] == theirs["tokenizer"]
        assert from_dict(CausalConfig, ours["decode"]) == CausalConfig() and ours["objective"]["label_smoothing"] == 0.0


def test_causal_config_names_invalid_options():
    with pytest.raises(ConfigError, match=r"cfg_interval: must be None .* got -1"):
        CausalConfig(cfg_interval=-1)
    with pytest.raises(ConfigError, match="top_k: must be None or a whole number >= 1, got 0"):
        CausalConfig(top_k=0)
    with pytest.raises(ConfigError, match="CausalConfig has no option 'steps'"):
        from_dict(CausalConfig, {"steps": 8}, "config.decode")
