"""Jobs of prompts: sizes, seeds, negative prompts, files of requests, interruption and the manifest."""

import json

import numpy as np
import pytest
from helpers.text_folders import with_tokenizer
from helpers.tiny_pipeline import assert_same_pictures, tiny_pipeline
from helpers.tiny_text_pipeline import TOKENS, save_text_pipeline, text_pipeline
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.config import ConfigError
from maskgil_jax.pipelines import jobs
from maskgil_jax.pipelines.jobs import sample_to_folder
from maskgil_jax.pipelines.prompts import PromptRequest, read_prompts, size_order
from maskgil_jax.text_encoders import load_text_encoder

pytestmark = pytest.mark.slow

REQUESTS = [
    PromptRequest("red cat"),
    PromptRequest("two dog", height=12, width=24),
    PromptRequest("blue sun", seed=5),
    PromptRequest("a green hat", negative_prompt="red cat"),
    PromptRequest("the dog on the hat", height=12, width=24, seed=5),
    PromptRequest("three cat"),
]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return text_pipeline(load_text_encoder(with_tokenizer("t5", tmp_path_factory.mktemp("encoder")), max_tokens=TOKENS))


def pictures(folder):
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))]


def test_job_of_prompts_draws_each_as_a_call_does(pipeline, tmp_path):
    sample_to_folder(pipeline, None, tmp_path / "a", prompts=REQUESTS, seed=3, batch_size=2)
    found = pictures(tmp_path / "a")
    assert [image.shape[:2] for image in found] == [(16, 16), (12, 24), (16, 16), (16, 16), (12, 24), (16, 16)]
    together = pipeline(prompts=[request.prompt for request in REQUESTS], seed=3)
    for i in (0, 5):
        assert_same_pictures(found[i][None], together[i : i + 1])
    assert_same_pictures(found[2][None], pipeline(prompts="blue sun", seed=5))
    assert_same_pictures(found[4][None], pipeline(prompts="the dog on the hat", height=12, width=24, seed=5))
    sample_to_folder(pipeline, None, tmp_path / "b", prompts=REQUESTS, seed=3, batch_size=32)
    for one, other in zip(found, pictures(tmp_path / "b"), strict=True):
        assert_same_pictures(one[None], other[None])


def test_manifest_holds_the_request_of_each_image(pipeline, tmp_path):
    sample_to_folder(pipeline, None, tmp_path, prompts=REQUESTS, batch_size=8)
    manifest = json.loads((tmp_path / "samples.json").read_text())
    assert manifest["num"] == 6 and "labels" not in manifest
    assert manifest["prompts"][3] == {"prompt": "a green hat", "negative_prompt": "red cat"}
    assert manifest["prompts"][4] == {"prompt": "the dog on the hat", "height": 12, "width": 24, "seed": 5}
    assert manifest["text_encoder"]["hash"] == pipeline.conditioner.about["hash"]
    with pytest.raises(ConfigError, match="holds other samples: prompts is"):
        sample_to_folder(pipeline, None, tmp_path, prompts=REQUESTS[::-1])


def test_interrupted_job_of_prompts_draws_only_what_is_missing(pipeline, tmp_path, monkeypatch):
    sample_to_folder(pipeline, None, tmp_path, prompts=REQUESTS, batch_size=2)
    before = pictures(tmp_path)
    for number in (1, 2):
        (tmp_path / f"{number:06d}.png").unlink()
    drawn = []
    draw = jobs.draw_prompts
    monkeypatch.setattr(jobs, "draw_prompts", lambda p, r, indices, **o: drawn.extend(indices) or draw(p, r, indices, **o))
    sample_to_folder(pipeline, None, tmp_path, prompts=REQUESTS, batch_size=2)
    assert sorted(drawn) == [1, 2]
    for one, other in zip(before, pictures(tmp_path), strict=True):
        assert_same_pictures(one[None], other[None])


