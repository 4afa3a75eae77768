"""Canvases other than the trained one, options by name, and watching a pipeline draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgil_jax import cli
from maskgil_jax.config import DECODE_PRESETS, BertConfig, ConfigError, DecodeConfig, LlamaConfig, VQConfig
from maskgil_jax.decoding.masked import decode
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.models.rope import angles_1d, angles_2d
from maskgil_jax.networks import build, create, params_of
from maskgil_jax.pipelines import jobs as batch_sampling
from maskgil_jax.pipelines import pipeline
from maskgil_jax.pipelines.pipeline import Pipeline, load

LLAMA = LlamaConfig(codebook_size=32, num_classes=3, grid=(4, 4), width=32, depth=1, heads=2, mlp_width=32)
VQ = VQConfig(channels=8, multipliers=(1, 1, 2, 2), res_blocks=1, latent_dim=8, codebook_size=32, codebook_dim=4, image_size=32)


def test_rope_interpolation_stays_within_trained_positions():
    trained, wide = angles_1d(16, 32, 1e4), angles_1d(32, 32, 1e4, 16, "interpolate")
    np.testing.assert_allclose(wide[::2], trained, atol=1e-12)
    assert wide.max() < trained.max() + trained[1].max()


def test_rope_ntk_keeps_the_fastest_and_slows_the_slowest_pair():
    plain, slowed = angles_1d(24, 32, 1e4), angles_1d(24, 32, 1e4, 16, "ntk")
    np.testing.assert_array_equal(slowed[:, 0], plain[:, 0])
    np.testing.assert_allclose(slowed[:, -1], plain[:, -1] / 1.5, rtol=1e-12)
    assert (slowed[1:, 1:] < plain[1:, 1:]).all()
    np.testing.assert_array_equal(angles_1d(24, 2, 1e4, 16, "ntk"), angles_1d(24, 2, 1e4))


@pytest.mark.parametrize("scaling", ["none", "interpolate", "ntk"])
def test_rope_scaling_changes_only_longer_sides(scaling):
    np.testing.assert_array_equal(angles_2d((8, 16), 64, 1e4, (16, 16), scaling), angles_2d((8, 16), 64, 1e4))
    wide, plain = angles_2d((16, 32), 64, 1e4, (16, 16), scaling), angles_2d((16, 32), 64, 1e4)
    np.testing.assert_array_equal(wide[:, :16], plain[:, :16])  # rows are as they were
    assert (wide[:, 16:] == plain[:, 16:]).all() == (scaling == "none")


@pytest.fixture(scope="module")
def params():
    params = params_of(create(LLAMA, jax.random.key(0)))
    params["head"] = {"kernel": jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape) / 4}
    return params


def variant(params, **options):
    return build(LlamaConfig(**{**LLAMA.__dict__, **options}), params)


@pytest.mark.parametrize("grid", [(6, 6), (4, 8), (2, 3)])
def test_llama_decodes_on_other_grids(params, grid):
    tokens = jax.random.randint(jax.random.key(4), (2, grid[0] * grid[1]), 0, 33)
    label = ClassCondition(jnp.array([0, 2], jnp.int32))
    logits = [
        np.asarray(variant(params, rope_scaling=kind)(tokens, label, grid=grid)) for kind in ("none", "interpolate", "ntk")
    ]
    larger = max(grid) > 4
    assert all(np.abs(a - b).max() > 1e-4 for a, b in ((logits[0], logits[1]), (logits[1], logits[2]))) == larger
    if larger:
        out = decode(variant(params, rope_scaling="ntk"), label, jax.random.key(0), DecodeConfig(steps=2), grid=grid)
        assert out.shape == tokens.shape and int(out.max()) < 32


def test_rope_scaling_refuses_one_dimensional_positions(params):
    label = ClassCondition(jnp.zeros(1, jnp.int32))
    numbered = variant(params, positions="1d_shifted")
    assert numbered(jnp.zeros((1, 16), jnp.int32), label).shape == (1, 16, 32)
    with pytest.raises(ConfigError, match=r"1d_shifted.*\(4, 4\) canvases, got \(4, 8\).*2-D positions"):
        decode(numbered, label, jax.random.key(0), DecodeConfig(steps=1), grid=(4, 8))
    with pytest.raises(ConfigError, match="rope_scaling: 'ntk' needs positions='2d'"):
        LlamaConfig(positions="1d_shifted", rope_scaling="ntk")
    with pytest.raises(ConfigError, match=r"rope_scaling.*interpolate, ntk"):
        LlamaConfig(rope_scaling="yarn")
    bert = create(
        BertConfig(codebook_size=32, num_classes=3, grid=(4, 4), width=32, depth=1, heads=2, mlp_width=32), jax.random.key(0)
    )
    with pytest.raises(ConfigError, match=r"learned positions exist for \(4, 4\) only, got \(6, 6\)"):
        decode(bert, label, jax.random.key(0), DecodeConfig(steps=1), grid=(6, 6))


@pytest.mark.slow
def test_load_sets_rope_scaling():
    assert load("demo").generator.cfg.rope_scaling == "none"
    assert load("demo", rope_scaling="ntk").generator.cfg.rope_scaling == "ntk"
    with pytest.raises(ConfigError, match="rope_scaling"):
        load("demo", rope_scaling="stretch")


@pytest.fixture(scope="module")
def drawer(params):
    return Pipeline(create(VQ, jax.random.key(2)), build(LLAMA, params), ("a", "b", "c"), DecodeConfig(steps=2))


@pytest.mark.slow
def test_pipeline_on_step_gives_the_same_images(drawer):
    seen = []
    images = drawer([0, 1, 2], seed=1, batch_size=2)
    watched = drawer([0, 1, 2], seed=1, batch_size=2, on_step=lambda step, tokens_bl: seen.append((step, tokens_bl)))
    np.testing.assert_array_equal(images, watched)
    assert [(step, x.shape) for step, x in seen] == [(1, (2, 16)), (2, (2, 16)), (1, (1, 16)), (2, (1, 16))]
    assert (seen[0][1] == 32).any() and not (seen[1][1] == 32).any()


def test_pipeline_takes_presets_by_name(drawer):
    assert len(set(DECODE_PRESETS.values())) == len(DECODE_PRESETS) == 7
    for label_cfg in ("paper", DECODE_PRESETS["paper"]):
        np.testing.assert_array_equal(drawer(1, cfg=label_cfg), drawer(1, cfg=DECODE_PRESETS["paper"]))
    assert (drawer(1, cfg="paper") != drawer(1)).any()
    with pytest.raises(ConfigError, match=r"preset: unknown value 'papper'.*Did you mean 'paper'"):
        drawer(1, cfg="papper")


def test_flags_win_over_the_preset_on_the_command_line(drawer, monkeypatch, tmp_path, capsys):
    asked = []

    def note(pipeline, labels, out, **_):
        asked.append(pipeline.cfg)

    monkeypatch.setattr(pipeline, "load", lambda path, **_: drawer)
    monkeypatch.setattr(batch_sampling, "sample_to_folder", note)
    command = ["sample", "--out", str(tmp_path), "--per-class", "1", "--no-grid"]
    assert cli.main([*command, "--preset", "halton", "--steps", "5", "--temperature-end", "0.5"]) == 0
    assert cli.main(command) == 0
    assert asked[0].steps == 5 and asked[0].order == "halton_rolled" and asked[0].temperature_end == 0.5
    assert asked[1] == drawer.cfg
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, "--preset", "best"])
    assert f"choose from {', '.join(DECODE_PRESETS)}" in capsys.readouterr().err
