"""Warnings and notes about images, and one-line errors for bad input of evaluations."""

import dataclasses

import numpy as np
import pytest
from helpers.tiny_world import random_images, write_folder
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.checkpoints.weights import load_weights
from maskgil_jax.config import ConfigError
from maskgil_jax.evaluation.features import FeatureExtractor, feature_extractor_of
from maskgil_jax.evaluation.images import array_set, open_image_set
from maskgil_jax.evaluation.reference import open_reference, reference_of
from maskgil_jax.evaluation.run import evaluate
from maskgil_jax.files.npz import NpzImages


@pytest.fixture(scope="module")
def reference(extractor):
    return reference_of(array_set(random_images(24, 1), "real"), extractor, moments=("features",), keep=True, batch_size=8)


def read(images, rows=4):
    return np.concatenate(list(images.batches(rows)))


# ------------------------------------------------------------------------------------------------ what is said
def test_suspicious_pixel_values_are_warned_of(extractor, reference):
    def said(images):
        return " | ".join(evaluate(array_set(images), reference, extractor, ("fid",))["warnings"])

    images = random_images(20, 5)
    plain = said(images)
    assert "20 samples: distances are biased" in plain and "not the FID" in plain
    assert "the reference has 24 images, the samples are 20" in plain
    assert "equal" not in plain and "pixel" not in plain
    assert "3 of 20 images equal an earlier one" in said(images[[*range(17), 0, 0, 5]])
    assert "must be multiplied by 255" in said(images // 200)
    assert "no pixel is above 127" in said(images // 2) and "no pixel is below 128" in said(images // 2 + 128)
    assert "the reference is 16x16, the samples are 32x32" in said(random_images(20, side=32))
    stretched = random_images(100, 6)
    stretched[:, 0, 0], stretched[:, 1, 1] = 0, 255
    assert "rescaled by its own minimum and maximum" in said(stretched)
    flat = images.copy()
    flat[:5] = 7
    assert "5 of 20 images have one value only" in said(flat) and "4 of 20 images equal" in said(flat)


def test_conversions_are_counted_in_notes(tmp_path):
    folder = write_folder(tmp_path / "mixed", random_images(2))
    grey = np.full((16, 16), 100, np.uint8)
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(np.dstack([grey] * 3 + [grey // 2])).save(folder / "alpha.png")
    Image.fromarray(np.dstack([grey] * 4), mode="CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.full((16, 16), 40000, np.uint16)).save(folder / "deep.png")
    images = open_image_set(folder)
    assert images.count == 6 and read(images).shape == (6, 16, 16, 3)
    said = " | ".join(images.notes)
    for words in ("1 of 6 files are JPEG", "1 of 6 images: grey", "composited over white", "CMYK", "16-bit grey, scaled to 8"):
        assert words in said
    deep = read(open_image_set(folder))[[p.name for p in sorted(folder.iterdir())].index("deep.png")]
    assert set(deep.ravel()) == {round(40000 * 255 / 65535)}
    np.savez(tmp_path / "grey.npz", arr_0=np.stack([grey] * 3))
    single = open_image_set(tmp_path / "grey.npz")
    assert read(single).shape == (3, 16, 16, 3) and "one channel" in single.notes[0]


def test_mixed_sizes_are_refused_without_image_size(tmp_path):
    folder = write_folder(tmp_path / "mixed", random_images(2))
    Image.fromarray(random_images(1, side=32)[0]).save(folder / "z.png")
    with pytest.raises(ValueError, match=r"z\.png: 32 x 32 pixels, .*000\.png has 16 x 16.*--image-size"):
        read(open_image_set(folder))
    cropped = open_image_set(folder, image_size=16)
    assert read(cropped).shape == (3, 16, 16, 3)
    assert cropped.notes == ["1 of 3 images: centre-cropped to 16 x 16 (ADM)"]


# ------------------------------------------------------------------------------------------------ bad input
BAD_NPZ = {
    "keys": (dict(images=random_images(2)), "has the keys images, expected the images as arr_0"),
    "floats": (dict(arr_0=random_images(2) / 255), "arr_0 is float64 .*expected uint8"),
    "channels first": (dict(arr_0=np.zeros((2, 3, 16, 16), np.uint8)), r"channels come first"),
    "four channels": (dict(arr_0=np.zeros((2, 16, 16, 4), np.uint8)), r"expected \(n, height, width, 3\)"),
    "none": (dict(arr_0=np.zeros((0, 16, 16, 3), np.uint8)), "at least one image"),
    "fortran": (dict(arr_0=np.asfortranarray(random_images(2))), "in Fortran order"),
    "objects": (dict(arr_0=np.asarray([{}, []], dtype=object)), "pickled Python objects, which are never loaded"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_npz_of_other_content_is_refused(tmp_path, case):
    arrays, message = BAD_NPZ[case]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        open_image_set(tmp_path / "x.npz")


def test_damaged_and_missing_files_are_refused_by_name(tmp_path, extractor):
    with pytest.raises(ValueError, match="no such file or folder"):
        open_image_set(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: holds no images"):
        open_image_set(tmp_path / "empty")
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "text.array_record").write_text("hello")
    (tmp_path / "text.tar").write_text("hello")
    for name, message in (("text.npz", "not a readable"), ("text.array_record", "not a readable"), ("text.tar", "expected a")):
        with pytest.raises(ValueError, match=message):
            open_image_set(tmp_path / name)
    folder = write_folder(tmp_path / "bad", random_images(2))
    (folder / "001.png").write_bytes((folder / "000.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"001\.png: cannot be"):
        read(open_image_set(folder))
    np.savez(tmp_path / "short.npz", arr_0=random_images(2))
    file = NpzImages(tmp_path / "short.npz")
    file.count = 3  # a header that promises more than there is
    with pytest.raises(ValueError, match="arr_0 ends after 0 of 3 images"):
        list(file.batches(3))
    np.savez(tmp_path / "keys.npz", mean=np.zeros(3))
    with pytest.raises(ValueError, match=r"keys\.npz: has the keys mean; a reference has mu and sigma"):
        open_reference(tmp_path / "keys.npz", extractor, moments=("features",), keep=False)


def test_evaluate_refuses_impossible_sets_and_metrics(extractor, reference):
    with pytest.raises(ConfigError, match="holds 1 image; distances between sets need at least 2"):
        evaluate(array_set(random_images(1)), reference, extractor, ("fid",))
    broken = dataclasses.replace(extractor, apply=lambda n, x: {k: v * np.nan for k, v in extractor.apply(n, x).items()})
    with pytest.raises(ValueError, match="8 of 8 rows hold NaN or infinity"):
        evaluate(array_set(random_images(8)), reference, broken, ("fid",), batch_size=8)
    for names, message in (
        (("sfid",), "sfid: needs the FID Inception, extractor is a classifier"),
        (("agreement",), "agreement: needs samples of known classes"),
        (("clip_score",), "clip_score: needs --clip and texts"),
        ((), "none given"),
        (("fidd",), "unknown value 'fidd'.*Did you mean 'fid'"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(array_set(random_images(4)), reference, extractor, names)


def test_feature_extractor_refuses_other_networks_and_protocols(pipeline_folder, classifier_folder):
    with pytest.raises(ConfigError, match="a VQGAN has no features"):
        feature_extractor_of(load_weights(pipeline_folder, "tokenizer"))
    with pytest.raises(ConfigError, match="unknown value 'adm'; choose from classifier-16"):
        feature_extractor_of(load_weights(classifier_folder), "adm")
    assert isinstance(feature_extractor_of(load_weights(classifier_folder), "classifier-16"), FeatureExtractor)


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "give one of --weights, --samples"),
        (["--samples", "x", "--weights", "demo"], "give one of --weights, --samples"),
        (["--samples", "x"], "--reference: give"),
        (["--samples", "emoji", "--reference", "emoji"], "--features: give the weights folder"),
        (["--samples", "emoji", "--reference", "emoji", "--save-samples", "x"], "--save-samples: belongs to --weights"),
        (["--samples", "{empty}", "--reference", "emoji", "--features", "{extractor}"], "holds no images"),
        (["--samples", "emoji", "--metrics", "clip_score"], "emoji has no manifest with prompts; give --texts"),
        (["--samples", "emoji", "--metrics", "clip_score", "--texts", "{empty}/t"], "t: cannot be read as text"),
        (["--tokenizer", "demo"], "--data: give the images"),
        (["--tokenizer", "demo", "--data", "emoji", "--metrics", "lpips"], "--lpips: LPIPS needs its weights"),
        (["--samples", "x", "--config.count=3"], "unknown option --config.count=3"),
        (["--geneval-results", "{empty}/none.jsonl"], "none.jsonl: cannot be read"),
    ],
)
def test_evaluate_command_reports_mistakes_in_one_line(tmp_path, classifier_folder, capsys, args, message):
    (tmp_path / "empty").mkdir()
    named = {"empty": tmp_path / "empty", "extractor": classifier_folder}
    assert cli.main(["evaluate", *(arg.format(**named) for arg in args)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
