"""Metrics against the values of the tools they follow, streaming against in-memory,
one clear error per kind of bad input."""

import itertools
import pathlib

import numpy as np
import pytest

from maskgil_jax.evaluation import metrics
from maskgil_jax.evaluation.metrics.nearest_neighbours import squared_radii

GOLDEN = pathlib.Path(__file__).parent / "golden" / "metrics"
RTOL = 1e-6  # float64 formulas; what remains is the reference's own rounding


def golden(name):
    return np.load(GOLDEN / f"{name}.npz")


def statistics(features_nd, rows=50):
    stats = metrics.FeatureStatistics()
    for start in range(0, len(features_nd), rows):
        stats.update(features_nd[start : start + rows])
    return stats


def distance(first_nd, second_nd):
    a, b = statistics(first_nd), statistics(second_nd)
    return metrics.frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


# --------------------------------------------------------------------------------------------- Frechet, statistics, KID
@pytest.mark.parametrize("case", ["f0", "f1", "f2"])
def test_frechet_distance_equals_reference_implementations(case):
    z = golden("frechet")
    ours = distance(z[f"{case}.real"], z[f"{case}.fake"])
    for route in ("fid_pytorch_fid", "fid_maskgil", "fid_eig_check"):
        np.testing.assert_allclose(ours, z[f"{case}.{route}"], rtol=RTOL)


def test_frechet_distance_of_adm_sets_and_of_known_normals():
    z = golden("adm_evaluator")
    for case in ("near", "unequal"):
        np.testing.assert_allclose(distance(z[f"{case}.ref"], z[f"{case}.sample"]), z[f"{case}.fid"], rtol=RTOL)
    mu, shift = np.zeros(3), np.array([1.0, 2.0, 0.0])
    # Diagonal covariances: the sum of squared differences of means and of standard deviations.
    ours = metrics.frechet_distance(mu, np.diag([1.0, 4.0, 9.0]), shift, np.diag([4.0, 4.0, 0.0]))
    np.testing.assert_allclose(ours, 5 + 1 + 0 + 9, rtol=1e-12)


def test_frechet_distance_of_a_rank_deficient_set_to_itself_is_zero():
    features_nd = np.random.default_rng(0).normal(size=(20, 200)) * 30
    stats = statistics(features_nd)
    assert np.linalg.matrix_rank(stats.covariance) == 19
    assert metrics.frechet_distance(stats.mean, stats.covariance, stats.mean, stats.covariance) < 1e-9 * np.trace(
        stats.covariance
    )


def test_frechet_distance_ignores_rounding_in_the_null_space():
    # Covariances with the same axes: the distance is the sum of squared differences of the standard deviations.
    axes, _ = np.linalg.qr(np.random.default_rng(8).normal(size=(200, 200)))
    first, second = np.where(np.arange(200) < 20, 1e6, 0.0), np.full(200, 100.0)
    sigma1, sigma2 = ((axes * values) @ axes.T for values in (first, second))
    ours = metrics.frechet_distance(np.zeros(200), sigma1, np.zeros(200), sigma2)
    np.testing.assert_allclose(ours, np.square(np.sqrt(first) - np.sqrt(second)).sum(), rtol=1e-12)


