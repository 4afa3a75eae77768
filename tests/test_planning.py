"""What `maskgil plan` counts: FLOPs of programs that are known, loops and collectives in compiled text,
and a real step."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgil_jax import cli
from maskgil_jax.config import ConfigError, LlamaConfig
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.networks import build, create, params_of
from maskgil_jax.planning.chips import CHIPS, open_topology
from maskgil_jax.planning.flops import count_flops
from maskgil_jax.planning.hlo import Program
from maskgil_jax.planning.program import product_flops
from maskgil_jax.planning.report import Plan, as_text, bytes_needed, parts

# The form in which a TPU's compiler writes: layouts with parentheses, comments in tuples, cycles in the attributes.
TEXT = """HloModule jit_f, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %s = f32[]{:T(128)} add(%a, %b)
}

%fused (p0: bf16[8,16], p1: bf16[16,4]) -> bf16[8,4] {
  %p0 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[16,4]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[8,4]{1,0:T(8,128)(2,1)} convolution(%p0, %p1), dim_labels=bf_io->bf
}

%store (p0: f32[12,8], p1: f32[1,8], p2: s32[]) -> f32[12,8] {
  %p0 = f32[12,8]{1,0} parameter(0)
  %p1 = f32[1,8]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %d = f32[12,8]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)
  ROOT %bc = f32[12,8]{1,0} bitcast(%d)
}

%limit (carry: (s32[], /*index=1*/bf16[8,4])) -> pred[] {
  %carry = (s32[]{:T(128)}, /*index=1*/bf16[8,4]{1,0}) parameter(0)
  %n = s32[]{:T(128)} constant(12)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%body (carry: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %carry = (s32[], bf16[8,4]{1,0}) parameter(0)
  %m = bf16[8,4]{1,0} fusion(%x, %y), kind=kOutput, calls=%fused, backend_config={"window_config":{"estimated_cycles":"100"}}
  %r = f32[8]{0} all-reduce(%m), replica_groups={{0,1}}, to_apply=%sum
  %w = f32[12,8]{1,0} fusion(%m), kind=kLoop, calls=%store, backend_config={"window_config":{"estimated_cycles":"7"}}
  %v = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %y), kind=kOutput, calls=%fused
  %cs = (bf16[8,4]{1,0:T(8,128)S(1)}, bf16[8,4]{1,0}, u32[]{:S(2)}) copy-start(%m)
  %ss = ((bf16[8,4]{1,0}), bf16[2,4]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%m), slice={[0:2], [0:4]}
  %al = bf16[8,4]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %t = (s32[], bf16[8,4]{1,0}) tuple(%i, %m)
}

