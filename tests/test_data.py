"""Data sources, crops and the loader: purity, splits, broken files."""

import itertools
import json
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from maskgil_jax.data import crops, demo
from maskgil_jax.data.folder import ImageFolder
from maskgil_jax.data.images import image_batches, open_images, to_uint8, to_unit
from maskgil_jax.data.pixels import read_image


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def emoji():
    return demo.emoji("test", "group")


@pytest.fixture
def folder(tmp_path):
    """Two classes, 3 + 2 images of different sizes and formats."""
    rng = np.random.default_rng(0)
    for name, size in [
        ("b/1.png", (40, 30)),
        ("b/2.jpg", (30, 50)),
        ("b/x/3.webp", (33, 33)),
        ("a/1.bmp", (20, 20)),
        ("a/2.gif", (64, 9)),
    ]:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)
    return tmp_path / "set"


# ------------------------------------------------------------------------------------------------ emoji
def test_emoji_splits_hold_out_whole_emoji():
    train, test, whole = (demo.emoji(split) for split in ("train", "test", "all"))
    assert len(train) + len(test) == len(whole) == 5160
    codes = [{demo.family(s.record(i)["code"]) for i in range(len(s))} for s in (train, test)]
    assert not codes[0] & codes[1]
    assert 0.08 < len(test) / 5160 < 0.12
    assert len(codes[1]) == 181  # the split never changes: published figures depend on it
    for label, count in (("subgroup", 98), ("group", 9), ("style", 3)):
        source = demo.emoji("train", label)
        assert len(source.class_names) == count == len({source.record(i)[label] for i in range(len(source))})
        assert demo.emoji("test", label).class_names == source.class_names


def test_emoji_families_join_gender_and_direction():
    runners = ["1F3C3", "1F3C3-200D-2640-FE0F", "1F3C3-200D-2642", "1F3C3-200D-2640-FE0F-200D-27A1-FE0F"]
    assert {demo.family(code) for code in runners} == {"1F3C3"}
    assert demo.family("1F468-200D-1F33E") == demo.family("1F469-200D-1F33E") == "1F9D1-200D-1F33E"
    assert demo.family("2640-FE0F") == "2640"  # the sign itself stays


def test_emoji_records(emoji):
    record, fact = emoji[5], emoji.record(5)
    assert record["image"].shape == (64, 64, 3) and record["image"].dtype == np.uint8 and record["image"].flags.writeable
    assert emoji.class_names[record["label"]] == fact["group"] and record["id"] == f"{fact['style']}/{fact['code']}"
    assert set(fact["names"]) == {"en", "es", "fr", "pt", "zh"} and isinstance(fact["tags"], list)
    assert demo.emoji("test", size=32)[5]["image"].shape == (32, 32, 3)
    with pytest.raises(ValueError, match=r"split.*tran.*train"):
        demo.emoji("tran")


def test_emoji_tiles_are_the_sheet():
    """The tile number counts along the rows of 40."""
    fluent = next(i for i, r in enumerate(demo._index()) if r["style"] == "fluent-emoji-flat" and r["tile"] == 83)
    sheet = Image.open(demo._folder() / "fluent-emoji-flat.webp").convert("RGB")
    expected = np.asarray(sheet)[2 * 64 : 3 * 64, 3 * 64 : 4 * 64]
    np.testing.assert_array_equal(demo.emoji("all")[fluent]["image"], expected)


# ------------------------------------------------------------------------------------------------ pixels
def test_16_bit_png_is_scaled(tmp_path):
    levels = np.linspace(0, 65535, 31 * 33).astype(np.uint16).reshape(31, 33)
    Image.fromarray(levels).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png")
    np.testing.assert_array_equal(image, np.repeat(np.round(levels / 257.0).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "L", "1"])
def test_modes_become_rgb(tmp_path, mode):
    rgba = Image.new("RGBA", (4, 2), (200, 200, 200, 0) if mode in ("RGBA", "LA", "P") else (200, 200, 200, 255))
    rgba.putpixel((0, 0), (0, 0, 0, 255))
    if mode == "P":
        image = rgba.quantize(4)
    else:
        image = rgba.convert(mode) if mode in ("RGBA", "LA") else rgba.convert("RGB").convert(mode)
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image.save(path, **({"quality": 100} if mode == "CMYK" else {}))
    pixels = read_image(path)
    assert pixels.shape == (2, 4, 3) and pixels.dtype == np.uint8
    expected = {"RGBA": 255, "LA": 255, "P": 255, "CMYK": 200, "L": 200, "1": 255}[mode]
    assert abs(int(pixels[1, 3, 0]) - expected) <= 8  # transparent is white, not the colour hidden under it
    assert pixels[0, 0].max() <= 60


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20), "white")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (40, 20, 3)


def test_gif_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert tuple(read_image(tmp_path / "x.gif")[2, 2]) == (255, 0, 0)


