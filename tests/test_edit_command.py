"""The sub-commands of `maskgil edit`."""

import numpy as np
import pytest
from helpers.tiny_pipeline import SIDE, save_pipeline, tiny_pipeline
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.commands.edit import read_image_and_mask
from maskgil_jax.config.base import warn_renamed


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def corner():
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:4, :5] = True
    return mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory, images, corner):
    """A pipeline folder, an image, the same with a transparent corner, and masks."""
    home = tmp_path_factory.mktemp("edit")
    save_pipeline(home / "w")
    Image.fromarray(images[0]).save(home / "image.png")
    alpha = np.where(corner, np.uint8(0), np.uint8(255))
    Image.fromarray(np.dstack([images[0], alpha])).save(home / "holed.png")
    Image.fromarray(255 - alpha).save(home / "mask.png")
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(home / "black.png")
    Image.fromarray(np.full((SIDE, 8), 255, np.uint8)).save(home / "narrow.png")
    Image.fromarray(np.dstack([images[0], np.full_like(alpha, 255)])).save(home / "opaque.png")
    return home


def edit(folder, *argv):
    return cli.main(["edit", *map(str, argv), "--weights", str(folder / "w"), "--count", "2"])


@pytest.mark.slow
def test_every_mode_gives_the_images_of_the_pipeline_method(folder, tmp_path, images, corner):
    pipeline = tiny_pipeline()
    by_mask, by_alpha = tmp_path / "mask", tmp_path / "alpha"
    assert (
        edit(folder, "inpaint", folder / "image.png", "--mask", folder / "mask.png", "--labels", "bee", "--out", by_mask) == 0
    )
    assert sorted(p.name for p in by_mask.iterdir()) == ["grid.png", "inpaint-000.png", "inpaint-001.png"]
    made = np.stack([Image.open(by_mask / f"inpaint-00{i}.png") for i in range(2)])
    np.testing.assert_array_equal(made, pipeline.inpaint(images[[0, 0]], corner, 1))
    assert edit(folder, "inpaint", folder / "holed.png", "--labels", "1", "--out", by_alpha) == 0
    assert (by_alpha / "inpaint-001.png").read_bytes() == (by_mask / "inpaint-001.png").read_bytes()
    calls = {
        "vary": (
            [folder / "image.png", "--strength", "0.4", "--seed", "3"],
            lambda: pipeline.vary(images[[0, 0]], strength=0.4, seed=3),
        ),
        "interpolate": (
            ["--labels", "ant,cat", "--height", "16", "--width", "24"],
            lambda: pipeline.interpolate(0, 2, weights=(0, 1), grid=(4, 6))[0],
        ),
        "box": (
            [folder / "image.png", "--box", "0,0,5,4", "--labels", "2"],
            lambda: pipeline.edit_box(images[[0, 0]], (0, 0, 5, 4), 2),
        ),
        "outpaint": (
            [folder / "image.png", "--grid", "4x6", "--place", "0x2", "--overlap", "0x1"],
            lambda: pipeline.outpaint(images[[0, 0]], (4, 6), place=(0, 2), overlap=(0, 1)),
        ),
    }
    for mode, (argv, expected) in calls.items():
        assert edit(folder, mode, *argv, "--out", tmp_path / mode) == 0
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / mode / f"{mode}-001.png")), expected()[1])


COMMAND_MISTAKES = {
    "no alpha": (["inpaint", "image.png"], "has no alpha channel that marks a hole; give --mask"),
    "opaque": (["inpaint", "opaque.png"], "no pixel is transparent"),
    "black": (["inpaint", "image.png", "--mask", "black.png"], "black.png: no pixel is white"),
    "size": (["inpaint", "image.png", "--mask", "narrow.png"], "narrow.png: 8 x 16 pixels, the image has 16 x 16"),
    "missing": (["vary", "none.png"], "none.png"),
    "outside": (["box", "image.png", "--box", "0,0,17,4"], "box: expected (left, top, right, bottom) inside 16 x 16"),
    "grid": (["outpaint", "image.png", "--grid", "4"], "--grid: expected ROWSxCOLUMNS"),
    "no size": (["outpaint", "image.png"], "--height, --width: give the size of the result"),
    "two sizes": (["outpaint", "image.png", "--grid", "4x6", "--width", "24"], "grid: give it or height and width"),
    "width": (["interpolate", "--labels", "ant,cat", "--width", "25"], "width: must be a multiple of 4 pixels"),
    "place": (["outpaint", "image.png", "--grid", "4x6", "--place", "2"], "--place: expected ROWSxCOLUMNS"),
    "far place": (["outpaint", "image.png", "--grid", "4x6", "--place", "0x3"], "place: must be (row, column)"),
    "overlap": (["outpaint", "image.png", "--grid", "4x6", "--overlap", "0x4"], "overlap: must be (rows, columns)"),
    "hybrid": (["vary", "image.png", "--ar", "w"], "--ar: editing uses masked decoding alone"),
    "one class": (["interpolate", "--labels", "ant"], "--labels: interpolate takes two classes"),
}


