"""`load` with its options, `save` and `push`, and how many programs calls compile."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_hub
from helpers.compilations import counted
from helpers.text_folders import with_tokenizer
from helpers.tiny_pipeline import CELL, NAMES, save_pipeline, tiny_pipeline
from helpers.tiny_text_pipeline import TOKENS, save_text_pipeline, text_pipeline

import maskgil_jax
from maskgil_jax.checkpoints.weights import load_weights
from maskgil_jax.config import ConfigError
from maskgil_jax.networks import params_of
from maskgil_jax.text_encoders.load import load_text_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


def load(path, **options):
    return maskgil_jax.load(path, compile_cache=False, **options)


# ------------------------------------------------------------------------------------------------ compilations
@pytest.mark.slow
@pytest.mark.parametrize(("first", "others", "steps"), [(1, (3, 8, 16), 3), (5, (7, 1), 5), (17, (32, 40, 70), 6)])
def test_second_request_with_another_number_of_labels_compiles_nothing(first, others, steps):
    pipeline = tiny_pipeline()
    jax.clear_caches()  # another test may have compiled these programs in this process
    with counted() as before:
        alone = pipeline(np.arange(first) % 3, seed=1, steps=steps)
    with counted() as after:
        for count in others:
            images = pipeline(np.arange(count) % 3, seed=1, steps=steps)
            assert len(images) == count
            np.testing.assert_array_equal(images[: len(alone)], alone[:count])
        assert len(pipeline([2], num_per_label=others[0], seed=2, steps=steps)) == others[0]
    assert before and not after


@pytest.mark.slow
def test_second_request_with_another_number_of_prompts_compiles_nothing(tmp_path):
    pipeline = text_pipeline(load_text_encoder(with_tokenizer("t5", tmp_path), max_tokens=TOKENS))
    jax.clear_caches()
    with counted() as before:
        pipeline(prompts=["two cats"], seed=1, steps=3)
    with counted() as after:
        assert len(pipeline(prompts=["two cats", "a cat", "cats"], seed=1, steps=3)) == 3
    assert before and not after


def test_warm_up_compiles_all_that_calls_and_streams_need():
    pipeline = dataclasses.replace(tiny_pipeline(), mesh=None)
    size = (2 * CELL, 3 * CELL)
    pipeline.warm_up([size], batch_sizes=(1, 3), steps_shown=True, steps=4)
    with counted() as later:
        for labels in (0, [0, 1, 2], [0, 1, 2, 0]):
            images = pipeline(labels, height=size[0], width=size[1], steps=4, seed=3)
            assert images.shape[1:3] == size
            list(pipeline.stream(labels, height=size[0], width=size[1], steps=4, seed=4))
    assert not later


def test_warm_up_refuses_a_batch_of_none():
    with pytest.raises(ConfigError, match="batch_sizes: must be whole numbers from 1, got 0"):
        tiny_pipeline().warm_up(batch_sizes=(0,))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "environment", "expected"),
    [
        ("jnp.ones(3) + 1", {}, "HOME/.cache/maskgil_jax/xla"),  # after a compilation, too
        ("jax.config.update('jax_compilation_cache_dir', '/tmp/mine')", {}, "/tmp/mine"),
        ("", {"JAX_COMPILATION_CACHE_DIR": "/tmp/theirs"}, "/tmp/theirs"),
        ("switch = False", {}, "None"),
    ],
)
def test_load_sets_the_compilation_cache_unless_there_is_one(folder, tmp_path, code, environment, expected):
    script = f"""
