"""The attention kernels, interpreted on this machine and lowered for a TPU,
against what XLA makes of the same formula."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding

from maskgil_jax.config import ADALN_PRESETS, BERT_PRESETS, ConfigError, LlamaConfig
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.models.experimental import flash_attention as attention
from maskgil_jax.models.experimental.flash_attention import ROWS, flash_attention, xla_attention
from maskgil_jax.models.layers import dot_product_attention, padded_attention
from maskgil_jax.models.rope import rotation_table
from maskgil_jax.networks import build, create, params_of
from maskgil_jax.planning.flops import count_flops
from maskgil_jax.runtime.mesh import AXES, make_mesh

GRID = (4, 4)


def table(head_dim, grid=GRID):
    return rotation_table(grid, head_dim, 10000.0, positions="2d", prefix=1, prefix_rotation="zero", class_position="first")


def arrays(b, l, d, dtype=jnp.float32):
    return [jax.random.normal(jax.random.key(i), (b, l, d)).astype(dtype) for i in range(4)]


def value_and_grads(attention, q, k, v, weight):
    def weighed(*qkv):
        out = attention(*qkv)
        return jnp.sum(out.astype(jnp.float32) * weight.astype(jnp.float32)), out

    return jax.value_and_grad(weighed, argnums=(0, 1, 2), has_aux=True)(q, k, v)


@pytest.mark.slow
@pytest.mark.parametrize(
    "head_dim, heads, causal",
    [(64, 4, False), (64, 4, True), (8, 3, False)],  # two groups of full lanes; heads that do not fill them
)
def test_kernels_agree_with_xla(head_dim, heads, causal):
    """To rounding in float32: sums are taken in another order, softmax is divided out after the product."""
    agree(arrays(2, 17, head_dim * heads), table(head_dim), head_dim, causal)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_kernels_split_long_sequences(monkeypatch, causal):
    """What a canvas of 32x32 does, with one of 14x14: parts of 128 queries, and blocks of fewer columns."""
    monkeypatch.setattr(attention, "SCORES", 1)
    monkeypatch.setattr(attention, "BLOCK", 1)
    assert attention._parts(197) == [slice(0, 128), slice(128, 197)] and attention._parts(129) == [slice(0, 129)]
    agree(arrays(1, 197, 256), table(64, (14, 14)), 64, causal)


def agree(x, *options):
    (_, out), grads = value_and_grads(lambda *qkv: flash_attention(*qkv, *options, interpret=True), *x)
    (_, wanted), wanted_grads = value_and_grads(lambda *qkv: xla_attention(*qkv, *options), *x)
    np.testing.assert_allclose(out, wanted, atol=2e-6)
    for grad, expected in zip(grads, wanted_grads, strict=True):
        np.testing.assert_allclose(grad, expected, atol=1e-5)


@pytest.mark.slow
def test_kernels_in_bfloat16_have_the_error_of_xla():
    options = (table(64), 64, False)
    x = arrays(2, 17, 128, jnp.bfloat16)
    (_, truth), true_grads = value_and_grads(lambda *qkv: xla_attention(*qkv, *options), *(y.astype(jnp.float32) for y in x))
    (_, out), grads = value_and_grads(lambda *qkv: flash_attention(*qkv, *options, interpret=True), *x)
    (_, usual), usual_grads = value_and_grads(lambda *qkv: xla_attention(*qkv, *options), *x)
    for mine, xla, true in zip((out, *grads), (usual, *usual_grads), (truth, *true_grads), strict=True):
        assert jnp.linalg.norm(mine - true) < 1.2 * jnp.linalg.norm(xla - true)


def test_kernels_are_sharded_over_images_and_heads():
    mesh, options = make_mesh(data=2, fsdp=2, tensor=2), (table(64), 64, False)
    x = arrays(4, 17, 256)
    _, alone = value_and_grads(lambda *qkv: flash_attention(*qkv, *options, interpret=True), *x)
    attention = functools.partial(flash_attention, rotation=options[0], head_dim=64, interpret=True)

    @functools.partial(jax.jit, in_shardings=NamedSharding(mesh, ROWS))
    def sharded(*x):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return value_and_grads(attention, *x)

    (_, out), grads = sharded(*x)
    assert out.sharding.spec == ROWS
    for grad, expected in zip(grads, alone, strict=True):
        np.testing.assert_allclose(grad, expected, atol=1e-5)


def test_kernels_refuse_a_tensor_axis_that_does_not_divide_the_heads():
    mesh, x = make_mesh(data=4, tensor=2), jax.ShapeDtypeStruct((4, 17, 192), jnp.float32)
    with (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        pytest.raises(ConfigError, match=r"whole heads of 64 .* 96 columns"),
    ):
        jax.eval_shape(functools.partial(flash_attention, rotation=table(64), head_dim=64, interpret=True), x, x, x)


CFG = LlamaConfig(
    codebook_size=32, num_classes=3, grid=GRID, width=32, depth=2, heads=2, mlp_width=64, layers="scan", qk_norm="per_head"
)


def gradients(cfg, params):
    tokens = jax.random.randint(jax.random.key(3), (2, 16), 0, 33)
    keys = jax.random.split(jax.random.key(4), 2)

    def loss(params):
        hidden = build(cfg, params).hidden(tokens, ClassCondition(jnp.zeros((2,), jnp.int32)), key_b=keys)
        return jnp.sum(jnp.sin(hidden))

    return loss, params


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"attention": "flash"}, {"remat": "dots"}, {"attention": "flash", "remat": "dots"}])
def test_remat_and_attention_options_change_no_gradient(changes):
    params = params_of(create(CFG, jax.random.key(0)))
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        wanted = jax.jit(jax.grad(gradients(CFG, params)[0]))(params)
        found = jax.jit(jax.grad(gradients(dataclasses.replace(CFG, **changes), params)[0]))(params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-5), found, wanted)  # gradients reach 100


def test_remat_dots_keeps_linear_maps_and_attention_outputs():
    """So the backward pass computes nothing again but the rotation of queries and keys, and the scores."""
    params = params_of(create(CFG, jax.random.key(0)))
    count = {
        remat: count_flops(
            jax.make_jaxpr(jax.grad(gradients(dataclasses.replace(CFG, remat=remat), params)[0]))(params)
        ).products
        for remat in ("none", "dots", "full")
    }
    rotation = 2 * 2.0 * 2 * 17 * 32 * 16
    scores = 2.0 * 2 * 17 * 17 * 32
    assert count["dots"] - count["none"] == CFG.depth * (rotation + scores)
    assert count["full"] > count["dots"]


@pytest.mark.parametrize("preset", [BERT_PRESETS["tiny"], ADALN_PRESETS["tiny"]], ids=["bert", "adaln"])
def test_remat_dots_recomputes_only_scores_in_other_networks(preset):
    cfg = dataclasses.replace(preset, codebook_size=32, num_classes=3, grid=GRID, depth=2)
    params = jax.eval_shape(lambda: params_of(create(cfg, jax.random.key(0))))
    count = {
        remat: count_flops(
            jax.make_jaxpr(jax.grad(gradients(dataclasses.replace(cfg, remat=remat), params)[0]))(params)
        ).products
        for remat in ("none", "dots")
    }
    assert count["dots"] - count["none"] == cfg.depth * 2.0 * 2 * 17 * 17 * cfg.width


@pytest.mark.slow
def test_flash_attention_lowers_to_kernels_on_a_tpu():
    cfg = LlamaConfig(codebook_size=32, num_classes=3, width=128, depth=1, heads=2, attention="flash", dtype="bfloat16")
    params = jax.eval_shape(lambda: params_of(create(cfg, jax.random.key(0))))
    tokens, condition = jnp.zeros((2, 256), jnp.int32), ClassCondition(jnp.zeros((2,), jnp.int32))

    def loss(params):
        return jnp.sum(build(cfg, params).hidden(tokens, condition).astype(jnp.float32))

    chip = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = AbstractMesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=chip)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(jax.grad(loss)).trace(params)
    assert traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") == 2
    assert "tpu_custom_call" not in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_flash_attention_refuses_unsupported_options():
    large = {"grid": (32, 32), "dtype": "bfloat16"}
    LlamaConfig(width=128, heads=4, attention="flash", **large)
    for changes in ({"kv_heads": 2}, {"condition": "text"}, {"grid": (24, 24)}, large | {"grid": (32, 33)}):
        with pytest.raises(ConfigError, match="attention"):
            LlamaConfig(width=128, heads=4, attention="flash", **changes)
    x = jax.ShapeDtypeStruct((1, 577, 128), jnp.float32)  # a larger canvas than the trained one
    with pytest.raises(ConfigError, match=r"at most 257 positions in float32, .* got 577"):
        jax.eval_shape(functools.partial(flash_attention, rotation=table(64, (24, 24)), head_dim=64), x, x, x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "masked", "causal"), [(17, False, False), (16, False, False), (17, True, False), (13, False, True)]
)
def test_padded_attention_equals_attention_without_padding(length, masked, causal):
    """What surrounds cuDNN's kernel: padding to its multiple and the masks of padded keys,
    here around XLA's attention."""
    q, k, v, weight = (x.reshape(2, length, 2, 16) for x in arrays(2, length, 32))
    mask = jax.random.bernoulli(jax.random.key(9), 0.7, (2, 1, length, length)).at[..., 0].set(True) if masked else None
    form = functools.partial(dot_product_attention, mask=mask, causal=causal)
    padded = functools.partial(padded_attention, mask=mask, causal=causal, implementation="xla")
    (_, wanted), wanted_grads = value_and_grads(form, q, k, v, weight)
    (_, found), found_grads = value_and_grads(padded, q, k, v, weight)
    assert found.shape == (2, length, 2, 16)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    for ours, theirs in zip(found_grads, wanted_grads):
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


def test_cudnn_attention_is_for_bfloat16_and_computed_by_xla_where_there_is_no_gpu():
    with pytest.raises(ConfigError, match=r'attention: "cudnn".*bfloat16.*float32'):
        LlamaConfig(attention="cudnn")
    small = dict(codebook_size=16, num_classes=3, grid=GRID, width=32, depth=1, heads=2, mlp_width=32, dtype="bfloat16")
    params = params_of(create(LlamaConfig(**small), jax.random.key(0)))
    tokens, condition = jnp.zeros((2, 16), jnp.int32), ClassCondition(jnp.arange(2))
    hidden = [build(LlamaConfig(**small, attention=form), params).hidden(tokens, condition) for form in ("xla", "cudnn")]
    np.testing.assert_array_equal(*(np.asarray(x, np.float32) for x in hidden))
