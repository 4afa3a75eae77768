"""Sources of captioned images: folders, JSON lines, COCO, tar shards, TFDS; unusable captions; drawing one."""

import io
import json
import logging
import pickle
import tarfile

import grain
import numpy as np
import pytest
from PIL import Image

from maskgil_jax.config import CaptionConfig, ConfigError
from maskgil_jax.data.caption_sets import open_captions
from maskgil_jax.data.sources.captions import DrawCaption, Strings
from maskgil_jax.data.sources.tar_shards import expand_shards


def picture(seed, size=(12, 10)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(picture(seed)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path):
    """A folder with images a.png, b.png, sub/c.png and no captions."""
    for seed, name in enumerate(["a.png", "b.png", "sub/c.png"]):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))
    return tmp_path / "set"


def read(source):
    return [(source[i]["id"], source[i]["captions"]) for i in range(len(source))]


# ------------------------------------------------------------------------------------------------ folders
def test_folder_reads_txt_and_json_beside_images(images):
    (images / "a.txt").write_text("a cat\n\n  a  grey\tcat \na cat\n")
    (images / "b.json").write_text(json.dumps({"caption": "a dog", "captions": ["a brown dog", "un chien"], "url": "x"}))
    (images / "sub" / "c.json").write_text('["ein Hund", "犬"]')
    source = open_captions(images)
    assert read(source) == [
        ("a.png", ("a cat", "a grey cat")),
        ("b.png", ("a dog", "a brown dog", "un chien")),
        ("sub/c.png", ("ein Hund", "犬")),
    ]
    np.testing.assert_array_equal(source[2]["image"], picture(2))
    assert source.left_out == {} and source.captions(1) == source[1]["captions"]
    assert read(pickle.loads(pickle.dumps(source))) == read(source)


def test_unusable_captions_are_counted_and_named_in_one_line(images, caplog):
    (images / "a.txt").write_bytes(b"\xff\xfe broken\nshort\n" + b"x" * 41)
    (images / "b.txt").write_text(" \n")
    (images / "sub" / "c.json").write_text("{")
    for seed, name in enumerate(["d", "e", "f"]):
        (images / f"{name}.png").write_bytes(png(seed))
    (images / "d.png").write_bytes(b"no image")
    (images / "d.txt").write_text("what was here")
    (images / "e.json").write_text('{"caption": [7, null, "\\ud800", "e"]}')
    with caplog.at_level(logging.WARNING):
        source = open_captions(images, options=CaptionConfig(max_characters=40))
    assert read(source) == [("a.png", ("short",)), ("e.png", ("e",))]
    assert source.left_out == {
        "unreadable captions": ["sub/c.png", "a.png", "e.png", "e.png"],
        "captions of more than 40 characters": ["a.png"],
        "empty captions": ["b.png"],
        "images without a usable caption": ["b.png", "f.png", "sub/c.png"],
        "unreadable images": ["d.png"],
    }
    (line,) = caplog.messages
    assert "2 images with captions" in line and "4 unreadable captions (sub/c.png, a.png" in line and "d.png" in line


