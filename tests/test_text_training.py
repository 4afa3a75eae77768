"""Training on captions: the frozen encoder computes in the train step, and a trunk can start from other weights."""

import json
import logging
import pathlib

import jax
import numpy as np
import pytest

import maskgil_jax
from maskgil_jax import cli
from maskgil_jax.checkpoints.weights import load_weights, save_weights
from maskgil_jax.conditioning import online_texts
from maskgil_jax.config import VQConfig
from maskgil_jax.networks import create, flatten, params_of
from maskgil_jax.text_encoders import load_text_encoder
from maskgil_jax.text_encoders.caption_tokens import TokenizeCaption

pytestmark = pytest.mark.slow

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "debug.py"
VQ = VQConfig(channels=4, multipliers=(1, 1, 1), res_blocks=1, latent_dim=4, codebook_size=32, codebook_dim=4, image_size=16)
TOKENS = 12
OPTIONS = ["--config.log_every=1", "--config.checkpoint.every=3", "--config.sample_every=0", "--config.batch_size=8"]
OPTIONS += ["--config.model.width=32", "--config.model.heads=2", "--config.model.mlp_width=32"]
OPTIONS += ["--config.data.image_size=16", "--config.data.crop=center"]
TEXT = ["--config.text_encoder.path=minilm", f"--config.text_encoder.max_tokens={TOKENS}"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vq") / "tokenizer"
    save_weights(path, VQ, params_of(create(VQ, jax.random.key(0))))
    return path


@pytest.fixture(scope="module")
def encoder():
    return load_text_encoder("minilm", max_tokens=TOKENS)


def train(workdir, tokenizer, *more, steps=4):
    argv = ["train", "--config", str(CONFIG), "--workdir", str(workdir), f"--config.tokenizer={tokenizer}", *OPTIONS]
    return cli.main([*argv, f"--config.total_steps={steps}", *more])


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert train(workdir, tokenizer, *TEXT, "--config.sample_every=4") == 0
    return workdir


@pytest.mark.parametrize("padding", ["right", "left"])
def test_encoder_in_the_step_gives_the_condition_of_a_prompt(padding):
    encoder = load_text_encoder("minilm", max_tokens=TOKENS, padding=padding, template="a drawing: ")
    tokenize, conditioner = TokenizeCaption(encoder.tokenizer, encoder.options.template), online_texts(encoder)
    captions = ["two red cats above a dog", "", "a " * 40]
    records = [tokenize.map({"caption": caption, "id": str(i)}) for i, caption in enumerate(captions)]
    batch = {name: np.stack([record[name] for record in records]) for name in conditioner.batch_keys}
    found, expected = jax.jit(conditioner.from_batch)(batch, conditioner.frozen), conditioner.encode(captions)
    np.testing.assert_array_equal(found.mask_bt, expected.mask_bt)
    np.testing.assert_allclose(found.features_btd, expected.features_btd, atol=2e-5)


def test_cut_captions_are_named_once(encoder, caplog):
    tokenize = TokenizeCaption(encoder.tokenizer)
    with caplog.at_level(logging.WARNING):
        for i in range(3):
            tokenize.map({"caption": f"image {i} " + "word " * 30})
    assert len(caplog.records) == 1 and "more than 12 tokens" in caplog.text and "image 0" in caplog.text


def test_training_on_captioned_images_gives_a_pipeline_for_prompts(trained, encoder):
    pipeline = maskgil_jax.load(trained / "weights")
    assert pipeline.generator.cfg.text_tokens == TOKENS and pipeline.generator.cfg.prefix_rotation == "identity"
    null = pipeline.generator.null_condition(pipeline.conditioner.encode(["red"]))
    np.testing.assert_allclose(null.features_btd, encoder([""]).features_btd, atol=1e-5)
    images = pipeline(prompts=["a red heart", "two cats"], height=24, width=16, steps=2)
    assert images.shape == (2, 24, 16, 3)
    about = json.loads((trained / "weights" / "generator" / "config.json").read_text())["text_encoder"]
    assert about["path"] == "minilm" and about["hash"] == encoder.about["hash"]


def test_several_sizes_of_images_must_be_encoded_first(tokenizer, tmp_path, capsys):
    assert train(tmp_path / "run", tokenizer, *TEXT, "--config.data.buckets=32") != 0
    assert "maskgil encode --sizes 32 first" in capsys.readouterr().err


def test_text_model_starts_from_the_trunk_of_a_class_model(trained, tokenizer, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert train(tmp_path / "classes", tokenizer, f"--config.init_from={trained / 'weights'}", steps=1) == 0
    lines = [line for line in caplog.messages if line.startswith("init_from: ")]
    assert [line.partition(": ")[2].partition(":")[0] for line in lines[1:]] == ["new", "not used"]
    assert "classes/embedding" in lines[1] and "caption_up/kernel" in lines[2]
    assert train(tmp_path / "frozen", tokenizer, "--config.optimizer.learning_rate=1e-30", "--config.optimizer.ema_decay=0.5",
                 f"--config.init_from={trained / 'weights'}", steps=1) == 0  # fmt: skip
    before, after = (flatten(load_weights(path / "weights", "generator").params) for path in (trained, tmp_path / "frozen"))
    assert set(after) - set(before) == {"classes/embedding"}
    for name in set(after) & set(before):
        np.testing.assert_allclose(after[name], before[name], atol=1e-12, err_msg=name)


def test_trunk_of_another_size_is_refused_naming_the_parameter(trained, tokenizer, tmp_path, capsys):
    wide = ["--config.model.width=64", f"--config.init_from={trained / 'weights'}"]
    assert train(tmp_path / "run", tokenizer, *TEXT, *wide) != 0
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "config.init_from" in message and "layers/" in message and "same size" in message


def test_stored_features_and_an_encoder_together_are_refused(tokenizer, tmp_path, capsys):
    more = ["--config.data.codes=store", "--config.data.texts=texts"]
    assert train(tmp_path / "run", tokenizer, *TEXT, *more) != 0
    assert "give one of them" in capsys.readouterr().err