@pytest.mark.parametrize(("argv", "message"), COMMAND_MISTAKES.values(), ids=COMMAND_MISTAKES)
def test_impossible_values_give_one_line_and_no_folder(folder, tmp_path, capsys, argv, message):
    argv = [str(folder / word) if word.endswith(".png") else word for word in argv]
    assert edit(folder, *argv, "--out", tmp_path / "none") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "none").exists(), error


USAGE_MISTAKES = {
    "mode": (["inpant", "image.png"], "usage: maskgil edit COMMAND", "unknown command 'inpant'; did you mean 'inpaint'?"),
    "no image": (["vary"], "usage: maskgil edit vary IMAGE [options]", "required: IMAGE"),
    "box": (
        ["box", "image.png", "--box", "1,2,3"],
        "usage: maskgil edit box IMAGE --box",
        "--box: expected LEFT,TOP,RIGHT,BOTTOM",
    ),
    "other mode": (["vary", "image.png", "--mask", "mask.png"], "usage: maskgil edit vary", "unknown option --mask"),
    "strength": (
        ["vary", "image.png", "--strength", "2"],
        "usage: maskgil edit vary",
        "--strength: must be a number in [0, 1]",
    ),
}


@pytest.mark.parametrize(("argv", "usage", "message"), USAGE_MISTAKES.values(), ids=USAGE_MISTAKES)
def test_wrong_usage_prints_the_usage_of_the_mode(folder, capsys, argv, usage, message):
    with pytest.raises(SystemExit) as stop:
        edit(folder, *argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith(usage) and message in lines[1], lines


def test_share_and_canvas_are_accepted_under_their_old_names(folder, tmp_path, caplog):
    warn_renamed.cache_clear()
    assert edit(folder, "vary", folder / "image.png", "--share", "0.4", "--seed", "3", "--out", tmp_path / "old") == 0
    assert edit(folder, "vary", folder / "image.png", "--strength", "0.4", "--seed", "3", "--out", tmp_path / "new") == 0
    assert (tmp_path / "old" / "vary-001.png").read_bytes() == (tmp_path / "new" / "vary-001.png").read_bytes()
    assert [record.message for record in caplog.records] == [
        "--share: is now called --strength; the old name is accepted in this version only"
    ]


def test_image_and_mask_of_another_size_are_cropped_alike(folder, tmp_path):
    image = np.random.default_rng(5).integers(0, 256, (32, 48, 3), np.uint8)
    mask = np.zeros((32, 48), np.uint8)
    mask[:16, 8:24] = 255  # a quarter of the middle square
    Image.fromarray(image).save(tmp_path / "i.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    argv = ["inpaint", tmp_path / "i.png", "--mask", tmp_path / "m.png", "--feather", "0", "--out", tmp_path / "out"]
    assert edit(folder, *argv) == 0
    pair = np.stack([Image.open(tmp_path / "out" / f"inpaint-00{i}.png") for i in range(2)])
    same = (pair[0] == pair[1]).all(axis=-1)
    assert pair.shape == (2, SIDE, SIDE, 3) and same[8:].all() and same[:, 8:].all() and not same[:8, :8].all()


def test_read_image_and_mask_lets_no_colour_of_the_hole_into_a_scaled_image(tmp_path):
    mask = np.zeros((192, 192), np.uint8)
    mask[50:101, 50:101] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    read = []
    for colour in ((255, 0, 0), (255, 255, 255)):
        picture = np.full((192, 192, 3), (60, 140, 90), np.uint8)
        picture[mask > 0] = colour
        Image.fromarray(picture).save(tmp_path / "picture.png")
        read.append(read_image_and_mask(tmp_path / "picture.png", tmp_path / "mask.png", 64, needs_mask=True))
    np.testing.assert_array_equal(read[0][0], read[1][0])
    np.testing.assert_array_equal(read[0][1], read[1][1])
    assert read[0][1].any() and (read[0][0] == (60, 140, 90)).all()
