"""Sample files: what a job's manifest names, classes in records and npz files,
and what readers convert or leave out."""

import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from helpers.tiny_pipeline import tiny_pipeline
from helpers.tiny_world import random_images, write_folder
from PIL import Image

from maskgil_jax.config import ConfigError
from maskgil_jax.evaluation.images import open_image_set
from maskgil_jax.files.images import contact_sheet, png_bytes, read_image, read_image_and_conversions, save_png
from maskgil_jax.files.sample_formats import (
    FORMATS,
    decode_record,
    manifest_labels,
    part_files,
    read_manifest,
    sample_files,
    write_images,
)
from maskgil_jax.pipelines.jobs import read_samples, sample_to_folder

LABELS = np.array([2, 2, 2, 0, 0, 1, 1, 1, 1])


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """{format: folder of a finished job with a contact sheet of other size in it}."""
    root, found = tmp_path_factory.mktemp("jobs"), {}
    for format in FORMATS:
        out = sample_to_folder(tiny_pipeline(), LABELS, root / format, format=format, seed=3, batch_size=4, part_size=4)
        save_png(out / "grid.png", contact_sheet(read_samples(out)))
        found[format] = out
    return found


def read(images, rows=4):
    return np.concatenate(list(images.batches(rows)))


# ------------------------------------------------------------------------------------------------ manifests
@pytest.mark.parametrize("format", FORMATS)
def test_job_folder_opens_as_the_images_and_classes_of_its_manifest(jobs, format):
    images = open_image_set(jobs[format])
    assert (images.count, images.size, images.provenance["kind"]) == (9, (16, 16), "job")
    np.testing.assert_array_equal(read(images), read_samples(jobs[format]))
    np.testing.assert_array_equal(images.labels(), LABELS)
    assert images.notes == ["1 image that the manifest samples.json does not name is left out (grid.png)"]
    few = open_image_set(jobs[format], count=5)
    np.testing.assert_array_equal(read(few), read_samples(jobs[format], 5))
    np.testing.assert_array_equal(few.labels(), LABELS[:5])


@pytest.mark.slow
def test_job_folder_with_missing_samples_is_refused_by_name(jobs, tmp_path):
    out = sample_to_folder(tiny_pipeline(), LABELS, tmp_path / "out", seed=3)
    (out / "000004.png").unlink()
    with pytest.raises(ConfigError, match=r"out: 1 of the 9 files .* missing, \['000004.png'\] first"):
        open_image_set(out)


def test_samples_json_of_another_tool_does_not_make_a_job_folder(tmp_path):
    folder = write_folder(tmp_path / "plain", random_images(3))
    for text in ("{", "[]", '{"format": "other"}'):
        (folder / "samples.json").write_text(text)
        images = open_image_set(folder)
        assert images.count == 3
        assert images.notes == ["1 file without an image suffix is left out (samples.json)"]
    (folder / "samples.json").write_text(json.dumps({"format": "maskgil samples 9"}))
    with pytest.raises(ConfigError, match=r"samples\.json: format is"):
        open_image_set(folder)


