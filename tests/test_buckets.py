"""Size buckets: the published lists, the choice among them, crops, padded canvases, and what padding costs."""

import grain
import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks.buckets import layer_flops, rows
from maskgil_jax import buckets, nearest_bucket
from maskgil_jax.config import LLAMA_PRESETS, ConfigError
from maskgil_jax.data.buckets import (
    PadCodes,
    bucket_transform,
    canvas_length,
    canvas_positions,
    crop_to_bucket,
    largest_grid,
    pad_codes,
    unpad_codes,
)
from maskgil_jax.data.transforms import resize_to_cover
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.networks import create
from maskgil_jax.planning.flops import count_flops

# Width x height, the wide half of the published lists, the square last.
WIDE_256 = "512x128 480x128 448x128 416x128 384x128 384x160 352x160 320x160 320x192 288x192 288x224 256x224 256x256"
WIDE_512 = (
    "1024x256 992x256 960x256 928x256 896x256 896x288 864x288 832x288 800x288 800x320 768x320 736x320 736x352 704x352 672x352 "
    "672x384 640x384 608x384 608x416 576x416 576x448 544x448 544x480 512x480 512x512"
)


@pytest.mark.parametrize("side, wide", [(256, WIDE_256), (512, WIDE_512)])
def test_buckets_are_the_published_list(side, wide):
    sizes = [tuple(map(int, size.split("x"))) for size in wide.split()]
    expected = [(h, w) for w, h in sizes] + [(w, h) for w, h in reversed(sizes[:-1])]
    assert buckets(side) == tuple(expected)


@pytest.mark.parametrize("side, count", [(256, 25), (384, 37), (512, 49), (768, 73), (1024, 97)])
def test_buckets_have_the_published_count_and_fit(side, count):
    found = buckets(side)
    assert len(found) == len(set(found)) == count
    assert set(found) == {(w, h) for h, w in found}
    assert max(h * w for h, w in found) == side**2 == canvas_length(side) * 256
    assert max(max(size) / min(size) for size in found) == 4


def test_bucket_options_count():
    assert len(buckets(256, patch=16)) == 49 and len(buckets(512, patch=16)) == 97
    assert buckets(256, max_ratio=1.0) == ((256, 256),)
    assert largest_grid(buckets(256)) == (32, 32) and largest_grid(buckets(512)) == (64, 64)
    for bad, name in [
        (dict(side=250), "side"),
        (dict(side=256, patch=0), "patch"),
        (dict(side=256, max_ratio=0.5), "max_ratio"),
    ]:
        with pytest.raises(ConfigError, match=f"^{name}: "):
            buckets(**bad)


def published_choice(width, height, sizes):
    """The rule in the form of the published code: all scores, sorted downwards with the (width, height) pairs."""
    scores = [(min(cw / width, ch / height) / max(cw / width, ch / height), (cw, ch)) for ch, cw in sizes]
    return sorted(scores, reverse=True)[0][1]


@pytest.mark.parametrize("side", [256, 512])
def test_nearest_bucket_is_the_published_choice(side):
    sizes, rng = buckets(side), np.random.default_rng(0)
    for height, width in [*rng.integers(1, 3000, (500, 2)).tolist(), (1, 5000), (5000, 1), *sizes]:
        w, h = published_choice(width, height, sizes)
        assert nearest_bucket((height, width), sizes) == (h, w), (height, width)
    assert all(nearest_bucket(size, sizes) == size for size in sizes)


def test_nearest_bucket_takes_the_wider_of_equal_ones():
    assert nearest_bucket((100, 100), ((200, 100), (100, 200))) == (100, 200)
    assert nearest_bucket((100, 100), ((64, 64), (128, 128))) == (128, 128)
    with pytest.raises(ConfigError, match="buckets: is empty"):
        nearest_bucket((1, 1), ())


@pytest.mark.parametrize("size", [(128, 512), (256, 256), (224, 288)])
def test_resize_to_cover_covers_with_one_side_exact(size):
    rng = np.random.default_rng(1)
    for height, width in [(1000, 1300), (90, 70), (33, 2000), size]:
        image = resize_to_cover(rng.integers(0, 256, (height, width, 3), np.uint8), size, "BICUBIC", box_first=True)
        spare = image.shape[0] - size[0], image.shape[1] - size[1]
        assert min(spare) == 0 and image.shape[2] == 3, (height, width, image.shape)


