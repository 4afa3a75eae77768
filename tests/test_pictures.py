"""Arrays, PIL images and files as inputs of a pipeline, and PIL images as its results."""

import numpy as np
import pytest
from helpers.tiny_pipeline import CELL, SIDE, tiny_pipeline
from PIL import Image

from maskgil_jax.config import ConfigError
from maskgil_jax.pipelines.pictures import as_images, as_masks


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def forms(image, tmp_path):
    Image.fromarray(image).save(tmp_path / "x.png")
    return [image, image[None], Image.fromarray(image), tmp_path / "x.png", str(tmp_path / "x.png"), [Image.fromarray(image)]]


def test_one_picture_in_any_form_is_a_batch_of_one(image, tmp_path):
    for form in forms(image, tmp_path):
        np.testing.assert_array_equal(as_images(form), image[None])
    several = as_images([image, tmp_path / "x.png", Image.fromarray(image)])
    np.testing.assert_array_equal(several, np.stack([image] * 3))


@pytest.mark.slow
def test_edits_accept_every_form_and_give_a_batch(pipeline, image, tmp_path):
    expected = pipeline.vary(image[None], 0, seed=1)
    assert expected.shape == (1, SIDE, SIDE, 3)
    for form in forms(image, tmp_path):
        np.testing.assert_array_equal(pipeline.vary(form, 0, seed=1), expected)
    box = (0, 0, 8, 8)
    np.testing.assert_array_equal(
        pipeline.edit_box(tmp_path / "x.png", box, 0, seed=1), pipeline.edit_box(image[None], box, 0, seed=1)
    )
    np.testing.assert_array_equal(
        pipeline.outpaint(Image.fromarray(image), (4, 6), 0, seed=1), pipeline.outpaint(image[None], (4, 6), 0, seed=1)
    )


def test_inpaint_takes_the_hole_from_alpha_or_a_mask_in_any_form(pipeline, image, tmp_path):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:8, 4:12] = True
    expected = pipeline.inpaint(image[None], mask, 0, seed=2)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    grey = Image.fromarray((mask * 255).astype(np.uint8))
    for form in (mask, mask[None], grey, Image.fromarray(mask), tmp_path / "mask.png", [grey]):
        np.testing.assert_array_equal(pipeline.inpaint(image, form, 0, seed=2), expected)
    rgba = np.concatenate([image, np.where(mask, 0, 255).astype(np.uint8)[..., None]], axis=-1)
    Image.fromarray(rgba).save(tmp_path / "hole.png")
    np.testing.assert_array_equal(pipeline.inpaint(Image.fromarray(rgba), labels=0, seed=2), expected)
    # Of a file, the hidden colours are white; a hole's content has no influence.
    np.testing.assert_array_equal(pipeline.inpaint(tmp_path / "hole.png", labels=0, seed=2), expected)


def test_reconstruct_is_decode_of_encode(pipeline, image, tmp_path):
    codes = pipeline.encode(image)
    assert codes.shape == (1, SIDE // CELL, SIDE // CELL) and codes.dtype == np.int32
    Image.fromarray(image).save(tmp_path / "x.png")
    np.testing.assert_array_equal(pipeline.encode(tmp_path / "x.png"), codes)
    np.testing.assert_array_equal(pipeline.reconstruct(image), pipeline.decode(codes))
    [picture] = pipeline.reconstruct(image, output="pil")
    np.testing.assert_array_equal(np.asarray(picture), pipeline.decode(codes)[0])
    with pytest.raises(ConfigError, match=r"codes: must be in 0..15, got 0..16"):
        pipeline.decode(np.array([[[0, 16]]]))


def test_output_pil_of_edits_is_a_list_nested_as_the_array(pipeline, image):
    [varied] = pipeline.vary(image, 0, seed=1, output="pil")
    np.testing.assert_array_equal(np.asarray(varied), pipeline.vary(image, 0, seed=1)[0])
    pairs = pipeline.interpolate([0, 1], [1, 2], weights=(0.0, 1.0), seed=1, output="pil")
    assert [len(pair) for pair in pairs] == [2, 2] and isinstance(pairs[1][1], Image.Image)
    with pytest.raises(ConfigError, match="output: "):
        pipeline.vary(image, 0, output="tensor")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images: none given"),
        (np.zeros((4, 4, 3), np.float32), "got float32"),
        (np.zeros((4, 4), np.uint8), r"got uint8 \(4, 4\)"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((8, 4, 3), np.uint8)], r"image 0 is \(4, 4, 3\); image 1 is \(8, 4, 3\)"),
        ("no_such.png", "no_such.png"),
    ],
)
def test_what_is_no_image_is_refused_by_name(images, message):
    with pytest.raises(ValueError, match=message):
        as_images(images)


def test_transparent_pil_image_without_alpha_wanted_is_composited_over_white():
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    np.testing.assert_array_equal(as_images(clear), np.full((1, 4, 4, 3), 255, np.uint8))
    assert as_images(clear, (3, 4)).shape == (1, 4, 4, 4)
    assert as_masks(Image.new("1", (3, 2), 1)).dtype == bool
