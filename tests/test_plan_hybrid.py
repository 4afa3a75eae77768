"""Plans of hybrid decoding: the causal network's programs, and the times of every share made of them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from maskgil_jax import cli
from maskgil_jax.commands.run_files import read_run_file
from maskgil_jax.conditioning import TextConditioner
from maskgil_jax.config import CHAMELEON_PRESETS, VQ_PRESETS, ConfigError, LlamaConfig
from maskgil_jax.decoding.hybrid import causal_tokens
from maskgil_jax.networks import count_params
from maskgil_jax.planning.chips import CHIPS
from maskgil_jax.planning.flops import count_flops
from maskgil_jax.planning.hybrid import RATIOS, STEPS, HybridPlan, as_table, causal_program
from maskgil_jax.planning.program import decode_program, network_options
from maskgil_jax.planning.report import Plan, make_plan
from maskgil_jax.runtime.mesh import make_mesh
from maskgil_jax.text_encoders.abstract import abstract_text_encoder
from maskgil_jax.training.generator_data import encoder_options

TINY = dataclasses.replace(CHAMELEON_PRESETS["tiny"], dtype="bfloat16", grid=(8, 8))


def figures(arguments: int, cycles: float, temporaries: int = 0) -> Plan:
    counted = {"matrix products": int(cycles)}
    amounts = dict(products=1.0, others=0.0, model_flops=1.0, compile_seconds=0.0, written=0, collectives={})
    return Plan(1, 1, 0, True, **amounts, arguments=arguments, temporaries=temporaries, cycles=counted)


def test_seconds_of_shares_are_the_prompt_the_steps_and_masked_decoding():
    chip = CHIPS["v5e"]
    steps = figures(int(chip.bandwidth), STEPS * 2 * chip.clock, temporaries=7)  # a second at least, two by cycles
    found = HybridPlan(steps, figures(0, 3 * chip.clock), figures(5, 10 * chip.clock, 2), (8, 8), whole_rows=True)
    assert found.seconds(chip)["cycles"] == pytest.approx(
        {0.0: 10, 0.25: 3 + 2 * 16 + 10, 0.5: 3 + 2 * 32 + 10, 0.75: 3 + 2 * 48 + 10, 1.0: 3 + 2 * 63}
    )
    assert found.seconds(chip)["at least"][1.0] == pytest.approx(63, rel=1e-6)
    assert found.peak() == int(chip.bandwidth) + 5 + 7
    text = as_table(found, chip, [("program", "x")])
    assert "25% causal     45.00 s   -65.1%   (paper: -72.4%)" in text and "DOES NOT FIT" in text


@pytest.mark.parametrize("kernels", ["float", "int8"])
def test_causal_program_holds_the_weights_once_and_updates_the_cache_in_place(kernels):
    mesh = make_mesh(data=1, tensor=4, devices=jax.devices()[:4])
    cfg = dataclasses.replace(TINY, kernels=kernels)
    program = causal_program(cfg, mesh, 1, (8, 8), guided=True, steps=STEPS)
    params, token_b, cache = program.arguments
    assert token_b.shape == (2,) and cache.keys_bnshk.dtype == jnp.bfloat16
    assert params["layers"]["mlp"]["up"]["kernel"].dtype == (jnp.int8 if kernels == "int8" else jnp.bfloat16)
    assert cache.keys_bnshk.sharding.shard_shape(cache.keys_bnshk.shape)[3] == 1
    products = count_flops(program.traced().jaxpr).products
    weights = sum(leaf.size for leaf in jax.tree.leaves(params["layers"]) if leaf.ndim == 3 and leaf.shape[1] > 4)
    tokens, places = 2 * 2, cache.visible_bs.shape[1]  # two rows, a newline with every code
    attention, rotation = 4 * tokens * places * 32 * 2, 2 * tokens * 32 * 8 * 2 * 2
    assert products == STEPS * (2 * tokens * weights + attention + rotation + 2 * 2 * 32 * 64)
    plan = make_plan(program, 4, None)
    shares = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(cache)]
    assert plan.arguments > 2 * 2 * sum(shape[1] * shape[2] * shape[3] * shape[4] for shape in shares if len(shape) == 5)


def test_causal_program_refuses_networks_of_classes():
    cfg = LlamaConfig(codebook_size=16, num_classes=3, grid=(4, 4), width=32, depth=1, heads=2, causal=True)
    with pytest.raises(ConfigError, match="--ar: a network that is conditioned on text"):
        causal_program(cfg, make_mesh(data=1, devices=jax.devices()[:1]), 1, (4, 4), guided=True, steps=1)


@pytest.mark.slow
def test_plan_command_says_what_ar_needs(capsys):
    plan = ["plan", "--config", "configs/debug.py", "--topology", "cpu:1"]
    for more, said in {
        "--ar chameleon:7B": "--ar: needs --decode BATCH",
        "--decode 1 --ar chameleon:7B": "--ar: needs a topology of TPUs",
    }.items():
        assert cli.main([*plan, *more.split()]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_run_file_of_the_papers_text_pair_plans_whole_rows_of_a_prefixed_network():
    config = read_run_file("configs/t2i_xl_512.py", ["--config.model.dtype=bfloat16"])
    ar, tokenizer = CHAMELEON_PRESETS["7B"], VQ_PRESETS["Chameleon"]
    options = encoder_options(config)
    encoder = abstract_text_encoder(**options)
    conditioner = TextConditioner(encoder.max_tokens, encoder.width, None, {})
    cfg = network_options(config, codebook_size=ar.codebook_size, conditioner=conditioner, downsample=tokenizer.downsample)
    assert (tuple(cfg.grid), cfg.prefix_tokens, cfg.patch, cfg.condition) == ((32, 32), 128, 1, "text")
    assert tokenizer.codebook_size == ar.codebook_size == cfg.codebook_size
    assert count_params(cfg) == pytest.approx(757e6, rel=2e-3) and count_params(ar) == pytest.approx(6779e6, rel=2e-3)
    program = decode_program(config, cfg, conditioner, make_mesh(data=1, devices=jax.devices()[:1]), tokenizer, 1)
    condition = program.arguments[2]
    assert jax.tree.leaves(condition)[0].shape == (1, 128, 2304)
    assert [causal_tokens(ratio, tuple(cfg.grid), True) for ratio in RATIOS] == [0, 8 * 32, 16 * 32, 24 * 32, 32 * 32]
