"""Usage and perplexity of a tokenizer's codebook."""

from __future__ import annotations

import numpy as np

from maskgil_jax.evaluation.metrics.base import Figure, MetricResult, ReconstructionMetric, Reconstructions


def count_codes(codes, codebook_size: int) -> np.ndarray:
    """Counts each code, (codebook_size,) int64; counts add up. Raises a `ValueError` for codes out of range."""
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
    """Fraction of the codebook that occurs at least once in the set, in [0, 1], from counts per code (v,).

    It grows with the number of codes seen, so it should be quoted with that number.
    """
    return float((_frequencies(counts) > 0).mean())


def codebook_perplexity(counts) -> float:
    """exp of the entropy of the code frequencies: between 1 and the codebook size, from counts per code (v,)."""
    used = _frequencies(counts)
    used = used[used > 0]
    return float(np.exp(-(used * np.log(used)).sum()))


def _accumulate(batch: Reconstructions) -> dict[str, np.ndarray]:
    return {"counts": count_codes(batch.codes_bhw, batch.codebook_size)}


def _finish(sums: dict, count: int) -> MetricResult:
    counts_v = sums["counts"]
    values = {"usage": codebook_usage(counts_v), "perplexity": codebook_perplexity(counts_v)}
    seen = {"codes_used": int((counts_v > 0).sum()), "of": len(counts_v), "codes_seen": int(counts_v.sum())}
    return MetricResult(values, {"usage": seen})


RECONSTRUCTION_METRICS = (
    ReconstructionMetric(
        name="codebook",
        accumulate=_accumulate,
        finish=_finish,
        figures=(Figure("usage", "Usage", 160), Figure("perplexity", "Perplexity", 170, digits=1)),
    ),
)
