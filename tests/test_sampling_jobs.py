"""Sampling jobs: equal images after interruptions and on any devices, in every format; one job per folder."""

import contextlib
import dataclasses
import json
import re
import shutil
import types

import jax
import numpy as np
import pytest
from helpers.tiny_pipeline import LLAMA, assert_same_pictures, generator_params, save_pipeline, tiny_pipeline
from helpers.two_processes import both
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.commands.sample import save_trajectory
from maskgil_jax.config import BertConfig, ConfigError, DecodeConfig
from maskgil_jax.files.images import save_animation
from maskgil_jax.networks import build, create
from maskgil_jax.pipelines import jobs as batch_sampling
from maskgil_jax.pipelines.jobs import FORMATS, balanced_labels, read_samples, sample_to_folder
from maskgil_jax.pipelines.pipeline import Pipeline
from maskgil_jax.runtime import progress

LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def expected(pipeline):
    return pipeline(LABELS, seed=7, batch_size=4)


def sample(pipeline, out, **options):
    return sample_to_folder(pipeline, LABELS, out, **{"seed": 7, "batch_size": 4, "part_size": 3, **options})


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def exit_code_of(argv):
    """The exit code of the command; values that the parser refuses end it by SystemExit."""
    try:
        return cli.main(argv)
    except SystemExit as stopped:
        return stopped.code


@contextlib.contextmanager
def stopped_after(pipeline, count):
    """A pipeline that is interrupted after some batches, and then notes which images are asked of it."""
    asked = []

    class Stopping(Pipeline):
        def batches(self, labels, **options):
            asked.append(list(options["indices"]))
            for number, images in enumerate(super().batches(labels, **options)):
                if number == count:
                    raise KeyboardInterrupt
                yield images

    yield Stopping(**{field.name: getattr(pipeline, field.name) for field in dataclasses.fields(pipeline)}), asked


def test_balanced_labels_distributes_images_over_classes():
    assert balanced_labels(np.array([4, 2]), per_class=3).tolist() == [4, 4, 4, 2, 2, 2]
    assert balanced_labels(np.arange(3), num=7).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert balanced_labels(np.arange(3), num=2).tolist() == [0, 1]
    everything = balanced_labels(np.arange(1000), num=50_000)
    np.testing.assert_array_equal(everything, balanced_labels(np.arange(1000), num=50_000, per_class=50))
    assert np.bincount(everything).tolist() == [50] * 1000
    for options, message in [
        ({"num": 5, "per_class": 2}, "--num: 5, but 3 classes with 2 images each make 6"),
        ({"num": 0}, "--num: must be at least 1"),
        ({"per_class": 0}, "--per-class: must be at least 1"),
        ({}, "--num or --per-class"),
    ]:
        with pytest.raises(ConfigError, match=message):
            balanced_labels(np.arange(3), **options)


@pytest.mark.parametrize("format", FORMATS)
def test_interrupted_job_continues_to_equal_files(pipeline, expected, tmp_path, format):
    straight = sample(pipeline, tmp_path / "straight", format=format)
    np.testing.assert_array_equal(read_samples(straight), expected)
    np.testing.assert_array_equal(read_samples(straight, 4), expected[:4])
    with stopped_after(pipeline, 2) as (stopping, asked), pytest.raises(KeyboardInterrupt):
        sample(stopping, tmp_path / "parts", format=format)
    finished = files_of(tmp_path / "parts")
    assert 1 < len(finished) < 10 and not any(name.endswith(".part") for name in finished)
    with stopped_after(pipeline, None) as (watching, asked):
        sample(watching, tmp_path / "parts", format=format)
        made = 8 if format in ("png", "webp") else 6  # two batches of 4; two whole parts of 3 among them
        assert asked == [list(range(made, 10))]
        sample(watching, tmp_path / "parts", format=format)
        assert len(asked) == 1  # nothing left to do
    assert files_of(tmp_path / "parts") == files_of(straight)


@pytest.mark.slow
def test_job_images_do_not_depend_on_devices_batches_and_shares(pipeline, expected, tmp_path):
    spread = pipeline.over()
    assert spread.mesh.size == 8 and spread.request(10, 0, None, 4)[1] == 8
    sample(spread, tmp_path / "devices")
    for share in (0, 1, 0):  # as two processes would; the first one joins the parts in the end
        assert not (tmp_path / "shares" / "samples.npz").exists()
        sample(pipeline, tmp_path / "shares", format="npz", batch_size=5, share=(share, 2))
    assert_same_pictures(read_samples(tmp_path / "devices"), expected)
    assert_same_pictures(read_samples(tmp_path / "shares"), expected)
    parts = [next(pipeline.batches(LABELS[p], seed=7, places=p)) for p in (np.array([9, 2]), np.array([0]))]
    assert_same_pictures(np.concatenate(parts), expected[[9, 2, 0]])