def test_resize_to_cover_halves_by_box_then_goes_bicubic():
    image = np.random.default_rng(2).integers(0, 256, (600, 900, 3), np.uint8)
    expected = Image.fromarray(image).resize((450, 300), Image.Resampling.BOX)
    expected = np.asarray(expected.resize((384, 256), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize_to_cover(image, (256, 320), "BICUBIC", box_first=True), expected)
    once = resize_to_cover(image, (300, 450), "BICUBIC", box_first=True)  # exactly twice: one halving and nothing else
    np.testing.assert_array_equal(once, np.asarray(Image.fromarray(image).resize((450, 300), Image.Resampling.BOX)))


def test_center_crop_is_the_true_centre():
    image = np.zeros((256, 300, 3), np.uint8)
    image[:, 22:278] = 255  # the middle 256 columns
    for view in (image, image.swapaxes(0, 1)):
        cut = crop_to_bucket(view, ((256, 256),))
        assert cut.shape == (256, 256, 3) and cut.min() == 255


def test_random_crop_takes_every_position_and_depends_on_the_generator():
    ramp = np.broadcast_to(np.arange(36, dtype=np.uint8)[None, :, None], (32, 36, 3))
    lefts = {int(crop_to_bucket(ramp, ((32, 32),), np.random.default_rng(i))[0, 0, 0]) for i in range(60)}
    assert lefts == {0, 1, 2, 3, 4}
    first, second = (crop_to_bucket(ramp, ((32, 32),), np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("crop", ["center", "random"])
def test_bucket_transform_crops_records_of_a_data_set(crop):
    images = [np.zeros(shape, np.uint8) for shape in [(90, 200, 3), (200, 90, 3), (64, 64, 3)]]
    stream = grain.MapDataset.source([{"image": image, "id": str(i)} for i, image in enumerate(images)]).seed(0)
    transform = bucket_transform(crop, buckets(256))
    stream = stream.random_map(transform) if crop == "random" else stream.map(transform)
    assert [r["image"].shape[:2] for r in stream] == [(160, 352), (352, 160), (256, 256)]
    with pytest.raises(ConfigError, match="crop: unknown value 'centre'"):
        bucket_transform("centre", buckets(256))


def test_canvas_positions_number_rows_and_columns():
    row, column, valid = canvas_positions((2, 3), 8)
    assert row.tolist() == [0, 0, 0, 1, 1, 1, 0, 0] and column.tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
    assert valid.tolist() == [True] * 6 + [False] * 2
    assert row.dtype == column.dtype == np.int32
    with pytest.raises(ConfigError, match=r"grid: 3 x 3 = 9 tokens, the canvas holds 8"):
        canvas_positions((3, 3), 8)


def test_padded_codes_round_trip_for_every_bucket():
    length, rng = canvas_length(256), np.random.default_rng(3)
    for height, width in buckets(256):
        codes = rng.integers(1, 99, (height // 16, width // 16)).astype(np.int32)
        record = PadCodes(length, fill=99).map({"codes": codes, "id": "x"})
        assert record["codes"].shape == (length,) and record["codes"].dtype == np.int32
        assert (record["codes"][~record["valid"]] == 99).all() and record["valid"].sum() == codes.size
        np.testing.assert_array_equal(record["codes"][record["valid"]], codes[record["row"], record["column"]][record["valid"]])
        np.testing.assert_array_equal(unpad_codes(record["codes"], canvas_positions(codes.shape, length)), codes)
    with pytest.raises(ConfigError, match="the canvas holds 5"):
        pad_codes(np.zeros((2, 3), np.int32), 5)


def test_layer_flops_are_those_of_the_traced_network():
    cfg = LLAMA_PRESETS["tiny"]
    network = create(cfg, jax.random.key(0))
    for grid in ((8, 8), (4, 8)):
        tokens = jax.ShapeDtypeStruct((1, grid[0] * grid[1]), np.int32)
        jaxpr = jax.make_jaxpr(lambda t: network.hidden(t, ClassCondition(np.zeros(1, np.int32)), grid=grid))(tokens)  # noqa: B023
        positions = grid[0] * grid[1] + 1
        rotations = 2 * cfg.depth * 2 * positions * cfg.width * (cfg.width // cfg.heads)  # of q and k, by one small matrix
        assert count_flops(jaxpr).products == layer_flops(cfg, positions) + rotations


def test_flops_wasted_are_the_published_table():
    """Mean tokens, area kept and waste of TEXT positions 120 (LlamaGen) and 128 (the paper)."""
    found = {(row["side"], row["images"]): row for side in (256, 512) for row in rows(LLAMA_PRESETS["XL"], side, [120, 128])}
    photos_256, photos_512 = found[256, "photos"], found[512, "photos"]
    assert (photos_256["mean tokens"], photos_512["mean tokens"]) == (244.5, 1009.8)
    assert (photos_256["area kept"], photos_512["area kept"]) == ("98.5%", "98.2%")
    assert photos_512["by a square crop"] == "81.8%"
    wasted = {key: row["FLOPs wasted, prefix 120"] for key, row in found.items()}
    assert wasted == {
        (256, "photos"): "3.2%",
        (256, "all buckets alike"): "8.0%",
        (512, "photos"): "1.4%",
        (512, "all buckets alike"): "5.7%",
    }
    assert found[256, "all buckets alike"]["FLOPs wasted, prefix 128"] == "7.8%"
