"""Reading folders of text encoders: shards, dtypes, the hub, memory, and what does not fit."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers.fake_hub import TOKEN, running
from helpers.text_folders import GOLDEN, assert_near, copied, in_shards, reference, rewrite, with_tokenizer
from safetensors.numpy import load_file, save_file

from maskgil_jax.config import ConfigError
from maskgil_jax.text_encoders import load_clip, load_text_encoder
from maskgil_jax.text_encoders.folder import network_options, stored_tensors
from maskgil_jax.text_encoders.load import NETWORKS


def refused(pattern: str, *args, load=load_text_encoder, **options) -> None:
    with pytest.raises(ConfigError, match=pattern) as caught:
        load(*args, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def renamed(tensors: dict, old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


def test_shards_give_the_states_of_one_file(tmp_path):
    io = reference("gemma2")
    whole = load_text_encoder(GOLDEN / "gemma2").states(io["ids"], io["mask"])
    folder = in_shards(copied("gemma2", tmp_path))
    np.testing.assert_array_equal(whole, load_text_encoder(folder).states(io["ids"], io["mask"]))
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(r"model-00002-of-00002.safetensors: missing", folder)


def test_bfloat16_file_is_read_as_float32(tmp_path):
    folder = copied("t5", tmp_path)
    rewrite(folder, lambda t: t.update({name: value.astype(ml_dtypes.bfloat16) for name, value in t.items()}))
    encoder, io = load_text_encoder(folder), reference("t5")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(encoder.params))
    assert_near(encoder.states(io["ids"], io["mask"]), io["last"], io["mask"], rtol=0.05)


def test_hub_address_is_fetched(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    files = {name: (GOLDEN / "bert" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    with running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repos["someone/bert"] = {"private": False, "branches": {}, "commits": {}}
        hub.commit("someone/bert", "main", files)
        encoder, io = load_text_encoder("hf://someone/bert"), reference("bert")
    assert_near(encoder.states(io["ids"], io["mask"]), io["last"], io["mask"])


MEMORY = """
import pathlib, re, sys
import jax, numpy
from maskgil_jax.text_encoders import load_text_encoder
folder = pathlib.Path(sys.argv[1])
used = lambda key: int(re.search(key + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
jax.device_put(numpy.zeros(3)).block_until_ready()
before = used("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")
encoder = load_text_encoder(folder, dtype="bfloat16")
jax.block_until_ready(encoder.params)
print((used("VmHWM") - before) / (folder / "model.safetensors").stat().st_size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_of_loading_is_the_file(tmp_path):
    def larger(config):
        config |= dict(hidden_size=512, vocab_size=8000, num_hidden_layers=12, intermediate_size=4096, architectures=None)
        config |= dict(layer_types=None)

    folder = copied("gemma2", tmp_path, larger)
    network = NETWORKS["gemma2"]
    cfg = network.read_config(json.loads((folder / "config.json").read_text()), "config.json")
    save_file({n: np.ones(shape, ml_dtypes.bfloat16) for n, shape in network.table(cfg).values()}, folder / "model.safetensors")
    done = subprocess.run([sys.executable, "-c", MEMORY, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) <= 1.2


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda t: t.pop("layers.1.mlp.up_proj.weight"), r"gemma: layers\.1\.mlp\.up_proj\.weight is missing"),
        (lambda t: t.update({"norm.weight": np.ones(31, np.float32)}), r"norm\.weight has shape \(31,\), expected \(32,\)"),
        (lambda t: t.update({"adapter.weight": np.ones(3, np.float32)}), r"gemma: adapter\.weight is not part"),
        (lambda t: t.update({"norm.weight": np.ones(32, np.int8)}), r"norm\.weight is stored as I8"),
        (lambda t: renamed(t, "norm.weight", "nrm.weight"), r"norm\.weight is missing.*1 more"),
    ],
    ids=["missing", "shape", "extra", "integers", "renamed"],
)
def test_tensor_that_does_not_fit_is_named(change, pattern, tmp_path):
    folder = rewrite(copied("gemma", tmp_path), change)
    refused(rf"{re.escape(str(tmp_path))}.*{pattern.removeprefix('gemma: ')}", folder)


def test_tensor_of_a_dropped_layer_is_compared_too(tmp_path):
    folder = rewrite(copied("gemma", tmp_path), lambda t: t.pop("layers.2.mlp.up_proj.weight"))
    refused(r"layers\.2\.mlp\.up_proj\.weight is missing", folder, layer=-2)


def test_ignored_tensors_are_not_read(tmp_path):
    def more(tensors):
        tensors["decoder.block.0.layer.0.SelfAttention.q.weight"] = np.ones((2, 2), np.int8)
        tensors["lm_head.weight"] = np.ones((64, 32), np.float32)
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()

    io = reference("t5")
    folder = rewrite(copied("t5", tmp_path), more)
    assert_near(load_text_encoder(folder).states(io["ids"], io["mask"]), io["last"], io["mask"])
    rewrite(folder, lambda t: t.pop("shared.weight"))  # the other name of the same table
    assert_near(load_text_encoder(folder).states(io["ids"], io["mask"]), io["last"], io["mask"])


@pytest.mark.parametrize(
    ("kind", "change", "pattern"),
    [
        ("gemma", {"model_type": "llama"}, r"config\.json: model_type is 'llama', expected one of gemma, gemma2, t5"),
        ("gemma", {"model_type": None}, r"model_type is None"),
        ("gemma", {"attention_bias": True}, r"attention_bias is True"),
        ("gemma", {"use_bidirectional_attention": True}, r"use_bidirectional_attention is True"),
        ("gemma", {"rope_parameters": {"rope_type": "yarn"}}, r"rope_type is 'yarn'"),
        ("gemma", {"hidden_act": "silu"}, r"hidden_act is 'silu'"),
        ("gemma", {"num_key_value_heads": 3}, r"kv_heads 3"),
        ("gemma2", {"layer_types": ["full_attention"]}, r"layer_types has 1 entries for 3 layers"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 3}, r"layer_types is 'chunked_attention'"),
        ("gemma2", {"model_type": "gemma"}, r"feedforward_layernorm\.weight is not part"),
        ("t5", {"feed_forward_proj": "relu"}, r"feed_forward_proj is 'relu', expected 'gated-gelu'"),
        ("bert", {"position_embedding_type": "relative_key"}, r"position_embedding_type is 'relative_key'"),
        ("bert", {"model_type": "t5", "feed_forward_proj": "gated-gelu"}, r"is missing.*more such tensors"),
    ],
)
def test_configuration_of_another_network_is_named(kind, change, pattern, tmp_path):
    refused(pattern, copied(kind, tmp_path, lambda config: config.update(change)))


