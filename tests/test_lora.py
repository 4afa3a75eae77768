"""LoRA: files in the spellings people publish are merged at load.

Training changes factors alone and writes such a file.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.diffusers_folder import SIDE, UVIT, write_folder
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import load_file, save_file

from maskgil_jax import load
from maskgil_jax.checkpoints.weights import Weights, load_weights
from maskgil_jax.config import LLAMA_PRESETS, ConfigError
from maskgil_jax.config.training import LoraConfig
from maskgil_jax.convert.diffusers_folder import convert_folder
from maskgil_jax.convert.lora import merged, read_lora
from maskgil_jax.networks import build, create, flatten, params_of
from maskgil_jax.training import generator
from maskgil_jax.training.lora import init_factors, merge, save_factors, targets

pytestmark = pytest.mark.slow

RANK = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("amused")
    convert_folder(write_folder(root / "source"), root / "weights")
    return root / "weights"


@pytest.fixture(scope="module")
def weights(folder):
    return load_weights(folder, "generator")


def factors_for(name_and_shape, seed=0):
    rng, found = np.random.default_rng(seed), {}
    for name, (out, size) in name_and_shape.items():
        found[name] = rng.normal(size=(RANK, size)).astype(np.float32), rng.normal(size=(out, RANK)).astype(np.float32)
    return found


NAMES = {"transformer_layers.1.attn1.to_q": (32, 32), "transformer_layers.0.ff.net.0.proj": (88, 32)}
SPELLINGS = {
    "peft": "base_model.model.{name}.lora_{AB}.weight",
    "diffusers": "transformer.{name}.lora_{AB}.weight",
    "old loader": "transformer.{name}.lora.{updown}.weight",
    "linear layer": "{name}.lora_linear_layer.{updown}.weight",
    "named adapter": "transformer.{name}.lora_{AB}.default.weight",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_published_spellings_are_merged(spelling, weights, tmp_path):
    factors, arrays = factors_for(NAMES), {}
    for name, (down, up) in factors.items():
        for array, letters, word in ((down, "A", "down"), (up, "B", "up")):
            arrays[SPELLINGS[spelling].format(name=name, AB=letters, updown=word)] = array
    save_file(arrays, tmp_path / "lora.safetensors")
    before, after = flatten(weights.params), flatten(merged(weights, tmp_path / "lora.safetensors", 0.5).params)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {"layers/attn/q/kernel", "layers/mlp/up/kernel", "layers/mlp/gate/kernel"}
    down, up = factors["transformer_layers.1.attn1.to_q"]
    delta = after["layers/attn/q/kernel"] - before["layers/attn/q/kernel"]
    np.testing.assert_allclose(delta[1], 0.5 * (up @ down).T, atol=1e-5)
    np.testing.assert_array_equal(delta[0], 0)
    down, up = factors["transformer_layers.0.ff.net.0.proj"]
    found = after["layers/mlp/gate/kernel"] - before["layers/mlp/gate/kernel"]
    np.testing.assert_allclose(found[0], 0.5 * (up @ down)[44:].T, atol=1e-5)


def test_old_attention_processors_and_alpha_are_read(tmp_path):
    down, up = factors_for({"x": (32, 32)})["x"]
    name = "transformer_layers.0.attn2"
    arrays = {f"{name}.processor.to_out_lora.down.weight": down, f"{name}.processor.to_out_lora.up.weight": up}
    arrays[f"{name}.to_out.alpha"] = np.float32([8.0])
    save_file(arrays, tmp_path / "pytorch_lora_weights.safetensors")
    (change,) = read_lora(tmp_path).items()
    assert change[0] == f"{name}.to_out.0" and change[1].scale == 8.0 / RANK


def test_alpha_of_a_peft_folder_scales_the_change(tmp_path):
    down, up = factors_for({"x": (32, 32)})["x"]
    arrays = {"base_model.model.a.to_q.lora_A.weight": down, "base_model.model.a.to_q.lora_B.weight": up}
    save_file(arrays, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 3, "r": RANK}))
    assert read_lora(tmp_path)["a.to_q"].scale == 1.5


@pytest.mark.parametrize(
    "change,pattern",
    [
        (lambda a: a.update({"transformer.down_blocks.0.to_q.lora_A.weight": np.ones((2, 4), np.float32)}), "has no up factor"),
        (lambda a: a.update({"transformer.x.bias": np.ones(3, np.float32)}), "is no part of a LoRA"),
        (lambda a: a.update({"text_encoder.a.lora_A.weight": np.ones((2, 4), np.float32)}), "changes the text encoder"),
        (
            lambda a: a.update({"transformer.transformer_layers.1.attn1.to_q.lora_A.weight": np.ones((2, 9), np.float32)}),
            r"changes a weight of shape \(32, 9\), this network has \(32, 32\)",
        ),
        (
            lambda a: a.update({f"transformer.mid.to_q.lora_{x}.weight": np.ones((2, 2), np.float32) for x in "AB"}),
            "mid.to_q is no weight of this UViT",
        ),
    ],
)
def test_wrong_file_is_refused_with_one_line(change, pattern, weights, tmp_path):
    down, up = factors_for(NAMES)["transformer_layers.1.attn1.to_q"]
    arrays = {"transformer.transformer_layers.1.attn1.to_q.lora_A.weight": down}
    arrays["transformer.transformer_layers.1.attn1.to_q.lora_B.weight"] = up
    change(arrays)
    save_file(arrays, tmp_path / "lora.safetensors")
    with pytest.raises(ConfigError, match=pattern) as caught:
        merged(weights, tmp_path / "lora.safetensors")
    assert "\n" not in str(caught.value)


def test_targets_that_match_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"config\.lora\.targets: 'nothing' matches no matrix"):
        targets(UVIT, LoraConfig(rank=2, targets="nothing"))


@pytest.mark.parametrize("family", ["uvit", "llama"])
def test_saved_factors_load_back_to_the_merged_weights(family, weights, tmp_path):
    if family == "llama":
        cfg = LLAMA_PRESETS["tiny"]
        weights = Weights(cfg, jax.device_get(params_of(create(cfg, jax.random.key(0)))), {}, pathlib.Path("llama"))
    options = LoraConfig(rank=RANK, alpha=4.0, targets=r"(attn\w*/(q|k|v|o)|mlp/(up|gate|down))/kernel$")
    factors = init_factors(jax.random.key(1), weights.cfg, options)
    assert flatten(factors).keys() and all(name.endswith(("lora_a", "lora_b")) for name in flatten(factors))
    leaves = flatten(factors)
    factors = jax.tree.map(lambda leaf: leaf + 0.1, factors)
    save_factors(tmp_path / "lora.safetensors", weights.cfg, jax.device_get(factors), options)
    expected, found = (
        flatten(merge(factors, weights.params, options)),
        flatten(merged(weights, tmp_path / "lora.safetensors").params),
    )
    changed = {name.rpartition("/")[0] for name in leaves}
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=2e-5, err_msg=path)
        assert np.array_equal(found[path], flatten(weights.params)[path]) == (path not in changed)
    if family == "uvit":
        names = load_file(tmp_path / "lora.safetensors")
        assert "transformer.transformer_layers.0.attn1.to_q.lora_A.weight" in names
        assert names["transformer.transformer_layers.0.ff.net.0.proj.lora_B.weight"].shape == (88, 2 * RANK)


# ------------------------------------------------------------------------------------------------ training
@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """Fifty steps on ten images with captions: (config, folder of the run)."""
    root, rng = tmp_path_factory.mktemp("lora"), np.random.default_rng(0)
    (root / "images").mkdir()
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(root / "images" / f"{i}.png")
        (root / "images" / f"{i}.txt").write_text(f"a {('red', 'green', 'blue')[i % 3]} {('cat', 'dog')[i % 2]}")
    config = _config()
    config.unlock()
    config.update(tokenizer=str(folder), init_from=str(folder), batch_size=8, total_steps=50, log_every=1, sample_every=50)
    config.data.update(path=str(root / "images"), image_size=SIDE, crop="none")
    config.text_encoder.path = str(folder / "text_encoder")
    config.lora.update(rank=8, alpha=8.0)
    config.optimizer.learning_rate = 2e-2
    config.checkpoint.every = 50
    config.model.dtype = "float32"
    generator.train(config, root / "run")
    return config, root / "run"


def _config() -> ConfigDict:
    import runpy

    return runpy.run_path(str(pathlib.Path(__file__).parents[1] / "configs" / "amused_finetune.py"))["get_config"]()


def test_fifty_steps_on_ten_images_lower_the_loss(trained):
    lines = [json.loads(line) for line in (trained[1] / "metrics.jsonl").read_text().splitlines()]
    losses = [line["masked_loss"] for line in lines if "masked_loss" in line]
    assert len(losses) == 50 and np.mean(losses[-10:]) < 0.95 * np.mean(losses[:5])


def test_only_factors_are_trained_and_the_file_gives_the_same_images(trained, folder):
    _, run = trained
    before, after = (flatten(load_weights(path, "generator").params) for path in (folder, run / "weights"))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == set(targets(UVIT, LoraConfig(rank=8)))
    whole = load(run / "weights")
    adapted = load(folder, lora=run / "weights" / "lora.safetensors")
    options = dict(prompts=["a red cat", "blue sun"], seed=2, steps=3)
    np.testing.assert_array_equal(whole(**options), adapted(**options))
    assert (load(folder)(**options) != adapted(**options)).any()
    tokens = jnp.zeros((1, 64), jnp.int32)
    condition = whole.condition(prompts="a cat").condition
    found = [
        build(UVIT, p.params)(tokens, condition)
        for p in (
            load_weights(run / "weights", "generator"),
            merged(load_weights(folder, "generator"), run / "weights" / "lora.safetensors"),
        )
    ]
    np.testing.assert_allclose(*found, atol=1e-4)


def test_low_rank_training_needs_weights_to_start_from(trained, tmp_path):
    config = trained[0].copy_and_resolve_references()
    config.init_from = ""
    with pytest.raises(ConfigError, match=r"config\.lora: needs config\.init_from"):
        generator.train(config, tmp_path / "run")
