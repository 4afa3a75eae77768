"""`maskgil evaluate --benchmark` with a tiny text model on MiniLM: layouts, resuming, reading back, tables."""

import json

import jax
import numpy as np
import pytest
from helpers.tiny_pipeline import assert_same_pictures
from helpers.tiny_text_pipeline import TOKENS, save_text_pipeline, text_pipeline
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.config import ConfigError
from maskgil_jax.data.sources.emoji import emoji
from maskgil_jax.data.sources.emoji_captions import emoji_captions
from maskgil_jax.evaluation.benchmarks import dpg, emoji_drawings, geneval
from maskgil_jax.evaluation.benchmarks.layouts import draw_benchmark
from maskgil_jax.evaluation.features import load_feature_extractor
from maskgil_jax.files.images import save_png
from maskgil_jax.pipelines import jobs
from maskgil_jax.text_encoders import load_text_encoder

pytestmark = pytest.mark.slow

GENEVAL = [{"tag": "counting", "prompt": f"{n} cups", "include": [{"class": "cup", "count": n}]} for n in ("two", "three")]
DPG = {"b2": "A red\ncat  on a hat.", "a1": "two dogs", "10": "the sun"}


@pytest.fixture(scope="module")
def encoder():
    return load_text_encoder("minilm", max_tokens=TOKENS)


@pytest.fixture(scope="module")
def weights(encoder, tmp_path_factory):
    return save_text_pipeline(tmp_path_factory.mktemp("weights"), encoder)


def run(*args):
    return cli.main(["evaluate", "--batch-size", "4", *map(str, args)])


def picture(path):
    return np.asarray(Image.open(path))


def lines(path, records):
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    return path


# ------------------------------------------------------------------------------------------------ GenEval
@pytest.fixture(scope="module")
def drawn(weights, tmp_path_factory):
    """A finished GenEval run of two prompts."""
    folder = tmp_path_factory.mktemp("geneval")
    prompts = lines(folder / "evaluation_metadata.jsonl", GENEVAL)
    assert run("--benchmark", "geneval", "--weights", weights, "--prompts", prompts, "--out", folder / "out", "--seed", 3) == 0
    return folder / "out"


def test_geneval_run_makes_the_layout_of_the_benchmark(drawn, encoder):
    found = sorted(p.relative_to(drawn / "images").as_posix() for p in (drawn / "images").rglob("*.*"))
    names = ("metadata.jsonl", *(f"samples/000{i}.png" for i in range(4)))
    assert found == [f"0000{n}/{name}" for n in range(2) for name in names]
    assert [json.loads((drawn / f"images/0000{n}/metadata.jsonl").read_text()) for n in range(2)] == GENEVAL
    expected = text_pipeline(encoder)(prompts=["two cups"] * 4 + ["three cups"] * 4, seed=3)
    images = [picture(drawn / f"images/0000{n}/samples/000{i}.png") for n in range(2) for i in range(4)]
    assert_same_pictures(np.stack(images), expected)


def test_geneval_run_records_its_settings(drawn):
    settings = json.loads((drawn / "benchmark.json").read_text())
    assert settings["benchmark"]["name"] == "geneval" and settings["benchmark"]["per_prompt"] == 4
    assert settings["job"]["seed"] == 3 and settings["job"]["decode.steps"] == 2 and settings["job"]["num"] == 8
    assert settings["job"]["text_encoder"]["path"] == "minilm" and settings["versions"]["jax"] == jax.__version__