ENTRY %main (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %loop = (s32[], bf16[8,4]{1,0}) while(%t0), condition=%limit, body=%body, metadata={op_name="jit(f)/while"}
  %g = (f32[4]{0}, f32[8]{0}) all-gather-start(%p), dimensions={0}
  %gd = f32[8]{0} all-gather-done(%g)
  ROOT %e = f32[64]{0} exponential(%gd), backend_config={"window_config":{"estimated_cycles":"5"}}
}
"""


def test_hlo_program_multiplies_loop_bodies_by_their_trip_counts():
    program = Program(TEXT)
    assert program.cycles() == {"matrix products": 1200, "element-wise": 84, "exponential": 5}
    assert program.collectives() == {"all-reduce": (12, 12 * 32), "all-gather": (1, 32)}
    # In the loop the product writes 8*4*2 bytes, the sum 8*4, the store one row of 8*4; outside a gather and 64 floats.
    # The product %v, the copy and the slice stay on the chip.
    assert program.written_bytes() == 12 * (64 + 32 + 32) + 32 + 256


def test_hlo_instructions_have_the_part_of_their_scope():
    text = TEXT.replace(
        "calls=%fused, backend", 'calls=%fused, metadata={op_name="jit(f)/transpose(jvp(mlp))/dot"}, backend', 1
    )
    kernel = (
        '  %flash.3 = bf16[8,4]{1,0} custom-call(%m), custom_call_target="tpu_custom_call", backend_config={'
        '"custom_call_config":{"cost_estimate": {"flops": 394, "transcendentals": 5, "bytes_accessed": 8190}}}\n'
    )
    program = Program(text.replace("  ROOT %t =", kernel + "  ROOT %t ="))
    most_expensive = program.most_expensive()
    assert [(cycles, runs, i.part) for cycles, runs, i in most_expensive] == [
        (1200, 12, "mlp, backward"),
        (84, 12, "elsewhere, forward"),
        (5, 1, "elsewhere, forward"),
    ]
    assert parts(most_expensive) == {"mlp, backward": 1200, "elsewhere, forward": 89}
    assert program.kernels() == {"flash": (12, 12 * 394, 12 * 8190)}


def test_hlo_program_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        Program("HloModule nothing")


def test_count_flops_of_loops_and_products():
    weights = jnp.ones((3, 16, 16))

    def f(x):
        y, _ = jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, weights)
        return jax.lax.cond(y[0, 0] > 0, lambda v: v @ v.T, lambda v: v[:, :4] @ v[:, :4].T, y)

    count = count_flops(jax.make_jaxpr(f)(jnp.ones((4, 16))))
    assert count.products == 3 * 2 * 4 * 16 * 16 + 2 * 4 * 16 * 4
    assert count.others >= 3 * 4 * 16  # the tanh
    conv = jax.make_jaxpr(lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME"))(jnp.ones((2, 3, 8, 8)), jnp.ones((5, 3, 3, 3)))
    assert count_flops(conv).products == 2 * 2 * 5 * 8 * 8 * 3 * 9
    twice = jax.make_jaxpr(jax.grad(jax.checkpoint(lambda w: jnp.sum(jnp.sin(jnp.ones((4, 16)) @ w)))))(jnp.ones((16, 16)))
    assert count_flops(twice).products == 3 * 2 * 4 * 16 * 16  # forward, forward again, one gradient


def test_count_flops_refuses_while_loops():
    with pytest.raises(ValueError, match="unknown length"):
        count_flops(jax.make_jaxpr(lambda x: jax.lax.while_loop(lambda v: v < 9, lambda v: v + 1, x))(0))


def test_product_flops_equals_count_flops_on_a_network():
    cfg = LlamaConfig(codebook_size=64, num_classes=3, grid=(4, 4), width=32, depth=3, heads=2, mlp_width=64, layers="scan")
    params = params_of(create(cfg, jax.random.key(0)))
    tokens, condition = jnp.zeros((2, 16), jnp.int32), ClassCondition(jnp.zeros((2,), jnp.int32))
    jaxpr = jax.make_jaxpr(lambda p: build(cfg, p).hidden(tokens, condition))(params)
    counted = count_flops(jaxpr).products
    head = 2.0 * cfg.width * cfg.codebook_size * 2 * 17
    rotation = cfg.depth * 2 * 2.0 * 2 * 17 * cfg.width * cfg.head_dim  # the permutation of queries and keys
    assert counted == product_flops(cfg, 2) - head + rotation


def test_open_topology_checks_names():
    devices, chip = open_topology("cpu:4")
    assert len(devices) == 4 and chip is None
    for text, message in (("v9:4x4", "choose from v5e"), ("cpu:64", "JAX_NUM_CPU_DEVICES=64"), ("v5e:16", "ROWSxCOLUMNS")):
        with pytest.raises(ConfigError, match=message):
            open_topology(text)


def test_plan_estimates_equal_hand_computed_ones():
    plan = Plan(
        devices=4,
        images=8,
        peak=2**30,
        arguments=0,
        temporaries=0,
        fits=True,
        products=197e12,
        others=0.0,
        model_flops=98.5e12,
        written=819 * 10**9,
        collectives={"all-reduce": (1, 100 * 10**9), "all-gather": (1, 200 * 10**9)},
        cycles={"matrix products": 3 * 10**9},
        compile_seconds=1.0,
    )
    assert plan.roofline(CHIPS["v5e"]) == {"products": 1.0, "memory": 2.0, "links": 2.0}
    assert plan.cycle_seconds(CHIPS["v5e"]) == 2.0 and plan.utilisation(2.0, CHIPS["v5e"]) == 0.25

    assert plan.traffic() == 2 * 819 * 10**9
    found = plan.estimates(CHIPS["v5e"])
    assert found["roofline"] == {"seconds": 2.0, "mfu": 0.25} and found["cycles"] == {"seconds": 2.0, "mfu": 0.25}
    assert "cycles" not in dataclasses.replace(plan, cycles=None).estimates(CHIPS["v5e"])
    # A kernel counts as long as its bytes or products take at the peaks, here two seconds.
    kernels = dataclasses.replace(plan, kernels={"flash": (3, 394e12, 819)}, most_expensive=[(3, 2, "copy", "mlp", "f32[4] c")])
    assert kernels.cycle_seconds(CHIPS["v5e"]) == 4.0
    assert "flash 3 times" in as_text(kernels, CHIPS["v5e"], []) and "2 x copy, mlp: f32[4] c" in as_text(
        kernels, CHIPS["v5e"], []
    )
    # 4 devices work 2 s on 8 images: a second of one chip each.
    assert "1000.00 ms of one chip" in as_text(plan, CHIPS["v5e"], [("program", "p")])


def test_bytes_needed_parses_out_of_memory_errors():
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (1.88T) exceeds available"
    )
    assert bytes_needed(said) == int(1.88 * 2**40)
    assert bytes_needed("RESOURCE_EXHAUSTED: XLA:TPU compile. Used 18.50G of 15.75G hbm.") == int(18.5 * 2**30)
    assert bytes_needed("INTERNAL: Used 18.50G of 15.75G hbm") is None


@pytest.mark.slow
def test_plan_command_plans_a_run_file(tmp_path, capsys, monkeypatch):
    out = tmp_path / "plan.json"
    run = ["plan", "--config", "debug", "--config.batch_size=8", "--config.mesh.fsdp=2", "--json", str(out)]
    small = ["--config.model.width=32", "--config.model.heads=2", "--codebook-size", "64", "--config.decode.steps=2"]

    def planned(*more) -> tuple[int, dict, str]:
        code = cli.main([*run, *small, *more])
        figures = json.loads(out.read_text())
        assert figures["peak"] > 0 and 0.3 < figures["model_flops"] / figures["products"] < 1.2
        assert np.isfinite(figures["compile_seconds"])
        return code, figures, capsys.readouterr().out

    code, figures, text = planned("--topology", "cpu:8", "--config.mesh.tensor=2")
    assert code == 0 and figures["fits"] and "data=2 x fsdp=2 x tensor=2" in text and "parameters" in text
    # Look-up tables are gathered before they are used: else states arrive split over columns and are exchanged.
    assert figures["collectives"]["all-reduce"][0] >= 1 and "all-to-all" not in figures["collectives"]

    code, figures, text = planned("--topology", "cpu:4", "--decode", "8")
    assert code == 0 and figures["images"] == 8 and "an image" in text

    devices = jax.devices()[:1]
    tiny = dataclasses.replace(CHIPS["v5e"], memory=1000)
    monkeypatch.setattr("maskgil_jax.planning.chips.open_topology", lambda text: (devices, tiny))
    code, figures, text = planned("--topology", "cpu:1", "--decode", "1", "--config.mesh.fsdp=1", "--quick")
    assert code == 3 and not figures["fits"] and "DOES NOT FIT" in text
    assert figures["chip_memory"] == 1000 and figures["estimates"]["roofline"]["seconds"] > 0
