"""CLIPScore by CLIP in JAX: pixels and features of the reference, folders of samples, spoken prompts."""

import json

import numpy as np
import pytest
from helpers.text_folders import GOLDEN, assert_near, rewrite, with_tokenizer
from helpers.tiny_text_pipeline import TOKENS, save_text_pipeline, text_pipeline
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.config import ConfigError
from maskgil_jax.evaluation.clip_embedding import ClipEmbedder, clip_pixels, job_texts, read_texts, score_samples
from maskgil_jax.evaluation.metrics import clip_score
from maskgil_jax.files.images import save_png
from maskgil_jax.pipelines.jobs import sample_to_folder
from maskgil_jax.pipelines.prompts import PromptRequest
from maskgil_jax.text_encoders import load_text_encoder

PROJECTION = "visual_projection.weight"
REQUESTS = [PromptRequest("red cat"), PromptRequest("two dog", height=12, width=24), PromptRequest("blue sun")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The golden CLIP with a tokenizer of a few words.

    Its image features are turned round, or all scores would be 0.
    """
    folder = with_tokenizer("clip", tmp_path_factory.mktemp("clip"))
    return rewrite(folder, lambda tensors: tensors.update({PROJECTION: -tensors[PROJECTION]}))


@pytest.fixture(scope="module")
def embedder(folder):
    return ClipEmbedder(folder)


@pytest.fixture(scope="module")
def pipeline():
    return text_pipeline(load_text_encoder("minilm", max_tokens=TOKENS))


@pytest.fixture(scope="module")
def samples(pipeline, tmp_path_factory):
    return sample_to_folder(pipeline, None, tmp_path_factory.mktemp("samples") / "a", prompts=REQUESTS, batch_size=4)


def golden_images():
    with np.load(GOLDEN / "clip" / "images.npz") as file:
        return [file[f"image{i}"] for i in range(4)], file["pixels"], file["features"]


def test_pixels_equal_those_of_the_reference():
    images, pixels_bchw, _ = golden_images()
    for image, expected_chw in zip(images, pixels_bchw, strict=True):
        np.testing.assert_allclose(clip_pixels(image, 28), expected_chw.transpose(1, 2, 0), atol=1e-6)


def test_image_features_of_any_sizes_equal_the_reference():
    images, _, features = golden_images()
    embedder = ClipEmbedder(GOLDEN / "clip")
    assert_near(embedder.images(images), features)
    assert_near(embedder.images(iter(images[:1])), features[:1])  # a part of a batch


@pytest.mark.slow
def test_score_of_a_job_pairs_each_image_with_its_prompt(embedder, samples):
    result = score_samples(samples, job_texts(samples), embedder)
    images = [np.asarray(Image.open(samples / f"00000{i}.png")) for i in range(3)]
    expected = clip_score(embedder.images(images), embedder.texts(["red cat", "two dog", "blue sun"]))
    assert result["figures"]["clip_score"] == pytest.approx(expected) and expected > 0.1
    assert result["samples"]["size"] == "16x16, 24x12" and result["samples"]["count"] == 3
    assert result["settings"]["clip_score"] == {"model": embedder.name, "convention": "torchmetrics"}
    with pytest.raises(ConfigError, match="--texts: 2 texts for 3 images"):
        score_samples(samples, ["a", "b"], embedder)


@pytest.mark.slow
def test_evaluate_command_prints_clip_score_without_a_reference(folder, samples, tmp_path, capsys):
    out = tmp_path / "r.json"
    args = ["evaluate", "--metrics", "clip_score", "--clip", str(folder), "--out", str(out), "--samples"]
    assert cli.main([*args, str(samples)]) == 0
    assert "CLIPScore" in capsys.readouterr().out
    by_manifest = json.loads(out.read_text())["figures"]["clip_score"]
    for i in (0, 2):
        save_png(tmp_path / f"plain/{i}.png", np.asarray(Image.open(samples / f"00000{i}.png")))
    (tmp_path / "texts.txt").write_text("red cat\nblue sun\n")
    assert cli.main([*args, str(tmp_path / "plain"), "--texts", str(tmp_path / "texts.txt")]) == 0
    assert json.loads(out.read_text())["figures"]["clip_score"] != pytest.approx(by_manifest)
    assert cli.main(["evaluate", "--metrics", "clip_score", "--samples", str(samples)]) == 2
    assert "--clip: give the Hugging Face folder" in capsys.readouterr().err


def test_half_of_clip_is_refused_for_scores(tmp_path):
    config = json.loads((GOLDEN / "clip" / "config.json").read_text())["text_config"]
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    from safetensors.numpy import load_file, save_file

    tensors = load_file(GOLDEN / "clip" / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n.startswith("text_model")}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="holds one half of CLIP"):
        ClipEmbedder(folder)


def test_texts_with_a_wrong_line_are_named(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"prompt": "a"}\n' * 16 + '{"prompt": \n')
    with pytest.raises(ConfigError, match=r"t\.jsonl: line 17 is not JSON"):
        read_texts(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ConfigError, match="line 1 has no prompt"):
        read_texts(tmp_path / "t.jsonl")


@pytest.mark.slow
def test_polyvoice_scores_images_of_one_seed(pipeline, folder, embedder, tmp_path, capsys):
    weights = save_text_pipeline(tmp_path / "w", pipeline.conditioner.encoder)
    records = [
        {"text": "red cat", "language": "fr", "audio": "a.wav", "heard": "red cat"},
        {"text": "two dog", "language": "zh", "audio": "a.wav", "heard": "the sun on the hat"},
    ]
    (tmp_path / "a.wav").write_bytes(b"sound")
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    args = ["evaluate", "--benchmark", "polyvoice", "--weights", str(weights), "--prompts", str(tmp_path), "--seed", "7"]
    args += ["--out", str(tmp_path / "out"), "--batch-size", "4"]
    assert cli.main(args) == 2 and "--clip: give the Hugging Face folder" in capsys.readouterr().err
    args += ["--clip", str(folder)]
    assert cli.main(args) == 0
    assert "| fr | 1.000 | 0.988 |" in capsys.readouterr().out
    scores = json.loads((tmp_path / "out/results.json").read_text())["scores"]
    heard = pipeline(prompts=[r["heard"] for r in records], seeds=[7, 8])
    text = pipeline(prompts=[r["text"] for r in records], seeds=[7, 8])
    cosine = clip_score(embedder.images(heard[1:]), embedder.images(text[1:]), convention="cosine")
    assert scores["zh"]["image_clip"] == pytest.approx(cosine, abs=1e-3) and cosine < 0.999999
    assert scores["text"]["text_clip"] == pytest.approx(
        clip_score(embedder.images(text), embedder.texts(["red cat", "two dog"])), abs=0.1
    )
    del records[1]["heard"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert cli.main([*args, "--speech", "mediun"]) == 2
    error = capsys.readouterr().err
    assert "a.wav: no `heard` in its line of metadata.jsonl, and speech: no model or folder is called 'mediun'" in error
