"""Data sources, crops and the loader: purity, splits, broken files."""

import json
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from maskgil_jax.data.images import open_images
from maskgil_jax.data.sources import emoji as demo
from maskgil_jax.data.sources.folder import ImageFolder
from maskgil_jax.files.images import read_image


# ------------------------------------------------------------------------------------------------ emoji
def test_emoji_splits_share_no_family():
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


def test_emoji_family_ignores_gender_and_direction():
    runners = ["1F3C3", "1F3C3-200D-2640-FE0F", "1F3C3-200D-2642", "1F3C3-200D-2640-FE0F-200D-27A1-FE0F"]
    assert {demo.family(code) for code in runners} == {"1F3C3"}
    assert demo.family("1F468-200D-1F33E") == demo.family("1F469-200D-1F33E") == "1F9D1-200D-1F33E"
    assert demo.family("2640-FE0F") == "2640"  # the sign itself stays


def test_emoji_record_has_image_label_and_annotations(emoji):
    record, fact = emoji[5], emoji.record(5)
    assert record["image"].shape == (64, 64, 3) and record["image"].dtype == np.uint8 and record["image"].flags.writeable
    assert emoji.class_names[record["label"]] == fact["group"] and record["id"] == f"{fact['style']}/{fact['code']}"
    assert set(fact["names"]) == {"en", "es", "fr", "pt", "zh"} and isinstance(fact["tags"], list)
    assert demo.emoji("test", size=32)[5]["image"].shape == (32, 32, 3)
    with pytest.raises(ValueError, match=r"split.*tran.*train"):
        demo.emoji("tran")


def test_emoji_tile_is_its_part_of_the_sheet():
    """The tile number counts along the rows of 40."""
    fluent = next(i for i, r in enumerate(demo._index()) if r["style"] == "fluent-emoji-flat" and r["tile"] == 83)
    sheet = Image.open(demo._folder() / "fluent-emoji-flat.webp").convert("RGB")
    expected = np.asarray(sheet)[2 * 64 : 3 * 64, 3 * 64 : 4 * 64]
    np.testing.assert_array_equal(demo.emoji("all")[fluent]["image"], expected)


# ------------------------------------------------------------------------------------------------ pixels
def test_read_image_scales_16_bit_png(tmp_path):
    levels = np.linspace(0, 65535, 31 * 33).astype(np.uint16).reshape(31, 33)
    Image.fromarray(levels).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png")
    np.testing.assert_array_equal(image, np.repeat(np.round(levels / 257.0).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "L", "1"])
def test_read_image_converts_modes_to_rgb(tmp_path, mode):
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


def test_read_image_applies_exif_rotation(tmp_path):
    image = Image.new("RGB", (40, 20), "white")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (40, 20, 3)


def test_read_image_takes_first_frame_of_gif(tmp_path):
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
def test_image_folder_sorts_classes_and_files(folder):
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


def test_image_folder_error_names_the_folder(folder, tmp_path):
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


def test_open_images_takes_split_folder(folder, tmp_path):
    (tmp_path / "both").mkdir()
    folder.rename(tmp_path / "both" / "val")
    assert open_images(tmp_path / "both", split="val").class_names == ("a", "b")


def test_unreadable_files_are_skipped_and_named(folder, caplog):
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


def test_folder_of_unreadable_files_raises(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"none of the 1 images can be read.*x\.png"):
        ImageFolder(tmp_path)


def test_file_damaged_inside_is_replaced_by_next(folder, caplog):
    path = folder / "b" / "1.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :][:50] = b"\0" * 50
    data[len(data) // 2 : len(data) // 2 + 50] = b"\0" * 50
    path.write_bytes(data)
    source = ImageFolder(folder)
    assert len(source) == 5  # its beginning and end are fine
    assert source[2]["id"] == "b/2.jpg" and source[2]["label"] == 1
    assert list(source.skipped) == ["b/1.png"] and "b/1.png" in caplog.text


# ------------------------------------------------------------------------------------------------ TFDS
@pytest.mark.slow
def test_tfds_data_set_loads_without_tensorflow(tmp_path):
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


def test_attribution_file_is_shipped():
    text = (demo._folder() / "ATTRIBUTION.md").read_text()
    for styles in {record["style"] for record in demo._index()}:
        assert styles in text
    assert "CC-BY 4.0" in text and json.loads((demo._folder() / "index.json").read_text())["tile_px"] == 64


# ------------------------------------------------------------------------------------------ links, other files, content
def test_links_are_followed_at_every_level(folder, tmp_path):
    (tmp_path / "linked" / "x").mkdir(parents=True)
    (tmp_path / "linked" / "b").symlink_to(folder / "b")  # a class
    (tmp_path / "linked" / "x" / "part").symlink_to(folder / "a")  # a folder inside of a class
    (tmp_path / "linked" / "x" / "0.png").symlink_to(folder / "b" / "1.png")
    (tmp_path / "linked" / "x" / "loop").symlink_to(tmp_path / "linked" / "x")
    source = ImageFolder(tmp_path / "linked")
    names = ["b/1.png", "b/2.jpg", "b/x/3.webp", "x/0.png", "x/part/1.bmp", "x/part/2.gif"]
    assert [record["id"] for record in source] == names and source.class_names == ("b", "x")


def test_files_left_out_are_counted_and_classes_without_images_named(folder, caplog):
    for name in ("a/3.tif", "a/4.tif", "b/notes.txt", "lost/1.heic"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    Image.new("RGB", (4, 4)).save(folder / "loose.png")
    source = ImageFolder(folder)
    assert len(source) == 5 and source.class_names == ("a", "b")
    assert len([r for r in caplog.records if "left out" in r.message]) == 1
    for part in ("2 .tif", "1 .txt", "1 .heic", "1 image outside of the class", "no classes: lost"):
        assert part in caplog.text, part


def test_class_without_a_readable_image_is_named(folder, caplog):
    for path in (folder / "a").iterdir():
        path.write_bytes(b"x")
    assert ImageFolder(folder).class_names == ("a", "b") and "classes without a readable image: a" in caplog.text


def test_content_hash_changes_with_an_image_and_not_with_a_copy(folder, tmp_path):
    before = ImageFolder(folder)
    shutil.copytree(folder, tmp_path / "copy")
    copy = ImageFolder(tmp_path / "copy")
    assert (before.content_hash, before.fingerprint) == (copy.content_hash, copy.fingerprint)
    path = folder / "a" / "1.bmp"
    data = bytearray(path.read_bytes())
    data[-200] ^= 1  # one colour of one pixel; size and name as before
    path.write_bytes(data)
    after = ImageFolder(folder)
    assert after.content_hash != before.content_hash and after.fingerprint == before.fingerprint
    assert after.content(1, 5) == before.content(1, 5) and after.content(0, 1) != before.content(0, 1)
    (folder / "a" / "2.gif").rename(folder / "b" / "0.gif")  # the same images in the same order, one with another label
    assert ImageFolder(folder).content(0, 5) == after.content(0, 5) and ImageFolder(folder).content_hash != after.content_hash
