"""The objective and the update against the original trainer's numbers, and the promises of the generator's loop."""

import dataclasses
import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.gpt_weights import llama_config, published_params, recipe_getter
from helpers.recipe import GOLDEN, load_case

from maskgil_jax.conditioning import ClassConditioner
from maskgil_jax.config import ConfigError, LlamaConfig
from maskgil_jax.models.condition import ClassCondition, select
from maskgil_jax.networks import create, params_of
from maskgil_jax.runtime.mesh import global_batch, make_mesh
from maskgil_jax.training.generator import Objective, corrupt_batch, gradients, jitted_step
from maskgil_jax.training.losses import (
    best_class,
    chunked_cross_entropy,
    corrupt,
    drop_conditions,
    masked_cross_entropy,
    mean_metrics,
)
from maskgil_jax.training.optimizer import decay_mask, learning_rate, make_optimizer
from maskgil_jax.training.state import apply_gradients, init_state, sharded_init

SMALL = LlamaConfig(codebook_size=16, num_classes=3, grid=(4, 4), width=32, depth=2, heads=2, mlp_width=48)
CLASSES = ClassConditioner(("a", "b", "c"))


def optimizer_options(**changes):
    options = dict(
        learning_rate=1e-4,
        beta1=0.9,
        beta2=0.96,
        weight_decay=1e-5,
        decay_on="matrices",
        clip_norm=1.0,
        warmup_steps=0,
        decay="constant",
        ema_decay=0.0,
    )
    return types.SimpleNamespace(**(options | changes))


def test_loss_equals_the_published_one():
    golden = np.load(GOLDEN / "training/loss_fixed_logits.npz")
    logits, targets = jnp.asarray(golden["logits"]), jnp.asarray(golden["code"].reshape(2, -1), jnp.int32)
    mask = jnp.zeros(targets.shape, bool)

    def loss(x):
        return masked_cross_entropy(x, targets, mask, label_smoothing=0.1, unmasked_weight=1.0)[0]

    value, grads = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(grads, golden["dlogits"], atol=1e-7, rtol=1e-4)


def test_three_adamw_steps_equal_the_published_trainer():
    config, io = load_case("training/adamw_3steps")
    cfg = llama_config(config["hparams"])
    objective = Objective(unmasked_weight=1.0)  # its loss covers all tokens; its weight decay all parameters
    tx = make_optimizer(optimizer_options(decay_on="all"), 3)
    get = recipe_getter(config)
    params = jax.tree.map(jnp.asarray, published_params("maskgil", cfg, get))
    state = init_state(lambda key: params, tx, ema=False)(jax.random.key(0))

    @jax.jit
    def step(state, batch):
        grads, sums = gradients(state.params, batch, cfg, objective)
        return apply_gradients(state, grads, tx, 0.0), grads, sums

    for i in range(3):
        masked, code = (jnp.asarray(io[f"in.{n}{i}"].reshape(2, -1), jnp.int32) for n in ("masked", "code"))
        label = jnp.asarray(np.where(io[f"in.drop{i}"], cfg.num_classes, io[f"in.y{i}"]), jnp.int32)
        batch = {
            "inputs": masked,
            "targets": code,
            "mask": masked == cfg.mask_id,
            "condition": ClassCondition(label),
            "key": None,
        }
        batch["drop"] = jnp.zeros(len(label), bool)  # the labels are dropped already
        state, grads, sums = step(state, batch)
        np.testing.assert_allclose(mean_metrics(sums)["loss"], io["out.loss"][i], rtol=1e-5)
        np.testing.assert_allclose(optax.tree.norm(grads), io["out.grad_norm"][i], atol=3e-5)
        if i == 0:
            expected = published_params("maskgil", cfg, lambda name, shape: io[f"out.grad_step1.{name}"])
            chex.assert_trees_all_close(grads, expected, atol=2e-5, rtol=1e-4)
    expected = published_params("maskgil", cfg, lambda name, shape: io[f"out.step3.{name}"])
    chex.assert_trees_all_close(state.params, expected, atol=config["tolerance"]["params"]["atol"], rtol=1e-4)


@pytest.mark.parametrize("schedule", ["root", "linear", "square", "cosine", "arccos"])
def test_corrupt_masks_an_exact_number_at_random_positions(schedule):
    tokens = jnp.broadcast_to(jnp.arange(64, dtype=jnp.int32), (512, 64))
    inputs, mask = jax.jit(functools.partial(corrupt, schedule=schedule, mask_id=99))(jax.random.key(0), tokens)
    np.testing.assert_array_equal(np.asarray(inputs == 99), np.asarray(mask))
    np.testing.assert_array_equal(np.where(mask, tokens, inputs), tokens)
    counts = np.asarray(mask.sum(1))
    assert counts.min() >= 1 and counts.max() <= 64
    mean = {"root": 1 / 3, "linear": 1 / 2, "square": 2 / 3, "cosine": 2 / np.pi, "arccos": 2 / np.pi}[schedule]
    assert abs(counts.mean() / 64 - mean) < 0.05
    per_place = np.asarray(mask.mean(0))
    assert abs(per_place - per_place.mean()).max() < 0.1, "every place is hidden about equally often"