def test_sample_command_draws_prompts(pipeline, tmp_path, capsys):
    weights = save_text_pipeline(tmp_path / "w", pipeline.conditioner.encoder)
    flags = ["sample", "--weights", str(weights), "--batch-size", "8"]
    cli.main([*flags, "--prompt", "red cat", "--prompt", "blue sun", "--negative-prompt", "hat", "--out", str(tmp_path / "a")])
    assert "2 images and grid.png" in capsys.readouterr().out
    expected = pipeline(prompts=["red cat", "blue sun"], negative_prompts="hat")
    for image, one in zip(pictures(tmp_path / "a"), expected, strict=True):
        assert_same_pictures(image[None], one[None])
    (tmp_path / "p.jsonl").write_text('{"prompt": "two dog", "height": 12}\n"red cat"\n')
    cli.main([*flags, "--prompts", str(tmp_path / "p.jsonl"), "--width", "24", "--out", str(tmp_path / "b")])
    assert [image.shape[:2] for image in pictures(tmp_path / "b")] == [(12, 24), (16, 24)]
    for extra, message in (
        (["--prompt", "a", "--prompts", "p.txt"], "--prompt, --prompts: give one of them"),
        (["--prompt", "a", "--labels", "1"], "--labels: does not go with prompts"),
        (["--negative-prompt", "a"], "--negative-prompt: needs --prompt or --prompts"),
        ([], "labels: this generator is conditioned on text; give prompts"),
    ):
        assert cli.main([*flags, *extra, "--out", str(tmp_path / "c")]) == 2
        assert message in capsys.readouterr().err


def test_requests_of_one_size_are_drawn_together(pipeline):
    assert size_order(pipeline, REQUESTS) == [0, 2, 5, 1, 4, 3]


def test_job_that_does_not_fit_is_named_before_anything_is_written(pipeline, tmp_path):
    out = tmp_path / "out"
    for options, message in (
        (dict(prompts=[]), "prompts: none given"),
        (dict(prompts=["a"], format="npz"), "images of prompts are png or webp, got 'npz'"),
        (dict(prompts=["a"], grid=(2, 2)), "grid: prompts have sizes of their own"),
        (dict(prompts=[PromptRequest("a", height=13)]), "height: must be a multiple of 4 pixels"),
        (dict(), "labels, prompts: give one of them"),
    ):
        with pytest.raises(ConfigError, match=message):
            sample_to_folder(pipeline, None, out, **options)
    with pytest.raises(ConfigError, match="labels: this generator is conditioned on text; give prompts"):
        sample_to_folder(pipeline, ["cat"], out)
    with pytest.raises(ConfigError, match="prompts: this generator is conditioned on a class"):
        sample_to_folder(tiny_pipeline(), None, out, prompts=["a"])
    assert not out.exists()


def test_files_of_prompts_give_requests(tmp_path):
    (tmp_path / "p.txt").write_text("red cat\n\n  two dog  \nقطة 🐈\n", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == [PromptRequest("red cat"), PromptRequest("two dog"), PromptRequest("قطة 🐈")]
    lines = ['"red cat"', "", '{"prompt": "two dog", "height": 12, "width": 24, "seed": 5, "negative_prompt": "hat"}']
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    assert read_prompts(tmp_path / "p.jsonl") == [PromptRequest("red cat"), PromptRequest("two dog", "hat", 12, 24, 5)]


@pytest.mark.parametrize(
    "line,message",
    [
        ('{"prompt": "a"', "not JSON"),
        ('{"prompt": 3}', "prompt: expected text, got 3"),
        ('{"text": "a"}', "'text' is not one of prompt, negative_prompt, height, width, seed"),
        ("{}", "prompt is missing"),
        ("[1]", "expected an object with prompt, negative_prompt, .*found a list"),
        ('{"prompt": "a", "height": 1.5}', "height: expected a whole number, got 1.5"),
        ('{"prompt": "a", "seed": -1}', r"seed: must be in 0\.\.2\^32-1, got -1"),
    ],
)
def test_wrong_line_of_a_file_of_prompts_is_named(tmp_path, line, message):
    (tmp_path / "p.jsonl").write_text("\n".join(['{"prompt": "a"}'] * 16 + [line]))
    with pytest.raises(ConfigError, match=rf"p\.jsonl: line 17: {message}") as error:
        read_prompts(tmp_path / "p.jsonl")
    assert "\n" not in str(error.value)


def test_file_without_prompts_is_named(tmp_path):
    (tmp_path / "p.txt").write_text("\n \n")
    (tmp_path / "p.csv").write_text("a")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    for name, message in (
        ("p.txt", "holds no prompt"),
        ("p.csv", "expected a .txt file"),
        ("none.txt", "no such file of prompts"),
        ("bad.txt", "not a readable UTF-8 file"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_prompts(tmp_path / name)