def test_folder_errors_say_what_is_missing(images, tmp_path):
    with pytest.raises(ValueError, match=r"set: 3 images, and no \.txt or \.json"):
        open_captions(images)
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        open_captions(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no images"):
        open_captions(tmp_path / "empty")
    (images / "a.txt").write_text("")
    with pytest.raises(ValueError, match="no image with a usable caption; left out: 1 empty captions"):
        open_captions(images)
    with pytest.raises(ConfigError, match=r"data\.path: is empty"):
        open_captions("")


def test_damage_inside_an_image_is_replaced_by_the_next(images, caplog):
    for name in ("a", "b", "sub/c"):
        (images / f"{name}.txt").write_text(name)
    source = open_captions(images)
    whole = source.content_hash
    data = bytearray(png(0))
    data[60:160] = bytes(100)
    (images / "a.png").write_bytes(data)
    assert source[0]["id"] == "b.png" and source[0]["captions"] == ("b",) and list(source.skipped) == [0]
    assert "a.png" in caplog.text
    assert open_captions(images).content_hash != whole
    with pytest.raises(IndexError):
        source[3]


def test_identity_follows_images_and_captions(images):
    for name in ("a", "b", "sub/c"):
        (images / f"{name}.txt").write_text(name)
    first = open_captions(images)
    (images / "b.txt").write_text("another")
    second = open_captions(images)
    assert first.content(0, 3) != second.content(0, 3) and first.fingerprint == second.fingerprint
    assert first.content(0, 1) == second.content(0, 1) and first.content(2, 3) == second.content(2, 3)
    assert first.content_hash != second.content_hash
    (images / "b.png").write_bytes(png(9))
    third = open_captions(images)
    assert third.content(0, 1) == first.content(0, 1) and third.content(1, 2) != first.content(1, 2)


# ------------------------------------------------------------------------------------------------ JSON lines
def lines(path, records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return path


def test_json_lines_take_paths_and_keys_and_join_lines_of_an_image(images):
    records = [
        {"path": "b.png", "caption": "bee"},
        "",
        {"key": "sub/c", "captions": ["sea", "see"]},
        {"file_name": "b.png", "text": "b again"},
    ]
    expected = [("b.png", ("bee", "b again")), ("sub/c.png", ("sea", "see"))]
    source = open_captions(lines(images / "metadata.jsonl", records))
    assert read(source) == expected == read(open_captions(images))
    elsewhere = lines(images.parent / "notes.jsonl", records)
    assert read(open_captions(elsewhere, images=images)) == expected
    with pytest.raises(ValueError, match=r"notes\.jsonl: none of its 2 images is in .*give images=FOLDER"):
        open_captions(elsewhere)
    with pytest.raises(ValueError, match=r"images: .*nowhere: no such folder"):
        open_captions(elsewhere, images=images / "nowhere")


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"image": "a.png", "caption": "x"', "is not JSON"),
        ("[1, 2]", "names no image"),
        ('{"caption": "x"}', "names no image"),
        ('{"image": 3, "caption": "x"}', "names no image"),
        ('{"url": "http://x/a.png", "caption": "x"}', "names no image"),
        ('{"image": "a.png"}', "has no caption"),
    ],
)
def test_wrong_json_on_line_17_names_file_and_line(images, line, message):
    good = {"image": "a.png", "caption": "x"}
    path = lines(images / "all.jsonl", [good] * 15 + [""] + [line] + [good])
    with pytest.raises(ValueError, match=rf"all\.jsonl: line 17 {message}.*each line is an object"):
        open_captions(path)


def test_json_lines_leave_out_missing_images(images):
    path = lines(images / "all.jsonl", [{"image": n, "caption": n} for n in ("a.png", "gone.png", "gone")])
    source = open_captions(path)
    assert len(source) == 1 and source.left_out == {"unreadable images": ["gone.png", "gone"]}


# ------------------------------------------------------------------------------------------------ COCO
def test_coco_captions(images):
    document = {
        "info": {},
        "images": [{"id": 7, "file_name": "b.png"}, {"id": 3, "file_name": "a.png"}, {"id": 4, "file_name": "sub/c.png"}],
        "annotations": [
            {"id": 1, "image_id": 3, "caption": "A cat. "},
            {"id": 2, "image_id": 7, "caption": "A bee."},
            {"id": 3, "image_id": 3, "caption": "One cat."},
        ],
    }
    path = images / "captions_val.json"
    path.write_text(json.dumps(document))
    source = open_captions(path)
    assert read(source) == [("b.png", ("A bee.",)), ("a.png", ("A cat.", "One cat."))]
    assert source.left_out == {"images without a usable caption": ["sub/c.png"]}
    boxes = {**document, "annotations": [{"image_id": 3, "bbox": [0, 0, 1, 1]}]}
    for wrong, message in [
        ("{", "line 1: "),
        ("[]", "lacks a list images"),
        (json.dumps(boxes), r"annotations\[0\] has no caption"),
        (json.dumps({"images": [{"id": 1}], "annotations": []}), r"images\[0\] lacks"),
    ]:
        path.write_text(wrong)
        with pytest.raises(ValueError, match=rf"captions_val\.json: .*{message}"):
            open_captions(path)


# ------------------------------------------------------------------------------------------------ tar shards
def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(number, caption):
    """As img2dataset writes a sample: image, caption and a JSON object that repeats it."""
    note = {"caption": caption, "url": "http://x", "key": f"{number:09d}", "status": "success", "width": 10}
    return [
        (f"{number:09d}.png", png(number)),
        (f"{number:09d}.txt", caption.encode()),
        (f"{number:09d}.json", json.dumps(note).encode()),
    ]


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for n in range(2):
        shard(folder / f"{n:05d}.tar", [m for i in range(3) for m in sample(10 * n + i, f"caption {n} {i}")])
    return folder


def test_tar_shards_are_read_at_random(shards):
    source = open_captions(shards)
    assert len(source) == 6 and source.left_out == {}
    for i in (5, 0, 3, 3):
        n, k = divmod(i, 3)
        assert source[i]["captions"] == (f"caption {n} {k}",) and source[i]["id"] == f"{n:05d}.tar/{10 * n + k:09d}"
        np.testing.assert_array_equal(source[i]["image"], picture(10 * n + k))
    assert read(pickle.loads(pickle.dumps(source))) == read(source)
    for spec in ("{00000..00001}.tar", "*.tar"):
        assert read(open_captions(shards / spec)) == read(source)
    assert len(open_captions(shards / "00001.tar")) == 3
    assert [p[-9:] for p in expand_shards(shards)] == ["00000.tar", "00001.tar"]