@pytest.mark.parametrize("waiting", [16, 1024])
def test_batched_and_merged_statistics_equal_in_memory_ones(monkeypatch, waiting):
    monkeypatch.setattr(metrics.FeatureStatistics, "BLOCK_ROWS", waiting)
    # A mean a million times the spread: sums of squares would lose twelve of the sixteen digits.
    features_nd = (1e6 + np.random.default_rng(1).normal(size=(157, 9))).astype(np.float64)
    parts = [statistics(part_nd, rows=7) for part_nd in (features_nd[:40], features_nd[40:41], features_nd[41:])]
    merged = metrics.FeatureStatistics()
    for part in [*parts, metrics.FeatureStatistics()]:
        merged.merge(part)
    for stats in (statistics(features_nd, rows=10), merged, merged.gather()):
        assert stats.count == 157
        np.testing.assert_allclose(stats.mean, features_nd.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(stats.covariance, np.cov(features_nd, rowvar=False), rtol=1e-8, atol=1e-9)


def test_kid_equals_torch_fidelity_and_is_near_zero_for_one_distribution():
    z, kid = golden("adm_evaluator"), golden("kid")
    for case in ("near", "unequal"):
        ours = metrics.kid(z[f"{case}.ref"], z[f"{case}.sample"], subsets=10, subset_size=100)
        np.testing.assert_allclose(ours, kid[case], rtol=RTOL)
    rng = np.random.default_rng(2)
    mean, std = metrics.kid(rng.normal(size=(400, 8)), rng.normal(size=(400, 8)), subsets=20, subset_size=200)
    assert abs(mean) < 3 * std


# ------------------------------------------------------------------------------------------------ manifolds
@pytest.mark.parametrize("dtype,block", [("float64", 4096), ("float64", 61), ("float32", 4096), ("float32", 100)])
def test_precision_recall_equals_adm(dtype, block):
    z = golden("adm_evaluator")
    for case in ("near", "unequal"):
        reference, samples = z[f"{case}.ref"], z[f"{case}.sample"]
        ours = metrics.precision_recall(reference, samples, k=3, dtype=dtype, block=block)
        np.testing.assert_array_equal(ours, z[f"{case}.precision_recall_f64"])
        for side, features in (("ref", reference), ("sample", samples)):
            radii = squared_radii(features, 3, dtype=dtype, block=block)
            np.testing.assert_allclose(radii, z[f"{case}.radii_{side}_f64"], rtol=1e-12 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_prdc_equals_the_published_code(dtype):
    z = golden("prdc_maskgil")
    ours = metrics.prdc(z["real"], z["fake"], dtype=dtype, block=64)
    np.testing.assert_allclose(ours, z["prdc_float64"], rtol=1e-12)
    split = metrics.prdc(z["real"], z["fake"], splits=5, dtype=dtype)
    np.testing.assert_allclose(split, z["prdc_manifold_metrics_5splits"], rtol=1e-12)


def test_points_on_a_ball_surface_count_in_adm_but_not_in_prdc():
    line = np.arange(6.0).reshape(-1, 1)  # the third neighbour of the ends is 3 away, of the others 2 away
    outside = np.array([[8.0], [9.0], [10.0], [11.0], [8.0], [12.0]])  # 8 is exactly 3 from the last
    assert metrics.precision_recall(line, outside).precision == pytest.approx(2 / 6)
    assert metrics.prdc(line, outside).precision == 0


def test_float32_prdc_far_from_the_origin_equals_float64():
    rng = np.random.default_rng(3)
    reference, samples = ((rng.normal(size=(n, 6)) * wide + 3000).astype(np.float32) for n, wide in ((90, 1), (80, 1.3)))
    assert metrics.prdc(reference, samples, dtype="float32") == metrics.prdc(reference, samples)


# ------------------------------------------------------------------------------------------------ Inception score
def test_inception_score_equals_maskgil_and_adm():
    z = golden("inception_score")
    score, _ = metrics.inception_score(z["logits"], 10, convention="torch-chunk", order=z["permutation"])
    np.testing.assert_allclose(score, z["is_f64_chunks10"], rtol=RTOL)
    np.testing.assert_allclose(score, z["is_maskgil_chunks10"], rtol=1e-5)  # the published code runs in float32
    score, spread = metrics.inception_score(z["logits"], 1)
    np.testing.assert_allclose((score, spread), (z["is_f64_single_split"], 0), rtol=RTOL)
    z = golden("adm_evaluator")
    # Its softmax outputs are float32, hence 1e-5; 700 rows are less than one of ADM's parts of 5000.
    logits = np.log(z["is.softmax"])
    np.testing.assert_allclose(metrics.inception_score(logits, convention="adm")[0], z["is.single_split"], rtol=1e-5)


def test_inception_score_splits_follow_the_convention(monkeypatch):
    z = golden("adm_evaluator")
    monkeypatch.setattr("maskgil_jax.evaluation.metrics.classifier_scores.ADM_SPLIT_ROWS", 200)
    score, _ = metrics.inception_score(np.log(z["is.softmax"]), convention="adm")
    np.testing.assert_allclose(score, z["is.split200"], rtol=1e-5)
    logits = golden("inception_score")["logits"][:23]
    for convention, bounds in (("even", [0, 4, 9, 13, 18, 23]), ("torch-chunk", [0, 5, 10, 15, 20, 23])):
        parts = [metrics.inception_score(logits[a:b], 1)[0] for a, b in itertools.pairwise(bounds)]
        ours = metrics.inception_score(logits, 5, convention=convention)
        np.testing.assert_allclose(ours, (np.mean(parts), np.std(parts)), rtol=1e-12)


# ------------------------------------------------------------------------------------------------ images, codes, CLIP
@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_psnr_and_ssim_equal_scikit_image(kind):
    z = golden("image_quality")
    pair = [z[name] if kind == "uint8" else z[name] / 255 for name in ("reference", "images")]
    np.testing.assert_allclose(metrics.psnr(*pair), z["psnr"], rtol=1e-12)
    for convention in metrics.SSIM_CONVENTIONS:
        np.testing.assert_allclose(metrics.ssim(*pair, convention=convention), z[convention], atol=2e-6)  # float32


def test_psnr_and_ssim_of_identical_and_constant_images():
    images = np.full((2, 16, 16, 3), 200, np.uint8)
    assert np.isposinf(metrics.psnr(images, images)).all()
    np.testing.assert_allclose(metrics.ssim(images, images), 1, atol=1e-6)
    # Only the luminance term is left: (2ab + c1) / (a^2 + b^2 + c1).
    a, b = 200 / 255, 100 / 255
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    np.testing.assert_allclose(metrics.ssim(images, images // 2), expected, rtol=1e-6)


def test_codebook_usage_and_perplexity_equal_hand_computed_values():
    counts = metrics.count_codes(np.array([[0, 1], [1, 3]]), 8)
    np.testing.assert_array_equal(counts, [1, 2, 0, 1, 0, 0, 0, 0])
    assert metrics.codebook_usage(counts) == 3 / 8
    np.testing.assert_allclose(metrics.codebook_perplexity(counts), 2**1.5)
    np.testing.assert_allclose(metrics.codebook_perplexity(np.full(8, 5)), 8)


def test_clip_score_conventions_equal_reference_values():
    z = golden("clip_score")
    image, text = z["image_emb"], z["text_emb"]
    np.testing.assert_allclose(metrics.clip_similarity(image, text), z["text_cos"], rtol=RTOL)
    np.testing.assert_allclose(metrics.clip_score(image, text), z["clipscore_100_mean"], rtol=RTOL)
    np.testing.assert_allclose(metrics.clip_score(image, text, convention="hessel"), z["clipscore_w2_5"].mean(), rtol=RTOL)
    np.testing.assert_allclose(metrics.clip_score(image, text, convention="cosine"), z["llamagen_cosine_mean"], rtol=RTOL)
    both = metrics.clip_score(image, z["image_emb2"], convention="cosine")
    np.testing.assert_allclose(both, z["image_clip_score_mean"], rtol=RTOL)
    mixed = np.where(np.arange(16).reshape(-1, 1) < 8, -1, 1) * text  # half the pairs point away
    clipped = metrics.clip_score(image, mixed, convention="clipped")
    np.testing.assert_allclose(clipped, z["clipscore_per_pair_clipped"][8:].sum() / 16, rtol=RTOL)
    assert metrics.clip_score(image, -text) == 0


# ------------------------------------------------------------------------------------------------ bad input
GOOD = np.random.default_rng(4).normal(size=(8, 5))
BROKEN = np.where(np.arange(8).reshape(-1, 1) == 2, np.nan, GOOD)
PHOTO = np.zeros((1, 12, 12, 3))


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: metrics.FeatureStatistics().update(BROKEN), "1 of 8 rows hold NaN or infinity, the first is row 2"),
        (lambda: metrics.FeatureStatistics().update(GOOD).update(GOOD[:, :3]), "has 5 features a row, this batch has 3"),
        (lambda: metrics.FeatureStatistics().update(GOOD[0]), r"got shape \(5,\)"),
        (lambda: metrics.FeatureStatistics().update(GOOD[:1]).covariance, "at least 2 images, got 1"),
        (lambda: metrics.FeatureStatistics().mean, "statistics of no images"),
        (lambda: metrics.frechet_distance(np.zeros(3), np.eye(3), np.zeros(4), np.eye(4)), "with one d"),
        (lambda: metrics.frechet_distance(np.zeros(3), np.eye(3), np.full(3, np.inf), np.eye(3)), "mu2"),
        (
            lambda: metrics.frechet_distance(np.zeros(2), np.eye(2), np.zeros(2), np.array([[1, 2.0], [0, 1]])),
            "sigma2.*symmetric",
        ),
        (lambda: metrics.frechet_distance(np.zeros(2), -np.eye(2), np.zeros(2), np.eye(2)), "sigma1.*negative eigenvalues"),
        (lambda: metrics.precision_recall(GOOD, BROKEN), "samples: 1 of 8 rows"),
        (lambda: metrics.precision_recall(GOOD, GOOD[:, :2]), "reference has 5 features a row, samples has 2"),
        (lambda: metrics.precision_recall(GOOD, GOOD[:1]), "the 3-th neighbour among 1 rows does not exist"),
        (lambda: metrics.prdc(GOOD, GOOD, dtype="float16"), "dtype: unknown value 'float16'"),
        (lambda: metrics.prdc(GOOD, GOOD, splits=0), "splits: must be at least 1"),
        (lambda: metrics.kid(GOOD, GOOD), "choose subset_size between 2"),
        (lambda: metrics.inception_score(BROKEN), "logits: 1 of 8"),
        (lambda: metrics.inception_score(GOOD, 10), "cannot divide 8 images into 10 parts"),
        (lambda: metrics.inception_score(GOOD, 2, convention="tf"), "convention: unknown value 'tf'"),
        (lambda: metrics.inception_score(GOOD, 2, order=np.zeros(8, int)), "expected a permutation"),
        (lambda: metrics.psnr(PHOTO, PHOTO[:, :8]), "must be the same size"),
        (lambda: metrics.psnr(PHOTO, PHOTO - 1), r"images: floats must lie in \[0, 1\], found -1 to -1"),
        (lambda: metrics.psnr(PHOTO, PHOTO * np.nan), "images: floats must lie"),
        (lambda: metrics.psnr(PHOTO[0], PHOTO[0]), "expected a non-empty"),
        (lambda: metrics.ssim(PHOTO[:, :8], PHOTO[:, :8]), "smaller than the 11 pixel window"),
        (lambda: metrics.count_codes(np.array([0, 9]), 8), "from 0 to 9, expected 0 to 7"),
        (lambda: metrics.codebook_usage(np.zeros(4)), "not all zero"),
        (lambda: metrics.clip_score(GOOD, GOOD[:4]), "one row per pair"),
        (lambda: metrics.clip_score(GOOD, GOOD * 0), "row 0: an embedding of length zero"),
    ],
)
def test_metrics_refuse_bad_input_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
