"""Scores of a classifier's logits: Inception Score, and the agreement of the predicted with the requested class."""

from __future__ import annotations

import itertools

import numpy as np

from maskgil_jax.config import choose
from maskgil_jax.evaluation.metrics.base import Figure, Metric, MetricInputs, MetricResult
from maskgil_jax.evaluation.metrics.frechet import check_features

ADM_SPLIT_ROWS = 5000
IS_CONVENTIONS = ("even", "torch-chunk", "adm")
SPLITS, SHUFFLE_SEED = 10, 2020  # torch-fidelity's


def _split_bounds(n: int, splits: int, convention: str) -> list[int]:
    if convention == "even":
        return [i * n // splits for i in range(splits + 1)]
    rows = ADM_SPLIT_ROWS if convention == "adm" else -(-n // splits)
    return [*range(0, n, rows), n]


def inception_score(logits, splits: int = SPLITS, *, convention: str = "even", order=None) -> tuple[float, float]:
    """Mean and standard deviation (ddof 0) over splits of exp(mean KL(p(y|x) || p(y))), in float64.

    logits (n, classes), before the softmax; the FID Inception's are its `logits_unbiased` (ADM, torch-fidelity). The
    rows are split in the given order, or in that of `order`, a permutation of range(n). ADM does not shuffle, and
    images sorted by class then have a far lower score; the MaskGIL code shuffles, torch-fidelity by
    `np.random.RandomState(2020).permutation(n)`. Conventions of splitting:
    `even`: `splits` parts, the i-th from i * n // splits (torch-fidelity);
    `torch-chunk`: parts of ceil(n / splits) rows, the last shorter or missing (MaskGIL);
    `adm`: parts of 5000 rows, whatever `splits` is. With 50 000 images and 10 splits the three are the same.

    Raises a `ValueError` for NaN or infinity, fewer rows than splits, or an `order` that is not a permutation.
    """
    choose("convention", convention, IS_CONVENTIONS)
    logits_nc = check_features(logits, "logits").astype(np.float64)
    n = len(logits_nc)
    if not 1 <= splits <= n and convention != "adm":
        raise ValueError(f"splits: cannot divide {n} images into {splits} parts")
    if order is not None:
        order = np.asarray(order)
        if order.shape != (n,) or not np.array_equal(np.sort(order), np.arange(n)):
            raise ValueError(f"order: expected a permutation of range({n})")
        logits_nc = logits_nc[order]
    logits_nc -= logits_nc.max(axis=1, keepdims=True)
    log_p_nc = logits_nc - np.log(np.exp(logits_nc).sum(axis=1, keepdims=True))
    bounds, scores = _split_bounds(n, splits, convention), []
    for start, stop in itertools.pairwise(bounds):
        part_nc = log_p_nc[start:stop]
        p_nc = np.exp(part_nc)
        marginal_c = p_nc.mean(axis=0)
        entropy = -(marginal_c * np.log(np.maximum(marginal_c, np.finfo(np.float64).tiny))).sum()
        scores.append(np.exp(entropy + (p_nc * part_nc).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def class_changes(label_n) -> tuple[int, float, float]:
    """(neighbours of different classes, their mean and their standard deviation in a random order) of labels."""
    label_n = np.asarray(label_n)
    pairs = len(label_n) - 1
    if pairs < 1:
        return 0, 0.0, 0.0
    counts = np.unique(label_n, return_counts=True)[1].astype(np.float64)
    same = float((counts * (counts - 1)).sum()) / (len(label_n) * pairs)
    return int((label_n[1:] != label_n[:-1]).sum()), pairs * (1 - same), float(np.sqrt(pairs * same * (1 - same)))


def is_class_sorted(label_n) -> bool:
    """Whether the classes change less than half as often as in a random order."""
    changes, expected, _ = class_changes(label_n)
    return changes < expected / 2


def _compute(inputs: MetricInputs) -> MetricResult:
    """Samples whose known classes are sorted are shuffled first: every split must hold all classes."""
    logits_nc = inputs.samples.rows["logits"]
    n, classes = logits_nc.shape
    splits, order, warnings = min(SPLITS, n), None, []
    settings = {"splits": splits, "convention": "even", "order": "as given"}
    if n < 2 * SPLITS:
        warnings.append(
            f"is: {n} images in {splits} splits; a split of one image always scores 1, so the figure is meaningless"
        )
    elif n // splits < classes:
        warnings.append(
            f"is: splits of {n // splits} images cannot score above {n // splits}, and the extractor has {classes} classes"
        )
    if inputs.labels is not None:
        if is_class_sorted(inputs.labels()):
            order = np.random.RandomState(SHUFFLE_SEED).permutation(n)
            settings["order"] = f"shuffled by RandomState({SHUFFLE_SEED}), as the samples are sorted by class"
    elif n >= 2 * SPLITS:
        changes, expected, deviation = class_changes(logits_nc.argmax(axis=1))
        if changes < expected - 5 * deviation - 1:
            warnings.append(
                f"is: the samples seem to be sorted by class (neighbours are classified differently {changes} times, in a "
                f"random order {expected:.0f} times); splits in this order score too low: shuffle the samples"
            )
    mean, deviation = inception_score(logits_nc, splits, order=order)
    return MetricResult({"is": mean, "is_std": deviation}, settings, warnings)


def _agreement(inputs: MetricInputs) -> MetricResult:
    assert inputs.labels is not None  # checked before the samples are read
    predicted_n = inputs.samples.rows["logits"].argmax(axis=1)
    return MetricResult({"agreement": float((predicted_n == np.asarray(inputs.labels())).mean())})


METRICS = (
    Metric(
        name="is",
        help="Inception Score in 10 splits",
        compute=_compute,
        figures=(Figure("is", "IS", 30, digits=3, other_label="exp(KL)"),),
        rows=("logits",),
    ),
    Metric(
        name="agreement",
        help="fraction of samples classified as the requested class (extractor of the same classes)",
        compute=_agreement,
        figures=(Figure("agreement", "Agreement", 90),),
        rows=("logits",),
        needs=("labels",),
    ),
)