def test_npz_job_has_adm_layout(pipeline, expected, tmp_path):
    out = sample(pipeline, tmp_path / "out", format="npz")
    assert sorted(p.name for p in out.iterdir()) == ["samples.json", "samples.npz"]
    with np.load(out / "samples.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0", "arr_1"] and arrays["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(arrays["arr_0"], expected)
        np.testing.assert_array_equal(arrays["arr_1"], LABELS)


def test_array_record_job_holds_class_and_png(pipeline, tmp_path):
    from array_record.python.array_record_module import ArrayRecordReader

    out = sample(pipeline, tmp_path / "out", format="array_record")
    assert sorted(p.name for p in out.glob("*.array_record")) == [f"samples-0000{k}-of-00004.array_record" for k in range(4)]
    reader = ArrayRecordReader(str(out / "samples-00003-of-00004.array_record"))
    (record,) = reader.read_all()
    reader.close()
    assert int.from_bytes(record[:4], "little") == 2 and record[4:8] == b"\x89PNG"


CHANGES = {
    "seed": (dict(seed=8), "seed is 7 there, 8 now"),
    "format": (dict(format="webp"), "files is 'png' there, 'webp' now"),
    "canvas": (dict(grid=(4, 6)), r"canvas is \[4, 4\] there, \[4, 6\] now"),
}


def test_job_with_other_settings_is_refused_by_name(pipeline, tmp_path):
    params = generator_params()
    out = sample(pipeline, tmp_path / "out")
    before = files_of(out)
    steps = dataclasses.replace(pipeline, cfg=DecodeConfig(steps=3))
    weights = dataclasses.replace(pipeline, generator=build(LLAMA, {**params, "norm": {"scale": params["norm"]["scale"] * 2}}))
    for other, options, message in [
        *((pipeline, *change) for change in CHANGES.values()),
        (steps, {}, "decode.steps is 2 there, 3 now"),
        (weights, {}, "generator is '"),
    ]:
        with pytest.raises(ConfigError, match=f"out: holds other samples: {message}"):
            sample(other, out, **options)
    with pytest.raises(ConfigError, match=r"labels is \[\[0, 3\], .* num is|num is 10 there, 9 now"):
        sample_to_folder(pipeline, LABELS[1:], out, seed=7)
    assert files_of(out) == before
    (out / "mine.txt").write_text("kept")
    sample(steps, out, overwrite=True, format="npz")
    assert sorted(p.name for p in out.iterdir()) == ["mine.txt", "samples.json", "samples.npz"]


def test_job_refuses_foreign_folders_and_leaves_them_unchanged(pipeline, tmp_path):
    stray = tmp_path / "stray"
    stray.mkdir()
    (stray / "000003.png").write_bytes(b"mine")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(ConfigError, match=r"stray: holds 000003.png, but no samples.json"):
            sample(pipeline, stray, **options)
    for text, message in [
        ("{", "not a JSON file"),
        ('{"format": "x"}', "format is .x., expected maskgil samples 1"),
        ("[]", "format: expected a JSON object, found a list"),
    ]:
        (stray / "samples.json").write_text(text)
        with pytest.raises(ConfigError, match=f"samples.json: {message}"):
            sample(pipeline, stray, overwrite=True)
    assert (stray / "000003.png").read_bytes() == b"mine"
    for options, message in [
        ({"format": "jpg"}, "--format: unknown value"),
        ({"part_size": 0}, "part_size"),
        ({"seed": -1}, "seed"),
    ]:
        with pytest.raises(ConfigError, match=message):
            sample(pipeline, tmp_path / "none", **options)
    with pytest.raises(ConfigError, match="--out: is empty"):
        sample(pipeline, "")
    learned = BertConfig(codebook_size=16, num_classes=3, grid=(4, 4), width=8, depth=1, heads=1, mlp_width=8)
    learned = dataclasses.replace(pipeline, generator=create(learned, jax.random.key(0)))
    with pytest.raises(ConfigError, match=r"learned positions exist for \(4, 4\) only, got \(4, 6\)"):
        sample(learned, tmp_path / "none", grid=(4, 6))
    assert not (tmp_path / "none").exists()


def test_missing_parts_of_other_processes_are_reported(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_sampling, "_process_share", lambda: (0, 2))
    with pytest.raises(ConfigError, match=r"out: 2 parts are missing, \['parts/00001.npy'\] first; all processes must write"):
        sample(pipeline, tmp_path / "out", format="npz")
    assert not (tmp_path / "out" / "samples.npz").exists()


def test_progress_is_logged_without_a_terminal(pipeline, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", -1.0)
    with caplog.at_level("INFO", logger="maskgil_jax"):
        sample(pipeline, tmp_path / "out")
    assert re.search(r"sampling: 10/10 images, [0-9.]+ a second, 0:00 left", caplog.text)


# ------------------------------------------------------------------------------------------------ the command
@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("weights"))


@pytest.mark.slow
def test_sample_command_writes_images_sheet_and_trajectory(weights, tmp_path, pipeline, capsys):
    out = tmp_path / "out"
    argv = ["sample", "--weights", str(weights), "--out", str(out), "--labels", "cat,0", "--num", "5", "--seed", "3"]
    assert cli.main([*argv, "--trajectory"]) == 0
    assert "5 images and grid.png and trajectory.png and .gif in" in capsys.readouterr().out
    made = sorted(p.name for p in out.iterdir())
    assert made == [*(f"00000{i}.png" for i in range(5)), "grid.png", "samples.json", "trajectory.gif", "trajectory.png"]
    expected = pipeline([2, 2, 2, 0, 0], seed=3)
    assert_same_pictures(np.asarray(Image.open(out / "000004.png")), expected[4])
    assert Image.open(out / "trajectory.png").size == (2 * 18 + 2, 5 * 18 + 2)
    with Image.open(out / "trajectory.gif") as film:
        assert film.n_frames == 2 and film.info["loop"] == 0
    assert json.loads((out / "samples.json").read_text())["labels"] == [[2, 3], [0, 2]]
    wide = tmp_path / "wide"
    options = ["--canvas", "4x6", "--rope-scaling", "ntk", "--format", "webp", "--no-grid", "--per-class", "1"]
    assert cli.main(["sample", "--weights", str(weights), "--out", str(wide), *options]) == 0
    assert sorted(p.name for p in wide.iterdir()) == [*(f"00000{i}.webp" for i in range(3)), "samples.json"]
    assert Image.open(wide / "000000.webp").size == (24, 16)
    assert json.loads((wide / "samples.json").read_text())["rope_scaling"] == "ntk"
    for more, message in {
        ("--seed", "4"): "holds other samples: seed is 3 there, 4 now; give another --out, or --overwrite",
        ("--canvas", "4"): "--grid: expected ROWSxCOLUMNS",
        ("--out", "gs://bucket/none"): "--out: gs://bucket/none: samples are written to a disk that all processes see",
        ("--num", "65", "--trajectory"): "--trajectory: at most 64 images, got 65",
        ("--per-class", "2"): "--num: 5, but 2 classes with 2 images each make 4",
        ("--format", "jpg"): "--format: unknown value 'jpg'",
    }.items():
        assert exit_code_of([*argv, *more]) == 2
        assert message in capsys.readouterr().err
    shutil.rmtree(out)


def test_save_animation_writes_gif_and_webp_only(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), np.uint8)
    save_animation(tmp_path / "a.webp", frames)
    with Image.open(tmp_path / "a.webp") as film:
        assert film.n_frames == 3
        film.seek(1)
        np.testing.assert_array_equal(np.asarray(film.convert("RGB")), frames[1])
    with pytest.raises(ValueError, match=r"animations are .gif or .webp"):
        save_animation(tmp_path / "a.mp4", frames)
    assert [p.name for p in tmp_path.iterdir()] == ["a.webp"]


