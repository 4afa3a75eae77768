"""Evaluation of samples: figures equal the formulas for every input format, batch size and number of devices."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types
import weakref

import jax
import numpy as np
import pytest
from flax import nnx
from helpers.tiny_world import random_images, write_folder

from maskgil_jax import cli
from maskgil_jax.checkpoints.weights import load_weights
from maskgil_jax.config import ConfigError, DecodeConfig, InceptionConfig
from maskgil_jax.evaluation import metrics
from maskgil_jax.evaluation.clip_embedding import read_texts
from maskgil_jax.evaluation.extraction import extract, local_mesh
from maskgil_jax.evaluation.features import feature_extractor_of
from maskgil_jax.evaluation.generated import cycled_labels, generated_set, labels_like
from maskgil_jax.evaluation.images import array_set, open_image_set, saved
from maskgil_jax.evaluation.metrics.clip import ClipScorer
from maskgil_jax.evaluation.reference import open_reference, reference_of, write_stats
from maskgil_jax.evaluation.report import as_markdown, as_table, read_json
from maskgil_jax.evaluation.run import evaluate
from maskgil_jax.models.inception import SPATIAL_CHANNELS, InceptionV3
from maskgil_jax.networks import abstract_params
from maskgil_jax.pipelines.pipeline import load


@pytest.fixture(scope="module")
def reference(extractor):
    return reference_of(array_set(random_images(24, 1), "real"), extractor, moments=("features",), keep=True, batch_size=8)


def read(images, rows=4):
    return np.concatenate(list(images.batches(rows)))


# ------------------------------------------------------------------------------------------------ one set, many ways
@pytest.mark.parametrize("name", ["folder", "samples.npz", "samples.array_record"])
def test_saved_samples_read_back_equal_in_every_format(tmp_path, extractor, reference, name):
    images = random_images(19)
    written = saved(array_set(images), tmp_path / name)
    np.testing.assert_array_equal(read(written, 5), images)
    again = open_image_set(tmp_path / name)
    assert (again.count, again.size) == (19, (16, 16))
    np.testing.assert_array_equal(read(again), images)
    np.testing.assert_array_equal(read(open_image_set(tmp_path / name, count=7)), images[:7])
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing half-written is left beside it
    with pytest.raises(ConfigError, match="is there already"):
        saved(array_set(images), tmp_path / name)


def test_interrupted_saving_leaves_no_files(tmp_path):
    stream = saved(array_set(random_images(8)), tmp_path / "out").batches(4)
    next(stream)
    stream.close()
    assert not any(tmp_path.iterdir())


def test_evaluate_equals_the_formulas_on_features_in_memory(extractor, reference):
    images = random_images(30, 2)
    names = ("fid", "is", "precision_recall", "density_coverage", "kid", "agreement")
    samples = array_set(images, labels=lambda: np.zeros(30), class_names=extractor.class_names)
    found = evaluate(samples, reference, extractor, names, batch_size=8)["figures"]
    outputs = {k: np.asarray(v, np.float64) for k, v in jax.jit(extractor.apply)(extractor.network, images).items()}
    features = outputs["features"]
    mean, covariance = features.mean(axis=0), np.cov(features, rowvar=False)
    theirs = reference.features
    # Batches of other sizes round differently in float32 convolutions.
    expected = {
        "fid": metrics.frechet_distance(theirs.mean(axis=0), np.cov(theirs, rowvar=False), mean, covariance),
        "is": metrics.inception_score(outputs["logits"])[0],
        **metrics.precision_recall(theirs, features)._asdict(),
        "density": metrics.prdc(theirs, features).density,
        "coverage": metrics.prdc(theirs, features).coverage,
        "kid": metrics.kid(theirs, features, subset_size=24)[0],
        "agreement": (outputs["logits"].argmax(axis=1) == 0).mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-7, err_msg=name)
    assert 0 < found["agreement"] < 1 and found["fid"] > 1e-4  # the set can tell right from wrong


def test_figures_do_not_depend_on_devices_and_batch_size(extractor, reference):
    assert jax.device_count() == 8
    one = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    found = [
        evaluate(array_set(random_images(21, 3)), reference, extractor, ("fid", "is"), batch_size=size, mesh=mesh)["figures"]
        for size, mesh in ((24, None), (21, one), (5, one))
    ]
    for other in found[1:]:
        for name, value in found[0].items():
            np.testing.assert_allclose(other[name], value, rtol=1e-4)  # float32 features of other batch shapes


def test_extract_keeps_no_pixels(extractor):
    alive = []

    def batches(rows):
        for seed in range(6):
            alive.append(sum(ref() is not None for ref in refs))
            batch = random_images(rows, seed)
            refs.append(weakref.ref(batch))
            yield batch
            del batch

    refs = []
    images = dataclasses.replace(array_set(random_images(8)), count=48, batches=batches)
    assert extract(images, extractor, batch_size=8).count == 48
    assert max(alive) <= 3, alive


# ------------------------------------------------------------------------------------------------ straight from weights
@pytest.mark.slow
def test_generated_set_equals_the_pipeline_call(pipeline_folder):
    pipeline = load(pipeline_folder)
    cfg = DecodeConfig(steps=3, guidance=1.0)
    expected = pipeline(cycled_labels(11, 4), seed=5, cfg=cfg)
    drawn = generated_set(pipeline, cycled_labels(11, 4), seed=5, cfg=cfg, batch_size=3)
    assert (drawn.count, drawn.size, drawn.provenance["sampler"]["steps"]) == (11, expected.shape[1:3], 3)
    # Other batch shapes round differently in float32; a pixel may fall on the other side of a half.
    difference = np.abs(read(drawn).astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    assert local_mesh().size == 8


def test_cycled_labels_and_labels_like_have_the_right_frequencies():
    assert list(cycled_labels(6, 4)) == [0, 1, 2, 3, 0, 1]
    like = labels_like(np.asarray([2, 0, 0, 0]), 8, seed=1)
    assert sorted(like) == [0] * 6 + [2] * 2 and list(like) != sorted(like)
    assert list(labels_like(np.asarray([2, 0, 0, 0]), 8, seed=1)) == list(like)


# ------------------------------------------------------------------------------------------------ references
def test_stats_file_gives_the_figures_of_its_images(tmp_path, extractor):
    real, samples = array_set(random_images(20, 7), "real"), array_set(random_images(20, 8))
    write_stats(real, extractor, tmp_path / "all.npz", keep=True, batch_size=8)
    write_stats(real, extractor, tmp_path / "moments.npz", batch_size=8)
    names = ("fid", "precision_recall")
    direct = evaluate(samples, reference_of(real, extractor, moments=("features",), keep=True), extractor, names)
    opened = open_reference(tmp_path / "all.npz", extractor, moments=("features",), keep=True)
    found = evaluate(samples, opened, extractor, names)
    for name, value in direct["figures"].items():
        np.testing.assert_allclose(found["figures"][name], value, rtol=1e-5)
    assert found["reference"]["count"] == 20 and found["reference"]["hash"] != direct["reference"]["hash"]
    with np.load(tmp_path / "moments.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"maskgil_stats", "mu", "sigma"}  # names other tools read
    few = open_reference(tmp_path / "moments.npz", extractor, moments=("features",), keep=True)
    assert evaluate(samples, few, extractor, ("fid",))["figures"]["fid"] == pytest.approx(direct["figures"]["fid"], rel=1e-5)
    with pytest.raises(ConfigError, match=r"precision_recall: .*no features of single images.*--features-too"):
        evaluate(samples, few, extractor, names)
    other = dataclasses.replace(extractor, hash="0" * 16)
    with pytest.raises(ValueError, match=r"all\.npz: made with the extractor extractor.*this run has extractor \(0000"):
        open_reference(tmp_path / "all.npz", other, moments=("features",), keep=True)


def small_inception(extractor, protocol="adm"):
    """The classifier with the family and taps of Inception, to test which extractors use given moments."""
    taps = ("features", "logits", "spatial")

    def apply(network, images):
        outputs = extractor.apply(network, images)
        return {**outputs, "spatial": outputs["features"][:, :2]}

    return dataclasses.replace(extractor, family="inception", protocol=protocol, taps=taps, apply=apply)


def test_adm_reference_moments_are_used_for_inception_only(tmp_path, extractor):
    images, samples = random_images(20, 7), array_set(random_images(20, 8))
    given = {"mu": np.arange(6.0), "sigma": np.eye(6), "mu_s": np.zeros(2), "sigma_s": 2 * np.eye(2)}
    np.savez(tmp_path / "adm.npz", arr_0=images, **given)
    np.savez(tmp_path / "moments.npz", **given)
    np.savez(tmp_path / "wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    inception = small_inception(extractor)
    found = open_reference(tmp_path / "adm.npz", inception, moments=("features", "spatial"), keep=True)
    np.testing.assert_array_equal(found.moments["features"][0], np.arange(6.0))
    np.testing.assert_array_equal(found.moments["spatial"][1], 2 * np.eye(2))
    assert found.features.shape == (20, 6) and found.count == 20
    result = evaluate(samples, found, inception, ("fid", "sfid", "precision_recall"))
    assert {"fid", "sfid", "precision", "recall"} <= result["figures"].keys()
    assert any("ADM's 256x256 reference batch holds 10000" in text for text in result["warnings"])
    # Another network's moments are computed from the images; without images there is nothing to compute them from.
    own = open_reference(tmp_path / "adm.npz", extractor, moments=("features",), keep=False)
    np.testing.assert_allclose(own.moments["features"][0], found.features.mean(axis=0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"moments\.npz: its mu and sigma are of the FID Inception, extractor is a classifier"):
        open_reference(tmp_path / "moments.npz", extractor, moments=("features",), keep=False)
    with pytest.raises(ValueError, match=r"moments\.npz: has no images \(arr_0\), which precision and recall need"):
        open_reference(tmp_path / "moments.npz", inception, moments=("features",), keep=True)
    wide = open_reference(tmp_path / "wide.npz", inception, moments=("features",), keep=False)
    with pytest.raises(ConfigError, match=r"wide\.npz: its mean has 2048 features, those of extractor \(inception\) are 6"):
        evaluate(samples, wide, inception, ("fid",))
    other = open_reference(
        tmp_path / "moments.npz", small_inception(extractor, "pytorch-fid"), moments=("features",), keep=False
    )
    assert any("protocol adm, this run is pytorch-fid" in text for text in other.warnings)


@pytest.mark.slow
def test_inception_weights_make_a_feature_extractor():
    network = nnx.eval_shape(lambda: InceptionV3(InceptionConfig(), rngs=nnx.Rngs(0)))
    weights = dataclasses.make_dataclass("W", ["network", "hash", "path", "about"], namespace={"build": lambda w: w.network})
    extractor = feature_extractor_of(weights(network, "h", "inception", {}), "torch-fidelity")
    assert (extractor.is_inception, extractor.protocol, extractor.taps) == (
        True,
        "torch-fidelity",
        ("features", "spatial", "logits"),
    )
    assert [extractor.width(tap) for tap in extractor.taps] == [2048, 17 * 17 * SPATIAL_CHANNELS, 1008]
    assert abstract_params(InceptionConfig())["fc"]["kernel"].shape == (2048, 1008)
    with pytest.raises(ConfigError, match="protocol: unknown value 'clean'; choose from adm"):
        feature_extractor_of(weights(network, "h", "inception", {}), "clean")


@pytest.mark.slow
def test_distances_of_the_built_in_images_increase_from_real_to_noise():
    """As docs/evaluation.md shows it, in a process without the tests' flags: drawing samples is worth optimising."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "benchmarks.distances", "--count", "128"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=pathlib.Path(__file__).parents[1])
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[4:]]
    assert [name for name, _ in rows] == ["the other half", "reconstructed", "generated", "noise"]
    values = [float(value) for _, value in rows]
    assert values[0] > 0 and values == sorted(set(values)) and values[3] > 5 * values[2], rows