import jax, jax.numpy as jnp
import maskgil_jax
switch = True
{code}
pipeline = maskgil_jax.load({str(folder)!r}, compile_cache=switch)
print(jax.config.jax_compilation_cache_dir, flush=True)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x * 3)(jnp.ones(5))
"""
    clean = {"PATH": "", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run([sys.executable, "-c", script], env=clean | environment, capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == expected.replace("HOME", str(tmp_path)), run.stderr
    cached = list((tmp_path / ".cache/maskgil_jax/xla").glob("*")) if expected.startswith("HOME") else None
    assert cached is None or cached


# ------------------------------------------------------------------------------------------------ dtype and cache_dir
@pytest.mark.slow
def test_bfloat16_halves_the_matrices_and_keeps_norms_and_tokenizer(folder):
    plain, half = load(folder), load(folder, dtype="bfloat16")
    assert half.generator.cfg.dtype == half.tokenizer.cfg.dtype == "bfloat16"
    kinds = {
        "/".join(str(key.key) for key in path): leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(params_of(half.generator))
    }
    assert {kind for name, kind in kinds.items() if name.endswith(("kernel", "embedding"))} == {jnp.dtype("bfloat16")}
    assert {kind for name, kind in kinds.items() if name.endswith("scale")} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(params_of(half.tokenizer))} == {jnp.dtype("float32")}
    images, exact = half([0, 1, 2], seed=1), plain([0, 1, 2], seed=1)
    assert images.dtype == np.uint8 and images.shape == exact.shape and not np.array_equal(images, exact)
    np.testing.assert_array_equal(load(folder, dtype="float32")([0, 1, 2], seed=1), exact)
    with pytest.raises(ConfigError, match=r"dtype: .*float16"):
        load(folder, dtype="float16")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # plain uploads over HTTP
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    with fake_hub.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_pushed_pipeline_loads_from_its_own_cache_folder(hub, folder, tmp_path):
    pipeline = load(folder)
    pipeline.push("hf://me/mine", licence="mit")
    assert {"tokenizer/config.json", "generator/config.json", "README.md"} <= hub.files("me/mine").keys()
    again = load("hf://me/mine", cache_dir=tmp_path / "own")
    assert (tmp_path / "own" / "hub").is_dir() and again.name == "hf://me/mine"
    np.testing.assert_array_equal(again([0, 1], seed=1), pipeline([0, 1], seed=1))
    with pytest.raises(ConfigError, match="expected hf://owner/repo or gs://"):
        pipeline.push("me/mine")


# ------------------------------------------------------------------------------------------------ save
@pytest.mark.slow
def test_saved_pipeline_draws_the_same_images_with_its_options(folder, tmp_path):
    changed = dataclasses.replace(load(folder), cfg=tiny_pipeline().options(None, steps=5, guidance=3.0))
    changed.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.cfg == changed.cfg and again.class_names == NAMES
    np.testing.assert_array_equal(again([0, 1, 2], seed=4), changed([0, 1, 2], seed=4))


def test_save_keeps_other_entries_of_config_json_and_the_readme(tmp_path):
    source = save_pipeline(tmp_path / "source")
    config = source / "generator" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"source": {"file": "x.pt"}, "licence": "mit"}))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "README.md").write_text("mine")
    for _ in range(2):  # a new folder, and one that holds a pipeline
        load(source).save(tmp_path / "saved")
    found = load_weights(tmp_path / "saved", "generator").metadata
    assert found["source"] == {"file": "x.pt"} and found["licence"] == "mit"
    assert (tmp_path / "saved" / "README.md").read_text() == "mine"
    assert sorted(entry.name for entry in (tmp_path / "saved").iterdir()) == ["README.md", "generator", "tokenizer"]


def test_save_in_float16_records_the_hash_of_the_rounded_tokenizer(folder, tmp_path):
    load(folder).save(tmp_path / "half", dtype="float16")
    pipeline = load(tmp_path / "half")  # refuses a generator of another tokenizer
    assert pipeline.metadata["generator"]["tokenizer_hash"] == load_weights(tmp_path / "half", "tokenizer").hash
    assert pipeline.metadata["generator"]["tokenizer_hash"] != load_weights(folder, "tokenizer").hash


def test_save_keeps_the_entry_of_the_text_encoder(tmp_path):
    source = save_text_pipeline(tmp_path / "source", load_text_encoder(with_tokenizer("t5", tmp_path), max_tokens=TOKENS))
    load(source).save(tmp_path / "saved")
    entries = [load_weights(path, "generator").metadata["text_encoder"] for path in (source, tmp_path / "saved")]
    assert entries[0] == entries[1] and entries[0]


def test_save_refuses_a_folder_that_holds_something_else(folder, tmp_path):
    (tmp_path / "photo.png").write_text("x")
    with pytest.raises(ConfigError, match=r"photo.png.*is no part of a pipeline and would be lost"):
        load(folder).save(tmp_path)
    assert (tmp_path / "photo.png").exists()
    with pytest.raises(ConfigError, match="is a file"):
        load(folder).save(tmp_path / "photo.png")
