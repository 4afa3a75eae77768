"""aMUSEd's U-ViT and VQ tokenizer against diffusers' numbers, their files there and back, training and sharding."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.amused_golden import GOLDEN, LISTINGS, TINY, UVIT_FILE, UVIT_OPTIONS, VQ_FILE, channels_last, listing, uvit_case
from helpers.gpt_weights import published_params
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from maskgil_jax.checkpoints.weights import load_generator, load_tokenizer
from maskgil_jax.conditioning import conditioner_of
from maskgil_jax.config import UVIT_PRESETS, VQ_PRESETS, ConfigError, DecodeConfig, UViTConfig
from maskgil_jax.convert.main import convert, export_file
from maskgil_jax.convert.planner import make_plan
from maskgil_jax.convert.readers.checkpoint import BadWeightFile
from maskgil_jax.decoding.masked import decode
from maskgil_jax.models.condition import TextCondition
from maskgil_jax.networks import abstract_params, build, count_params, create, params_of
from maskgil_jax.runtime.mesh import make_mesh, shardings

LARGE = dataclasses.replace(TINY, downsample=True, res_blocks=2)


@pytest.fixture(scope="module")
def large():
    """The network with down and up sampling, with the reference's weights."""
    io = uvit_case("uvit_512_like")[3]
    return build(LARGE, published_params("amused", LARGE, lambda name, shape: io["w/" + name]))


def assert_near(got, expected, share=1e-5):
    np.testing.assert_allclose(got, expected, atol=share * np.abs(expected).max(), rtol=0)


def random_params(cfg):
    """Parameters of a new network, with random numbers where it starts at zero and would hide its blocks."""
    leaves, tree = jax.tree.flatten(params_of(create(cfg, jax.random.key(0))))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([leaf + 0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves)])


# ------------------------------------------------------------------------------------------------ the network
def test_uvit_with_downsampling_matches_reference(large):
    tokens, condition, logits, io = uvit_case("uvit_512_like")
    assert_near(large.text_norm(large.text(condition.features_btd)), io["d/encoder_proj_layer_norm"])
    assert_near(large.pooled(condition), io["d/cond_embed"])
    assert_near(jax.jit(lambda m, t, c: m(t, c))(large, tokens, condition), logits, 2e-5)


def test_uvit_without_downsampling_matches_reference_after_conversion(tmp_path):
    tokens, condition, logits, _ = uvit_case("uvit_256_like")
    done = convert(UVIT_FILE, tmp_path / "uvit", options=UVIT_OPTIONS)
    assert done.plan.name == "amused" and done.plan.cfg == TINY
    model = load_generator(tmp_path / "uvit")
    assert_near(jax.jit(lambda m, t, c: m(t, c))(model, tokens, condition), logits, 2e-5)


def test_uvit_mask_id_is_the_last_row_of_the_vocabulary():
    assert UVIT_PRESETS["256"].mask_id == 8255 and TINY.mask_id == 39


@pytest.mark.parametrize("changed", ["features_btd", "pooled_bp", "micro_bm"])
def test_every_part_of_the_condition_changes_the_logits(large, changed):
    tokens, condition, logits, _ = uvit_case("uvit_512_like")
    other = condition.replace(**{changed: getattr(condition, changed) * 1.5 + 1})
    assert float(jnp.abs(large(tokens, other) - logits).max()) > 1e-3


def test_uvit_refuses_wrong_conditions_and_grids(large):
    tokens, condition, _, _ = uvit_case("uvit_512_like")
    with pytest.raises(ConfigError, match="pooled_text-conditional, got TextCondition"):
        large(tokens, TextCondition(condition.features_btd, condition.mask_bt))
    with pytest.raises(ConfigError, match="expected a pooled text"):
        large(tokens, condition.replace(pooled_bp=condition.pooled_bp[:, :3]))
    with pytest.raises(ConfigError, match="even sides, got 7x4"):
        large(tokens[:, :28], condition, grid=(7, 4))
    with pytest.raises(ConfigError, match="guidance: a U-ViT holds no null text"):
        large.null_condition(condition)
    with pytest.raises(ConfigError, match="vocabulary"):
        UViTConfig(vocabulary=8192)
    with pytest.raises(ConfigError, match=r"grid: .*even"):
        UViTConfig(downsample=True, grid=(15, 16))


@pytest.mark.slow
def test_uvit_is_the_same_scanned_unrolled_and_rematerialised():
    tokens, condition, _, _ = uvit_case("uvit_512_like")
    params, outs, keys = random_params(LARGE), [], jax.random.split(jax.random.key(3), 2)
    for options in (dict(layers="scan", remat="dots"), dict(layers="unroll")):
        cfg = dataclasses.replace(LARGE, dropout=0.1, **options)

        def loss(p, cfg=cfg):
            return jnp.mean(build(cfg, p)(tokens, condition, key_b=jax.random.clone(keys)) ** 2)

        outs.append(jax.jit(jax.value_and_grad(loss))(params))
    chex.assert_trees_all_close(outs[1], outs[0], rtol=2e-3, atol=2e-5)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(outs[0][1])), "every parameter takes part"


