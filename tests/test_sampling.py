"""Sampling of tokens: both ways follow the softmax, and top-k and top-p keep what a sort would keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgil_jax.config import DecodeConfig
from maskgil_jax.decoding.token_sampling import _first_above, filter_logits, gumbel_max, inverse_cdf, sample_tokens
from maskgil_jax.runtime.rng import image_keys


@pytest.mark.parametrize("sampler", [gumbel_max, inverse_cdf])
@pytest.mark.parametrize("codes", [5, 128, 300])
def test_sample_tokens_follows_the_softmax(sampler, codes):
    logits = np.random.default_rng(codes).normal(scale=1.5, size=codes).astype(np.float32)
    logits[1::7] = -np.inf
    positions = 20_000
    picks = jax.jit(sampler)(jax.random.split(jax.random.key(3), 2), jnp.tile(logits, (2, positions // 2, 1)))
    seen, probs = np.bincount(np.ravel(picks), minlength=codes), np.exp(logits) / np.exp(logits).sum()
    assert seen.shape == (codes,) and seen[probs == 0].sum() == 0
    likely = probs * positions >= 5
    chi2 = ((seen - probs * positions)[likely] ** 2 / (probs * positions)[likely]).sum()
    freedom = likely.sum() - 1
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom)
    assert (picks[0] != picks[1]).any()  # two images, two keys


def test_inverse_cdf_never_samples_a_weight_of_zero():
    weights = jnp.array([0.0, 0.0, 1.0, 0.0, 3.0, 0.0])
    uniform = jnp.array([0.0, 0.2499, 0.25, 1 - 2.0**-24])
    assert _first_above(jnp.tile(weights, (1, 4, 1)), uniform[None]).tolist() == [[2, 2, 4, 4]]


def test_auto_draw_is_inverse_cdf():
    logits, key = jax.random.normal(jax.random.key(0), (3, 8, 20)), jax.random.split(jax.random.key(1), 3)
    out = jax.jit(sample_tokens, static_argnums=2)(jax.random.clone(key), logits, DecodeConfig())
    np.testing.assert_array_equal(out, inverse_cdf(key, logits))
    coldest = sample_tokens(None, logits, DecodeConfig(temperature=0.0))
    np.testing.assert_array_equal(coldest, logits.argmax(axis=-1))


def test_filter_logits_equals_sorting():
    logits = np.random.default_rng(0).normal(scale=2, size=(2, 5, 50)).astype(np.float32)
    order = np.argsort(-logits, axis=-1)
    for k in (1, 7, 49, 50, 80):
        kept = np.isfinite(filter_logits(jnp.asarray(logits), top_k=k))
        assert (kept.sum(axis=-1) == min(k, 50)).all()
        assert np.take_along_axis(kept, order[..., : min(k, 50)], -1).all()
    probs = np.take_along_axis(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), order, -1)
    for p in (0.1, 0.5, 0.9, 1.0):
        kept = np.isfinite(filter_logits(jnp.asarray(logits), top_p=p))
        needed = 1 + (np.cumsum(probs, axis=-1) < p).sum(axis=-1) if p < 1 else np.full((2, 5), 50)
        np.testing.assert_array_equal(kept.sum(axis=-1), needed)
        assert all(kept[i, j, order[i, j, : needed[i, j]]].all() for i in range(2) for j in range(5))
    both = np.isfinite(filter_logits(jnp.log(jnp.array([[[0.4, 0.3, 0.2, 0.1]]])), top_k=2, top_p=0.5))
    assert both.tolist() == [[[True, False, False, False]]]  # 0.4 / 0.7 is enough once two are left
    tied = np.isfinite(filter_logits(jnp.array([[[1.0, 0.0, 1.0, 1.0]]]), top_k=2))
    assert tied.tolist() == [[[True, False, True, True]]]


def test_image_keys_fold_the_index():
    key = jax.random.key(4)
    folded = image_keys(key, 3)
    assert jax.random.key_data(folded[2]).tolist() == jax.random.key_data(jax.random.fold_in(key, 2)).tolist()
    assert image_keys(folded, 3) is folded
    raw = image_keys(jax.random.key_data(key), 3)
    assert jax.random.key_data(raw).tolist() == jax.random.key_data(folded).tolist()