def test_geneval_run_draws_only_what_is_missing(weights, tmp_path, monkeypatch, capsys):
    prompts = lines(tmp_path / "evaluation_metadata.jsonl", GENEVAL)
    args = ("--benchmark", "geneval", "--weights", weights, "--prompts", prompts, "--per-prompt", 2, "--out", tmp_path / "out")
    drawn, draw = [], jobs.draw_prompts

    def interrupted(pipeline, requests, indices, **options):
        for number, batch in enumerate(draw(pipeline, requests, indices, **options)):
            if number:
                raise KeyboardInterrupt
            yield batch[:1]
            yield batch[1:2]

    def watched(pipeline, requests, indices, **options):
        drawn.extend(indices)
        return draw(pipeline, requests, indices, **options)

    monkeypatch.setattr(jobs, "draw_prompts", lambda p, r, i, **o: interrupted(p, r, i, **{**o, "batch_size": 2}))
    assert run(*args) == 130
    assert not (tmp_path / "out/images").exists() and (tmp_path / "out/drawn/000001.png").exists()
    monkeypatch.setattr(jobs, "draw_prompts", watched)
    assert run(*args) == 0 and drawn == [2, 3]
    assert len(list((tmp_path / "out/images").rglob("*.png"))) == 4
    assert "steps 2" in capsys.readouterr().out
    assert run(*args, "--steps", 3) == 2
    assert "holds other samples: decode.steps is 2 there, 3 now" in capsys.readouterr().err
    assert run(*args, "--steps", 3, "--overwrite") == 0 and drawn[2:] == [0, 1, 2, 3]
    first = (tmp_path / "out/images/00000/samples/0000.png").read_bytes()
    assert first == (tmp_path / "out/drawn/000000.png").read_bytes()


def test_processes_share_the_images_of_a_benchmark(encoder, tmp_path):
    pipeline, texts = text_pipeline(encoder), ["a cup", "a dog", "the sun"]
    for index in (0, 1):
        jobs.sample_to_folder(pipeline, None, tmp_path / "a/drawn", prompts=texts, seed=1, batch_size=4, share=(index, 2))
        assert len(list((tmp_path / "a/drawn").glob("0*.png"))) == (3 if index else 2)
    draw_benchmark(pipeline, tmp_path / "b", {"name": "x"}, prompts=texts, seed=1, batch_size=4)
    for i in range(3):
        name = f"drawn/00000{i}.png"
        assert_same_pictures(picture(tmp_path / "a" / name)[None], picture(tmp_path / "b" / name)[None])
    assert draw_benchmark(pipeline, tmp_path / "a", {"name": "x"}, prompts=texts, seed=1) == tmp_path / "a/drawn"


def test_geneval_layout_of_another_prompt_is_refused(drawn):
    with pytest.raises(ConfigError, match="00000: was made for another prompt"):
        geneval.lay_out(drawn / "drawn", drawn / "images", GENEVAL[::-1])
    with pytest.raises(ConfigError, match="holds 8 images, expected 4"):
        geneval.lay_out(drawn / "drawn", drawn / "images", GENEVAL[:1])


def test_geneval_results_are_read_back_beside_the_paper(drawn, capsys):
    records = [{"tag": tag, "prompt": tag, "correct": i < 2} for tag in geneval.TASKS for i in range(4)]
    results = lines(drawn.parent / "results.jsonl", records)
    assert run("--benchmark", "geneval", "--results", results, "--out", drawn) == 0
    printed = capsys.readouterr().out
    assert "decoding: steps 2" in printed and "| paper | 0.98 |" in printed and "| this run | 0.50 |" in printed
    assert json.loads((drawn / "results.json").read_text())["scores"]["overall"] == 0.5