def test_corrupt_bernoulli_can_mask_nothing():
    tokens = jnp.zeros((256, 4), jnp.int32)
    mask = corrupt(jax.random.key(0), tokens, "arccos", 9, masking="bernoulli")[1]
    assert int(mask.sum(1).min()) == 0 and 0.5 < float(mask.mean()) < 0.75
    with pytest.raises(ConfigError, match=r"masking.*exakt.*exact, bernoulli"):
        corrupt(jax.random.key(0), tokens, "arccos", 9, masking="exakt")


def test_drop_conditions_has_the_given_rate():
    drop = drop_conditions(jax.random.key(0), 4000, 0.1)
    label = select(drop, ClassCondition(jnp.full(4000, 7)), ClassCondition(jnp.ones(4000, jnp.int32))).label_b
    assert set(np.unique(label)) == {1, 7} and abs(float((label == 7).mean()) - 0.1) < 0.02


def test_masked_cross_entropy_counts_masked_and_unmasked_separately():
    logits = jnp.log(jnp.asarray([[[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]]))
    targets, mask = jnp.asarray([[0, 2]]), jnp.asarray([[True, False]])
    loss, sums = masked_cross_entropy(logits, targets, mask, label_smoothing=0.0)
    means = mean_metrics(sums)
    np.testing.assert_allclose([loss, means["masked_loss"], means["unmasked_loss"]], -np.log([0.7, 0.7, 0.3]), rtol=1e-5)
    assert (float(means["masked_accuracy"]), float(means["unmasked_accuracy"])) == (1.0, 0.0)
    both, _ = masked_cross_entropy(logits, targets, mask, 0.0, unmasked_weight=0.5)
    np.testing.assert_allclose(both, (-np.log(0.7) - 0.5 * np.log(0.3)) / 1.5, rtol=1e-5)


def test_best_class_takes_the_first_of_equal_logits():
    logits = jnp.round(jax.random.normal(jax.random.key(0), (3, 40, 65)))  # many of them equal
    np.testing.assert_array_equal(best_class(logits), np.argmax(logits, axis=-1))


@pytest.mark.slow
def test_accumulated_gradients_equal_the_big_batch():
    params = params_of(create(SMALL, jax.random.key(0)))
    params["head"]["kernel"] = 0.1 * jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    codes = jax.random.randint(jax.random.key(2), (8, 16), 0, 16)

    @functools.partial(jax.jit, static_argnames="parts")
    def in_parts(parts):
        batch = corrupt_batch(jax.random.key(3), codes, ClassCondition(jnp.arange(8) % 3), SMALL, Objective())
        return gradients(params, batch, SMALL, Objective(accumulate=parts))

    grads, sums = in_parts(1)
    for parts in (2, 4):
        other, other_sums = in_parts(parts)
        chex.assert_trees_all_close((other, other_sums), (grads, sums), rtol=2e-4, atol=1e-7)


def test_chunked_cross_entropy_equals_masked_cross_entropy():
    params = params_of(create(SMALL, jax.random.key(0)))
    params["head"]["kernel"] = 0.1 * jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    codes = jax.random.randint(jax.random.key(2), (8, 16), 0, 16)

    @functools.partial(jax.jit, static_argnames="chunks")
    def in_chunks(chunks):
        objective = Objective(loss_chunks=chunks, unmasked_weight=0.3)
        batch = corrupt_batch(jax.random.key(3), codes, ClassCondition(jnp.arange(8) % 3), SMALL, objective)
        return gradients(params, batch, SMALL, objective)

    whole = in_chunks(1)
    chex.assert_trees_all_close(in_chunks(4), whole, rtol=2e-4, atol=1e-7)
    with pytest.raises(ConfigError, match=r"loss_chunks: 3 does not divide 16"):
        in_chunks(3)


def test_chunked_cross_entropy_never_holds_all_logits():
    hidden, head = jnp.ones((2, 64, 8)), jnp.ones((8, 4096))
    tokens = jnp.zeros((2, 64), jnp.int32), jnp.ones((2, 64), bool)

    def largest(chunks):
        grad = jax.grad(lambda h: chunked_cross_entropy(lambda x: x @ h, hidden, *tokens, chunks, 0.1, 0.0)["loss_sum"])
        return jax.jit(grad).lower(head).compile().memory_analysis().temp_size_in_bytes

    assert largest(16) < largest(1) / 4


def test_moment_dtype_bfloat16_halves_the_first_moment():
    params = {"head": {"kernel": jnp.ones((4, 4))}}
    state = make_optimizer(optimizer_options(moment_dtype="bfloat16"), 3).init(params)
    kinds = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim == 2]
    assert kinds == [jnp.bfloat16, jnp.float32]


