"""What masked decoding promises whatever the options are, and the plain-Python twin for every one of them."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.decode_twin import CODES, GRID, HASTY, LENGTH, Headed, Stub, batch, draws, hasty, twin  # noqa: F401
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maskgil_jax.config import (
    ORDERS,
    PLANS,
    REMASK_RULES,
    SCHEDULES,
    AdaLNConfig,
    BertConfig,
    ConfigError,
    DecodeConfig,
    LlamaConfig,
    MaskGITConfig,
)
from maskgil_jax.config.decoding import GUIDANCE_RAMPS
from maskgil_jax.decoding import masked
from maskgil_jax.decoding.guidance import guidance_scales, guided_runs
from maskgil_jax.decoding.masked import (
    MAX_UNROLLED_STEPS,
    MIN_UNROLLED_CODES,
    decode,
    decode_loop,
    decode_steps,
    remask_scores,
    unrolled,
)
from maskgil_jax.decoding.orders import halton_ranks
from maskgil_jax.decoding.schedules import max_masked_per_step, remask_counts, remask_steps, reveal_counts
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.models.generator import unstack_layers
from maskgil_jax.networks import build, create, params_of
from maskgil_jax.runtime.platform import target_platform

TWINS = [
    DecodeConfig(steps=5, guidance_ramp="cosine", order="halton", plan="gamma_ceil"),
    DecodeConfig(
        steps=4, guidance_ramp="power-cosine", guidance_power=1.5, order="halton_rolled", temperature=0.9, temperature_end=0.4
    ),
    DecodeConfig(steps=6, order="random", plan="cumulative", guidance_ramp="linear", remask="rescale", remask_eta=0.5),
    DecodeConfig(steps=4, order="raster", plan="gamma", guidance=1.0, remask="cap", remask_eta=1.0),
    DecodeConfig(steps=3, temperature=0.5, temperature_end=2.0, top_k=4),
    DecodeConfig(
        **dict(steps=8, plan="gamma", schedule="cosine", guidance_ramp="interval", guidance_from=0.4, guidance_to=0.8),
        **dict(remask="cap", remask_eta=0.4, remask_pick="confidence", remask_from=0.2, remask_to=0.8, remask_loop=True),
    ),
]


@pytest.mark.parametrize("cfg", TWINS, ids=lambda cfg: f"{cfg.order}-{cfg.guidance_ramp}-{cfg.remask}")
def test_fori_and_unrolled_loops_equal_plain_python(cfg):
    labels, keys, tokens = batch()
    noise = draws(keys, cfg.steps, LENGTH)
    expected = twin(Stub(), labels, noise, cfg, tokens)
    for loop in ("fori", "unrolled"):
        now = dataclasses.replace(cfg, loop=loop, draw="gumbel")
        out = decode(Headed(), ClassCondition(labels), jax.random.clone(keys), now, tokens)
        np.testing.assert_array_equal(out, expected, err_msg=loop)


# Every order, ramp and remasking rule, and (in the test) every plan and schedule; orders see no guidance and plans
# neither.
MIXED = [
    DecodeConfig(steps=6, order=order, guidance_ramp=ramp, remask=remask, remask_eta=0.4, guidance_from=0.5)
    for order, ramp, remask in zip(ORDERS, GUIDANCE_RAMPS, (None, *REMASK_RULES, None, "cap"))
]
MIXED[1] = dataclasses.replace(MIXED[1], steps=8, remask_pick="confidence", remask_from=0.3, remask_to=0.7, remask_loop=True)


@pytest.mark.parametrize("cfg", MIXED, ids=lambda cfg: f"{cfg.order}-{cfg.guidance_ramp}-{cfg.remask}")
def test_decode_keeps_given_tokens_and_reveals_each_token_once(cfg):
    labels, keys, tokens = batch(b=6)
    loop, start = jax.jit(decode_loop, static_argnums=(5, 6, 7), compiler_options=HASTY), np.asarray(tokens)
    assert (start == CODES).all(axis=1).any() and (start != CODES).all(axis=1).any()  # all masked, and none
    window = remask_steps(cfg.steps, cfg.remask_from, cfg.remask_to)
    for plan, schedule in itertools.product(PLANS, SCHEDULES):
        pause = window if cfg.remask_loop else (0, 0)
        counts = reveal_counts(plan, schedule, cfg.steps, (start == CODES).sum(axis=1), hold_steps=pause)
        again = remask_counts(cfg.remask, cfg.remask_eta, counts, LENGTH, window) if cfg.remask else np.zeros_like(counts)
        canvases, _ = loop(Stub(), ClassCondition(labels), jax.random.clone(keys), tokens, counts, cfg, GRID, True)
        before = start
        for i, canvas in enumerate(np.asarray(canvases)):
            was, now = before == CODES, canvas == CODES
            np.testing.assert_array_equal(canvas[start != CODES], start[start != CODES])
            np.testing.assert_array_equal((was & ~now).sum(axis=1), counts[:, i] + again[:, i])
            np.testing.assert_array_equal((~was & now).sum(axis=1), again[:, i])
            kept = ~was & ~now
            np.testing.assert_array_equal(canvas[kept], before[kept])
            before = canvas
        assert before.min() >= 0 and before.max() < CODES
    assert cfg.remask is None or np.asarray(again).sum() > 0


@pytest.mark.parametrize(
    "steps, order", [(1, "confidence"), (2, "random"), (12, "halton"), (13, "raster"), *((256, order) for order in ORDERS)]
)
def test_decode_fills_the_canvas_for_any_number_of_steps(steps, order):
    labels, keys, tokens = batch(b=5)
    cfg = DecodeConfig(steps=steps, order=order, guidance=1.0, remask="rescale", remask_eta=0.5, remask_pick="confidence")
    loop = jax.jit(decode_loop, static_argnums=(5, 6), compiler_options=HASTY)
    for plan in PLANS:
        counts = reveal_counts(plan, "cosine", steps, (np.asarray(tokens) == CODES).sum(axis=1))
        out, _ = loop(Stub(), ClassCondition(labels), jax.random.clone(keys), tokens, counts, cfg, GRID)
        assert out.min() >= 0 and out.max() < CODES
        np.testing.assert_array_equal(out[tokens != CODES], tokens[tokens != CODES])


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["fori", "unrolled"])
def test_decode_is_the_same_alone_in_a_batch_and_on_eight_devices(loop):
    labels, keys, tokens = batch(b=8)
    cfg = DecodeConfig(steps=3, order="halton_rolled", remask="cap", remask_eta=0.3, temperature_end=0.5, loop=loop)
    cfg, clone = dataclasses.replace(cfg, remask_pick="confidence"), jax.random.clone
    together = np.asarray(decode(Headed(), ClassCondition(labels), clone(keys), cfg, tokens))
    for one in (slice(0, 1), slice(5, 6)):
        alone = decode(Headed(), ClassCondition(labels[one]), clone(keys[one]), cfg, tokens[one])
        np.testing.assert_array_equal(alone, together[one])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))  # noqa: E731
    seen = []
    for canvas in (split(tokens), None):
        whole = decode(Headed(), ClassCondition(labels), clone(keys), cfg, None if canvas is None else tokens)
        watched = decode(
            Headed(), ClassCondition(split(labels)), clone(keys), cfg, canvas, on_step=lambda i, x: seen.append((i, x))
        )
        assert len(watched.sharding.device_set) == 8
        np.testing.assert_array_equal(watched, whole)
    assert [i for i, _ in seen] == [1, 2, 3] * 2 and all(len(x.sharding.device_set) == 8 for _, x in seen)


@pytest.mark.parametrize("order", ORDERS)
def test_decode_of_every_order_and_plan_is_the_same_on_eight_devices(order):
    labels, keys, tokens = batch(b=8)
    cfg = DecodeConfig(steps=3, order=order, guidance=1.0, draw="gumbel")
    loop = jax.jit(decode_loop, static_argnums=(5, 6), compiler_options=HASTY)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    made = []
    for plan in PLANS:
        counts = reveal_counts(plan, "arccos", 3, (tokens == CODES).sum(axis=1))
        arguments = (ClassCondition(labels), jax.random.clone(keys), tokens, counts)
        whole, _ = loop(Stub(), *arguments, cfg, GRID)
        arguments = (arguments[0], jax.random.clone(keys), *arguments[2:])
        arguments = jax.device_put(arguments, NamedSharding(mesh, PartitionSpec("data")))
        spread, _ = loop(Stub(), *arguments, cfg, GRID)
        assert len(spread.sharding.device_set) == 8
        np.testing.assert_array_equal(spread, whole, err_msg=plan)
        made.append(np.asarray(whole).tobytes())
    assert len(set(made)) > 1  # the plans do differ


@pytest.mark.parametrize("loop, given", [("fori", True), ("fori", False), ("unrolled", False)])
def test_on_step_changes_no_token_and_compiles_one_program(loop, given):
    labels, keys, tokens = batch()
    tokens, cfg = (tokens if given else None), DecodeConfig(steps=3, guidance_ramp="interval", guidance_from=0.5, loop=loop)
    if given:  # a step needs more than the canvas to go on
        cfg = dataclasses.replace(cfg, steps=4, remask="cap", remask_eta=1.0, remask_pick="confidence")
    arguments = (Stub(), ClassCondition(labels))
    out = decode(*arguments, jax.random.clone(keys), cfg, tokens)
    seen = {}
    watched = decode(*arguments, jax.random.clone(keys), cfg, tokens, on_step=seen.__setitem__)
    traces = Stub.traces  # of a step of any number; later requests find it
    again = decode(*arguments, jax.random.clone(keys), cfg, tokens, on_step=lambda *_: None)
    assert Stub.traces == traces
    np.testing.assert_array_equal(again, out)
    np.testing.assert_array_equal(watched, out)
    canvases = decode_steps(*arguments, jax.random.clone(keys), cfg, tokens)
    np.testing.assert_array_equal(np.stack([seen[i] for i in range(1, cfg.steps + 1)]), canvases)


def test_on_step_is_refused_inside_a_jitted_function():
    labels, keys, _ = batch()
    run = jax.jit(lambda key: decode(Stub(), ClassCondition(labels), key, DecodeConfig(), on_step=print))
    with pytest.raises(ConfigError, match="on_step"):
        run(keys)


def test_unrolled_loop_computes_logits_only_where_tokens_may_be_masked():
    labels, keys, _ = batch()
    cfg = DecodeConfig(steps=4, plan="gamma", schedule="cosine", guidance_ramp="linear", loop="unrolled", draw="inverse")
    Headed.asked.clear()
    out = decode(Headed(), ClassCondition(labels), jax.random.clone(keys), cfg)
    assert Headed.asked == max_masked_per_step("gamma", "cosine", 4, LENGTH)[1:].tolist() == [11, 8, 4]
    fori = decode(Headed(), ClassCondition(labels), keys, dataclasses.replace(cfg, loop="fori"))
    np.testing.assert_array_equal(out, fori)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_max_masked_per_step_bounds_every_number_of_masked_tokens(plan, schedule):
    for steps in (1, 3, 8, 30):
        bound = max_masked_per_step(plan, schedule, steps, 24)
        counts = np.stack([reveal_counts(plan, schedule, steps, n) for n in range(25)])
        left = np.arange(25)[:, None] - np.cumsum(counts, axis=1) + counts
        assert (left <= bound).all() and (left == bound).any(axis=0).all()
        if steps == 1:
            continue
        paused = max_masked_per_step(plan, schedule, steps + 2, 24, (1, 3))
        np.testing.assert_array_equal(paused, bound[np.minimum([0, 1, 1, 1, *range(2, steps)], steps - 1)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "cfg",
    [
        LlamaConfig(codebook_size=16, num_classes=3, grid=(4, 4), width=32, depth=2, heads=2, mlp_width=48, mask_logit=True),
        BertConfig(codebook_size=16, num_classes=3, grid=(4, 4), width=32, depth=1, heads=2, mlp_width=32, mask_logit=True),
    ],
    ids=lambda cfg: type(cfg).__name__,
)
def test_networks_decode_the_same_tokens_in_both_loops(cfg):
    params = params_of(create(cfg, jax.random.key(0)))
    if isinstance(cfg, LlamaConfig):  # heads begin at zero, where every code is as likely
        params["head"] = {"kernel": jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape) / 4}
    else:
        params["head_bias"] = jax.random.normal(jax.random.key(1), params["head_bias"].shape)
    model, label = build(cfg, params), ClassCondition(jnp.arange(3, dtype=jnp.int32))
    fori, unrolled = (
        decode(model, label, jax.random.key(2), DecodeConfig(steps=3, plan="gamma", loop=loop)) for loop in ("fori", "unrolled")
    )
    np.testing.assert_array_equal(fori, unrolled)
    assert len(np.unique(fori)) > 4
    scanned = build(dataclasses.replace(cfg, layers="scan"), params)  # on a CPU, "auto" decodes with a list of layers
    assert unstack_layers(scanned) is scanned and len(unstack_layers(model).layers) == cfg.depth
    same = decode(scanned, label, jax.random.key(2), DecodeConfig(steps=3, plan="gamma", loop="fori"))
    np.testing.assert_array_equal(fori, same)


def test_auto_loop_is_chosen_by_platform():
    big, few = MIN_UNROLLED_CODES, DecodeConfig(steps=8)
    assert jax.default_backend() == "cpu" and unrolled(few, big)
    with target_platform("tpu"):  # a plan for another machine makes the choices of that machine
        assert not unrolled(few, big)
    assert unrolled(few, big)
    assert not unrolled(few, big - 1) and not unrolled(DecodeConfig(steps=MAX_UNROLLED_STEPS + 1), big)
    assert unrolled(DecodeConfig(steps=64, loop="unrolled"), 2) and not unrolled(DecodeConfig(steps=8, loop="fori"), big)


@pytest.mark.parametrize("kind, options", [(AdaLNConfig, {}), (MaskGITConfig, {"mlp_width": 32})])
def test_logits_at_positions_equal_those_of_all_positions(kind, options):
    """What the unrolled loop asks of those that the test above leaves out."""
    cfg = kind(codebook_size=16, num_classes=3, grid=(2, 2), width=32, depth=1, heads=2, **options)
    at = jnp.array([[3, 1]])

    def part_and_whole(model):
        hidden = model.hidden(jnp.array([[1, 16, 2, 16]]), ClassCondition(jnp.array([2], jnp.int32)), grid=(2, 2))
        return model.logits(hidden[:, at[0]], at), model.logits(hidden)[:, at[0]]

    part, whole = jax.jit(part_and_whole, compiler_options=HASTY)(create(cfg, jax.random.key(0)))
    np.testing.assert_allclose(part, whole, atol=1e-6)  # the same sums in a product of another size
    assert float(jnp.ptp(whole)) > 0.01


def test_guidance_ramps_run_the_unconditional_branch_only_where_the_scale_is_not_one():
    scales = lambda **options: guidance_scales(DecodeConfig(guidance=3.0, **options))  # noqa: E731
    np.testing.assert_allclose(scales(steps=5, guidance_ramp="cosine"), 1 + np.array([0, 2 - 2**0.5, 2, 2 + 2**0.5, 4]) / 2)
    power = scales(steps=4, guidance_ramp="power-cosine", guidance_power=1.0)
    np.testing.assert_allclose(power, [1, 2 - 2**-0.5, 2, 2 + 2**-0.5], rtol=1e-6)
    # eMIGM, 16 steps, guided while 0.15 < 1 - (i + 1) / 16 <= 0.35: steps 10 to 12 of 0..15.
    window = scales(steps=16, guidance_ramp="interval", guidance_from=0.65, guidance_to=0.85)
    assert np.flatnonzero(window == 3).tolist() == [10, 11, 12] and (np.delete(window, [10, 11, 12]) == 1).all()
    assert guided_runs(window) == [(0, 10, False), (10, 13, True), (13, 16, False)]
    assert guided_runs(scales(steps=8, guidance_ramp="interval")) == [(0, 8, True)]
    for ramp in GUIDANCE_RAMPS:
        assert guided_runs(guidance_scales(DecodeConfig(guidance=1.0, guidance_ramp=ramp))) == (
            [(0, 8, False)] if ramp != "linear" else [(0, 1, False), (1, 8, True)]
        )


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (3, 5), (16, 32), (24, 24), (64, 64)])
def test_halton_ranks_cover_any_grid_evenly(grid):
    ranks = halton_ranks(grid)
    np.testing.assert_array_equal(np.sort(ranks), np.arange(grid[0] * grid[1]))
    if min(grid) >= 16:  # any quarter of the canvas gets about a quarter of the first 64 tokens
        early = (ranks < 64).reshape(2, grid[0] // 2, 2, grid[1] // 2).sum(axis=(1, 3))
        assert early.min() >= 13 and early.max() <= 19, early


def test_remask_counts_equal_remdm():
    counts = np.array([[2, 3, 5], [0, 10, 0]])
    assert remask_counts("cap", 0.5, counts).tolist() == [[0, 1, 0], [0, 0, 0]]
    assert remask_counts("cap", 1.0, counts).tolist() == [[0, 2, 0], [0, 0, 0]]
    assert remask_counts("rescale", 0.5, np.array([[8, 1, 1]])).tolist() == [[0, 0, 0]]  # half of one left
    assert remask_counts("rescale", 1.0, np.array([[8, 1, 1]])).tolist() == [[0, 1, 0]]
    # 0.07 * 100 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996 in floating point; both are whole.
    for eta, expected in ((0.07, 7), (0.29, 29)):
        assert remask_counts("cap", eta, np.array([[100, 50, 106]]))[0, 1] == expected
    with pytest.raises(ConfigError, match="remask"):
        remask_counts("loop", 0.5, counts)


def test_remask_loop_equals_remdm_by_hand():
    """20 steps, t_on 0.55, t_off 0.05, a linear schedule: 9 plain steps to alpha 0.9, 10 that correct,
    and the last one."""
    window = remask_steps(20, 0.45, 0.95)
    assert window == (9, 19)
    counts = reveal_counts("gamma", "linear", 20, 100, hold_steps=window)
    assert counts.tolist() == [10] * 9 + [0] * 10 + [10]
    # sigma = min(0.02, 0.1 / 0.9) of 90 tokens; rescale: 0.5 * 0.1 / 0.9 of them.
    assert remask_counts("cap", 0.02, counts[None], 100, window)[0].tolist() == [0] * 9 + [1] * 10 + [0]
    assert remask_counts("rescale", 0.5, counts[None], 100, window)[0].tolist() == [0] * 9 + [5] * 10 + [0]
    # From the middle on (ReMDM-switch): 10, 10, ... of which sigma = 1 hides all it may, as many as stay masked.
    window = remask_steps(10, 0.5, 1.0)
    assert window == (5, 9) and remask_steps(1, 0.0, 1.0) == (1, 1) and remask_steps(2, 0.0, 1.0) == (1, 1)
    counts = reveal_counts("gamma", "linear", 10, 100)
    assert remask_counts("cap", 1.0, counts[None], 100, window)[0].tolist() == [0] * 5 + [40, 30, 20, 10, 0]


def test_remask_scores_prefer_less_probable_tokens():
    """ReMDM-conf: token k goes first with probability exp(-psi_k) / sum, here 0.212, 0.316, 0.472."""
    sure = jnp.tile(jnp.array([[0.9, 0.5, 0.1]]), (20_000, 1))
    scores = jax.jit(remask_scores, static_argnums=1)(jax.random.split(jax.random.key(0), 20_000), 3, sure)
    share = np.bincount(np.asarray(scores).argmax(axis=1), minlength=3) / 20_000
    np.testing.assert_allclose(share, [0.2120, 0.3162, 0.4718], atol=0.012)  # 3.4 standard deviations


def count_of(jaxpr, name):
    """How often a primitive stands in a program and the programs inside it."""
    found = 0
    for eqn in jaxpr.eqns:
        parts = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns"))
        inner = [getattr(x, "jaxpr", x) for x in parts if hasattr(x, "jaxpr") or hasattr(x, "eqns")]
        found += (eqn.primitive.name == name) + sum(count_of(x, name) for x in inner)
    return found


def test_disabled_options_add_no_operations():
    labels, keys, tokens = batch()

    def counts(**options):
        cfg = DecodeConfig(steps=3, draw="gumbel", **options)
        inputs = Stub(), ClassCondition(labels), keys, tokens, tokens, None, None
        jaxpr = masked._decode.trace(*inputs, cfg=cfg, grid=GRID, trajectory=False).jaxpr.jaxpr
        return [count_of(jaxpr, name) for name in ("random_bits", "sort", "exp")]

    off, even, unsure = counts(), counts(remask="cap"), counts(remask="cap", remask_pick="confidence")
    assert off[:2] == [2, 1] and even[:2] == unsure[:2] == [3, 2]  # the draw and the confidence's noise, ranked once
    assert unsure[2] == even[2] + 1 == off[2] + 1  # only the rule that looks at it keeps the probability