def test_manifest_names_files_and_labels(jobs):
    manifest = read_manifest(jobs["array_record"])
    assert sample_files(manifest) == [f"samples-0000{k}-of-00003.array_record" for k in range(3)]
    assert [list(rows) for rows in part_files(manifest).values()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    np.testing.assert_array_equal(manifest_labels(manifest), LABELS)
    assert manifest_labels({**manifest, "labels": "unknown"}) is None
    assert manifest_labels({**manifest, "num": 8}) is None
    assert sample_files(read_manifest(jobs["npz"])) == ["samples.npz"]


def test_single_files_of_a_job_carry_their_classes(jobs):
    npz = open_image_set(jobs["npz"] / "samples.npz")
    np.testing.assert_array_equal(npz.labels(), LABELS)
    part = open_image_set(jobs["array_record"] / "samples-00001-of-00003.array_record")
    np.testing.assert_array_equal(read(part), read_samples(jobs["array_record"])[4:8])
    np.testing.assert_array_equal(part.labels(), LABELS[4:8])


def test_records_with_and_without_a_class_are_told_apart():
    image = random_images(1)[0]
    for record, label in ((png_bytes(image), None), (struct.pack("<i", 7) + png_bytes(image), 7)):
        pixels, conversions, found = decode_record(record, "record")
        np.testing.assert_array_equal(pixels, image)
        assert (conversions, found) == ((), label)
    with pytest.raises(ValueError, match="record 3: not an image file"):
        decode_record(b"\0\0\0\0nothing", "record 3")


def test_numbered_images_continue_from_a_start(tmp_path):
    images = random_images(3)
    write_images(tmp_path, images[:2], digits=4)
    write_images(tmp_path, images[2:], start=2, digits=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000.png", "0001.png", "0002.png"]
    np.testing.assert_array_equal(read_image(tmp_path / "0002.png"), images[2])


# ------------------------------------------------------------------------------------------------ folders
def test_files_left_out_are_counted_and_named(tmp_path):
    folder = write_folder(tmp_path / "set", random_images(2))
    for name in ("a.tiff", "b.txt", "c.md", "d.csv", ".hidden.png"):
        (folder / name).write_text("x")
    images = open_image_set(folder)
    assert images.count == 2
    assert images.notes == ["4 files without an image suffix are left out (a.tiff, b.txt, c.md, ...)"]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    real = write_folder(tmp_path / "real", random_images(3))
    (tmp_path / "set" / "deep").mkdir(parents=True)
    os.symlink(real, tmp_path / "set" / "deep" / "linked")
    os.symlink(real / "000.png", tmp_path / "set" / "one.png")
    os.symlink(tmp_path / "set", tmp_path / "set" / "deep" / "circle")
    assert open_image_set(tmp_path / "set").count == 4


# ------------------------------------------------------------------------------------------------ conversions
def png(colour_type, bits, row, *chunks, size=(2, 1)):
    """A PNG file written out, for what Pillow cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress((b"\0" + row) * size[1]))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*c) for c in chunks) + body + chunk(b"IEND", b"")


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


GREY, COLOUR = "grey, copied to three channels", np.full((2, 3, 3), (10, 20, 30), np.uint8)
EXIF = Image.Exif()
EXIF[0x0112] = 6
CASES = {
    "plain RGB": (png(2, 8, b"\x10\x20\x30" * 2), (), (16, 32, 48)),
    "RGB with a transparent colour": (
        png(2, 8, b"\x10\x20\x30" * 2, (b"tRNS", struct.pack(">HHH", 16, 32, 48))),
        ("transparent, composited over white",),
        (255, 255, 255),
    ),
    "grey with a transparent level": (
        png(0, 8, b"\x10\x10", (b"tRNS", struct.pack(">H", 16))),
        (GREY, "transparent, composited over white"),
        (255, 255, 255),
    ),
    "16-bit RGB": (png(2, 16, b"\x12\x34" * 6), ("16-bit colour, scaled to 8 bits",), (18, 18, 18)),
    "16-bit grey": (png(0, 16, struct.pack(">H", 40000) * 2), ("16-bit grey, scaled to 8 bits",), (156, 156, 156)),
    "16-bit grey with a transparent level": (
        png(0, 16, struct.pack(">H", 40000) * 2, (b"tRNS", struct.pack(">H", 40000))),
        ("16-bit grey, scaled to 8 bits", "transparent, composited over white"),
        (255, 255, 255),
    ),
    "RGBA": (png(6, 8, b"\x00\x00\x00\x00" * 2), ("transparent, composited over white",), (255, 255, 255)),
    "rotated": (encoded(Image.fromarray(COLOUR), "PNG", exif=EXIF), ("rotated by the EXIF orientation",), (10, 20, 30)),
    "animation": (
        encoded(Image.fromarray(COLOUR), "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(COLOUR + 9)]),
        ("of several frames, the first taken",),
        (10, 20, 30),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_conversion_is_stated_and_gives_the_right_pixels(case):
    data, conversions, colour = CASES[case]
    pixels, found = read_image_and_conversions(data, "x")
    assert found == conversions
    assert pixels.dtype == np.uint8 and set(map(tuple, pixels.reshape(-1, 3).tolist())) == {colour}
    np.testing.assert_array_equal(pixels, read_image(io.BytesIO(data)))


def test_evaluation_counts_conversions_once(tmp_path):
    for i, case in enumerate(["plain RGB", "RGB with a transparent colour", "16-bit RGB", "RGBA"]):
        (tmp_path / f"{i}.png").write_bytes(CASES[case][0])
    images = open_image_set(tmp_path)
    expected = ["2 of 4 images: transparent, composited over white", "1 of 4 images: 16-bit colour, scaled to 8 bits"]
    for _ in range(2):  # reading twice does not count twice
        read(images)
        assert images.notes == expected