# ------------------------------------------------------------------------------------------------ DPG-Bench
def test_dpg_run_makes_grids_of_four_images(weights, tmp_path, capsys):
    (tmp_path / "prompts").mkdir()
    for item, text in DPG.items():
        (tmp_path / "prompts" / f"{item}.txt").write_text(text)
    args = ("--benchmark", "dpg", "--weights", weights, "--prompts", tmp_path / "prompts", "--out", tmp_path / "out")
    assert run(*args) == 0
    assert "--pic-num 4 --resolution 16" in capsys.readouterr().out
    files = sorted((tmp_path / "out/images").iterdir())
    assert [file.name for file in files] == ["10.png", "a1.png", "b2.png"]
    requests = json.loads((tmp_path / "out/drawn/samples.json").read_text())["prompts"]
    assert [r["prompt"] for r in requests[::4]] == ["the sun", "two dogs", "A red cat on a hat."]
    grid, side = picture(files[1]), 16
    for i, (top, left) in enumerate([(0, 0), (0, side), (side, 0), (side, side)]):
        image = picture(tmp_path / f"out/drawn/{4 + i:06d}.png")
        np.testing.assert_array_equal(grid[top : top + side, left : left + side], image)
    assert grid.shape == (2 * side, 2 * side, 3)


def dpg_results(path, scores, overall=None):
    rows = [f"/images, of me/{item}.png, {s}, {s}, {s}, {s}, {s}\n" for item, s in scores.items()]
    tail = "Model: me\nL1 category scores:\n\tentity: 80.5\n\tglobal: 70.0\nL2 category scores:\n\tentity - whole: 81.0\n"
    end = f"{tail}Image path: /images\nSave results to: r.txt\nDPG-Bench score: {overall}\n" if overall is not None else ""
    path.write_text("".join(rows) + end)
    return path


def test_dpg_results_are_read_back(tmp_path, capsys):
    file = dpg_results(tmp_path / "r.txt", {"a1": 1.0, "b2": 0.5}, 75.0)
    scores = dpg.read_results(file)
    assert scores == {"overall": 75.0, "entity": 80.5, "global": 70.0, "images": 2}
    assert run("--benchmark", "dpg", "--results", file) == 0
    assert "| this run | 70.00 | 80.50 | 75.00 | 2 |" in capsys.readouterr().out
    for content, items, message in (
        (dict(scores={}), None, "holds no scores of images"),
        (dict(scores={"a1": 1.0}, overall=50.0), None, "have the mean 100.00, its last line says 50.0"),
        (dict(scores={"a1": 1.0}), ["a1", "b2"], r"has no score of 1 images, \['b2'\] first"),
        (dict(scores={"a1": "yes"}), None, "line 1: .* has no numbers after the image"),
    ):
        with pytest.raises(ConfigError, match=message):
            dpg.read_results(dpg_results(tmp_path / "w.txt", **content), items)
    with pytest.raises(ConfigError, match="cannot be read"):
        dpg.read_results(tmp_path / "none.txt")


def test_dpg_prompts_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no such folder; give dpg_bench/prompts"):
        dpg.read_prompts(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"holds no \.txt files"):
        dpg.read_prompts(tmp_path)
    (tmp_path / "a.b.txt").write_text("a")
    with pytest.raises(ConfigError, match=r"a\.b\.txt: the evaluator takes what is before the first dot"):
        dpg.read_prompts(tmp_path)
    (tmp_path / "a.b.txt").write_text(" ")
    with pytest.raises(ConfigError, match="is empty, expected a prompt"):
        dpg.read_prompts(tmp_path)


