"""Images of several sizes in one padded batch: each has the loss and the tokens that it has alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgil_jax.conditioning import ClassConditioner
from maskgil_jax.config import ORDERS, ConfigError, DecodeConfig, LlamaConfig
from maskgil_jax.decoding.masked import _decode, decode, decode_steps, decode_stream
from maskgil_jax.models.condition import ClassCondition, SizedCondition, TextCondition, take
from maskgil_jax.networks import build, create, params_of
from maskgil_jax.training.generator import Objective, gradients, jitted_step
from maskgil_jax.training.losses import corrupt
from maskgil_jax.training.optimizer import make_optimizer
from maskgil_jax.training.state import init_state

CFG = LlamaConfig(codebook_size=32, num_classes=3, grid=(4, 4), width=32, depth=2, heads=2, mlp_width=48, dropout=0.0)
SIZES = [(4, 4), (2, 8), (3, 4), (8, 1), (2, 3)]
CANVAS = 16


def params_with_head(cfg):
    params = params_of(create(cfg, jax.random.key(0)))
    params["head"]["kernel"] = 0.3 * jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    return params


@pytest.fixture(scope="module")
def params():
    return params_with_head(CFG)


def sized(rows=slice(None), sizes=SIZES):
    rows_b, columns_b = np.array(sizes, np.int32).T
    condition = SizedCondition(ClassCondition(jnp.arange(len(sizes)) % 3), jnp.asarray(rows_b), jnp.asarray(columns_b))
    return take(condition, rows)


def tokens(key=2):
    return jax.random.randint(jax.random.key(key), (len(SIZES), CANVAS), 0, 33)


def test_padded_canvas_gives_the_logits_of_each_images_own_grid(params):
    network, together = build(CFG, params), jax.jit(build(CFG, params))(tokens(), sized())
    for i, (rows, columns) in enumerate(SIZES):
        own = network(tokens()[i : i + 1, : rows * columns], ClassCondition(jnp.array([i % 3])), grid=(rows, columns))
        np.testing.assert_allclose(together[i, : rows * columns], own[0], atol=3e-6)


def test_padding_content_changes_no_logit(params):
    network = build(CFG, params)
    valid = np.arange(CANVAS)[None] < np.prod(SIZES, axis=1)[:, None]
    other = jnp.where(valid, tokens(), tokens(5))
    first, second = network(tokens(), sized()), network(other, sized())
    np.testing.assert_array_equal(np.asarray(first)[valid], np.asarray(second)[valid])


def test_corrupt_masks_a_fraction_of_each_images_own_tokens():
    count = np.prod(SIZES, axis=1)
    valid = jnp.asarray(np.arange(CANVAS)[None] < count[:, None])
    for seed in range(20):
        inputs, mask = corrupt(jax.random.key(seed), tokens() % 32, mask_id=32, valid_bl=valid)
        assert not (mask & ~valid).any() and (mask.sum(axis=1) >= 1).all() and (mask.sum(axis=1) <= count).all()
        np.testing.assert_array_equal(mask, inputs == 32)


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [1, 4])
def test_loss_of_a_mixed_batch_is_the_sum_of_the_losses_alone(params, chunks):
    objective = Objective(loss_chunks=chunks, unmasked_weight=0.5, class_dropout=0.0)
    valid = jnp.asarray(np.arange(CANVAS)[None] < np.prod(SIZES, axis=1)[:, None])
    codes = tokens() % 32
    mask = jax.random.bernoulli(jax.random.key(3), 0.6, codes.shape) & valid
    part = {"inputs": jnp.where(mask, 32, codes), "targets": codes, "mask": mask, "condition": sized(), "key": None}
    sums = jax.jit(lambda: gradients(params, part, CFG, objective)[1])()
    alone = [
        gradients(
            params,
            {**{n: part[n][i : i + 1] for n in ("inputs", "targets", "mask")}, "condition": one, "key": None},
            CFG,
            objective,
        )[1]
        for i, one in ((i, sized(slice(i, i + 1))) for i in range(len(SIZES)))
    ]
    for name in ("loss_sum", "weight_sum", "masked", "unmasked", "masked_hits"):
        np.testing.assert_allclose(sums[name], sum(float(one[name]) for one in alone), rtol=1e-5)
    assert float(sums["masked"] + sums["unmasked"]) == np.prod(SIZES, axis=1).sum()


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_decode_gives_each_image_of_a_mixed_batch_the_tokens_it_has_alone(params, guidance):
    network, cfg = build(CFG, params), DecodeConfig(steps=4, guidance=guidance)
    keys = jax.random.split(jax.random.key(4), len(SIZES))
    together = decode(network, sized(), jax.random.clone(keys), cfg)
    for i, (rows, columns) in enumerate(SIZES):
        alone = decode(network, sized(slice(i, i + 1)), keys[i : i + 1], cfg)
        np.testing.assert_array_equal(together[i], alone[0])
        assert (together[i, : rows * columns] < 32).all() and not together[i, rows * columns :].any()


@pytest.mark.slow
def test_decode_plans_the_steps_on_each_images_own_tokens(params):
    steps = decode_steps(build(CFG, params), sized(), jax.random.key(0), DecodeConfig(steps=3, plan="gamma", guidance=1.0))
    left = np.asarray((steps == 32).sum(axis=2))
    for i, (rows, columns) in enumerate(SIZES):
        own = DecodeConfig(steps=3, plan="gamma", guidance=1.0)
        plain = decode_steps(
            build(dataclasses.replace(CFG, grid=(rows, columns)), params),
            ClassCondition(jnp.zeros(1, int)),
            jax.random.key(0),
            own,
        )
        np.testing.assert_array_equal(left[:, i], np.asarray((plain == 32).sum(axis=2))[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("order, mode", [*((order, "auto") for order in ORDERS), ("halton_rolled", "map")])
def test_decode_in_every_order_gives_the_tokens_of_each_images_own_grid(params, order, mode):
    sizes, network = [(4, 4), (2, 8), (8, 2), (16, 1), (1, 16)], build(CFG, params)
    cfg = DecodeConfig(steps=5, guidance=2.0, order=order, remask="cap", batch_mode=mode)
    keys = jax.random.split(jax.random.key(7), len(sizes))
    together = decode(network, sized(sizes=sizes), jax.random.clone(keys), cfg)
    for i, grid in enumerate(sizes):
        own = decode(network, ClassCondition(jnp.array([i % 3])), keys[i : i + 1], cfg, grid=grid)
        np.testing.assert_array_equal(together[i], own[0], err_msg=str(grid))


@pytest.mark.parametrize("order", ORDERS)
def test_decode_in_every_order_leaves_padding_as_it_is_with_one_program_for_all_sizes(params, order):
    network, cfg = build(CFG, params), DecodeConfig(steps=4, guidance=1.0, order=order)
    keys, compiled = jax.random.split(jax.random.key(4), len(SIZES)), []
    for sizes in (SIZES, SIZES[::-1], [(5, 3)] * len(SIZES)):
        whole = decode(network, sized(sizes=sizes), jax.random.clone(keys), cfg)
        compiled.append(_decode._cache_size())
        for step, canvas in decode_stream(network, sized(sizes=sizes), jax.random.clone(keys), cfg):
            for tokens_l, (rows, columns) in zip(np.asarray(canvas), sizes, strict=True):
                assert not tokens_l[rows * columns :].any(), step
        np.testing.assert_array_equal(canvas, whole)
        assert (np.asarray(whole) < 32).all()
    assert compiled[0] + 1 == compiled[1] == compiled[2], "the program of `decode_stream` is the other one"


@pytest.mark.parametrize("order", [name for name, order in ORDERS.items() if order.ranks])
@pytest.mark.parametrize("length", [6, 36, 64, 256])
def test_ranks_of_sizes_are_those_of_each_grid(order, length):
    order = ORDERS[order]
    grids = [(rows, columns) for rows in range(1, length + 1) for columns in range(1, length // rows + 1)]
    grids = grids if length < 200 else [*grids[:: len(grids) // 40], (16, 16), (1, 256), (256, 1), (2, 128)]
    ranks = np.asarray(jax.jit(order.ranks_of_sizes, static_argnums=2)(*np.array(grids, np.int32).T, length))
    for ranks_l, grid in zip(ranks, grids, strict=True):
        np.testing.assert_array_equal(ranks_l[: np.prod(grid)], order.ranks(grid), err_msg=str(grid))


def test_train_step_compiles_once_for_any_mix_of_sizes():
    tx = make_optimizer(
        type(
            "Options",
            (),
            dict(
                learning_rate=1e-3,
                beta1=0.9,
                beta2=0.96,
                weight_decay=0.0,
                decay_on="matrices",
                clip_norm=1.0,
                warmup_steps=0,
                decay="constant",
                ema_decay=0.0,
            ),
        ),
        4,
    )
    state = jax.jit(init_state(lambda key: params_of(create(CFG, key)), tx, ema=False))(jax.random.key(0))
    step = jitted_step(CFG, Objective(), tx, lambda _: 1e-3, 0.0, None, conditioner=ClassConditioner(("a", "b", "c")))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(SIZES))
        rows, columns = np.array(SIZES, np.int32)[order].T
        batch = {
            "codes": tokens(seed).reshape(-1, 1, CANVAS) % 32,
            "label": jnp.arange(5) % 3,
            "rows": rows,
            "columns": columns,
        }
        state, metrics = step(state, jax.tree.map(jnp.asarray, batch), jax.random.key(1), None)
        assert np.isfinite(float(metrics["masked_loss"].compute()))
    assert step._cache_size() == 1


def test_text_prefix_and_sizes_are_masked_together(params):
    cfg = dataclasses.replace(CFG, condition="text", text_tokens=3, text_dim=8, prefix_rotation="identity")
    network = build(cfg, params_of(create(cfg, jax.random.key(0))))
    features = jax.random.normal(jax.random.key(1), (2, 3, 8))
    mask = jnp.array([[True, True, False], [True, False, False]])
    rows, columns = jnp.array([2, 4]), jnp.array([3, 4])
    first = network(tokens()[:2], SizedCondition(TextCondition(features, mask), rows, columns))
    changed = SizedCondition(TextCondition(jnp.where(mask[..., None], features, 7.0), mask), rows, columns)
    np.testing.assert_array_equal(first, network(tokens()[:2], changed))


PATCHED = dataclasses.replace(CFG, patch=2)
PATCHED_SIZES = [(4, 4), (2, 8), (4, 2), (8, 2), (2, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("canvas", [(4, 4), (1, 16), (2, 8)])
def test_patches_of_a_padded_canvas_give_the_logits_of_each_images_own_grid(canvas):
    params = params_with_head(PATCHED)
    together = jax.jit(lambda t, c: build(PATCHED, params)(t, c, grid=canvas))(tokens(), sized(sizes=PATCHED_SIZES))
    for i, (rows, columns) in enumerate(PATCHED_SIZES):
        own = build(PATCHED, params)(
            tokens()[i : i + 1, : rows * columns], ClassCondition(jnp.array([i % 3])), grid=(rows, columns)
        )
        np.testing.assert_allclose(together[i, : rows * columns], own[0], atol=3e-6)


@pytest.mark.slow
def test_loss_of_a_mixed_batch_of_patches_is_the_sum_of_the_losses_alone():
    params, objective = params_with_head(PATCHED), Objective(unmasked_weight=0.5, class_dropout=0.0)
    valid = jnp.asarray(np.arange(CANVAS)[None] < np.prod(PATCHED_SIZES, axis=1)[:, None])
    codes = tokens() % 32
    mask = jax.random.bernoulli(jax.random.key(3), 0.6, codes.shape) & valid
    part = {
        "inputs": jnp.where(mask, 32, codes),
        "targets": codes,
        "mask": mask,
        "condition": sized(sizes=PATCHED_SIZES),
        "key": None,
    }
    sums = jax.jit(lambda: gradients(params, part, PATCHED, objective)[1])()
    alone = []
    for i, (rows, columns) in enumerate(PATCHED_SIZES):
        own = {name: part[name][i : i + 1, : rows * columns] for name in ("inputs", "targets", "mask")}
        own |= {"condition": ClassCondition(jnp.array([i % 3])), "key": None}
        alone.append(gradients(params, own, PATCHED, objective, (rows, columns))[1])
    for name in ("loss_sum", "weight_sum", "masked", "unmasked", "masked_hits", "output_norm", "outputs"):
        np.testing.assert_allclose(sums[name], sum(float(one[name]) for one in alone), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_decode_with_patches_gives_each_image_the_tokens_it_has_alone(guidance):
    network, cfg = build(PATCHED, params_with_head(PATCHED)), DecodeConfig(steps=4, guidance=guidance)
    keys = jax.random.split(jax.random.key(4), len(PATCHED_SIZES))
    together = decode(network, sized(sizes=PATCHED_SIZES), jax.random.clone(keys), cfg)
    for i, (rows, columns) in enumerate(PATCHED_SIZES):
        alone = decode(network, sized(slice(i, i + 1), PATCHED_SIZES), keys[i : i + 1], cfg)
        np.testing.assert_array_equal(together[i], alone[0])
        assert (together[i, : rows * columns] < 32).all() and not together[i, rows * columns :].any()


@pytest.mark.parametrize(
    "size, words", [((3, 4), "3x4 tokens; sides must be multiples of patch 2"), ((4, 6), "4x6 tokens does not fit .* 16")]
)
def test_size_that_the_patch_or_the_canvas_does_not_allow_is_one_line(size, words):
    condition = SizedCondition(ClassCondition(jnp.zeros(1, jnp.int32)), *(jnp.array([side]) for side in size))
    with pytest.raises(ConfigError, match=words):
        decode(build(PATCHED, params_with_head(PATCHED)), condition, jax.random.key(0), DecodeConfig(steps=2))


def test_sizes_are_refused_where_positions_are_not_rows_and_columns(params):
    cfg = dataclasses.replace(CFG, positions="1d_shifted")
    with pytest.raises(ConfigError, match="positions"):
        build(cfg, params)(tokens(), sized())
