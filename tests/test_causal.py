"""AR decoding with a cache: the full sequence's numbers, the original's tokens, the distribution of tokens,
and its errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.gpt_weights import llamagen_config, published_params, recipe_getter
from helpers.recipe import GOLDEN, load_case

from maskgil_jax.config import CausalConfig, ConfigError, LlamaConfig
from maskgil_jax.decoding.causal import _CAUSAL_DRAWS, _decode_causal, decode_causal
from maskgil_jax.decoding.token_sampling import filter_logits, sample_tokens
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.networks import build, create, params_of

SMALL = LlamaConfig(codebook_size=13, num_classes=3, grid=(3, 4), width=32, depth=2, heads=4, mlp_width=48, causal=True)
VARIANTS = {
    "plain": {},
    "grouped queries": dict(kv_heads=2),
    "scanned, one key head": dict(kv_heads=1, layers="scan"),
    "norms": dict(qk_norm="per_head", post_norm="sandwich", prefix_rotation="identity"),
    "one dimension": dict(positions="1d_shifted"),
}


def network(**changes):
    """Random weights large enough that every layer, and what was written before, matters."""
    cfg = dataclasses.replace(SMALL, **changes)
    params = params_of(create(cfg, jax.random.key(0)))
    params["layers"] = jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim == 3 else leaf, params["layers"])
    params["head"]["kernel"] = 0.4 * jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    return build(cfg, params)


def labels(*values):
    return ClassCondition(jnp.asarray(values, jnp.int32))


@pytest.fixture(scope="module")
def small():
    return network()


@pytest.fixture(scope="module")
def llamagen():
    """(network, condition, arrays) of the original's small class-conditional network."""
    config, io = load_case("llamagen_gpt/c2i_tiny")
    cfg = llamagen_config(config["hparams"], (8, 8))
    model = build(cfg, published_params("llamagen-c2i", cfg, recipe_getter(config)))
    return model, labels(*io["in.cond"]), io


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_prefill_and_step_equal_the_full_sequence(change):
    model, condition = network(**change), labels(0, 3)
    tokens = jax.random.randint(jax.random.key(2), (2, 12), 0, 13)
    expected = jax.jit(lambda m, c: m(tokens, c))(model, condition)
    step = jax.jit(lambda m, token, cache, i: m.step(token, cache, i))
    logits, cache = jax.jit(lambda m, c: m.prefill(tokens[:, :1], c))(model, condition)
    seen = [logits]
    for i in range(1, 11):
        logits, cache = step(model, tokens[:, i], cache, i)
        seen.append(logits)
    # The same sums in another order: float32 rounding of values of about 3.
    np.testing.assert_allclose(jnp.stack(seen, 1), expected[:, 1:], atol=2e-5, rtol=1e-5)
    assert float(jnp.abs(expected[:, 1:] - expected[:, :-1]).max(axis=-1).min()) > 0.1, "positions differ"


def test_kv_cache_has_the_documented_size(small):
    _, cache = small.prefill(jnp.zeros((2, 0), jnp.int32), labels(0, 1))
    assert cache.keys_bnshk.nbytes + cache.values_bnshk.nbytes == 2 * 2 * 2 * 12 * 4 * 8 * 4
    half = network(kv_heads=2, dtype="bfloat16")
    _, cache = half.prefill(jnp.zeros((2, 0), jnp.int32), labels(0, 1))
    assert cache.keys_bnshk.nbytes + cache.values_bnshk.nbytes == 2 * 2 * 2 * 12 * 2 * 8 * 2


@pytest.mark.parametrize(
    "name,options", {"cfg1": dict(guidance=1.0), "cfg2": {}, "cfg2_interval": dict(cfg_interval=5)}.items()
)
def test_decode_causal_greedy_equals_llamagen(llamagen, name, options):
    model, condition, io = llamagen
    cfg = CausalConfig(**{"guidance": 2.0, "temperature": 0.0, **options})
    expected = io[f"out.gen_{name}.tokens"]
    np.testing.assert_array_equal(decode_causal(model, condition, jax.random.key(0), cfg), expected)
    if name == "cfg2":  # greedy: what is given does not change what follows
        got = decode_causal(model, condition, jax.random.key(0), cfg, jnp.asarray(expected[:, :50], jnp.int32))
        np.testing.assert_array_equal(got, expected)
    if name == "cfg2_interval":
        assert (expected != io["out.gen_cfg2.tokens"]).any(), "the interval matters in this case"


def test_filter_logits_equals_llamagen():
    golden = np.load(GOLDEN / "llamagen_gpt" / "filters.npz")
    logits = jnp.asarray(golden["logits"])[:, None]
    for name in golden.files:
        if name.startswith("topk"):
            k, p = (part.lstrip("topk") for part in name.split("_"))
            k = int(k) or None
            got = filter_logits(logits, k, float(p) if float(p) < 1 else None)[:, 0]
            np.testing.assert_array_equal(np.isfinite(got), np.isfinite(golden[name]), err_msg=name)
            np.testing.assert_allclose(got, golden[name], atol=1e-6)