def huge_png(path):
    """A few bytes that claim 60000 x 60000 pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 8000, 8000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


# ------------------------------------------------------------------------------------------------ folders
def test_folder_classes_and_order(folder):
    source = open_images(folder)
    assert source.class_names == ("a", "b") and len(source) == 5 and not source.skipped
    assert [(r["id"], r["label"]) for r in source] == [
        ("a/1.bmp", 0),
        ("a/2.gif", 0),
        ("b/1.png", 1),
        ("b/2.jpg", 1),
        ("b/x/3.webp", 1),
    ]
    assert source[2]["image"].shape == (30, 40, 3)


def test_folder_errors_name_the_folder(folder, tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        open_images(tmp_path / "nowhere")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="empty: no images"):
        open_images(tmp_path / "empty")
    with pytest.raises(ValueError, match="a: 2 images but no class sub-folders"):
        open_images(folder / "a")
    with pytest.raises(ValueError, match=r"1\.png: is a file"):
        open_images(folder / "b" / "1.png")
    with pytest.raises(ValueError, match=r"data\.split: 'val'"):
        open_images(folder, split="val")
    with pytest.raises(ValueError, match=r"data\.path: is empty"):
        open_images("")


def test_folder_with_splits(folder, tmp_path):
    (tmp_path / "both").mkdir()
    folder.rename(tmp_path / "both" / "val")
    assert open_images(tmp_path / "both", split="val").class_names == ("a", "b")


def test_bad_files_are_skipped_counted_and_named(folder, caplog):
    (folder / "a" / "html.jpg").write_text("<html>not found</html>")
    (folder / "a" / "zero.png").write_bytes(b"")
    whole = (folder / "b" / "2.jpg").read_bytes()
    (folder / "b" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    huge_png(folder / "b" / "huge.png")
    source = ImageFolder(folder)
    assert len(source) == 5
    assert sorted(source.skipped) == ["a/html.jpg", "a/zero.png", "b/cut.jpg", "b/huge.png"]
    assert "8000 x 8000 pixels; at most 40 million" in source.skipped["b/huge.png"]
    assert "4 of 9 images skipped" in caplog.text and "html.jpg: not an image file" in caplog.text


def test_a_folder_of_only_bad_files_is_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"none of the 1 images can be read.*x\.png"):
        ImageFolder(tmp_path)


def test_damage_inside_a_file_is_replaced_by_the_next(folder, caplog):
    path = folder / "b" / "1.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :][:50] = b"\0" * 50
    data[len(data) // 2 : len(data) // 2 + 50] = b"\0" * 50
    path.write_bytes(data)
    source = ImageFolder(folder)
    assert len(source) == 5  # its beginning and end are fine
    assert source[2]["id"] == "b/2.jpg" and source[2]["label"] == 1
    assert list(source.skipped) == ["b/1.png"] and "b/1.png" in caplog.text


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


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_same_global_batch(emoji, count):
    whole = list(itertools.islice(image_batches(emoji, **OPTIONS, start_step=66), 3))
    parts = [
        list(itertools.islice(image_batches(emoji, **OPTIONS, start_step=66, process_index=p, process_count=count), 3))
        for p in range(count)
    ]
    for step, batch in enumerate(whole):
        assert same(batch, {k: np.concatenate([part[step][k] for part in parts]) for k in batch})


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
    assert sizes(process_index=1, process_count=4) == [50, 50]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 544, "num_epochs": 1}, "batch_size: 544 is more than the 543 records of emoji/test/group/64"),
        ({"batch_size": 9, "process_count": 2}, "batch_size: 9 is not a multiple of process_count 2"),
        ({"process_index": 2, "process_count": 2}, r"process_index: 2 is not in 0\.\.1"),
        ({"batch_size": 0}, "batch_size: must be at least 1"),
        ({"crop": "centre"}, "crop: unknown value 'centre'.*Did you mean 'center'"),
        ({"seed": -1}, "seed"),
        ({"image_size": 0}, "image_size"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"num_epochs": 1, "drop_remainder": False, "process_count": 2}, "drop_remainder=False"),
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


# ------------------------------------------------------------------------------------------------ TFDS
@pytest.mark.slow
def test_tfds_data_set_is_read_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 10, 12, 3), np.uint8)

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["x", "y"]),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            import io

            for i, picture in enumerate(pictures):
                file = io.BytesIO()
                Image.fromarray(picture).save(file, "PNG")
                yield i, {"image": file.getvalue(), "label": i % 2}

    TinyPictures.pkg_dir_path = tmp_path  # where its metadata would be, were it a package
    with pytest.raises(ValueError, match=r"tfds:tiny_pictures: not prepared in .*tfds build tiny_pictures"):
        open_images("tfds:tiny_pictures", data_dir=tmp_path)
    TinyPictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = open_images("tfds:tiny_pictures", data_dir=tmp_path)
    assert len(source) == 6 and source.class_names == ("x", "y")
    found = sorted((r["image"].tobytes(), r["label"]) for r in source)
    assert found == sorted((p.tobytes(), i % 2) for i, p in enumerate(pictures))
    with pytest.raises(ValueError, match="no split 'val'; it has train"):
        open_images("tfds:tiny_pictures", split="val", data_dir=tmp_path)
    with pytest.raises(ValueError, match="tfds:no_such_thing"):
        open_images("tfds:no_such_thing", data_dir=tmp_path)


def test_attribution_is_shipped():
    text = (demo._folder() / "ATTRIBUTION.md").read_text()
    for styles in {record["style"] for record in demo._index()}:
        assert styles in text
    assert "CC-BY 4.0" in text and json.loads((demo._folder() / "index.json").read_text())["tile_px"] == 64