def test_folder_without_its_files_is_named(tmp_path):
    refused(r"nowhere: no such folder", tmp_path / "nowhere")
    refused(r"config\.json: missing", tmp_path)
    folder = copied("bert", tmp_path)
    (folder / "config.json").write_text('{"model_type": "bert",')
    refused(r"bert/config\.json: not readable as JSON", folder)
    (folder / "config.json").write_text("[]")
    refused(r"bert/config\.json: expected an object, found a list", folder)
    shutil.copy(GOLDEN / "bert" / "config.json", folder)
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(r"bert/model\.safetensors: not a readable safetensors file", folder)
    (folder / "model.safetensors").unlink()
    refused(r"bert/model\.safetensors: missing", folder)


@pytest.mark.parametrize("places", ["text", {}, {"a": "../other.safetensors"}, {"a": 3}, None], ids=str)
def test_broken_index_is_named(places, tmp_path):
    folder = copied("bert", tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    refused(r"model\.safetensors\.index\.json: its weight_map", folder)


def test_index_that_disagrees_with_its_shards_is_named(tmp_path):
    folder = in_shards(copied("bert", tmp_path))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["embeddings.LayerNorm.bias"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(r"embeddings\.LayerNorm\.bias is not in model-00002-of-00002\.safetensors", folder)


def test_tensor_in_two_shards_is_named(tmp_path):
    folder = in_shards(copied("bert", tmp_path))
    first, second = (folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    save_file(load_file(second) | {"embeddings.LayerNorm.bias": load_file(first)["embeddings.LayerNorm.bias"]}, second)
    with pytest.raises(ConfigError, match=r"embeddings\.LayerNorm\.bias is in model-00001-of-00002\.safetensors too"):
        stored_tensors(folder)


def test_clip_of_another_kind_is_refused():
    refused(r"model_type is 'bert', expected one of clip, clip_text_model", GOLDEN / "bert", load=load_clip)
    refused(r"dtype: unknown value 'int8'", GOLDEN / "clip", load=load_clip, dtype="int8")
    with pytest.raises(ConfigError, match=r"pixels: expected \(b, 28, 28, 3\), got \(2, 3, 28, 28\)"):
        load_clip(GOLDEN / "clip").image_features(reference("clip")["px"])
    with pytest.raises(ConfigError, match=r"ids: expected \(b, t\) with t up to 16"):
        load_clip(GOLDEN / "clip").text_features(np.zeros((1, 17), int))
    with pytest.raises(ConfigError, match=r"ids: must be 0\.\.63"):
        load_clip(GOLDEN / "clip").text_features(np.full((1, 3), 64))


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"layer": 4}, r"layer: 4 is not one of the 4 hidden states"),
        ({"layer": -5}, r"layer: -5 .*choose -4\.\.3"),
        ({"max_tokens": 0}, r"max_tokens: must be a whole number >= 1"),
        ({"padding": "middle"}, r"padding: unknown value 'middle'"),
        ({"dtype": "float16"}, r"dtype: unknown value 'float16'"),
    ],
)
def test_impossible_option_is_named(options, pattern):
    refused(pattern, GOLDEN / "gemma", **options)


