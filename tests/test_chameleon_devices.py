"""A Chameleon sharded over eight devices, and one with 8-bit weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.chameleon_files import golden, save_folder
from helpers.chameleon_pipeline import CFG, chameleon_params, save_chameleon
from jax.sharding import PartitionSpec as P

from maskgil_jax.checkpoints.placed import load_placed
from maskgil_jax.checkpoints.weights import load_weights, save_weights
from maskgil_jax.config import ConfigError
from maskgil_jax.convert.main import convert
from maskgil_jax.decoding.causal import decode_causal
from maskgil_jax.models.condition import TokenCondition
from maskgil_jax.models.int8 import quantize, quantize_layers
from maskgil_jax.networks import abstract_params, build, flatten, params_of
from maskgil_jax.pipelines.pipeline import load
from maskgil_jax.runtime.mesh import make_mesh

# Eight heads of width 8, so that a tensor axis of 8 devices splits the cache too.
WIDE = dataclasses.replace(CFG, width=64, heads=8, qk_norm_groups=1, mlp_width=64, depth=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_chameleon(tmp_path_factory.mktemp("wide") / "chameleon", WIDE)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [dict(tensor=8), dict(fsdp=2, tensor=4), dict(data=2, fsdp=2, tensor=2)])
def test_sharded_weights_give_the_same_tokens(folder, sizes):
    mesh = make_mesh(**({"data": 1} | sizes))
    one, many = load(folder), load(folder, mesh=mesh)
    layout = {name: leaf.sharding.spec for name, leaf in flatten(params_of(many.generator)).items()}
    assert layout["layers/attn/q/kernel"] == P(None, "fsdp", "tensor") and layout["head/kernel"] == P("fsdp", "tensor")
    for prompts in (["a red cat"], ["a red cat", "cat", "red", "the cat"]):
        count = -(-len(prompts) // (mesh.shape["data"] * mesh.shape["fsdp"]))
        assert many.request(len(prompts), 0, None, None)[1] == count * mesh.shape["data"] * mesh.shape["fsdp"]
        padded = prompts * (4 // len(prompts))
        condition = one.condition(prompts=padded)
        tokens = [pipeline.tokens(pipeline.shard(condition), jax.random.key(1)) for pipeline in (one, many)]
        np.testing.assert_array_equal(*tokens)
        assert (many(prompts=prompts, seed=2) == one(prompts=prompts, seed=2)).mean() > 0.99  # pixels round by one level


def test_cache_is_split_over_heads(folder):
    mesh = make_mesh(data=1, tensor=8)
    network = load(folder, mesh=mesh).generator
    condition = TokenCondition(jnp.zeros((2, 8), jnp.int32), jnp.ones((2, 8), bool))
    prefill = jax.jit(lambda network, tokens, condition: network.prefill(tokens, condition))
    _, cache = prefill(network, jnp.zeros((2, 0), jnp.int32), condition)
    assert cache.keys_bnshk.addressable_shards[0].data.shape[3] == 1


def test_load_placed_refuses_what_the_mesh_does_not_divide(tmp_path):
    folder = save_chameleon(tmp_path / "odd", dataclasses.replace(CFG, mlp_width=36))
    with pytest.raises(ValueError, match=r"layers/mlp/.*kernel: axis . of shape .* is not a multiple of mesh axis tensor=8"):
        load_placed(folder, "generator", mesh=make_mesh(data=1, tensor=8))


def test_load_placed_leaves_out_the_text_head(tmp_path):
    cfg = dataclasses.replace(CFG, text_head=True, dtype="bfloat16")
    save_weights(tmp_path / "both", cfg, chameleon_params(cfg))
    loaded = load_placed(tmp_path / "both")
    flat = flatten(loaded.params)
    assert not loaded.cfg.text_head and flat.keys() == flatten(abstract_params(loaded.cfg)).keys()
    kinds = {name.rsplit("/", 1)[-1]: leaf.dtype for name, leaf in flat.items()}
    assert kinds == {"kernel": jnp.bfloat16, "embedding": jnp.bfloat16, "scale": jnp.float32, "bias": jnp.float32}


def test_quantized_kernels_are_within_half_a_step_of_each_output():
    kernel = jax.random.normal(jax.random.key(0), (3, 40, 24)) * jnp.arange(1, 25)[None, None]
    whole, scale = quantize(kernel)
    assert whole.dtype == jnp.int8 and scale.shape == (3, 24)
    np.testing.assert_allclose(scale, jnp.abs(kernel).max(axis=1) / 127.5, rtol=5e-3)
    assert (jnp.abs(whole * scale[:, None] - kernel) <= 0.51 * scale[:, None]).all()


@pytest.mark.slow
def test_int8_layers_change_logits_by_little(tmp_path):
    """Root mean square of the change over the spread of the logits, with the weights of the reference network."""
    convert(save_folder(tmp_path / "hf", golden()[0]), tmp_path / "weights", options={"grid": (4, 4)})
    weights = load_weights(tmp_path / "weights")
    cfg = dataclasses.replace(weights.cfg, dtype="float32", text_head=False)
    params = {name: part for name, part in jax.tree.map(jnp.asarray, weights.params).items() if "text_head" not in name}
    narrow = build(dataclasses.replace(cfg, kernels="int8"), quantize_layers(params))
    ids = jax.random.randint(jax.random.key(1), (4, 20), 0, 64)
    exact, rounded = (n.logits(n.id_states(ids, jnp.ones(ids.shape, bool))) for n in (build(cfg, params), narrow))
    error = float(jnp.sqrt(jnp.mean((rounded - exact) ** 2) / jnp.var(exact)))
    assert 1e-4 < error < 0.03, error


def test_load_placed_quantises_as_quantize_layers(folder):
    loaded = flatten(load_placed(folder, "generator", kernels="int8").params)
    assert loaded["layers/mlp/up/kernel"].dtype == jnp.int8 and loaded["head/kernel"].dtype == jnp.float32
    for name, leaf in flatten(quantize_layers(chameleon_params(WIDE))).items():
        np.testing.assert_array_equal(loaded[name], leaf, name)


def test_int8_layers_decode_on_a_mesh(folder):
    one, many = load(folder, kernels="int8"), load(folder, kernels="int8", mesh=make_mesh(data=1, tensor=8))
    assert one.generator.cfg.kernels == "int8" == many.generator.cfg.kernels
    condition = jax.tree.map(jnp.asarray, one.condition(prompts=["a red cat"]))
    tokens = [decode_causal(p.generator, p.shard(condition), jax.random.key(1), p.cfg) for p in (one, many)]
    np.testing.assert_array_equal(*tokens)


def test_int8_without_qwix_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ConfigError, match=r"pip install 'maskgil_jax\[int8\]'"):
        quantize(jnp.ones((2, 2)))