def test_muon_orthogonalises_each_layer_and_leaves_the_rest_to_adamw():
    params = {"layers": {"attn": {"q": {"kernel": jnp.ones((2, 8, 4))}}}, "head": {"kernel": jnp.ones((4, 6))}}
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.ndim), p.shape), params)
    options = dict(learning_rate=1.0, weight_decay=0.0, clip_norm=0.0)
    updates, states = {}, {}
    for name in ("adamw", "muon"):
        tx = make_optimizer(optimizer_options(name=name, **options), 3)
        updates[name], states[name] = tx.update(grads, tx.init(params), params)
    # The first step of Adam is the sign of the gradient; that of optax's Muon has Nesterov momentum, which makes it
    # longer.
    head = updates["muon"]["head"]["kernel"] / updates["adamw"]["head"]["kernel"]
    np.testing.assert_allclose(head, head[0, 0], rtol=1e-4)
    for layer in updates["muon"]["layers"]["attn"]["q"]["kernel"]:
        # Newton-Schulz iterations bring singular values near 1; 0.2 sqrt(8) is the scale that gives an RMS of about
        # 0.2.
        np.testing.assert_allclose(np.linalg.svd(layer)[1] / (0.2 * 8**0.5), 1.0, atol=0.35)
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim == 3) for name, state in states.items()}
    assert sizes == {"adamw": 2 * 64, "muon": 64}  # no second moment


def test_muon_without_stacked_layers_is_an_error():
    with pytest.raises(ConfigError, match="muon is for networks with stacked layers"):
        make_optimizer(optimizer_options(name="muon"), 3).init({"head": {"kernel": jnp.ones((4, 4))}})


def test_weight_decay_excludes_norms_only():
    mask = decay_mask(params_of(create(SMALL, jax.random.key(0))))
    assert mask["layers"]["attn"]["q"]["kernel"] and mask["tokens"]["embedding"] and mask["head"]["kernel"]
    assert not mask["layers"]["attn_norm"]["scale"] and not mask["norm"]["scale"]


def test_learning_rate_warms_up_and_decays():
    rate = learning_rate(optimizer_options(learning_rate=1.0, warmup_steps=10, decay="cosine"), 110)
    np.testing.assert_allclose([rate(0), rate(9), rate(60), rate(110)], [0.1, 1.0, 0.5, 0.0], atol=1e-6)
    constant = learning_rate(optimizer_options(learning_rate=1.0), 10)
    assert constant(0) == constant(9) == 1.0


def test_ema_follows_the_parameters():
    tx = optax.sgd(1.0)
    state = init_state(lambda key: {"w": jnp.zeros(2)}, tx, ema=True)(jax.random.key(0))
    state = apply_gradients(state, {"w": -jnp.ones(2)}, tx, 0.9)
    np.testing.assert_allclose(state.params["w"], 1.0)
    np.testing.assert_allclose(state.ema["w"], 0.1, rtol=1e-6)
    assert state.averaged is state.ema


def one_run(steps, layout_of=None, **options):
    """A few steps of the real program on random codes; returns (program, losses)."""
    tx = make_optimizer(optimizer_options(learning_rate=1e-2, **options), steps)
    init = init_state(lambda key: params_of(create(SMALL, key)), tx, ema=False)
    mesh = layout_of and make_mesh(**layout_of)
    state, layout = sharded_init(init, jax.random.key(0), mesh) if mesh else (jax.jit(init)(jax.random.key(0)), None)
    step = jitted_step(SMALL, Objective(), tx, lambda count: 1e-2, 0.0, layout, conditioner=CLASSES)
    key, losses = jax.random.key(1), []
    for i in range(steps):
        codes = np.random.default_rng(i).integers(0, 16, (8, 4, 4), np.int32)
        batch = {"codes": codes, "label": np.arange(8, dtype=np.int32) % 3}
        batch = global_batch(batch, mesh) if mesh else jax.tree.map(jnp.asarray, batch)
        state, metrics = step(state, batch, jax.random.clone(key), None)
        losses.append(float(metrics["masked_loss"].compute()))
    return step, losses


def test_train_step_compiles_once():
    step, losses = one_run(3)
    assert step._cache_size() == 1 and len(set(losses)) == 3


def test_train_step_keeps_activations_sharded_over_the_batch():
    """Also where the parameters are split over all devices; looked for in the compiled program."""
    tx, mesh = make_optimizer(optimizer_options(), 1), make_mesh(data=1, fsdp=8)
    cfg = dataclasses.replace(SMALL, layers="scan")
    init = init_state(lambda key: params_of(create(cfg, key)), tx, ema=False)
    state, layout = sharded_init(init, jax.random.key(0), mesh)
    batch = global_batch({"codes": np.zeros((8, 4, 4), np.int32), "label": np.zeros(8, np.int32)}, mesh)
    step = jitted_step(cfg, Objective(), tx, lambda count: 1e-2, 0.0, layout, conditioner=CLASSES)
    text = step.lower(state, batch, jax.random.key(1), None).compile().as_text()
    assert "f32[1,17,32]" in text and "f32[8,17,32]" not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_train_step_losses_are_the_same_on_every_mesh(name):
    expected = one_run(3, name=name)[1]
    for layout in (dict(data=8), dict(data=2, fsdp=4), dict(data=2, fsdp=2, tensor=2), dict(data=1, tensor=8)):
        np.testing.assert_allclose(one_run(3, layout, name=name)[1], expected, atol=1e-5)
