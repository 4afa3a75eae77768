"""GenEval folders and results, and sets of spoken prompts."""

import json

import numpy as np
import pytest

from maskgil_jax import cli
from maskgil_jax.evaluation.benchmarks import geneval
from maskgil_jax.evaluation.benchmarks.polyvoice import read_spoken, spoken_scores
from maskgil_jax.evaluation.metrics import clip_similarity

PROMPTS = [{"tag": "counting", "prompt": f"{n} cups", "include": [{"class": "cup", "count": n}]} for n in (2, 3)]


def lines(path, records):
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    return path


def test_prompts_are_read_with_every_field(tmp_path):
    assert geneval.read_prompts(lines(tmp_path / "evaluation_metadata.jsonl", PROMPTS)) == PROMPTS
    with pytest.raises(ValueError, match="prompt 1 is 3, expected text"):
        geneval.read_prompts(lines(tmp_path / "m.jsonl", [{"tag": "counting", "prompt": 3}]))


def results():
    """Two prompts of two images a task; the share of correct ones is known."""
    right = dict(zip(geneval.TASKS, (4, 3, 2, 1, 0, 2), strict=True))
    return [
        {"tag": tag, "prompt": f"{tag} {i // 2}", "metadata": f"{tag} {i // 2}", "correct": i < right[tag]}
        for tag in geneval.TASKS
        for i in range(4)
    ]


def test_read_results_gives_scores_by_task(tmp_path, capsys):
    file = lines(tmp_path / "results.jsonl", results())
    scores = geneval.read_results(file)
    assert [scores[tag] for tag in geneval.TASKS] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.5]
    assert scores["overall"] == pytest.approx(0.5) and scores["correct_images"] == 0.5 and scores["images"] == 24
    assert scores["correct_prompts"] == pytest.approx((2 + 2 + 1 + 1 + 0 + 1) / 12)
    assert cli.main(["evaluate", "--geneval-results", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "| this run | 1.00 | 0.75 | 0.50 | 0.25 | 0.00 | 0.50 | 0.50 |" in printed
    assert "| difference | +0.02 | +0.23 | +0.26 |" in printed
    assert np.mean([geneval.PAPER[tag] for tag in geneval.TASKS]) == pytest.approx(geneval.PAPER["overall"], abs=0.005)


@pytest.mark.parametrize(
    "records, message",
    [
        ([], "is empty"),
        ([{"tag": "colour", "correct": True}], "unknown tag 'colour'"),
        ([{"tag": "counting"}], "line 1 lacks correct;"),
        ([{"tag": "counting", "correct": "yes"}], "entry 1 has correct = 'yes'"),
        ([{"tag": "counting", "correct": True}], "no images of single_object"),
    ],
)
def test_read_results_refuses_other_files(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        geneval.read_results(lines(tmp_path / "r.jsonl", records))


def test_read_spoken_returns_recordings_and_refuses_missing_files(tmp_path):
    (tmp_path / "zh").mkdir()
    (tmp_path / "zh" / "0.mp3").write_bytes(b"sound")
    record = {"text": "a red house", "language": "zh", "audio": "zh/0.mp3"}
    lines(tmp_path / "metadata.jsonl", [record])
    (item,) = read_spoken(tmp_path)
    assert (item.text, item.language, item.audio.read_bytes(), item.spoken) == ("a red house", "zh", b"sound", "")
    for change, message in (
        ({"audio": "zh/1.mp3"}, "there is no file zh/1.mp3"),
        ({"audio": "../../etc/passwd"}, "there is no file"),
        ({"heard": 5}, "line 1: heard is not text"),
        ({"text": None, "audio": None}, "line 1: text is not text"),
    ):
        lines(tmp_path / "metadata.jsonl", [{**record, **change}])
        with pytest.raises(ValueError, match=message):
            read_spoken(tmp_path)
    lines(tmp_path / "metadata.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match="line 1 lacks audio, language"):
        read_spoken(tmp_path)
    lines(tmp_path / "metadata.jsonl", [])
    with pytest.raises(ValueError, match="is empty"):
        read_spoken(tmp_path)


def test_spoken_scores_are_means_by_language():
    rng = np.random.default_rng(0)
    spoken, texts = rng.normal(size=(4, 5)), rng.normal(size=(4, 5)) + 1
    written = spoken.copy()
    written[3] = -spoken[3]
    scores = spoken_scores(["zh", "pt", "zh", "pt"], spoken, written, texts)
    assert scores["zh"]["image_clip"] == pytest.approx(1.0) and scores["pt"]["image_clip"] == pytest.approx(0.0)
    expected = max(100 * clip_similarity(spoken, texts)[[0, 2]].mean(), 0)
    assert scores["zh"]["text_clip"] == pytest.approx(expected) and scores["zh"]["count"] == 2