def plain_loop(model, condition, key, cfg, given, kept, grid):
    """The definition: at every position the whole sequence again, both branches apart, one image after the other."""
    count, rows = grid[0] * grid[1], []
    forward = jax.jit(lambda tokens, c: model(tokens, c, grid=grid))
    pick = jax.jit(lambda key, logits: sample_tokens(key, logits, cfg))
    for image in range(condition.label_b.shape[0]):
        alone = ClassCondition(condition.label_b[image : image + 1])
        tokens = [int(t) for t in given[image]]
        own = jax.random.fold_in(jax.random.fold_in(key, image), _CAUSAL_DRAWS)
        while len(tokens) < count:
            i = len(tokens)
            if kept is not None and kept[image][i] >= 0:
                tokens.append(int(kept[image][i]))
                continue
            canvas = jnp.asarray([tokens + [0] * (count - i)], jnp.int32)
            logits = forward(canvas, alone)[:, i]
            if cfg.cfg_interval is None or i - given.shape[1] <= cfg.cfg_interval + 1:
                null = forward(canvas, model.null_condition(alone))[:, i]
                logits = null + cfg.guidance * (logits - null)
            tokens.append(int(pick(jax.random.fold_in(own, i)[None], logits[:, None] / cfg.temperature)[0, 0]))
        rows.append(tokens)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("given,interval,kept", [(0, None, False), (5, 0, False), (0, 3, True)])
def test_decode_causal_equals_plain_python(small, given, interval, kept):
    cfg = CausalConfig(guidance=1.7, temperature=0.8, top_k=9, top_p=0.95, cfg_interval=interval)
    tokens = jax.random.randint(jax.random.key(5), (3, given), 0, 13)
    condition, key = labels(0, 1, 2), jax.random.key(6)
    kept = jnp.full((3, 8), -1).at[0, 2:5].set(7).at[2, :].set(jnp.arange(8)) if kept else None  # some, none, all
    got = decode_causal(small, condition, jax.random.clone(key), cfg, tokens, grid=(4, 2), kept_bl=kept)
    np.testing.assert_array_equal(got, plain_loop(small, condition, key, cfg, np.asarray(tokens), kept, (4, 2)))


def test_decode_causal_of_an_image_does_not_depend_on_its_batch(small):
    cfg, key = CausalConfig(), jax.random.key(3)
    together = decode_causal(small, labels(0, 1, 2, 1), jax.random.clone(key), cfg)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(4))
    count = _decode_causal._cache_size()
    for i, label in enumerate((0, 1, 2, 1)):
        alone = decode_causal(small, labels(label), jax.random.clone(keys[i : i + 1]), cfg)
        np.testing.assert_array_equal(alone[0], together[i])
    assert _decode_causal._cache_size() == count + 1, "new labels and keys, the same program"
    assert (together[1] != together[3]).any(), "the same label with another key"
    assert together.dtype == jnp.int32 and int(together.min()) >= 0 and int(together.max()) < 13


def test_decode_causal_tokens_follow_the_distribution(small):
    """The first token of many images against the network's own probabilities, with guidance and temperature."""
    cfg, count = CausalConfig(guidance=1.5, temperature=1.3), 4000
    first = decode_causal(small, labels(*[1] * count), jax.random.key(4), cfg, end=1)[:, 0]
    logits = small(jnp.zeros((2, 12), jnp.int32), labels(1, 3))[:, 0]
    probs = np.asarray(jax.nn.softmax((logits[1] + 1.5 * (logits[0] - logits[1])) / 1.3))
    seen = np.bincount(first, minlength=13)
    likely = probs * count >= 5
    chi2 = ((seen - probs * count)[likely] ** 2 / (probs * count)[likely]).sum()
    assert likely.sum() > 3 and chi2 < likely.sum() + 4 * np.sqrt(2 * likely.sum())


def test_decode_causal_with_no_and_with_all_tokens_given(small):
    tokens = jax.random.randint(jax.random.key(5), (2, 12), 0, 13)
    cfg, condition, key = CausalConfig(temperature=0.0), labels(0, 1), jax.random.key(0)
    np.testing.assert_array_equal(decode_causal(small, condition, key, cfg, tokens), tokens)
    last = decode_causal(small, condition, key, cfg, tokens[:, :11])
    np.testing.assert_array_equal(last[:, :11], tokens[:, :11])
    assert decode_causal(small, condition, key, cfg, tokens[:, :3], end=5).shape == (2, 5)


def test_decode_causal_names_invalid_arguments(small):
    condition, key, cfg = labels(0, 1), jax.random.key(0), CausalConfig()
    with pytest.raises(ConfigError, match="is not causal"):
        decode_causal(network(causal=False), condition, key, cfg)
    with pytest.raises(ConfigError, match="only a causal one"):
        network(causal=False).prefill(jnp.zeros((2, 0), jnp.int32), condition)
    with pytest.raises(ConfigError, match="12 tokens given, at most 11"):
        small.prefill(jnp.zeros((2, 12), jnp.int32), condition)
    with pytest.raises(ConfigError, match=r"end: 5 tokens are given and the canvas has 12, got 3"):
        decode_causal(small, condition, key, cfg, jnp.zeros((2, 5), jnp.int32), end=3)
    with pytest.raises(ConfigError, match=r"expected whole numbers of shape \(2, n\), got int32 \(3, 5\)"):
        decode_causal(small, condition, key, cfg, jnp.zeros((3, 5), jnp.int32))
    with pytest.raises(ConfigError, match=r"kept_bl: expected whole numbers of shape \(2, 12\), got int32 \(2, 5\)"):
        decode_causal(small, condition, key, cfg, kept_bl=jnp.zeros((2, 5), jnp.int32))
    with pytest.raises(ConfigError, match=r"one per image, \(2,\), got keys of shape \(3,\)"):
        decode_causal(small, condition, jax.random.split(key, 3), cfg)
