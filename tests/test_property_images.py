"""Image files of every kind: each is read as what it shows, or refused by a `ValueError` of one line that names it.

A folder of them is opened with each file counted once, as an image, as skipped or as left out.
"""

import io
import os
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from maskgil_jax.data.sources.folder import EXTENSIONS, ImageFolder
from maskgil_jax.files.images import MAX_PIXELS, check_image, read_alpha, read_image, read_image_and_conversions

# Format -> the modes that Pillow writes in it.
WRITABLE = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA", "L"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P", "RGB"),
}
KINDS = [(kind, mode) for kind, modes in WRITABLE.items() for mode in modes]
SIDES = st.sampled_from([1, 2, 3, 7, 16, 33])
SUFFIXES = [*EXTENSIONS, ".PNG", ".JPG", ".Jpeg", ".WEBP"]
LOSSLESS = ("PNG", "BMP", "GIF")
ORIENTATIONS = {  # EXIF value -> the stored array as it is to be shown
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def picture(mode: str, height: int, width: int, seed: int):
    """A PIL image of this mode, with as few levels as keep it lossless in a palette."""
    rng = np.random.default_rng(seed)
    if mode.startswith("I"):
        grey = rng.integers(0, 65536, (height, width), np.uint16)
        return Image.fromarray(grey) if mode == "I;16" else Image.fromarray(grey.astype(np.int32))
    if mode == "P":
        image = Image.fromarray(rng.integers(0, 4, (height, width), np.uint8), "L").convert("P")
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
        return image
    channels = len(Image.new(mode, (1, 1)).getbands())
    levels = rng.integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(levels[..., 0] if channels == 1 else levels, "L" if mode == "1" else mode).convert(mode)


def written(image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read_or_refused(raw: bytes, suffix: str = ".png"):
    """(what `read_image` gives, or None if it was refused in one line that names the file)."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, f"image{suffix}")
        path.write_bytes(raw)
        refusals = []
        for read in (read_image, read_image_and_conversions, check_image, read_alpha):
            try:
                found = read(path)
            except ValueError as error:
                refusals.append(read)
                message = str(error)
                assert message.startswith(f"{path}: ") and "\n" not in message and message.isprintable(), message
                assert len(message) < len(str(path)) + 300, message
                continue
            if read is read_image:
                assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3 and found.size
                assert found.flags.writeable
                shown = found
            elif read is read_image_and_conversions:
                np.testing.assert_array_equal(found[0], shown)
                assert all(isinstance(text, str) for text in found[1])
            elif read is read_alpha and found is not None:
                assert found.shape == shown.shape[:2] and found.dtype == np.uint8
        assert (read_image in refusals) == (read_image_and_conversions in refusals)
        return None if read_image in refusals else shown


@given(
    kind=st.sampled_from(KINDS),
    height=SIDES,
    width=SIDES,
    suffix=st.sampled_from([*SUFFIXES, ".txt", ""]),
    orientation=st.sampled_from(sorted(ORIENTATIONS)),
    seed=st.integers(0, 5),
)
@example(kind=("PNG", "I;16"), height=1, width=33, suffix=".jpg", orientation=6, seed=0)
@example(kind=("JPEG", "CMYK"), height=33, width=1, suffix=".JPG", orientation=8, seed=0)
@example(kind=("WEBP", "RGBA"), height=7, width=3, suffix=".png", orientation=5, seed=0)
def test_image_of_any_mode_size_and_ending_is_read_as_it_is_shown(kind, height, width, suffix, orientation, seed):
    kind, mode = kind
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(mode, height, width, seed)
    options = {} if kind in ("GIF", "BMP") else {"exif": exif}
    found = read_or_refused(written(image, kind, **options), suffix)
    assert found is not None
    turn = ORIENTATIONS[orientation if options else 1]
    assert found.shape[:2] == turn(np.empty((height, width, 1))).shape[:2]
    if kind in LOSSLESS and not mode.startswith("I") and "A" not in mode and not (kind == "GIF" and mode == "RGB"):
        np.testing.assert_array_equal(found, turn(np.asarray(image.convert("RGB"))))
    if mode.startswith("I"):
        grey = np.rint(np.asarray(image).astype(np.int64).clip(0, 65535) / 257).astype(np.uint8)
        np.testing.assert_array_equal(found, turn(np.repeat(grey[..., None], 3, axis=2)))
    if mode in ("RGBA", "LA") and kind == "PNG":
        levels = np.asarray(image.convert("RGBA")).astype(np.float64)
        over_white = levels[..., :3] * levels[..., 3:] / 255 + 255 - levels[..., 3:]
        np.testing.assert_allclose(found, turn(over_white), atol=1.0)


@given(
    mode=st.sampled_from(["P", "L", "RGB", "1", "I;16"]),
    transparent=st.one_of(st.integers(0, 300), st.binary(max_size=6), st.tuples(*[st.integers(0, 255)] * 3)),
    height=SIDES,
    width=SIDES,
)
@example(mode="P", transparent=0, height=1, width=1)
@example(mode="P", transparent=b"\x00\x80\xff\x00", height=3, width=7)
@example(mode="RGB", transparent=(0, 0, 0), height=2, width=2)
def test_transparent_colour_of_a_png_shows_white(mode, transparent, height, width):
    image = picture(mode, height, width, 0)
    try:
        raw = written(image, "PNG", transparency=transparent)
    except Exception:  # Pillow writes no such transparency in this mode
        assume(False)
    found = read_or_refused(raw)
    assert found is not None
    if mode == "P" and isinstance(transparent, int) and transparent < 4:
        assert (found[np.asarray(image) == transparent] == 255).all()


@given(
    kind=st.sampled_from(KINDS),
    cut=st.floats(0.0, 1.0),
    flips=st.lists(st.tuples(st.floats(0.0, 1.0, exclude_max=True), st.integers(0, 255)), max_size=4),
    seed=st.integers(0, 3),
)
@example(kind=("PNG", "RGB"), cut=0.0, flips=[], seed=0)
@example(kind=("GIF", "P"), cut=0.5, flips=[], seed=0)
@example(kind=("JPEG", "CMYK"), cut=0.9, flips=[], seed=0)
def test_damaged_image_is_read_or_refused_in_one_line(kind, cut, flips, seed):
    raw = bytearray(written(picture(kind[1], 16, 7, seed), kind[0]))
    for place, value in flips:
        raw[int(place * len(raw))] = value
    read_or_refused(bytes(raw[: round(cut * len(raw))]), ".img")


@given(
    raw=st.binary(max_size=64),
    start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"RIFF"]),
)
@example(raw=b"", start=b"")
def test_bytes_that_are_no_image_are_refused_in_one_line(raw, start):
    read_or_refused(start + raw)


def test_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (MAX_PIXELS // 1000 + 1, 1000)).save(tmp_path / "huge.png")
    for read in (read_image, check_image, read_alpha):
        with pytest.raises(ValueError, match=r"huge\.png: .*at most 40 million"):
            read(tmp_path / "huge.png")


ENTRIES = st.sampled_from(
    [
        "image",
        "image",
        "image",
        "wrong ending",
        "empty",
        "cut",
        "text",
        "hidden",
        "link",
        "broken link",
        "link to folder",
        "loop",
    ]
)


@given(entries=st.lists(st.tuples(st.sampled_from("abc"), ENTRIES, st.sampled_from(SUFFIXES)), min_size=1, max_size=14))
@example(entries=[("a", "image", ".PNG"), ("a", "broken link", ".jpg"), ("b", "empty", ".png"), ("c", "text", ".png")])
@example(entries=[("a", "loop", ".png"), ("a", "image", ".gif"), ("b", "link to folder", ".png")])
@example(entries=[("a", "broken link", ".png")])
@example(entries=[("b", "cut", ".jpg"), ("a", "image", ".png")])
def test_every_file_of_a_folder_is_an_image_or_is_counted(entries):
    with tempfile.TemporaryDirectory() as place:
        root, elsewhere = pathlib.Path(place, "set"), pathlib.Path(place, "elsewhere")
        elsewhere.mkdir()
        good = written(picture("RGB", 5, 4, 0), "PNG")
        (elsewhere / "real.png").write_bytes(good)
        images, bad, others = set(), set(), 0
        for number, (name, kind, suffix) in enumerate(entries):
            (root / name).mkdir(parents=True, exist_ok=True)
            file = root / name / f"{number:02d}{suffix}"
            shown = f"{name}/{file.name}"
            if kind in ("image", "wrong ending"):
                form = {"jpg": "JPEG", "jpeg": "JPEG"}.get(suffix[1:].lower(), suffix[1:].upper())
                file.write_bytes(written(picture("RGB", 3 + number, 4, number), "PNG" if kind == "wrong ending" else form))
                images.add(shown)
            elif kind == "empty":
                file.touch()
                bad.add(shown)
            elif kind == "cut":
                file.write_bytes(good[:30])
                bad.add(shown)
            elif kind == "text":
                file.with_suffix(".txt").write_text("x")
                others += 1
            elif kind == "hidden":
                (file.parent / f".{file.name}").write_bytes(good)
            elif kind == "link":
                file.symlink_to(elsewhere / "real.png")
                images.add(shown)
            elif kind == "broken link":
                file.symlink_to(elsewhere / "gone.png")
                bad.add(shown)
            elif kind == "link to folder":
                (root / name / f"{number:02d}").symlink_to(elsewhere)
                images.add(f"{name}/{number:02d}/real.png")
            elif kind == "loop":
                (root / name / f"{number:02d}").symlink_to(root / name)
        try:
            source = ImageFolder(root)
        except ValueError as error:
            message = str(error)
            assert not images and message.startswith(f"{root}: ") and "\n" not in message, message
            return
        assert images
        ids = [source[i]["id"] for i in range(len(source))]
        assert set(ids) == images and len(ids) == len(images)
        assert set(source.skipped) == bad
        assert all(source.class_names[source[i]["label"]] == ids[i].split("/")[0] for i in range(len(source)))
        assert ("1 .txt" in str(source.left_out) or f"{others} .txt" in str(source.left_out)) == (others > 0)
        assert ImageFolder(root).content_hash == source.content_hash


def test_folder_without_read_permission_is_refused_in_one_line(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a").chmod(0)
    with pytest.raises((ValueError, OSError), match="set"):
        ImageFolder(tmp_path / "set")
