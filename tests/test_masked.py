"""Masked decoding: a plain-Python twin, promises that hold for any configuration, and what may not be recompiled."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.decode_twin import CODES, GRID, HASTY, LENGTH, Stub, batch, draws, hasty, twin  # noqa: F401

from maskgil_jax.config import PLANS, SCHEDULES, ConfigError, DecodeConfig
from maskgil_jax.decoding.guidance import guidance_scales, guided_runs
from maskgil_jax.decoding.masked import decode, decode_loop, decode_steps, reveal
from maskgil_jax.decoding.schedules import reveal_counts
from maskgil_jax.models.condition import ClassCondition


@pytest.mark.parametrize("ramp", ["constant", "linear"])
@pytest.mark.parametrize("order", ["confidence", "random", "raster"])
def test_decode_loop_equals_plain_python_for_every_plan_and_schedule(order, ramp):
    labels, keys, tokens = batch()
    stub, noise, made = Stub(), draws(jax.random.clone(keys), 3, LENGTH), set()
    # The counts are an argument of the loop: one compilation serves all plans.
    loop = jax.jit(decode_loop, static_argnums=(5, 6), compiler_options=HASTY)
    static = DecodeConfig(steps=3, order=order, guidance_ramp=ramp, draw="gumbel")
    for plan, schedule in itertools.product(PLANS, SCHEDULES):
        counts = reveal_counts(plan, schedule, 3, (tokens == CODES).sum(axis=-1))
        out, _ = loop(stub, ClassCondition(labels), jax.random.clone(keys), tokens, counts, static, GRID)
        cfg = dataclasses.replace(static, plan=plan, schedule=schedule)
        np.testing.assert_array_equal(out, twin(stub, labels, noise, cfg, tokens), err_msg=str(cfg))
        made.add(np.asarray(out).tobytes())
    assert len(made) > 5  # the plans do differ


@pytest.mark.parametrize(
    "cfg",
    [
        DecodeConfig(steps=1, draw="gumbel"),
        DecodeConfig(steps=1, draw="gumbel", guidance_ramp="linear"),
        DecodeConfig(steps=5, draw="gumbel", guidance=1.0, temperature=0.7, plan="gamma"),
        DecodeConfig(steps=5, temperature=0.0, choice_temperature=2.0),
        DecodeConfig(steps=4, draw="gumbel", top_k=3, choice_temperature=0.0),
    ],
    ids=str,
)
def test_decode_equals_plain_python(cfg):
    labels, keys, tokens = batch()
    stub, noise = Stub(), draws(jax.random.clone(keys), cfg.steps, LENGTH)
    out = decode(stub, ClassCondition(labels), jax.random.clone(keys), cfg, tokens)
    np.testing.assert_array_equal(out, twin(stub, labels, noise, cfg, tokens))


@pytest.mark.parametrize("steps", range(1, 8))
def test_decode_steps_reveals_exact_counts_and_keeps_given_tokens(steps):
    labels, keys, tokens = batch(b=5, length=4)
    cfg = DecodeConfig(steps=steps, plan="gamma", schedule="cosine")
    canvases = decode_steps(Stub(), ClassCondition(labels), keys, cfg, tokens, grid=(2, 2))
    before, counts = np.asarray(tokens), reveal_counts("gamma", "cosine", steps, (tokens == CODES).sum(axis=-1))
    for i, canvas in enumerate(np.asarray(canvases)):
        np.testing.assert_array_equal(canvas[before != CODES], before[before != CODES])
        np.testing.assert_array_equal((before == CODES).sum(axis=-1) - (canvas == CODES).sum(axis=-1), counts[:, i])
        before = canvas
    assert before.min() >= 0 and before.max() < CODES  # no mask is left
    np.testing.assert_array_equal(before[-1], tokens[-1])  # all given: nothing happens


def test_decode_steps_ends_with_the_tokens_of_decode():
    labels, keys, _ = batch()
    cfg, key = DecodeConfig(steps=3), jax.random.clone
    out = decode(Stub(), ClassCondition(labels), key(keys), cfg)
    canvases = decode_steps(Stub(), ClassCondition(labels), key(keys), cfg, jnp.full((4, LENGTH), CODES, jnp.int32))
    assert canvases.shape == (3, 4, LENGTH) and out.dtype == jnp.int32
    np.testing.assert_array_equal(canvases[-1], out)


@pytest.mark.parametrize("sampler", ["gumbel", "inverse"])
def test_decode_of_an_image_depends_on_its_own_key_only(sampler):
    labels, keys, tokens = batch()
    stub, cfg, clone = Stub(), DecodeConfig(steps=3, draw=sampler, top_p=0.9), jax.random.clone
    together = decode(stub, ClassCondition(labels), clone(keys), cfg, tokens)
    for i in range(4):
        one = slice(i, i + 1)
        alone = decode(stub, ClassCondition(labels[one]), clone(keys[one]), cfg, tokens[one])
        np.testing.assert_array_equal(alone, together[one])
    key = jax.random.key(5)
    folded = jax.vmap(jax.random.fold_in, (None, 0))(clone(key), jnp.arange(4))
    single = decode(stub, ClassCondition(labels), clone(key), cfg, tokens)
    np.testing.assert_array_equal(single, decode(stub, ClassCondition(labels), folded, cfg, tokens))
    raw = decode(stub, ClassCondition(labels), jax.random.key_data(clone(key)), cfg, tokens)
    np.testing.assert_array_equal(single, raw)
    assert (np.asarray(single) != together).any()  # another key, another image


def test_decode_does_not_recompile_for_new_labels_keys_or_weights(monkeypatch):
    monkeypatch.undo()
    labels, keys, tokens = batch()
    cfg = DecodeConfig(steps=6)
    first = decode(Stub(0), ClassCondition(labels), keys[0], cfg, tokens)
    traces = Stub.traces
    again = decode(Stub(1), ClassCondition(labels[::-1]), keys[1], DecodeConfig(steps=6), tokens[::-1])
    assert Stub.traces == traces and (np.asarray(first) != again).any()
    decode(Stub(0), ClassCondition(labels), keys[2], DecodeConfig(steps=6, temperature=0.9), tokens)
    assert Stub.traces > traces


def test_decode_runs_the_unconditional_branch_only_with_guidance():
    labels = batch()[0]
    run = lambda **options: decode(Stub(), ClassCondition(labels), jax.random.key(0), DecodeConfig(steps=2, **options))  # noqa: E731
    for options, rows in (({"guidance": 1.0}, 4), ({"guidance": 1.5}, 8)):
        run(**options)
        assert Stub.rows == rows
    assert guided_runs(guidance_scales(DecodeConfig(guidance_ramp="linear"))) == [(0, 1, False), (1, 8, True)]
    assert guided_runs(guidance_scales(DecodeConfig(guidance_ramp="linear", steps=1))) == [(0, 1, True)]
    assert guided_runs(guidance_scales(DecodeConfig(guidance=1.0))) == [(0, 8, False)]
    scales = guidance_scales(DecodeConfig(guidance_ramp="linear", guidance=2.0, steps=5))
    np.testing.assert_array_equal(scales, [1, 1.5, 2, 2.5, 3])


def primitives(cfg):
    labels, keys, tokens = batch()
    return str(jax.make_jaxpr(lambda *a: decode(Stub(), *a, cfg, tokens))(ClassCondition(labels), keys[0]))


def test_decode_sorts_once_a_step_and_draws_no_bits_without_randomness(monkeypatch):
    monkeypatch.undo()
    full = primitives(DecodeConfig(steps=2, top_k=4, top_p=0.8))
    assert full.count(" sort[") == 1 and full.count("top_k[") == 0
    assert "random_bits" in full
    assert "random_bits" not in primitives(DecodeConfig(steps=2, temperature=0.0, choice_temperature=0.0))


def test_reveal_breaks_ties_by_position_and_survives_nan():
    tokens = jnp.array([[9, 1, 9, 9, 9, 9]] * 5)
    picks = jnp.arange(6)[None] * jnp.ones((5, 1), jnp.int32)
    scores = jnp.array([[0.0, 9.0, 2.0, 2.0, 2.0, 1.0]] * 4 + [[jnp.nan, 0.0, jnp.nan, 1.0, -jnp.inf, jnp.nan]])
    out = reveal(tokens, picks, scores, jnp.array([0, 2, 4, 7, 2]), 9)
    expected = [[9, 1, 9, 9, 9, 9], [9, 1, 2, 3, 9, 9], [9, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 9, 3, 9, 9]]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"schedule": "cosin"}, "cosine"),
        ({"plan": "dense"}, "plan"),
        ({"order": "spiral"}, "order"),
        ({"guidance_ramp": "up"}, "guidance_ramp"),
        ({"guidance": -1.0}, "guidance"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"draw": "dice"}, "draw"),
        ({"remask": "conf"}, "remask.*cap, rescale"),
        ({"remask_eta": 1.5}, "remask_eta"),
        ({"remask": "cap", "remask_pick": "unsure"}, "remask_pick.*even, confidence"),
        ({"remask": "cap", "remask_from": 0.6, "remask_to": 0.5}, "remask_from"),
        ({"remask_loop": True}, "remask_loop: needs remask"),
        ({"guidance_power": 0.0}, "guidance_power"),
        ({"guidance_from": 0.6, "guidance_to": 0.5}, "guidance_from"),
        ({"temperature_end": 0.0}, "temperature_end"),
        ({"temperature": 0.0, "temperature_end": 0.5}, "temperature_end"),
        ({"loop": "while"}, "loop"),
        ({"batch_mode": "each"}, "batch_mode.*vmap, map"),
    ],
)
def test_decode_config_names_invalid_options(options, named):
    with pytest.raises(ConfigError, match=named):
        DecodeConfig(**options)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"grid": (3, 5)}, r"3x5.*\(4, 15\).*\(4, 12\)"),
        ({"grid": (0, 4)}, "grid"),
        ({"tokens_bl": jnp.zeros((3, LENGTH), jnp.int32)}, r"\(4, 12\).*\(3, 12\)"),
        ({"tokens_bl": jnp.zeros((4, LENGTH))}, "float32"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, "key"),
        ({"condition": {"a": jnp.zeros(4), "b": jnp.zeros(5)}}, "batch size"),
    ],
)
def test_decode_refuses_mismatched_sizes_before_tracing(change, named):
    labels, keys, tokens = batch()
    arguments = {"condition": ClassCondition(labels), "key": keys[0], "tokens_bl": tokens, "cfg": DecodeConfig()} | change
    traces = Stub.traces
    with pytest.raises(ValueError, match=named):
        decode(Stub(), **arguments)
    assert Stub.traces == traces


def test_decode_refuses_logits_over_more_than_the_codebook():
    class Wide(Stub):
        def __call__(self, tokens_bl, condition, *, grid):
            return jnp.zeros((*tokens_bl.shape, CODES + 1))

    with pytest.raises(ConfigError, match=r"\(8, 12, 11\).*\(8, 12, 12\)"):
        decode(Wide(), ClassCondition(batch()[0]), jax.random.key(0), DecodeConfig(steps=2))
