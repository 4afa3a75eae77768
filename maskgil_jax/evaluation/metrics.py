"""The metrics in one place: those of logits, code counts and embeddings here, the rest from the modules beside this one.

Conventions that change the number are named arguments; the default is the one most papers' figures follow.
"""

from __future__ import annotations

import itertools

import numpy as np

from maskgil_jax.config import choose
from maskgil_jax.evaluation.frechet import (
    FeatureStatistics,
    check_features,
    frechet_distance,
    kid,
)
from maskgil_jax.evaluation.image_quality import SSIM_CONVENTIONS, psnr, ssim
from maskgil_jax.evaluation.manifold import PRDC, PrecisionRecall, prdc, precision_recall

__all__ = [
    "CLIP_CONVENTIONS",
    "IS_CONVENTIONS",
    "PRDC",
    "SSIM_CONVENTIONS",
    "FeatureStatistics",
    "PrecisionRecall",
    "clip_score",
    "clip_similarity",
    "codebook_perplexity",
    "codebook_usage",
    "count_codes",
    "frechet_distance",
    "inception_score",
    "kid",
    "prdc",
    "precision_recall",
    "psnr",
    "ssim",
]

ADM_SPLIT_ROWS = 5000
IS_CONVENTIONS = ("even", "torch-chunk", "adm")
CLIP_CONVENTIONS = ("torchmetrics", "clipped", "hessel", "cosine")


# ------------------------------------------------------------------------------------------------ inception score
def _split_bounds(n: int, splits: int, convention: str) -> list[int]:
    if convention == "even":
        return [i * n // splits for i in range(splits + 1)]
    rows = ADM_SPLIT_ROWS if convention == "adm" else -(-n // splits)
    return [*range(0, n, rows), n]


def inception_score(logits, splits: int = 10, *, convention: str = "even", order=None) -> tuple[float, float]:
    """Mean and standard deviation (ddof 0) over splits of exp(mean KL(p(y|x) || p(y))), in float64.

    logits (n, classes), before the softmax; FID's network gives its `logits_unbiased` (ADM, torch-fidelity). The rows are
    cut in the order given - ADM does not shuffle, and class-sorted images then give a lower score - unless `order`, a
    permutation of range(n), says otherwise (the MaskGIL code shuffles first, torch-fidelity with
    `np.random.RandomState(2020).permutation(n)`). Cuts:
    `even`: `splits` parts, the i-th from i * n // splits (torch-fidelity);
    `torch-chunk`: parts of ceil(n / splits) rows, the last shorter or missing (MaskGIL);
    `adm`: parts of 5000 rows whatever `splits` is. With 50 000 images and 10 splits the three are the same.

    Raises a `ValueError` for NaN or infinity, fewer rows than splits, or an `order` that is no permutation.
    """
    choose("convention", convention, IS_CONVENTIONS)
    logits_nc = check_features(logits, "logits").astype(np.float64)
    n = len(logits_nc)
    if not 1 <= splits <= n and convention != "adm":
        raise ValueError(f"splits: cannot cut {n} images into {splits} parts")
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


# ------------------------------------------------------------------------------------------------ codebook
def count_codes(codes, codebook_size: int) -> np.ndarray:
    """How often each code occurs, (codebook_size,) int64; counts of batches may be added up. Raises on codes out of range."""
    codes_n = np.asarray(codes).ravel()
    if codes_n.size and (codes_n.min() < 0 or codes_n.max() >= codebook_size):
        raise ValueError(f"codes: from {codes_n.min()} to {codes_n.max()}, expected 0 to {codebook_size - 1}")
    return np.bincount(codes_n, minlength=codebook_size)


def _frequencies(counts) -> np.ndarray:
    counts_v = np.asarray(counts, np.float64)
    if counts_v.ndim != 1 or not np.isfinite(counts_v).all() or (counts_v < 0).any() or counts_v.sum() == 0:
        raise ValueError("counts: expected one non-negative count per code, not all zero")
    return counts_v / counts_v.sum()


def codebook_usage(counts) -> float:
    """Share of the codebook that occurs at least once over the set, in [0, 1], from counts per code (v,).

    It grows with the number of codes looked at, so it is to be quoted with that number.
    """
    return float((_frequencies(counts) > 0).mean())


def codebook_perplexity(counts) -> float:
    """exp of the entropy of the code frequencies: between 1 and the codebook size, from counts per code (v,)."""
    used = _frequencies(counts)
    used = used[used > 0]
    return float(np.exp(-(used * np.log(used)).sum()))


# ------------------------------------------------------------------------------------------------ CLIP
def clip_similarity(image_emb, text_emb) -> np.ndarray:
    """Cosine of each row of `image_emb` (n, d) with the same row of `text_emb` (or of another image's), (n,) float64."""
    pair = check_features(image_emb, "image_emb"), check_features(text_emb, "text_emb")
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"image_emb is {pair[0].shape}, text_emb {pair[1].shape}: one row per pair, from the same CLIP model")
    a_nd, b_nd = (rows.astype(np.float64) for rows in pair)
    lengths = np.linalg.norm(a_nd, axis=1) * np.linalg.norm(b_nd, axis=1)
    if (lengths == 0).any():
        raise ValueError(f"row {int((lengths == 0).argmax())}: an embedding of length zero has no direction")
    return (a_nd * b_nd).sum(axis=1) / lengths


def clip_score(image_emb, text_emb, *, convention: str = "torchmetrics") -> float:
    """CLIPScore of n image-text pairs from their embeddings (n, d), normalised or not; the formula only, no network.

    `torchmetrics`: max(100 * mean(cos), 0); `clipped`: mean(max(100 * cos, 0)); `hessel`: mean(2.5 * max(cos, 0)), the
    paper's (arXiv:2104.08718); `cosine`: mean(cos) (LlamaGen). Raises a `ValueError` for shapes that differ, NaN or zeros.
    """
    choose("convention", convention, CLIP_CONVENTIONS)
    cos_n = clip_similarity(image_emb, text_emb)
    if convention == "cosine":
        return float(cos_n.mean())
    if convention == "torchmetrics":
        return max(100 * float(cos_n.mean()), 0.0)
    return float(np.maximum(cos_n, 0).mean()) * (100 if convention == "clipped" else 2.5)
