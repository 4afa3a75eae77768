"""Crops and batches: equal to plain twins, and a pure function of (seed, step)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from maskgil_jax.data import transforms as crops
from maskgil_jax.data.images import image_batches
from maskgil_jax.data.sources.folder import ImageFolder
from maskgil_jax.tokenizers.images import to_uint8, to_unit


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------------ crops
def twin_center_crop(image, size):
    """The ADM preprocessing, step by step on a PIL image."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.BOX)
    factor = size / min(image.size)
    image = np.array(image.resize((round(image.size[0] * factor), round(image.size[1] * factor)), resample=Image.BICUBIC))
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


@pytest.mark.parametrize("shape", [(64, 64), (200, 131), (71, 300), (16, 20), (33, 32)])
def test_center_crop_equals_its_twin(shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    found = crops.adm_center_crop(image, 32)
    np.testing.assert_array_equal(found, twin_center_crop(Image.fromarray(image), 32))


@pytest.mark.parametrize("shape", [(100, 47), (47, 100), (20, 31)])
def test_random_crops_equal_their_twins(shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    short, pil = min(shape), Image.fromarray(image)
    # resize + random crop
    width, height = (32 if side == short else round(side * 32 / short) for side in pil.size)
    rng = np.random.default_rng(7)
    top, left = rng.integers(height - 32 + 1), rng.integers(width - 32 + 1)
    expected = np.asarray(pil.resize((width, height), Image.BILINEAR))[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(crops.resize_random_crop(image, 32, np.random.default_rng(7)), expected)
    # ADM: the short side first goes to 32..40
    rng = np.random.default_rng(7)
    side = int(rng.integers(32, 41))
    while min(pil.size) >= 2 * side:
        pil = pil.resize((pil.width // 2, pil.height // 2), Image.BOX)
    width, height = (side if s == min(pil.size) else round(s * side / min(pil.size)) for s in pil.size)
    top, left = rng.integers(height - 32 + 1), rng.integers(width - 32 + 1)
    expected = np.asarray(pil.resize((width, height), Image.BICUBIC))[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(crops.adm_random_crop(image, 32, np.random.default_rng(7)), expected)


def test_adm_random_crop_uses_every_scale():
    image = np.zeros((80, 80, 3), np.uint8)
    image[20:60, 20:60] = 255  # the lit share of the crop tells the scale
    rng = np.random.default_rng(0)
    assert all(crops.adm_random_crop(image, 32, rng).shape == (32, 32, 3) for _ in range(50))


def test_five_crops_are_the_corners_and_the_middle():
    image = np.random.default_rng(1).integers(0, 256, (90, 60, 3), np.uint8)
    large = twin_center_crop(Image.fromarray(image), 35)  # int(1.1 * 32)
    found = crops.five_crops(image, 32)
    for crop, (top, left) in zip(found, [(0, 0), (0, 3), (3, 0), (3, 3), (2, 2)], strict=True):
        np.testing.assert_array_equal(crop, large[top : top + 32, left : left + 32])


def test_no_crop_wants_the_exact_size(folder):
    source = ImageFolder(folder)
    with pytest.raises(ValueError, match=r"b/x/3\.webp: 33 x 33 pixels, expected 32 x 32"):
        crops.ExactSize(32).map(source[4])
    with pytest.raises(ValueError, match="expected 32 x 32"):
        next(image_batches(source, batch_size=2, image_size=32, crop="none"))
    small = next(image_batches(source, batch_size=5, image_size=128, crop="random"))  # all are smaller: enlarged
    assert small["image"].shape == (5, 128, 128, 3)


def test_flip_mirrors_about_half(emoji):
    plain, flipped = (
        next(image_batches(emoji, batch_size=200, image_size=64, flip=flip, shuffle=False))["image"] for flip in (False, True)
    )
    mirrored = [np.array_equal(a[:, ::-1], b) and not np.array_equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    assert all(m or np.array_equal(a, b) for m, a, b in zip(mirrored, plain, flipped, strict=True))
    assert 50 < sum(mirrored) < 130  # some drawings are their own mirror image


# ------------------------------------------------------------------------------------------------ loader
OPTIONS = {"batch_size": 8, "image_size": 48, "crop": "adm_random", "flip": True, "seed": 11}


def test_batches_have_the_promised_types(emoji):
    batch = next(image_batches(emoji, **OPTIONS))
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == {
        "image": ((8, 48, 48, 3), "uint8"),
        "label": ((8,), "int32"),
        "index": ((8,), "int64"),
    }
    assert all(emoji[int(i)]["label"] == label for i, label in zip(batch["index"], batch["label"], strict=True))


def test_start_step_is_skipping(emoji):
    """Also across an epoch's end: 543 drawings are 67.9 batches of 8."""
    straight = list(itertools.islice(image_batches(emoji, **OPTIONS), 72))
    for start in (1, 66, 69):
        for k, batch in enumerate(itertools.islice(image_batches(emoji, **OPTIONS, start_step=start), 3)):
            assert same(batch, straight[start + k])
    assert not same(straight[0], next(image_batches(emoji, **{**OPTIONS, "seed": 12})))
    seen = np.concatenate([batch["index"] for batch in straight])
    assert sorted(seen[:543]) == list(range(543))  # an epoch is every drawing once
    assert not np.array_equal(seen[:30], seen[543:573])  # the next one is in another order


@pytest.mark.parametrize("rows", [(0, 1, 2, 3), (4, 5, 6, 7), (0, 1, 4, 5), (7,)])
def test_processes_share_the_same_global_batch(emoji, rows):
    whole = itertools.islice(image_batches(emoji, **OPTIONS, start_step=66), 3)
    part = itertools.islice(image_batches(emoji, **OPTIONS, start_step=66, rows=rows), 3)
    for batch, own in zip(whole, part, strict=True):
        assert same(own, {k: batch[k][list(rows)] for k in batch})


@pytest.mark.slow
def test_workers_change_nothing(emoji):
    straight = list(itertools.islice(image_batches(emoji, **OPTIONS), 6))
    workers = image_batches(emoji, **OPTIONS, start_step=1, num_workers=2)
    assert all(same(a, b) for a, b in zip(straight[1:], itertools.islice(workers, 5), strict=True))
    workers.close()


def test_epochs_and_remainders(emoji):
    def sizes(**options):
        options = {"batch_size": 200, "image_size": 64, "num_epochs": 1, "shuffle": False, **options}
        return [len(batch["index"]) for batch in image_batches(emoji, **options)]

    assert sizes() == [200, 200]
    assert sizes(drop_remainder=False) == [200, 200, 143]
    assert sizes(num_epochs=2) == [200] * 5  # epochs follow one another
    assert sizes(start_step=1) == [200] and sizes(start_step=9) == []
    assert sizes(rows=range(50, 100)) == [50, 50]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 544, "num_epochs": 1}, "batch_size: 544 is more than the 543 records of emoji/test/group/64"),
        ({"rows": (7, 8)}, r"rows: expected some of 0\.\.7, got \(7, 8\)"),
        ({"rows": ()}, r"rows: expected some of 0\.\.7, got \(\)"),
        ({"batch_size": 0}, "batch_size: must be at least 1"),
        ({"crop": "centre"}, "crop: unknown value 'centre'.*Did you mean 'center'"),
        ({"seed": -1}, "seed"),
        ({"image_size": 0}, "image_size"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"num_epochs": 1, "drop_remainder": False, "rows": (0,)}, "drop_remainder=False"),
    ],
)
def test_impossible_options_are_named(emoji, options, message):
    with pytest.raises(ValueError, match=message):
        image_batches(emoji, **{"batch_size": 8, "image_size": 64, **options})


def test_unit_range_and_back():
    levels = np.arange(256, dtype=np.uint8)
    unit = to_unit(levels)
    assert unit.dtype == np.float32 and unit[0] == -1.0 and unit[255] == 1.0
    np.testing.assert_array_equal(to_uint8(unit), levels)
    np.testing.assert_array_equal(to_uint8(np.float32([-3.0, 3.0, 0.0])), [0, 255, 128])
    np.testing.assert_array_equal(jax.jit(to_uint8)(jax.jit(to_unit)(jnp.asarray(levels))), levels)
