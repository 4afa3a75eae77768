"""Composed scenes: a pure function of seed and index, captions that are true, the split of combinations."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from maskgil_jax.config import ConfigError
from maskgil_jax.data.caption_sets import open_captions
from maskgil_jax.data.scene_nouns import NOUNS, STYLES, drawing, drawings
from maskgil_jax.data.scenes import CANVASES, RELATIONS, Scenes, draw_scene, held_out, phrases, render, scene_captions
from maskgil_jax.data.sources.emoji import emoji

MANY = 600


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(0, i) for i in range(MANY)]


@pytest.fixture(scope="module")
def fixed():
    return [draw_scene(0, i, layout="fixed") for i in range(MANY)]


def test_scene_nouns_have_a_training_drawing_in_every_style():
    assert len(NOUNS) == 124 and len(drawings()) == 3 * len(NOUNS)
    held = {emoji("test").record(i)["code"] for i in range(len(emoji("test")))}
    assert not held & {code for code, _ in drawings().values()}
    images = [drawing(*key, 64).tobytes() for key in drawings()]
    assert len(set(images)) == len(images)


def test_scenes_are_a_pure_function_of_seed_and_index(scenes):
    forwards, backwards = Scenes(20), Scenes(20)
    records = {i: backwards[i] for i in reversed(range(20))}
    for i in range(20):
        record = forwards[i]
        np.testing.assert_array_equal(record["image"], records[i]["image"])
        assert record["captions"] == records[i]["captions"] == forwards.captions(i) and record["id"] == f"scenes/train/20/0/{i}"
        assert draw_scene(0, i) == scenes[i] and record["truth"] == scenes[i].truth()
    assert [draw_scene(1, i) for i in range(20)] != scenes[:20]
    assert json.loads(json.dumps(records[3]["truth"])) == records[3]["truth"]


def test_scene_0_is_what_it_was():
    """Shipped weights and published figures depend on the stream."""
    assert [scene_captions(draw_scene(0, i))[-1] for i in range(3)] == [
        "a bright drawing of an elephant",
        "a plain drawing of a castle below a scorpion",
        "a shaded drawing of a volcano to the right of a telephone",
    ]


def test_scenes_have_all_kinds_canvases_styles_relations_and_counts(scenes):
    assert {(s.height, s.width) for s in scenes} == set(CANVASES)
    assert {s.style for s in scenes} == set(STYLES)
    assert {s.relation for s in scenes} == {None, *RELATIONS}
    kinds = collections.Counter((s.kind, len(s.objects)) for s in scenes)
    assert set(kinds) == {("single", 1), ("pair", 2), ("count", 2), ("count", 3), ("count", 4)}
    assert min(kinds.values()) > MANY / 20
    assert len({o.noun for s in scenes for o in s.objects}) > 120


@pytest.mark.parametrize("layout", ["scenes", "fixed"])
def test_objects_lie_inside_and_do_not_overlap(layout, request):
    for scene in request.getfixturevalue(layout):
        covered = np.zeros((scene.height, scene.width), int)
        for o in scene.objects:
            assert 0 <= o.top <= scene.height - o.side and 0 <= o.left <= scene.width - o.side
            covered[o.top : o.top + o.side, o.left : o.left + o.side] += 1
        assert covered.max() == 1


@pytest.mark.parametrize("step", [1, 8, 16])
def test_step_changes_nothing_but_the_places(step, scenes):
    def without_places(scene):
        return dataclasses.replace(scene, objects=tuple(dataclasses.replace(o, top=0, left=0) for o in scene.objects))

    moved = [draw_scene(0, i, step=step) for i in range(MANY)]
    assert moved != scenes and [without_places(s) for s in moved] == [without_places(s) for s in scenes]
    for scene in moved:
        for o in scene.objects:
            assert 0 <= o.top <= scene.height - o.side and 0 <= o.left <= scene.width - o.side
            assert o.top % step == 0 and o.left % step == 0  # sides are multiples of 16
    assert len({o.top for scene in moved for o in scene.objects}) > 4


def test_fixed_layout_is_one_for_every_canvas_number_and_relation(scenes, fixed):
    layouts = collections.defaultdict(set)
    for scene in fixed:
        layout = tuple((o.top, o.left, o.side) for o in scene.objects)
        layouts[scene.height, scene.width, len(scene.objects), scene.relation].add(layout)
        assert all(o.side in (32, 64) and o.top % 16 == o.left % 16 == 0 for o in scene.objects)
    assert len(layouts) == 5 * (1 + 3 + 4) and {len(of_one) for of_one in layouts.values()} == {1}
    assert layouts[64, 96, 1, None] == {((0, 16, 64),)}
    assert layouts[64, 64, 3, None] == {((0, 0, 32), (0, 32, 32), (32, 0, 32))}
    assert layouts[64, 128, 2, "to the right of"] == {((0, 64, 64), (0, 0, 64))}
    assert [(scene_captions(s), s.counts, s.style) for s in fixed] == [(scene_captions(s), s.counts, s.style) for s in scenes]


@pytest.mark.parametrize("layout", ["scenes", "fixed"])
def test_relations_hold_between_the_objects(layout, request):
    for scene in (s for s in request.getfixturevalue(layout) if s.kind == "pair"):
        first, second = scene.objects
        across, down = second.left - first.left, second.top - first.top
        expected = {
            "to the left of": across >= first.side and not down,
            "to the right of": -across >= first.side and not down,
            "above": down >= first.side and not across,
            "below": -down >= first.side and not across,
        }
        assert expected[scene.relation] and sum(expected.values()) == 1


def test_render_draws_the_objects_and_nothing_else(scenes):
    for scene in scenes[:50]:
        image = render(scene).copy()
        for o in scene.objects:
            place = image[o.top : o.top + o.side, o.left : o.left + o.side]
            np.testing.assert_array_equal(place, drawing(o.noun, scene.style, o.side))
            place[:] = 255
        assert image.min() == 255


def test_captions_say_what_the_scene_shows(scenes):
    single, pair, count = (next(s for s in scenes if s.kind == kind) for kind in ("single", "pair", "count"))
    a, b = (o.noun for o in pair.objects)
    assert [len(phrases(s)) for s in (single, pair, count)] == [1, 4, 1]
    assert phrases(single)[0].endswith(f" {single.objects[0].noun}")
    last, other = phrases(pair)[-1], phrases(pair)[-2]
    assert last.index(a) < last.index(pair.relation) < last.rindex(b)
    assert RELATIONS[pair.relation][0] in other and other.index(b) < other.rindex(a)
    assert phrases(count)[0].split()[0] == {2: "two", 3: "three", 4: "four"}[len(count.objects)]
    words = {scene_captions(s)[-1].split()[1] for s in scenes}
    assert words == {"shaded", "bright", "plain"}


def test_split_holds_out_combinations():
    train, test = (
        {tuple(sorted(draw_scene(0, i, split).counts.items())) for i in range(400) if draw_scene(0, i, split).kind != "single"}
        for split in ("train", "test")
    )
    assert not train & test
    assert all(held_out(draw_scene(0, i, "test")) for i in range(50))
    whole = [held_out(s) for s in (draw_scene(0, i, "all") for i in range(1500)) if s.kind != "single"]
    assert 0.07 < np.mean(whole) < 0.13
    assert {n for combination in test for n, _ in combination} <= set(NOUNS)


def test_scenes_of_chosen_kinds_are_the_first_of_those_kinds_in_each_stream():
    pairs = open_captions("pairs:40:64x64@fixed")
    assert pairs.name == "scenes/train/40/0/64x64@fixed/pair" and len(pairs) == 40
    every = [draw_scene(0, i, canvases=((64, 64),), layout="fixed") for i in range(40)]
    chosen = [pairs.scene(i) for i in range(40)]
    assert {scene.kind for scene in chosen} == {"pair"} and 0 < sum(s.kind == "pair" for s in every) < 40
    assert all(one == other for one, other in zip(chosen, every, strict=True) if other.kind == "pair")
    several = Scenes(40, kinds=("count", "pair"))
    assert {several.scene(i).kind for i in range(40)} == {"count", "pair"}
    assert Scenes(5, kinds=("count", "single", "pair")).name == Scenes(5).name
    assert several.name == Scenes(40, kinds=("pair", "count")).name
    assert held_out(Scenes(9, "test", kinds=("pair",)).scene(8))
    with pytest.raises(ConfigError, match=r"expected scenes:COUNT.*pairs in place of scenes"):
        open_captions("pairs:many")


def test_open_captions_opens_scenes():
    assert len(open_captions("scenes")) == 100_000 and open_captions("scenes:7", split="test").name == "scenes/test/7/0"
    assert Scenes(3, canvases=((64, 64),))[2]["image"].shape == (64, 64, 3)
    assert {open_captions("scenes:5:64x96")[i]["image"].shape for i in range(5)} == {(64, 96, 3)}
    assert open_captions("scenes:5:64x96@16").name == "scenes/train/5/0/64x96@16"
    assert open_captions("scenes:5@2").name == "scenes/train/5/0"
    assert open_captions("scenes:5@fixed").name == "scenes/train/5/0@fixed"
    assert open_captions("scenes:5:64x96@fixed").scene(4) == draw_scene(0, 4, canvases=((64, 96),), layout="fixed")
    for bad in ("scenes:many", "scenes:5:64", "scenes:5:64x", "scenes:5@", "scenes:5@x", "scenes:5@2@fixed"):
        with pytest.raises(ConfigError, match="expected scenes:COUNT"):
            open_captions(bad)
    wrong_kinds = [dict(kinds=()), dict(kinds=("triple",)), dict(kinds=("single",), split="test")]
    for bad in (dict(count=0), dict(split="val"), dict(step=0), dict(layout="row"), dict(canvases=((32, 64),)), *wrong_kinds):
        with pytest.raises(ConfigError, match=f"^{next(iter(bad))}: "):
            Scenes(**bad)
    for bad in wrong_kinds:
        with pytest.raises(ConfigError, match=r"^kinds: "):
            draw_scene(0, 0, **bad)
    with pytest.raises(IndexError):
        Scenes(3)[3]
