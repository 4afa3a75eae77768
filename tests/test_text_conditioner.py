"""Prompts -> conditions: which encoder, its identity in `config.json`, and requests that are no prompts."""

import json
import logging
import shutil

import numpy as np
import pytest
from helpers.text_folders import rewrite, with_tokenizer
from helpers.tiny_pipeline import save_pipeline
from helpers.tiny_text_pipeline import TEXT_LLAMA, TOKENS, WIDTH, save_text_pipeline, text_pipeline

from maskgil_jax.conditioning import ClassConditioner, TextConditioner, conditioner_of
from maskgil_jax.config import ConfigError, LlamaConfig
from maskgil_jax.models.condition import TextCondition
from maskgil_jax.pipelines.packing import pack
from maskgil_jax.pipelines.pipeline import load
from maskgil_jax.text_encoders import load_text_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_tokenizer("t5", tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoder(folder):
    return load_text_encoder(folder, max_tokens=TOKENS, layer=-2)


@pytest.fixture(scope="module")
def weights(encoder, tmp_path_factory):
    return save_text_pipeline(tmp_path_factory.mktemp("weights") / "w", encoder)


def test_hash_tells_weights_and_tokenizers_apart_but_not_precisions(folder, encoder, tmp_path):
    same = load_text_encoder(folder, max_tokens=7, layer=-2, dtype="bfloat16")
    assert same.about["hash"] == encoder.about["hash"] and len(same.about["hash"]) == 16
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert load_text_encoder(copy, layer=-2).about["hash"] == same.about["hash"]
    rewrite(copy, lambda tensors: tensors.update({n: x * 1.01 for n, x in tensors.items()}))
    assert load_text_encoder(copy, layer=-2).about["hash"] != same.about["hash"]
    words = shutil.copytree(folder, tmp_path / "words")
    (words / "tokenizer.json").write_text((words / "tokenizer.json").read_text().replace("hat", "hats"))
    assert load_text_encoder(words, layer=-2).about["hash"] != same.about["hash"]


def test_config_json_names_the_encoder_and_load_reads_it_back(weights, folder, encoder):
    about = json.loads((weights / "generator" / "config.json").read_text())["text_encoder"]
    assert about == {
        "path": str(folder),
        "name": encoder.name,
        "layer": -2,
        "max_tokens": TOKENS,
        "padding": "right",
        "template": "",
        "dtype": "float32",
        "hash": encoder.about["hash"],
    }
    pipeline = load(weights)
    assert pipeline.conditioner == text_pipeline(encoder).conditioner and pipeline.conditioner.encoder is None
    found, expected = pipeline.conditioner.encode("red cat"), encoder(["red cat"])
    np.testing.assert_array_equal(found.features_btd, expected.features_btd)
    np.testing.assert_array_equal(found.mask_bt, expected.mask_bt)
    null = pipeline.generator.null_condition(found)
    np.testing.assert_array_equal(null.features_btd, encoder([""]).features_btd)
    np.testing.assert_array_equal(null.mask_bt, encoder([""]).mask_bt)


def test_packed_pipeline_keeps_its_encoder(weights, tmp_path):
    pack(weights, tmp_path / "packed")
    assert load(tmp_path / "packed").conditioner == load(weights).conditioner


def test_text_encoder_of_another_place_is_taken_if_it_is_the_same(weights, folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "moved")
    conditioner = load(weights, text_encoder=moved).conditioner
    assert conditioner.encoder.about["path"] == str(moved) and conditioner.encoder.options.layer == -2
    rewrite(moved, lambda tensors: tensors.update({n: x * 1.01 for n, x in tensors.items()}))
    with pytest.raises(ConfigError, match=r"moved .*has hash .* trained with .*t5.*; give that one"):
        load(weights, text_encoder=moved)


def test_missing_or_changed_encoder_is_named_at_the_first_prompt(weights, tmp_path):
    copy = shutil.copytree(weights, tmp_path / "w")
    config = json.loads((copy / "generator" / "config.json").read_text())
    real = config["text_encoder"]["path"]
    for change, message in (
        ({"path": "nowhere/t5"}, r"nowhere/t5: no such folder.*load\(\.\.\., text_encoder=FOLDER\)"),
        ({"hash": "0" * 16, "path": real}, "trained with hash 0000000000000000"),
    ):
        config["text_encoder"].update(change)
        (copy / "generator" / "config.json").write_text(json.dumps(config))
        pipeline = load(copy)
        with pytest.raises(ConfigError, match=message) as error:
            pipeline.conditioner.encode(["red cat"])
        assert "\n" not in str(error.value)


def test_encoder_that_does_not_fit_is_refused(weights, tmp_path):
    cfg = LlamaConfig(condition="text", text_tokens=TOKENS, text_dim=48)
    with pytest.raises(ConfigError, match=r"gives 12 x 32 .*takes 12 x 48"):
        conditioner_of(cfg, {}, with_tokenizer("t5", tmp_path))
    with pytest.raises(ConfigError, match="text_encoder: this generator is conditioned on a class"):
        load(save_pipeline(tmp_path / "classes"), text_encoder="anything")
    with pytest.raises(ConfigError, match="text_encoder is a str, expected an object"):
        conditioner_of(TEXT_LLAMA, {"text_encoder": "t5"})


@pytest.mark.parametrize("null_text,padding", [("random", "left"), ("encoder", "right")])
def test_generator_without_an_entry_gets_the_padding_of_its_layout(folder, null_text, padding):
    cfg = LlamaConfig(condition="text", text_tokens=9, text_dim=WIDTH, null_text=null_text)
    conditioner = conditioner_of(cfg, {}, folder)
    assert (conditioner.encoder.options.padding, conditioner.encoder.max_tokens) == (padding, 9)
    assert conditioner.fixed_parameters(cfg).keys() == ({"caption_null", "caption_null_mask"} if padding == "right" else set())


@pytest.mark.parametrize("padding", ["right", "left"])
def test_short_encoder_is_padded_to_the_generators_length(folder, padding):
    encoder = load_text_encoder(folder, max_tokens=5, padding=padding)
    short, expected = TextConditioner(9, WIDTH, encoder, encoder.about).encode(["red cat"]), encoder(["red cat"])
    assert short.features_btd.shape == (1, 9, WIDTH) and int(short.mask_bt.sum()) == int(expected.mask_bt.sum()) == 4
    inside = slice(0, 5) if padding == "right" else slice(4, 9)
    np.testing.assert_array_equal(short.features_btd[:, inside], expected.features_btd)
    np.testing.assert_array_equal(short.mask_bt[:, inside], expected.mask_bt)


@pytest.mark.parametrize(
    "request_,message",
    [
        ([], "prompts: none given"),
        ((), "prompts: none given"),
        ([3], "prompts: expected text, got int 3"),
        (["red", None], "prompts: expected text, got NoneType"),
        (7, "prompts: expected text or a list of texts, got int"),
        ({"red": 1}, "prompts: expected text or a list of texts, got dict"),
        ([b"red"], "prompts: expected text, got bytes"),
        (["\ud800"], "not Unicode text"),
    ],
)
def test_request_that_is_no_prompt_is_named(encoder, request_, message):
    with pytest.raises(ConfigError, match=message) as error:
        TextConditioner(TOKENS, WIDTH, encoder).encode(request_)
    assert "\n" not in str(error.value)


def test_prompts_of_any_length_and_script_are_encoded(encoder, caplog):
    conditioner = TextConditioner(TOKENS, WIDTH, encoder)
    prompts = ["", " ", "red cat", "🐈‍⬛ on 🟥", "قطة حمراء", "חתול", "赤い猫", "a " * 5000]
    assert len(prompts[-1]) == 10_000
    with caplog.at_level(logging.WARNING):
        found = conditioner.encode(prompts)
    assert found.features_btd.shape == (8, TOKENS, WIDTH) and np.isfinite(found.features_btd).all()
    assert np.asarray(found.mask_bt).any(axis=1).all() and np.asarray(found.mask_bt)[-1].all()
    assert len(caplog.records) == 1 and "text 7 is longer than max_tokens=12" in caplog.text
    np.testing.assert_array_equal(conditioner.encode("red cat").mask_bt[0], found.mask_bt[2])
    assert conditioner.encode(found) is found and isinstance(found, TextCondition)


def test_prompts_without_any_encoder_are_refused_and_conditions_are_not():
    conditioner = conditioner_of(TEXT_LLAMA, {})
    with pytest.raises(ConfigError, match=r"no text encoder is loaded with it; give load\(\.\.\., text_encoder=FOLDER\)"):
        conditioner.encode("red cat")
    assert conditioner.encode(conditioner.examples(2)).features_btd.shape == (2, TOKENS, WIDTH)
    assert conditioner.metadata() == {} and ClassConditioner(("a",)).fixed_parameters(LlamaConfig()) == {}
