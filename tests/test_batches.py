"""Crops and image batches: equal to reference implementations, and a pure function of (seed, step)."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from maskgil_jax.config import LoaderConfig
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
def test_center_crop_matches_reference(shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    found = crops.adm_center_crop(image, 32)
    np.testing.assert_array_equal(found, twin_center_crop(Image.fromarray(image), 32))


@pytest.mark.parametrize("shape", [(100, 47), (47, 100), (20, 31)])
def test_random_crops_match_reference(shape):
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


def test_adm_random_crop_has_the_size_at_every_scale():
    image = np.zeros((80, 80, 3), np.uint8)
    image[20:60, 20:60] = 255  # the lit share of the crop tells the scale
    rng = np.random.default_rng(0)
    assert all(crops.adm_random_crop(image, 32, rng).shape == (32, 32, 3) for _ in range(50))


def test_five_crops_are_corners_and_middle():
    image = np.random.default_rng(1).integers(0, 256, (90, 60, 3), np.uint8)
    large = twin_center_crop(Image.fromarray(image), 35)  # int(1.1 * 32)
    found = crops.five_crops(image, 32)
    for crop, (top, left) in zip(found, [(0, 0), (0, 3), (3, 0), (3, 3), (2, 2)], strict=True):
        np.testing.assert_array_equal(crop, large[top : top + 32, left : left + 32])


@pytest.mark.parametrize("shape", [(200, 131), (71, 300), (48, 64), (20, 31), (97, 60)])
@pytest.mark.parametrize("size", [(48, 64), (64, 48), (32, 80)])
def test_center_crop_to_a_rectangle_covers_it_and_cuts_the_middle(shape, size):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    pil = Image.fromarray(image)
    while pil.width >= 2 * size[1] and pil.height >= 2 * size[0]:
        pil = pil.resize((pil.width // 2, pil.height // 2), Image.BOX)
    factor = max(size[1] / pil.width, size[0] / pil.height)
    cover = max(size[1], round(pil.width * factor)), max(size[0], round(pil.height * factor))
    large = np.array(pil.resize(cover, Image.BICUBIC))
    top, left = (cover[1] - size[0]) // 2, (cover[0] - size[1]) // 2
    np.testing.assert_array_equal(crops.adm_center_crop(image, size), large[top : top + size[0], left : left + size[1]])
    rng = np.random.default_rng(0)
    for crop in (crops.adm_random_crop, crops.resize_random_crop):
        assert all(crop(image, size, rng).shape == (*size, 3) for _ in range(20))
    assert crops.five_crops(image, size).shape == (5, *size, 3)


def test_crop_none_requires_the_exact_size(folder):
    source = ImageFolder(folder)
    with pytest.raises(ValueError, match=r"b/x/3\.webp: 33 x 33 pixels, expected 32 x 32"):
        crops.ExactSize(32).map(source[4])
    with pytest.raises(ValueError, match="expected 32 x 32"):
        next(image_batches(source, LoaderConfig(2), size=32, crop="none"))
    small = next(image_batches(source, LoaderConfig(5), size=128, crop="random"))  # all are smaller: enlarged
    assert small["image"].shape == (5, 128, 128, 3)


def test_random_flip_mirrors_about_half_of_the_images(emoji):
    plain, flipped = (
        next(image_batches(emoji, LoaderConfig(200, shuffle=False), size=64, flip=flip))["image"] for flip in (False, True)
    )
    mirrored = [np.array_equal(a[:, ::-1], b) and not np.array_equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    assert all(m or np.array_equal(a, b) for m, a, b in zip(mirrored, plain, flipped, strict=True))
    assert 50 < sum(mirrored) < 130  # some drawings are their own mirror image


# ------------------------------------------------------------------------------------------------ loader
LOADER = LoaderConfig(batch_size=8, seed=11)
OPTIONS = {"size": 48, "crop": "adm_random", "flip": True}


def stream(source, *, start_step=0, **changes):
    """Batches with the options above, changed."""
    return image_batches(source, dataclasses.replace(LOADER, **changes), **OPTIONS, start_step=start_step)


def test_image_batches_have_fixed_types(emoji):
    batch = next(stream(emoji))
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == {
        "image": ((8, 48, 48, 3), "uint8"),
        "label": ((8,), "int32"),
        "index": ((8,), "int64"),
    }
    assert all(emoji[int(i)]["label"] == label for i, label in zip(batch["index"], batch["label"], strict=True))


def test_start_step_gives_the_same_batches_as_skipping(emoji):
    """Also across an epoch's end: 543 drawings are 67.9 batches of 8."""
    straight = list(itertools.islice(stream(emoji), 72))
    for start in (1, 66, 69):
        for k, batch in enumerate(itertools.islice(stream(emoji, start_step=start), 3)):
            assert same(batch, straight[start + k])
    assert not same(straight[0], next(stream(emoji, seed=12)))
    seen = np.concatenate([batch["index"] for batch in straight])
    assert sorted(seen[:543]) == list(range(543))  # an epoch is every drawing once
    assert not np.array_equal(seen[:30], seen[543:573])  # the next one is in another order


