"""The emoji-scenes benchmark: the detector on true scenes, what each task asks for, and what chance gives."""

import numpy as np
import pytest

from maskgil_jax.config import ConfigError
from maskgil_jax.data.scenes import PlacedObject, Scene, held_out, render
from maskgil_jax.evaluation.benchmarks.emoji_scenes import (
    TASKS,
    Detection,
    as_markdown,
    detect,
    is_correct,
    reference_scores,
    scene_prompts,
    score,
)


@pytest.fixture(scope="module")
def prompts():
    return scene_prompts(8)


def scene(kind, nouns, *, style="noto", relation=None, places=((0, 0), (0, 32), (32, 0), (32, 32)), side=32, size=(64, 64)):
    objects = tuple(PlacedObject(noun, "", *place, side) for noun, place in zip(nouns, places))
    return Scene(kind, *size, style, objects, relation)


def test_scene_prompts_are_a_pure_function_and_cover_the_tasks(prompts):
    assert [p.task for p in prompts] == [task for task in TASKS for _ in range(8)]
    assert prompts == scene_prompts(8) != scene_prompts(8, seed=1)
    by_task = {p.task: p for p in prompts}
    assert " and " in by_task["two_object"].prompt and " drawing of " in by_task["style"].prompt
    assert by_task["counting"].prompt.split()[0] in ("two", "three", "four")
    assert by_task["position"].scene.relation in by_task["position"].prompt
    assert all(held_out(p.scene) for p in prompts if p.scene.kind != "single" and p.task != "single_object")
    assert not any(held_out(p.scene) for p in scene_prompts(8, split="train"))
    with pytest.raises(ConfigError, match="per_task"):
        scene_prompts(0)


@pytest.mark.slow
def test_detector_finds_every_object_of_true_scenes_and_nothing_else(prompts):
    for p in prompts:
        (found,) = detect(render(p.scene)[None])
        expected = {(o.noun, p.scene.style, o.top, o.left, o.side) for o in p.scene.objects}
        assert {d[:5] for d in found} == expected, p.prompt
        assert min(d.score for d in found) > 0.9


def test_detector_finds_nothing_on_white_or_in_noise():
    rng = np.random.default_rng(0)
    white = np.full((1, 64, 96, 3), 255, np.uint8)
    faint = rng.integers(245, 256, (2, 64, 96, 3), np.uint8)
    strong = rng.integers(0, 256, (2, 64, 96, 3), np.uint8)
    assert detect(np.concatenate([white, faint, strong])) == [[]] * 5
    with pytest.raises(ConfigError, match="multiples of 2, got 63 x 64"):
        detect(np.zeros((1, 63, 64, 3), np.uint8))


def test_detection_does_not_depend_on_the_batch(prompts):
    images = np.stack([render(p.scene) for p in prompts if (p.scene.height, p.scene.width) == (64, 96)])
    together = detect(images)
    assert len(images) > 1 and together[1] == detect(images[1:2])[0]


@pytest.mark.parametrize(
    "task, asked, shown, right",
    [
        ("single_object", ["dog"], ["dog"], True),
        ("single_object", ["dog"], ["cat"], False),
        ("two_object", ["dog", "cat"], ["cat", "dog"], True),
        ("two_object", ["dog", "cat"], ["dog", "dog"], False),
        ("counting", ["dog"] * 3, ["dog"] * 3, True),
        ("counting", ["dog"] * 3, ["dog"] * 2, False),
        ("counting", ["dog"] * 3, ["dog"] * 4, False),
        ("counting", ["dog"] * 3, ["dog"] * 3 + ["cat"], True),
        ("counting", ["dog"] * 3, ["cat"] * 3, False),
    ],
)
def test_tasks_ask_for_the_right_objects(task, asked, shown, right):
    (found,) = detect(render(scene("any", shown))[None])
    assert is_correct(task, scene("any", asked), found) == right


@pytest.mark.parametrize("relation", ["to the left of", "to the right of", "above", "below"])
def test_position_asks_for_the_direction(relation):
    corners = {
        "to the left of": ((0, 0), (0, 32)),
        "to the right of": ((0, 32), (0, 0)),
        "above": ((0, 0), (32, 0)),
        "below": ((32, 0), (0, 0)),
    }
    asked = scene("pair", ["dog", "cat"], relation=relation)
    images = np.stack([render(scene("pair", ["dog", "cat"], places=places)) for places in corners.values()])
    for shown, found in zip(corners, detect(images)):
        assert is_correct("position", asked, found) == (shown == relation)
    diagonal = [Detection("dog", "noto", 0, 0, 32, 0.9), Detection("cat", "noto", 32, 32, 32, 0.9)]
    assert not is_correct("position", asked, diagonal)


def test_style_asks_for_every_noun_in_the_style():
    for style in ("noto", "fluent-emoji-flat", "twemoji"):
        (found,) = detect(render(scene("pair", ["dog", "cat"], style=style))[None])
        assert is_correct("style", scene("pair", ["dog", "cat"]), found) == (style == "noto")
    mixed = [Detection("dog", "noto", 0, 0, 32, 0.9), Detection("cat", "twemoji", 0, 32, 32, 0.9)]
    assert not is_correct("style", scene("pair", ["dog", "cat"]), mixed)
    with pytest.raises(ConfigError, match="task: unknown value 'colour'"):
        is_correct("colour", scene("pair", ["dog", "cat"]), mixed)


@pytest.mark.slow
def test_true_scenes_are_right_and_other_scenes_wrong(prompts):
    scores = reference_scores(prompts, lambda images_bhwc: 255 - (255 - images_bhwc) // 2)
    assert scores["true scenes"] == dict.fromkeys([*TASKS, "overall"], 1.0)
    assert scores["other scenes"]["overall"] < 0.05
    assert scores["true scenes, transformed"]["overall"] > 0.95  # paler, and still the same drawings
    lines = as_markdown(scores).splitlines()
    assert lines[0].split("|")[2].strip() == "Single obj." and "| true scenes | 1.000 |" in lines[2]


def test_score_names_an_image_of_the_wrong_size(prompts):
    images = [render(p.scene) for p in prompts]
    images[3] = images[3][:32]
    with pytest.raises(ValueError, match=r"images\[3\]: uint8 .*expected uint8"):
        score(prompts, images)
    with pytest.raises(ConfigError, match="images: 1 for 40 prompts"):
        score(prompts, images[:1])