def test_missing_or_broken_tokenizer_is_named_at_the_first_text(tmp_path):
    encoder, io = load_text_encoder(GOLDEN / "gemma"), reference("gemma")
    assert_near(encoder.states(io["ids"], io["mask"]), io["last"], io["mask"])
    refused(r"gemma/tokenizer\.json: missing", ["a cat"], load=encoder)
    folder = copied("gemma", tmp_path)
    (folder / "tokenizer.json").write_text('{"model": 3}')
    refused(r"gemma/tokenizer\.json: not a usable tokenizer", ["a cat"], load=load_text_encoder(folder))


@pytest.mark.parametrize(
    ("texts", "pattern"),
    [
        ([], r"texts: expected at least one text"),
        ("a cat", r"texts: expected a list of texts, got one text \('a cat'\)"),
        (["a", None], r"texts: text 1 is a NoneType"),
        (["\ud800"], r"texts: text 0 is not Unicode text"),
    ],
    ids=["none", "one", "null", "surrogate"],
)
def test_texts_that_are_none_are_named(texts, pattern, tmp_path):
    refused(pattern, texts, load=load_text_encoder(with_tokenizer("gemma", tmp_path), template="a "))


def test_tokenizer_of_another_network_is_named(tmp_path):
    encoder = load_text_encoder(with_tokenizer("gemma", tmp_path))
    (encoder.folder / "tokenizer.json").write_text(
        (encoder.folder / "tokenizer.json").read_text().replace('"cat": 8', '"cat": 99')
    )
    refused(r"tokenizer\.json: ids 0\.\.99 do not fit the 64 tokens of", ["a cat"], load=encoder)
    with pytest.raises(ConfigError, match=r"states: ids 0\.\.64 do not fit"):
        encoder.states(np.array([[0, 64]]), np.ones((1, 2)))
    with pytest.raises(ConfigError, match=r"must be one \(b, t\)"):
        encoder.states(np.zeros((1, 3), int), np.ones((1, 2)))


def test_special_tokens_need_positions(tmp_path):
    refused(
        r"max_tokens: 2 leaves no position beside 2 special tokens",
        ["a"],
        load=load_text_encoder(with_tokenizer("t5", tmp_path), max_tokens=2),
    )


@pytest.mark.parametrize("depth", [0, 2**63, 1e3, "many", None])
def test_impossible_number_of_layers_is_refused_before_lists_are_made(depth):
    with pytest.raises(ConfigError, match=r"here: num_hidden_layers is .*, expected a number in 1..1000"):
        network_options(lambda values, where: list(range(values["num_hidden_layers"])), {"num_hidden_layers": depth}, "here")