# ------------------------------------------------------------------------------------------------ built-in benchmarks
def test_emoji_scenes_are_drawn_in_their_sizes_and_scored_beside_true_ones(weights, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--benchmark", "emoji-scenes", "--weights", weights, "--count", 2, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "| true scenes | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 |" in printed
    result = json.loads((out / "results.json").read_text())
    assert list(result["scores"]) == ["generated", "true scenes", "other scenes", "true scenes through the tokenizer"]
    assert result["scores"]["generated"]["overall"] < 0.5 and result["benchmark"]["per_task"] == 2
    requests = json.loads((out / "drawn/samples.json").read_text())["prompts"]
    for i, request in enumerate(requests):
        assert picture(out / f"drawn/{i:06d}.png").shape == (request["height"], request["width"], 3)
    assert len({(r["height"], r["width"]) for r in requests}) > 1 and len(requests) == 10


def test_caption_prompts_are_training_captions_and_a_pure_function():
    source, prompts = emoji("train"), emoji_drawings.caption_prompts(50)
    assert prompts == emoji_drawings.caption_prompts(50) != emoji_drawings.caption_prompts(50, seed=1)
    for prompt in prompts:
        record = source.record(prompt.index)
        assert prompt.code == record["code"] and prompt.prompt in emoji_captions(record)
    assert len({prompt.index for prompt in prompts}) == 50


def test_caption_scores_know_the_drawings_that_were_asked_for(tmp_path):
    prompts, source = emoji_drawings.caption_prompts(24), emoji("train")
    files = [tmp_path / f"{i}.png" for i in range(24)]
    for i, file in enumerate(files):  # right for the first half, the drawing of another emoji for the second
        save_png(file, source[prompts[i if i < 12 else i - 12].index]["image"])
    extractor, tokenizer = load_feature_extractor("demo"), Identity()
    scores = emoji_drawings.caption_scores(prompts, files, extractor, tokenizer)
    most = scores["training drawings"]["same_emoji"]
    assert scores["through the tokenizer"]["same_emoji"] == most > 0.9  # a few flags have the same drawing
    assert abs(scores["generated"]["same_emoji"] - 0.5) < 0.05 and scores["other prompts"]["same_emoji"] == 0.0
    right = scores["training drawings"]["agreement"]
    assert (
        scores["other prompts"]["agreement"]
        < scores["generated"]["agreement"]
        < right
        == scores["through the tokenizer"]["agreement"]
    )
    assert f"| training drawings | {100 * most:.1f}% |" in emoji_drawings.as_markdown(scores)


@jax.tree_util.register_static
class Identity:
    """A tokenizer that loses nothing."""

    def encode(self, images_bhwc):
        return images_bhwc

    def decode(self, codes_bhw):
        return codes_bhw


def test_emoji_classes_scores_the_classes_asked_for(tmp_path, capsys):
    labels = emoji_drawings.class_labels(500)
    counts = np.bincount(labels, minlength=98)
    assert len(labels) == 500 and (np.diff(labels) >= 0).all() and counts.min() >= 0 and counts.max() < 60
    assert run("--benchmark", "emoji-classes", "--weights", "demo", "--count", 8, "--steps", 2, "--out", tmp_path / "o") == 0
    printed, result = capsys.readouterr().out, json.loads((tmp_path / "o/results.json").read_text())
    assert "| generated |" in printed and result["job"]["num"] == 8 and 0 <= result["scores"]["generated"]["agreement"] <= 1


@pytest.mark.parametrize(
    "args, message",
    [
        (["--benchmark", "geneval"], "--benchmark geneval: give --weights to draw with, or --results"),
        (["--benchmark", "geneval", "--weights", "demo"], "--prompts: give your copy of geneval"),
        (["--benchmark", "emoji-scenes", "--results", "r"], "--results: belongs to geneval and dpg"),
        (["--benchmark", "geneval", "--weights", "demo", "--results", "r"], "--results, --weights: give one of them"),
        (
            ["--benchmark", "dpg", "--weights", "demo", "--prompts", "p", "--per-prompt", "2"],
            "--per-prompt: belongs to geneval",
        ),
        (["--benchmark", "emoji-scenes", "--weights", "demo", "--height", "64"], "emoji-scenes has sizes of its own"),
        (
            ["--benchmark", "emoji-scenes", "--weights", "demo"],
            "prompts: this generator is conditioned on a class; give labels",
        ),
        (["--samples", "x", "--prompts", "p"], "--prompts: belongs to --benchmark"),
        (["--benchmark", "geneval", "--samples", "x"], "--samples: does not go with --benchmark geneval"),
    ],
)
def test_benchmark_command_reports_mistakes_in_one_line(args, message, capsys, tmp_path):
    assert cli.main(["evaluate", *args, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