def test_tar_samples_are_grouped_up_to_the_first_dot(tmp_path):
    members = [
        ("x/1.seg.png", b"not the image"),
        ("x/1.PNG", png(1)),
        ("x/1.json", b'{"captions": ["one", "two"]}'),
        ("y/1.txt", b"why"),
        ("y/1.jpg", png(2)),
        ("z.txt", b"no image"),
        ("w.png", png(3)),
        ("v.png", png(4)),
        ("v.json", b"{"),
    ]
    source = open_captions(shard(tmp_path / "a.tar", members))
    assert read(source) == [("a.tar/x/1", ("one", "two")), ("a.tar/y/1", ("why",))]
    np.testing.assert_array_equal(source[1]["image"], picture(2))
    assert source.left_out == {
        "samples without an image": ["a.tar/z"],
        "images without a usable caption": ["a.tar/w", "a.tar/v"],
        "unreadable captions": ["a.tar/v"],
    }


@pytest.mark.parametrize("end", ["in data", "in a header", "before the end mark"])
def test_a_shard_that_ends_early_gives_its_whole_samples(shards, end):
    path = shards / "00001.tar"
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    cut = {"in data": last.offset_data + 5, "in a header": last.offset + 100, "before the end mark": last.offset_data + 512}
    path.write_bytes(data[: cut[end]])
    source = open_captions(shards)
    assert source.left_out == {"shards that end early": ["00001.tar"]}
    assert len(source) == 6 and source[5]["captions"] == ("caption 1 2",)  # its image and .txt come before the damage


def test_what_is_no_tar_archive_is_named(shards, tmp_path):
    (shards / "00001.tar").write_bytes(b"<html>" * 200)
    with pytest.raises(ValueError, match=r"00001\.tar: is not an uncompressed tar archive"):
        open_captions(shards)
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        tar.add(shards / "00000.tar", "00000.tar")
    with pytest.raises(ValueError, match=r"x\.tar: is not an uncompressed"):
        open_captions(tmp_path / "x.tar")
    with pytest.raises(ValueError, match=r"none\.tar: no such"):
        open_captions(tmp_path / "none.tar")


# ------------------------------------------------------------------------------------------------ TFDS
@pytest.mark.slow
def test_tfds_captions_are_read_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    texts = [["a cat", "one  cat"], ["a dog"], [""], ["last"]]

    class TinyCaptions(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, some in enumerate(texts):
                yield i, {"image": io.BytesIO(png(i)), "captions": [{"id": n, "text": text} for n, text in enumerate(some)]}

    TinyCaptions.pkg_dir_path = tmp_path
    TinyCaptions(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = open_captions("tfds:tiny_captions", data_dir=tmp_path)
    assert len(source) == 4
    expected = {picture(i).tobytes(): tuple(" ".join(t.split()) for t in some) for i, some in enumerate(texts) if some != [""]}
    found = [source[i] for i in range(4)]
    assert {r["image"].tobytes(): r["captions"] for r in found} == expected and len(source.skipped) == 1
    assert "1 empty captions" in next(iter(source.skipped.values()))
    with pytest.raises(ValueError, match=r"tiny_captions: needs a feature title, has image, captions"):
        open_captions("tfds:tiny_captions", data_dir=tmp_path, options=CaptionConfig(fields=("title",)))


# ------------------------------------------------------------------------------------------------ drawing
def test_one_caption_is_drawn_by_the_key_of_the_position():
    source = [{"captions": tuple("abc"), "id": "x", "image": 0}]
    stream = grain.MapDataset.source(source).seed(5).repeat(300).random_map(DrawCaption())
    drawn = [record["caption"] for record in stream]
    assert "captions" not in stream[0] and stream[0]["id"] == "x"
    assert all(70 < drawn.count(letter) < 130 for letter in "abc")
    assert [stream[i]["caption"] for i in (17, 250)] == [drawn[17], drawn[250]]
    other = grain.MapDataset.source(source).seed(6).repeat(300).random_map(DrawCaption())
    assert [record["caption"] for record in other] != drawn


def test_strings_keep_any_text():
    texts = ["", "犬", "a\nb", "", "\udcff"]
    assert list(Strings(texts)) == texts and len(Strings([])) == 0
    with pytest.raises(IndexError):
        Strings(texts)[5]


def test_caption_options_are_checked():
    for bad, name in [(dict(fields=()), "fields"), (dict(max_characters=0), "max_characters")]:
        with pytest.raises(ConfigError, match=f"^{name}: "):
            CaptionConfig(**bad)
