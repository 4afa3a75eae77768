"""Several tokens at one position of the generator (`LlamaConfig.patch`)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgil_jax.config import ConfigError, DecodeConfig, LlamaConfig
from maskgil_jax.decoding.masked import decode
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.models.layers import normal_init
from maskgil_jax.networks import abstract_params, create, flatten
from maskgil_jax.planning.program import product_flops

CFG = LlamaConfig(codebook_size=11, num_classes=3, grid=(4, 6), patch=2, width=32, depth=1, heads=2, mlp_width=48, dropout=0.0)


def network(cfg=CFG):
    model = create(cfg, jax.random.key(0))
    model.head.kernel[...] = normal_init(jax.random.key(1), model.head.kernel.shape)  # it starts at zero
    return model


def test_tokens_and_logits_of_a_patch_are_those_of_its_place():
    """Without the layers, logits depend on the tokens of the same 2x2 patch and on no others."""
    model = network()
    for branch in (model.layers.attn.o, model.layers.mlp.down):
        branch.kernel[...] = jnp.zeros(branch.kernel.shape)
    tokens = jax.random.randint(jax.random.key(2), (1, 24), 0, 11)
    condition = ClassCondition(jnp.zeros(1, jnp.int32))
    logits = jax.jit(lambda m, t: m(t, condition))(model, tokens)
    changed = jax.jit(lambda m, t: m(t, condition))(model, tokens.at[0, 2 * 6 + 3].add(1))  # row 2, column 3
    assert logits.shape == (1, 24, 11)
    differs = np.abs(logits - changed).max(axis=-1).reshape(4, 6) > 1e-6
    expected = np.zeros((4, 6), bool)
    expected[2:4, 2:4] = True
    np.testing.assert_array_equal(differs, expected)


def test_layers_see_all_patches_and_other_grids():
    model, condition = network(), ClassCondition(jnp.zeros(1, jnp.int32))
    for grid in ((4, 6), (2, 8)):
        tokens = jax.random.randint(jax.random.key(2), (1, grid[0] * grid[1]), 0, 11)
        run = jax.jit(lambda m, t, grid=grid: m(t, condition, grid=grid))
        assert (np.abs(run(model, tokens) - run(model, tokens.at[0, 0].add(1))).max(axis=-1) > 0).all()


@pytest.mark.slow
def test_sampling_fills_the_canvas_as_with_single_tokens():
    condition = ClassCondition(jnp.arange(3, dtype=jnp.int32))
    key = jax.random.key(3)
    for loop in ("fori", "unrolled"):
        made = decode(network(), condition, key, DecodeConfig(steps=4, guidance=2.0, loop=loop))
        assert made.shape == (3, 24)
        assert (made >= 0).all() and (made < 11).all()


def test_positions_are_a_quarter_and_so_are_the_products_of_the_layers():
    def kernels(cfg):
        return {name: leaf.size for name, leaf in flatten(abstract_params(cfg)).items() if name.endswith("kernel")}

    whole, sizes = sum(kernels(CFG).values()), kernels(CFG)
    expected = 7 * (2 * (whole - sizes["head/kernel"]) + 4 * 32 * 7) + 24 * 2 * sizes["head/kernel"]
    assert product_flops(CFG, 1) == expected


def test_defaults_add_no_parameters():
    names = flatten(abstract_params(dataclasses.replace(CFG, patch=1)))
    assert not any("expand" in name for name in names)
    assert names["tokens/embedding"].shape == (12, 32)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"patch": 0}, "patch: .*0"),
        ({"grid": (4, 5)}, r"grid: .*2.*\(4, 5\)"),
        ({"causal": True}, "patch: .*causal"),
        ({"patch": 3, "grid": (6, 6)}, "width: 32 .* 9"),
    ],
)
def test_impossible_patches_are_named(change, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(CFG, **change)


def test_a_canvas_that_cuts_a_patch_is_refused():
    with pytest.raises(ConfigError, match=r"grid: .*2.*\(3, 8\)"):
        network()(jnp.zeros((1, 24), jnp.int32), ClassCondition(jnp.zeros(1, jnp.int32)), grid=(3, 8))
