"""Chameleon: the reference's numbers, sequences of codes with frame tokens, and decoding one token after the other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.chameleon_files import golden, save_folder

from maskgil_jax.checkpoints.weights import load_weights
from maskgil_jax.config import CHAMELEON_PRESETS, CausalConfig, ChameleonConfig, ConfigError
from maskgil_jax.convert.main import convert
from maskgil_jax.decoding.causal import decode_causal
from maskgil_jax.models.condition import ClassCondition, TokenCondition
from maskgil_jax.networks import build, create, params_of

TINY = CHAMELEON_PRESETS["tiny"]


@functools.cache
def params(cfg=TINY):
    """Random parameters with which the prompt and earlier codes change the logits."""
    return jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim > 1 else leaf, params_of(create(cfg, jax.random.key(0))))


@pytest.fixture(scope="module")
def network():
    return build(TINY, params())


def prompts(*texts, length=None):
    """A `TokenCondition` of lists of ids, padded on the left."""
    length = length or max(map(len, texts))
    ids, mask = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), bool)
    for row, text in enumerate(texts):
        if text:
            ids[row, -len(text) :], mask[row, -len(text) :] = text, True
    return TokenCondition(ids, mask)


def test_chameleon_states_and_logits_match_reference(tmp_path):
    weights, io = golden()
    convert(save_folder(tmp_path / "hf", weights), tmp_path / "weights", options={"grid": (4, 4)})
    weights = load_weights(tmp_path / "weights")
    model = build(dataclasses.replace(weights.cfg, dtype="float32"), jax.tree.map(jnp.asarray, weights.params))
    ids = jnp.asarray(io["ids"], jnp.int32)
    states = jax.jit(model.id_states)(ids, jnp.ones(ids.shape, bool))
    np.testing.assert_allclose(states, io["h"], atol=2e-5)
    np.testing.assert_allclose(model.logits(states), io["logits"][..., [12, 10, 13, 11]], atol=5e-5)


def test_id_states_do_not_depend_on_padding(network):
    ids = jnp.asarray([[0, 90, 91, 70, 69]], jnp.int32)
    alone = network.id_states(ids, jnp.ones(ids.shape, bool))
    padded = network.id_states(jnp.pad(ids, ((0, 0), (3, 0))), jnp.pad(jnp.ones(ids.shape, bool), ((0, 0), (3, 0))))
    np.testing.assert_allclose(padded[:, 3:], alone, atol=1e-5)


@pytest.mark.slow
def test_hidden_is_the_state_before_each_code_of_the_written_sequence(network):
    """Rows of 4 and 2: the whole sequence is written out by hand, with a newline after every row."""
    cfg, prompt = TINY, [0, 90, 91, 70]
    codes = np.arange(8) * 7 % 64
    written = [*prompt, 69, cfg.size_zero + 1, cfg.size_zero + 2, *(codes[:4] + 4), 71, *(codes[4:7] + 4)]
    states = network.id_states(jnp.asarray([written], jnp.int32), jnp.ones((1, len(written)), bool))
    before = [6, 7, 8, 9, 11, 12, 13, 14]  # w, c0, c1, c2, newline, c4, c5, c6
    got = network.hidden(jnp.asarray(codes[None], jnp.int32), prompts(prompt, length=7), grid=(2, 4))
    np.testing.assert_allclose(got, states[:, before], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_prefill_and_step_equal_the_whole_sequence(layers):
    network = build(dataclasses.replace(TINY, layers=layers), params())
    tokens = jax.random.randint(jax.random.key(1), (2, 16), 0, 64)
    condition = prompts([0, 90, 70], [0, 95, 96, 97, 98, 70])
    whole = network(tokens, condition)
    step = jax.jit(network.step)
    for given in (0, 3, 4, 9):
        logits, cache = network.prefill(tokens[:, :given], condition)
        for i in range(given, 15):
            np.testing.assert_allclose(logits, whole[:, i], atol=2e-4)
            logits, cache = step(tokens[:, i], cache, i)
        np.testing.assert_allclose(logits, whole[:, 15], atol=2e-4)


@pytest.mark.slow
def test_rows_with_prompts_of_other_lengths_decode_as_alone(network):
    texts, keys = [[0, 90, 70], [0, 95, 96, 97, 98, 99, 70]], jax.random.split(jax.random.key(2), 2)
    cfg = CausalConfig(guidance=4.0, top_k=20)
    together = decode_causal(network, prompts(*texts), jax.random.clone(keys), cfg)
    assert together.shape == (2, 16) and int(together.max()) < 64 and (together[0] != together[1]).any()
    for row, text in enumerate(texts):
        alone = decode_causal(network, prompts(text), jax.random.clone(keys[row : row + 1]), cfg)
        np.testing.assert_array_equal(together[row], alone[0])


@pytest.mark.slow
def test_decode_causal_equals_a_loop_over_whole_sequences(network):
    """Greedy, guided: the unconditional row starts at the begin of image, without prompt and padding."""
    prompt, cfg, frame = [0, 90, 91, 70], CausalConfig(guidance=3.0, temperature=0.0), [69, 74, 74]
    got = np.asarray(decode_causal(network, prompts(prompt, length=9), jax.random.key(0), cfg))[0]

    @jax.jit
    def next_logits(ids, count):
        states = network.id_states(ids, jnp.ones(ids.shape, bool))
        return network.logits(jax.lax.dynamic_slice_in_dim(states, count - 1, 1, axis=1))[0, 0]

    def logits_after(ids):
        return next_logits(jnp.asarray([ids + [0] * (30 - len(ids))], jnp.int32), len(ids))

    written = []
    for i in range(16):
        image = [token for j, code in enumerate(written) for token in [code + 4] + [71] * (j % 4 == 3)]
        conditional, unconditional = logits_after(prompt + frame + image), logits_after(frame + image)
        written.append(int(jnp.argmax(unconditional + 3.0 * (conditional - unconditional))))
        assert written[-1] == got[i], i
    assert len(set(written)) > 3


def test_codes_are_tokens_by_their_ids(network):
    """The same network with codes in another order: their logits and embeddings go with the ids."""
    order = np.random.default_rng(0).permutation(64)
    other = build(dataclasses.replace(TINY, image_ids=tuple(int(i) for i in order + 4)), params())
    tokens, condition = jax.random.randint(jax.random.key(1), (1, 16), 0, 64), prompts([0, 90, 70])
    np.testing.assert_allclose(other(tokens, condition), network(jnp.asarray(order)[tokens], condition)[..., order], atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_qk_norm_weights_of_groups_are_repeated_over_neighbouring_heads(groups):
    cfg = dataclasses.replace(TINY, qk_norm_groups=groups)
    few = jax.tree.map(jnp.array, params(cfg))
    scale = 1 + jax.random.normal(jax.random.key(3), few["layers"]["attn"]["q_norm"]["scale"].shape)
    few["layers"]["attn"]["q_norm"]["scale"] = scale
    many = jax.tree.map(jnp.array, few)
    for part in ("q_norm", "k_norm"):
        norm = few["layers"]["attn"][part]
        many["layers"]["attn"][part] = {name: jnp.repeat(leaf, 4 // groups, axis=1) for name, leaf in norm.items()}
    tokens, condition = jax.random.randint(jax.random.key(1), (1, 16), 0, 64), prompts([0, 90, 70])
    np.testing.assert_allclose(build(cfg, few)(tokens, condition), build(TINY, many)(tokens, condition), atol=1e-5)


def test_cache_has_the_network_s_dtype(network):
    narrow = build(dataclasses.replace(TINY, dtype="bfloat16"), params())
    logits, cache = jax.eval_shape(narrow.prefill, jnp.zeros((1, 0), jnp.int32), prompts([0, 70]))
    assert cache.keys_bnshk.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert cache.keys_bnshk.shape == (1, 2, 2 + 3 + 4 * 5, 4, 8)


def test_chameleon_refuses_impossible_options_and_inputs(network):
    with pytest.raises(ConfigError, match="qk_norm_groups: 3 does not divide heads 4"):
        dataclasses.replace(TINY, qk_norm_groups=3)
    with pytest.raises(ConfigError, match="image_ids: expected the 64 ids from first_image_id 4 on"):
        dataclasses.replace(TINY, image_ids=(4, 4))
    with pytest.raises(ConfigError, match="grid: sides must be multiples of 2 codes"):
        ChameleonConfig(grid=(5, 4))
    with pytest.raises(ConfigError, match="tokens-conditional, got ClassCondition"):
        network.prefill(jnp.zeros((1, 0), jnp.int32), ClassCondition(jnp.zeros(1, jnp.int32)))
    with pytest.raises(ConfigError, match=r"expected ids and a mask \(1, 1 to 24\)"):
        network.prefill(jnp.zeros((1, 0), jnp.int32), prompts([0] * 25))
