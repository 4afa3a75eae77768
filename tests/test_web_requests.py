"""Fields of requests, uploaded pictures, and the settings in files."""

import io
import json

import numpy as np
import pytest
from helpers.tiny_pipeline import SIDE, tiny_pipeline
from PIL import Image

from maskgil_jax.config import ConfigError, ServeConfig
from maskgil_jax.web.pictures import encode, image_and_hole, read_upload, settings_of
from maskgil_jax.web.requests import RequestReader


@pytest.fixture(scope="module")
def reader():
    return RequestReader(tiny_pipeline(), ServeConfig(max_prompt=100), "tiny")


def test_images_reads_the_fields_of_the_images_api(reader):
    asked = reader.images(
        {"prompt": " Bee ", "n": 3, "size": "24x16", "seed": 2**32 - 1, "steps": 4, "user": "me", "model": "tiny"}
    )
    assert asked.shown == "bee" and asked.size == (16, 24) and asked.output_format == "png"
    assert [(d.request, d.seed, d.grid, d.cfg.steps) for d in asked.drawings] == [
        (1, 2**32 - 1, (4, 6), 4),
        (1, 0, (4, 6), 4),
        (1, 1, (4, 6), 4),
    ]


def test_images_reads_text_fields_of_forms(reader):
    asked = reader.images({"prompt": "2", "n": "2", "seed": "7", "steps": "8"})
    assert [d.seed for d in asked.drawings] == [7, 8] and asked.drawings[0].request == 2 and asked.shown == "cat"


def test_images_draws_a_random_seed_where_none_is_given(reader):
    seeds = {reader.images({"prompt": "ant"}).drawings[0].seed for _ in range(4)}
    assert len(seeds) > 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "  "}, "prompt"),
        ({"prompt": "x" * 101}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": "ant", "n": 0}, "n"),
        ({"prompt": "ant", "n": 10**9}, "n"),
        ({"prompt": "ant", "n": True}, "n"),
        ({"prompt": "ant", "n": 1.5}, "n"),
        ({"prompt": "ant", "seed": -1}, "seed"),
        ({"prompt": "ant", "seed": 2**32}, "seed"),
        ({"prompt": "ant", "size": "100000x100000"}, "size"),
        ({"prompt": "ant", "size": [1, 2]}, "size"),
        ({"prompt": "ant", "steps": 5}, "steps"),
        ({"prompt": "ant", "steps": "nan"}, "steps"),
        ({"prompt": "ant", "ar_ratio": 0.5}, "ar_ratio"),
        ({"prompt": "ant", "response_format": "url"}, "response_format"),
        ({"prompt": "ant", "output_format": "exe"}, "output_format"),
        ({"prompt": "ant", "model": "../../etc/passwd"}, "model"),
        ({"prompt": "ant", "negative_prompt": "bee"}, "negative_prompt"),
        ({"prompt": "ant", "weights": "/etc/passwd"}, "weights"),
        ([], "body"),
    ],
)
def test_images_refuses_a_bad_field_by_name(reader, fields, named):
    with pytest.raises(ConfigError, match=named):
        reader.images(fields)


def test_class_of_similar_meaning_is_drawn_and_named():
    pytest.importorskip("tokenizers")
    reader = RequestReader(named_pipeline("cat faces", "country flags", "fruit"), ServeConfig(), "named")
    assert reader.prompts.read("a banana and an apple") == (2, "fruit")
    assert reader.prompts.read("the smiling face of a kitten") == (0, "cat faces")
    with pytest.raises(ConfigError, match="like none of them"):
        reader.prompts.read("quantum chromodynamics")
    assert reader.prompts.read("quantum chromodynamics", nearest=True)[1] in reader.prompts.names
    assert reader.prompts.read("12345678910", nearest=True)[1] in reader.prompts.names


def named_pipeline(*names):
    pipeline = tiny_pipeline()
    return type(pipeline)(pipeline.tokenizer, pipeline.generator, names, pipeline.cfg, "named")


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_file_holds_its_settings(reader, output_format):
    asked = reader.images({"prompt": "bee", "seed": 3, "steps": 4})
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    data = encode(image, reader.settings(asked, asked.drawings[0]), output_format)
    about = settings_of(data)
    assert (about["prompt"], about["seed"], about["steps"], about["size"], about["model"]) == ("bee", 3, 4, "16x16", "tiny")
    if output_format != "jpeg":
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), image)
    again = reader.images({name: about[name] for name in ("prompt", "seed", "steps", "size", "model")})
    assert again.drawings == asked.drawings


def file_of(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def test_hole_is_the_transparent_part_of_the_mask():
    image = Image.new("RGB", (SIDE, SIDE), (9, 99, 199))
    mask = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (2, 4, 6, 12))
    image_hwc, hole_hw = image_and_hole(image, mask, (SIDE, SIDE))
    expected = np.zeros((SIDE, SIDE), bool)
    expected[4:12, 2:6] = True
    np.testing.assert_array_equal(hole_hw, expected)
    assert (image_hwc == (9, 99, 199)).all()


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (24, 16)])
def test_upload_is_cut_and_scaled_to_the_drawn_size(size):
    image = Image.new("RGB", (200, 100), (9, 99, 199))
    mask = Image.new("L", (200, 100), 0)
    mask.paste(255, (60, 20, 140, 80))
    image_hwc, hole_hw = image_and_hole(image, mask, size)
    assert image_hwc.shape == (*size, 3) and hole_hw.shape == size and 0 < hole_hw.mean() < 1
    assert not hole_hw[0].any() and abs(image_hwc.astype(int) - (9, 99, 199)).max() <= 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a PNG"),
        (b"GIF89a" + bytes(40), "not a PNG"),
        (file_of(Image.effect_noise((20, 20), 50))[:200], "image: "),
        (file_of(Image.new("1", (5000, 4))), "at most 100"),
        (json.dumps({"a": 1}).encode(), "not a PNG"),
    ],
    ids=["empty", "gif", "cut", "large", "json"],
)
def test_bad_upload_is_refused(data, said):
    with pytest.raises(ConfigError, match=said):
        read_upload(data, "image", 100)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (None, "mask: none given"),
        (Image.new("L", (8, 16), 255), "must be the same"),
        (Image.new("L", (16, 16), 0), "marks nothing"),
        (Image.new("RGBA", (16, 16), (0, 0, 0, 255)), "marks nothing"),
    ],
    ids=["none", "narrow", "black", "opaque"],
)
def test_bad_mask_is_refused(mask, said):
    with pytest.raises(ConfigError, match=said):
        image_and_hole(Image.new("RGB", (16, 16)), mask, (16, 16))
