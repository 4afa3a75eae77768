"""Figures that do not depend on how samples were written, warnings for figures that mean little,
and the rows of metrics."""

import json

import numpy as np
import pytest
from helpers.tiny_world import random_images, write_folder
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.config import ConfigError
from maskgil_jax.evaluation import metrics
from maskgil_jax.evaluation.extraction import extract
from maskgil_jax.evaluation.images import array_set, open_image_set
from maskgil_jax.evaluation.metrics.classifier_scores import class_changes, is_class_sorted
from maskgil_jax.evaluation.metrics.nearest_neighbours import copied_rows
from maskgil_jax.evaluation.reference import reference_of
from maskgil_jax.evaluation.run import default_metrics, evaluate


def reference(extractor, images, keep=True):
    return reference_of(array_set(images, "real"), extractor, moments=("features",), keep=keep, batch_size=8)


# ------------------------------------------------------------------------------------------------ sizes
@pytest.mark.parametrize("size", [(16, 16), (16, 24), (28, 12)])
def test_frechet_distance_of_a_folder_to_itself_is_zero_for_any_size(tmp_path, classifier_folder, capsys, size):
    images = np.random.default_rng(0).integers(0, 256, (12, *size, 3), np.uint8)
    images[::3, :, : size[1] // 2] //= 3
    folder, out, stats = write_folder(tmp_path / "set", images), tmp_path / "e.json", tmp_path / "s.npz"
    assert cli.main(["stats", str(folder), str(stats), "--features", str(classifier_folder)]) == 0
    for against in (folder, stats):
        command = ["evaluate", "--samples", str(folder), "--reference", str(against), "--features", str(classifier_folder)]
        assert cli.main([*command, "--metrics", "fid", "--out", str(out)]) == 0
        result = json.loads(out.read_text())
        assert result["figures"]["fid"] < 1e-9
        assert result["reference"]["size"] == f"{size[1]}x{size[0]}"
        assert "resizing" not in capsys.readouterr().out
    half = images.copy()
    half[:, :, size[1] // 2 :] = 0
    other = evaluate(
        array_set(half),
        reference(open_extractor(classifier_folder), images, keep=False),
        open_extractor(classifier_folder),
        ("fid",),
    )
    assert other["figures"]["fid"] > 1e-3  # the distance can tell sets apart


def open_extractor(folder):
    from maskgil_jax.evaluation.features import load_feature_extractor

    return load_feature_extractor(folder)


@pytest.mark.parametrize(
    "text, error", [("0", True), ("16x0", True), ("x", True), ("-4", True), ("16", False), ("16x24", False)]
)
def test_image_size_option_takes_pixels_or_height_x_width(tmp_path, classifier_folder, capsys, text, error):
    folder = write_folder(tmp_path / "set", np.zeros((4, 16, 24 if "24" in text else 16, 3), np.uint8))
    command = ["stats", str(folder), str(tmp_path / "s.npz"), "--features", str(classifier_folder), "--image-size", text]
    if error:
        with pytest.raises(SystemExit) as stopped:
            cli.main(command)
        assert stopped.value.code == 2 and "--image-size" in capsys.readouterr().err
    else:
        assert cli.main(command) == 0


# ------------------------------------------------------------------------------------------------ order
def test_inception_score_does_not_depend_on_the_class_order_of_a_set_with_labels(extractor):
    """Sorted, a set scores as after torch-fidelity's shuffle; split in its own order it would score far lower."""
    images = random_images(40, 3)
    logits = extract(array_set(images), extractor, keep=("logits",), batch_size=8).rows["logits"]
    order = np.argsort(logits.argmax(axis=1), kind="stable")
    labels = logits.argmax(axis=1)[order]
    assert len(set(labels)) > 1 and is_class_sorted(labels)
    real = reference(extractor, random_images(24, 1), keep=False)
    known = array_set(images[order], labels=lambda: labels)
    result = evaluate(known, real, extractor, ("is",), batch_size=8)
    shuffled = np.random.RandomState(2020).permutation(40)
    expected = metrics.inception_score(logits[order], 10, order=shuffled)
    np.testing.assert_allclose((result["figures"]["is"], result["figures"]["is_std"]), expected, rtol=1e-4)
    assert "shuffled by RandomState(2020)" in result["settings"]["is"]["order"]
    assert result["figures"]["is"] > metrics.inception_score(logits[order], 10)[0]
    mixed = evaluate(array_set(images, labels=lambda: np.arange(40) % 4), real, extractor, ("is",), batch_size=8)
    assert mixed["settings"]["is"]["order"] == "as given"
    np.testing.assert_allclose(mixed["figures"]["is"], metrics.inception_score(logits, 10)[0], rtol=1e-4)


def test_inception_score_warns_of_unlabelled_sets_that_look_sorted(extractor):
    images = random_images(400, 3)
    predicted = extract(array_set(images), extractor, keep=("logits",), batch_size=8).rows["logits"].argmax(axis=1)
    real = reference(extractor, random_images(24, 1), keep=False)

    def warned(rows):
        result = evaluate(array_set(images[rows]), real, extractor, ("is",), batch_size=8)
        return any("seem to be sorted by class" in text for text in result["warnings"])

    assert warned(np.argsort(predicted, kind="stable"))
    assert not warned(np.random.default_rng(0).permutation(400))


def test_class_changes_of_sorted_cycled_and_random_labels():
    changes, expected, deviation = class_changes([0, 0, 0, 1, 1, 1])
    # 6 of 15 pairs are of one class: 5 neighbours differ 5 * 9 / 15 times in a random order.
    assert changes == 1 and expected == pytest.approx(3.0) and deviation == pytest.approx((5 * 0.4 * 0.6) ** 0.5)
    assert is_class_sorted(np.repeat(np.arange(10), 5)) and not is_class_sorted(np.tile(np.arange(10), 5))
    assert not is_class_sorted(np.random.default_rng(0).integers(0, 10, 50))
    assert not is_class_sorted([3, 3, 3]) and not is_class_sorted([1]) and not is_class_sorted([0, 1, 2])


@pytest.mark.slow
def test_job_samples_score_as_the_same_images_in_random_order(tmp_path, pipeline_folder, classifier_folder):
    """`maskgil sample` writes class by class; the score of its folder and of its npz is that of the shuffled images."""
    extractor = open_extractor(classifier_folder)
    out, real = tmp_path / "out", reference(extractor, random_images(24, 1), keep=False)
    command = ["sample", "--weights", str(pipeline_folder), "--per-class", "6", "--steps", "1", "--format", "npz"]
    assert cli.main([*command, "--out", str(out)]) == 0 and (out / "grid.png").exists()
    with np.load(out / "samples.npz") as arrays:
        images = arrays["arr_0"]
    logits = extract(array_set(images), extractor, keep=("logits",), batch_size=8).rows["logits"]
    expected = metrics.inception_score(logits, 10, order=np.random.RandomState(2020).permutation(24))[0]
    for path in (out, out / "samples.npz"):
        found = evaluate(open_image_set(path), real, extractor, ("is",), batch_size=8)
        assert found["figures"]["is"] == pytest.approx(expected, rel=1e-4)


# ------------------------------------------------------------------------------------------------ too few, too equal
def test_figures_of_few_images_are_warned_of(extractor):
    real = reference(extractor, random_images(24, 1))

    def warnings(count, names):
        return " | ".join(evaluate(array_set(random_images(count, 2)), real, extractor, names, batch_size=8)["warnings"])

    assert "is: 7 images in 7 splits; a split of one image always scores 1" in warnings(7, ("is",))
    assert "is: splits of 3 images cannot score above 3, and the extractor has 4 classes" in warnings(30, ("is",))
    assert "is:" not in warnings(40, ("is",))
    assert "fid: 6 images for 6 features: the covariance is singular" in warnings(6, ("fid",))
    assert "singular" not in warnings(7, ("fid",))
    assert "kid: subsets of 20 rows instead of 1000" in warnings(20, ("kid",))


def test_precision_and_recall_name_exact_copies(extractor):
    images, real = random_images(20, 2), random_images(24, 1)

    def warnings(samples, references):
        names = ("precision_recall", "density_coverage")
        return [text for text in evaluate(samples, references, extractor, names, batch_size=8)["warnings"] if "copies" in text]

    plain = reference(extractor, real)
    assert warnings(array_set(images), plain) == []
    assert warnings(array_set(images[[*range(18), 0, 0]]), plain) == []  # three equal images: the third neighbour is another
    (first, second) = warnings(array_set(images[[*range(16), 0, 0, 0, 0]]), plain)
    assert first.startswith("precision_recall: 5 of the 20 samples have 3 or more exact copies; their balls have radius 0")
    assert second.startswith("density_coverage: 5 of the 20 samples")
    (third, _) = warnings(array_set(images), reference(extractor, np.concatenate([real[:20], real[:1].repeat(4, axis=0)])))
    assert "5 of the 24 reference images" in third


def test_copied_rows_counts_rows_with_k_copies():
    rows = np.array([[0.0, 1.0]] * 4 + [[1.0, 1.0]] * 3 + [[2.0, 0.0]], np.float32)
    assert copied_rows(rows, 3) == 4 and copied_rows(rows, 2) == 7 and copied_rows(rows, 4) == 0


@pytest.mark.parametrize("side", ["samples", "reference"])
def test_too_few_images_for_neighbours_are_refused_before_anything_is_read(extractor, side):
    few, many = random_images(3, 2), random_images(24, 1)
    samples, real = (few, many) if side == "samples" else (many, few)
    with pytest.raises(ConfigError, match=r"--metrics precision_recall: needs at least 4 images, .* holds 3"):
        evaluate(array_set(samples), reference(extractor, real), extractor, ("fid", "precision_recall"))


@pytest.mark.parametrize("option, value", [("--count", "0"), ("--batch-size", "0"), ("--batch-size", "two"), ("--out", "")])
def test_impossible_option_values_are_refused(option, value, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "--samples", "emoji", "--reference", "emoji", option, value])
    assert stopped.value.code == 2 and option in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ rows
def test_figures_of_metrics_have_distinct_keys_and_places():
    figures = metrics.figures()
    assert (
        list(figures)
        == (
            "fid sfid is precision recall density coverage kid agreement clip_score "
            "rfid rfid_train psnr ssim lpips usage perplexity"
        ).split()
    )
    assert len({figure.position for figure in figures.values()}) == len(figures)


def test_default_metrics_are_those_whose_needs_are_met(extractor):
    assert default_metrics(extractor, labels=False) == ("fid", "is", "precision_recall")
    assert default_metrics(extractor, labels=True, texts=True) == ("fid", "is", "precision_recall", "agreement", "clip_score")


def test_help_lists_every_metric(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, row in metrics.sample_metrics().items():
        assert f"{name} ({row.help})" in text


def test_new_metric_is_one_file(tmp_path, monkeypatch, extractor):
    """A module in the package of metrics is found by its rows: help, table and result know it."""
    (tmp_path / "brightness.py").write_text(
        "from maskgil_jax.evaluation.metrics.base import Figure, Metric, MetricResult\n"
        "METRICS = (Metric('norm', 'mean norm of the features', lambda inputs: MetricResult({'norm': 2.5}),\n"
        "                  (Figure('norm', 'Norm', 95, digits=1),), rows=('features',)),)\n"
    )
    caches = metrics.sample_metrics, metrics.reconstruction_metrics, metrics.figures
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    try:
        for cache in caches:
            cache.cache_clear()
        result = evaluate(
            array_set(random_images(8)), reference(extractor, random_images(8, 1)), extractor, ("norm",), batch_size=8
        )
        from maskgil_jax.evaluation.report import as_table

        assert result["figures"] == {"norm": 2.5} and "Norm" in as_table(result)
        assert list(metrics.figures()).index("norm") == 9
    finally:
        monkeypatch.undo()
        for cache in caches:
            cache.cache_clear()


@pytest.mark.slow
def test_contact_sheet_in_a_job_folder_is_no_reference_image(tmp_path, pipeline_folder, classifier_folder, capsys):
    out = tmp_path / "out"
    assert cli.main(["sample", "--weights", str(pipeline_folder), "--num", "8", "--steps", "1", "--out", str(out)]) == 0
    assert Image.open(out / "grid.png").size != (16, 16)
    command = [
        "evaluate",
        "--samples",
        str(out),
        "--reference",
        str(out),
        "--features",
        str(classifier_folder),
        "--metrics",
        "fid",
    ]
    assert cli.main([*command, "--out", str(tmp_path / "e.json")]) == 0
    result = json.loads((tmp_path / "e.json").read_text())
    assert (result["samples"]["count"], result["reference"]["count"]) == (8, 8) and result["figures"]["fid"] < 1e-9
    assert result["notes"].count("samples: 1 image that the manifest samples.json does not name is left out (grid.png)") == 1