# ------------------------------------------------------------------------------------------------ CLIPScore
def test_clipscore_equals_the_formula_on_embeddings_of_read_images(tmp_path, extractor, reference):
    images = random_images(6)
    (tmp_path / "texts").write_text('one\ntwo\n{"prompt": "three"}\n\nfour\nfive\nsix\n')
    texts = read_texts(tmp_path / "texts")
    assert texts == ["one", "two", "three", "four", "five", "six"]

    def embed(batch):
        return batch.reshape(len(batch), -1)[:, :8].astype(np.float32) + 1

    embedder = types.SimpleNamespace(images=embed, texts=lambda batch: np.ones((len(batch), 8)), name="a model")
    clip = ClipScorer(embedder, texts)
    found = evaluate(array_set(images), reference, extractor, ("clip_score",), batch_size=8, clip=clip)
    assert found["figures"]["clip_score"] == pytest.approx(metrics.clip_score(embed(images), np.ones((6, 8))))
    assert found["settings"]["clip_score"] == {"model": "a model", "convention": "torchmetrics"}
    with pytest.raises(ConfigError, match="5 texts for 6 images"):
        evaluate(array_set(images), reference, extractor, ("clip_score",), clip=dataclasses.replace(clip, texts=texts[:5]))


# ------------------------------------------------------------------------------------------------ as people type it
def test_stats_and_evaluate_commands_agree_on_saved_samples(tmp_path, classifier_folder, pipeline_folder, capsys):
    real = write_folder(tmp_path / "real", random_images(12, 1))
    stats, out = tmp_path / "stats.npz", tmp_path / "result.json"
    assert cli.main(["stats", str(real), str(stats), "--features", str(classifier_folder), "--features-too"]) == 0
    common = ["--reference", str(stats), "--features", str(classifier_folder), "--out", str(out), "--batch-size", "8"]
    draw = ["--count", "10", "--seed", "3", "--steps", "1", "--save-samples", str(tmp_path / "s.npz")]
    assert cli.main(["evaluate", "--weights", str(pipeline_folder), *common, *draw]) == 0
    printed, result = capsys.readouterr().out, read_json(out)
    assert result["samples"]["seed"] == 3 and result["samples"]["sampler"]["steps"] == 1
    assert result["samples"]["weights"]["generator"] == load_weights(pipeline_folder, "generator").hash
    assert result["extractor"]["hash"] == load_weights(classifier_folder).hash and {"jax", "numpy"} <= result["versions"].keys()
    assert result["figures"].keys() == {"fid", "is", "is_std", "precision", "recall", "agreement"}
    assert as_markdown(result) in printed and as_table(result) in printed and "warning: 10 images of 4 classes" in printed
    # What was saved on the way is what was measured.
    assert cli.main(["evaluate", "--samples", str(tmp_path / "s.npz"), *common]) == 0
    again = json.loads(out.read_text())
    assert (
        again["figures"]["fid"] == pytest.approx(result["figures"]["fid"])
        and again["samples"]["hash"] == result["samples"]["hash"]
    )