@pytest.mark.parametrize("rows", [(0, 1, 2, 3), (4, 5, 6, 7), (0, 1, 4, 5), (7,)])
def test_rows_of_processes_make_up_the_global_batch(emoji, rows):
    whole = itertools.islice(stream(emoji, start_step=66), 3)
    part = itertools.islice(stream(emoji, start_step=66, rows=rows), 3)
    for batch, own in zip(whole, part, strict=True):
        assert same(own, {k: batch[k][list(rows)] for k in batch})


@pytest.mark.slow
def test_worker_count_does_not_change_batches(emoji):
    straight = list(itertools.islice(stream(emoji), 6))
    workers = stream(emoji, start_step=1, num_workers=2)
    assert all(same(a, b) for a, b in zip(straight[1:], itertools.islice(workers, 5), strict=True))
    workers.close()


def test_epoch_and_remainder_options_give_batch_sizes(emoji):
    def sizes(start_step=0, **options):
        loader = LoaderConfig(**{"batch_size": 200, "num_epochs": 1, "shuffle": False, **options})
        return [len(batch["index"]) for batch in image_batches(emoji, loader, size=64, start_step=start_step)]

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
        ({"batch_size": 0}, "batch_size: must be a whole number >= 1"),
        ({"crop": "centre"}, "crop: unknown value 'centre'.*Did you mean 'center'"),
        ({"seed": -1}, "seed"),
        ({"size": 0}, "size"),
        ({"size": (64, 64, 64)}, r"size: must be a whole number >= 1, or \(height, width\)"),
        ({"start_step": -1}, "start_step"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"num_epochs": 1, "drop_remainder": False, "rows": (0,)}, "drop_remainder=False"),
    ],
)
def test_impossible_loader_option_raises_naming_it(emoji, options, message):
    options = dict(options)
    with pytest.raises(ValueError, match=message):
        loader = {name: options.pop(name) for name in list(options) if name in LoaderConfig.__dataclass_fields__}
        image_batches(emoji, LoaderConfig(**{"batch_size": 8, **loader}), **{"size": 64, **options})


def test_to_unit_and_to_uint8_are_inverse():
    levels = np.arange(256, dtype=np.uint8)
    unit = to_unit(levels)
    assert unit.dtype == np.float32 and unit[0] == -1.0 and unit[255] == 1.0
    np.testing.assert_array_equal(to_uint8(unit), levels)
    np.testing.assert_array_equal(to_uint8(np.float32([-3.0, 3.0, 0.0])), [0, 255, 128])
    np.testing.assert_array_equal(jax.jit(to_uint8)(jax.jit(to_unit)(jnp.asarray(levels))), levels)