@pytest.mark.slow
def test_uvit_decodes_other_grids_with_logits_at_masked_positions_only(large):
    _, condition, _, _ = uvit_case("uvit_512_like")
    cfg = DecodeConfig(steps=3, schedule="cosine", plan="gamma", guidance=1.0)
    made = {}
    for loop in ("fori", "unrolled"):
        cfg = dataclasses.replace(cfg, loop=loop)
        made[loop] = decode(large, condition, jax.random.key(0), cfg, grid=(4, 6))
    assert made["fori"].shape == (2, 24) and int(made["fori"].max()) < TINY.codebook_size
    np.testing.assert_array_equal(made["fori"], made["unrolled"])


@pytest.mark.slow
def test_uvit_in_bfloat16_gives_float32_logits():
    tokens, condition, _, _ = uvit_case("uvit_512_like")
    params = random_params(LARGE)
    narrow, wide = (build(dataclasses.replace(LARGE, dtype=dtype), params) for dtype in ("bfloat16", "float32"))
    assert jax.eval_shape(narrow.hidden, tokens, condition).dtype == jnp.bfloat16
    ours, reference = narrow(tokens, condition), wide(tokens, condition)
    assert ours.dtype == jnp.float32 and 0 < float(jnp.abs(ours - reference).max()) < 0.1 * float(jnp.abs(reference).max())


def test_uvit_parameters_all_have_a_sharding():
    layout = shardings(abstract_params(UVIT_PRESETS["512"]), make_mesh(data=2, fsdp=2, tensor=2))
    assert layout["layers"]["mlp"]["up"]["kernel"].spec == P(None, "fsdp", "tensor")


def test_pooled_text_conditioner_returns_conditions_and_refuses_prompts_without_an_encoder():
    _, condition, _, _ = uvit_case("uvit_512_like")
    conditioner = conditioner_of(TINY, {})
    assert conditioner.encode(condition) is condition
    shapes = [leaf.shape for leaf in jax.tree.leaves(condition)]
    assert [leaf.shape for leaf in jax.tree.leaves(conditioner.examples(2))] == shapes
    assert dataclasses.replace(TINY, **conditioner.network_options()) == TINY
    with pytest.raises(ConfigError, match="no text encoder is loaded"):
        conditioner.encode("a cat")
    with pytest.raises(ConfigError, match="expected text"):
        conditioner.encode(3)
    one = jax.tree.map(lambda leaf: leaf[:1], condition)
    encoded = dataclasses.replace(
        conditioner, encoder=lambda texts: one if texts == ["a cat"] else one.replace(pooled_bp=-one.pooled_bp)
    )
    found = encoded.encode("a cat")
    chex.assert_trees_all_equal(found.condition, one)
    chex.assert_trees_all_equal(found.negative.pooled_bp, -one.pooled_bp)


# ------------------------------------------------------------------------------------------------ the tokenizer
@pytest.mark.slow
def test_amused_tokenizer_matches_reference_after_conversion(tmp_path):
    done = convert(VQ_FILE, tmp_path / "vq")
    assert done.plan.name == "amused-vq" and done.plan.cfg.norm_groups == 8
    tokenizer = load_tokenizer(tmp_path / "vq")
    with np.load(GOLDEN / "vq" / "io.npz") as io:
        for i in range(2):
            images = jnp.asarray(channels_last(io[f"img{i}"]))
            assert_near(tokenizer.latents(images), channels_last(io[f"latents{i}"]), 2e-5)
            np.testing.assert_array_equal(tokenizer.encode(images), io[f"indices{i}"])
            assert_near(tokenizer.decode(jnp.asarray(io[f"indices{i}"])), channels_last(io[f"rec{i}"]), 2e-5)
            assert_near(tokenizer.decode(jnp.asarray(io[f"codes{i}"])), channels_last(io[f"dec{i}"]), 2e-5)


# ------------------------------------------------------------------------------------------------ files
PUBLISHED = {
    "amused_256_uvit": ("amused", UVIT_PRESETS["256"]),
    "amused_512_uvit": ("amused", UVIT_PRESETS["512"]),
    "amused_vqmodel": ("amused-vq", VQ_PRESETS["aMUSEd"]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_name_of_amused_is_used(name):
    plan, problems = make_plan(listing(name))
    assert problems == [] and not plan.ignored and (plan.name, plan.cfg) == PUBLISHED[name]
    assert plan.needed.keys() == listing(name).keys()
    assert plan.parameters == LISTINGS[name]["parameters"] == count_params(plan.cfg)


@pytest.mark.parametrize(
    "family,file,options", [("amused", UVIT_FILE, UVIT_OPTIONS), ("amused-vq", VQ_FILE, {})], ids=["uvit", "vq"]
)
def test_converted_files_come_back_byte_for_byte(family, file, options, tmp_path):
    convert(file, tmp_path / "weights", options=options)
    export_file(tmp_path / "weights", tmp_path / "back.safetensors", family)
    before, after = load_file(file), load_file(tmp_path / "back.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_conversion_compares_tensors_with_the_config_of_diffusers(tmp_path):
    (tmp_path / "config.json").write_text(
        (UVIT_FILE.parent / "config.json").read_text().replace('vocab_size": 40', 'vocab_size": 41')
    )
    save_file(load_file(UVIT_FILE), tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(BadWeightFile, match=r"config\.json says UVit2DModel\.vocab_size = 41, the file has 40"):
        convert(tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