def test_save_trajectory_writes_sheet_and_animation(tmp_path):
    steps = np.random.default_rng(0).integers(0, 256, (4, 2, 6, 5, 3), np.uint8)
    drawer = types.SimpleNamespace(trajectory=lambda labels, **options: steps)
    save_trajectory(drawer, [0, 1], tmp_path, ".webp", seed=0)
    assert Image.open(tmp_path / "trajectory.png").size == (4 * 7 + 2, 2 * 8 + 2)
    with Image.open(tmp_path / "trajectory.webp") as film:
        assert film.n_frames == 4


@pytest.mark.slow
def test_two_processes_share_one_job(weights, tmp_path, expected):
    argv = ["sample", "--weights", str(weights), "--out", str(tmp_path / "out"), "--num", "10", "--seed", "7"]
    printed = both(*argv, "--format", "npz", "--part-size", "3", "--batch-size", "2", devices=2)
    assert [stdout.count("10 images and grid.png") for stdout, _ in printed] == [1, 0]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["grid.png", "samples.json", "samples.npz"]
    with np.load(tmp_path / "out" / "samples.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["arr_1"], np.arange(10) * 3 // 10)
    again = read_samples(tmp_path / "out")
    same = np.flatnonzero(np.arange(10) * 3 // 10 == LABELS)  # where the balanced classes are those of `expected`
    assert_same_pictures(again[same], expected[same])
