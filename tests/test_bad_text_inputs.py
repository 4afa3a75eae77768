"""Prompts, sizes and encoders that cannot be used, as people type them: one clear line each, or a picture."""

import dataclasses
import json
import logging
import shutil
import types

import numpy as np
import pytest
from helpers.text_folders import GOLDEN, with_tokenizer
from helpers.tiny_text_pipeline import TOKENS, save_text_pipeline, text_pipeline
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.config import ConfigError
from maskgil_jax.pipelines.sizes import MAX_TOKENS
from maskgil_jax.text_encoders import load_text_encoder

LONG = "red cat " * 1250  # 10,000 characters


@pytest.fixture(scope="module")
def pipeline():
    return text_pipeline(load_text_encoder("minilm", max_tokens=TOKENS))


@pytest.fixture(scope="module")
def weights(pipeline, tmp_path_factory):
    return save_text_pipeline(tmp_path_factory.mktemp("weights"), pipeline.conditioner.encoder)


def sample(weights, out, *args):
    return cli.main(["sample", "--weights", str(weights), "--batch-size", "4", "--out", str(out), *map(str, args)])


@pytest.mark.slow
def test_prompt_of_10000_characters_is_cut_with_a_warning_that_shows_it(weights, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert sample(weights, tmp_path / "a", "--prompt", LONG) == 0
    (record,) = caplog.records
    assert f"longer than max_tokens={TOKENS} and was cut; left out: 'red cat red" in record.getMessage()
    assert "characters more" in record.getMessage() and len(record.getMessage()) < 400
    assert sample(weights, tmp_path / "b", "--prompt", "red cat " * 5) == 0  # the same ten words are left of it
    a, b = (np.asarray(Image.open(tmp_path / name / "000000.png")) for name in "ab")
    np.testing.assert_array_equal(a, b)


def test_emoji_and_right_to_left_prompts_make_pictures_of_their_own(pipeline):
    texts = ["", "🐈‍⬛ on 🟥", "قطة حمراء على بساط", "חתול אדום", "قطة‏ and cat"]
    images = pipeline(prompts=texts)
    assert images.shape == (5, 16, 16, 3)
    for i in range(5):
        for j in range(i):
            assert (images[i] != images[j]).any(), (texts[i], texts[j])


@pytest.mark.parametrize(
    "args, message",
    [
        (["--prompts", "{empty}"], "empty.txt: holds no prompt"),
        (["--prompts", "{wrong}"], "wrong.jsonl: line 17: not JSON"),
        (["--prompt", "cat", "--height", "18"], "height: must be a multiple of 4 pixels, the size of a token, got 18; e.g. 16"),
        (
            ["--prompt", "cat", "--width", "40000", "--height", "40000"],
            "size: 40000x40000 pixels are 100000000 tokens, more than",
        ),
        (["--prompt", "cat", "--text-encoder", "{t5}"], "t5 (t5-3x32) has hash"),
        (["--prompt", "cat", "--text-encoder", "{llama}"], "config.json: model_type is 'llama', expected one of gemma, gemma2"),
        (["--prompt", "cat", "--text-encoder", "{images}"], "config.json: missing; copy the whole Hugging Face folder"),
    ],
)
def test_request_that_cannot_be_drawn_is_one_line(weights, tmp_path, capsys, args, message):
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "wrong.jsonl").write_text('{"prompt": "a"}\n' * 16 + '{"prompt": "b"\n')
    (tmp_path / "images").mkdir()
    places = {"empty": tmp_path / "empty.txt", "wrong": tmp_path / "wrong.jsonl", "images": tmp_path / "images"}
    places["t5"] = with_tokenizer("t5", tmp_path)
    places["llama"] = tmp_path / "llama"
    shutil.copytree(GOLDEN / "gemma", places["llama"])
    config = json.loads((places["llama"] / "config.json").read_text()) | {"model_type": "llama"}
    (places["llama"] / "config.json").write_text(json.dumps(config))
    assert sample(weights, tmp_path / "out", *(arg.format(**places) for arg in args)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_empty_list_of_prompts_is_refused(pipeline):
    for prompts, message in (([], "prompts: none given"), ([3], "prompts: expected text, got int 3")):
        with pytest.raises(ConfigError, match=message):
            pipeline(prompts=prompts)


def test_sizes_are_checked_against_patch_and_limit(pipeline):
    patched = types.SimpleNamespace(cfg=dataclasses.replace(pipeline.generator.cfg, patch=2))
    with pytest.raises(ConfigError, match="height: must be a multiple of 8 pixels, the size of 2 tokens, got 12"):
        type(pipeline)(pipeline.tokenizer, patched, pipeline.conditioner, pipeline.cfg).grid_of(12, 16)
    side = int(MAX_TOKENS**0.5)
    assert pipeline.grid_of(None, None, (side, side)) == (side, side)
    with pytest.raises(ConfigError, match=f"tokens, more than {MAX_TOKENS}; choose less"):
        pipeline.grid_of(None, None, (side, side + 1))
