"""What benchmarks.decode counts and compares; its figures themselves belong to a machine."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import convert_memory
from benchmarks.decode import measured, network_flops, networks
from maskgil_jax.config import DecodeConfig, LlamaConfig, VQConfig
from maskgil_jax.convert.main import planned
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.networks import create
from maskgil_jax.text_encoders.clip import read_text_config
from maskgil_jax.training.generator import Objective
from maskgil_jax.training.vq_losses import VQLossConfig


@pytest.fixture(scope="module")
def small():
    return networks("tiny", "small", "float32")


@pytest.mark.slow
def test_an_unrolled_loop_does_no_more_than_the_steps_need(small):
    generator, _ = small
    condition, cells, codes = ClassCondition(jnp.arange(2)), 64, 512
    ramp = dict(steps=4, plan="gamma", schedule="linear", guidance_ramp="interval", guidance_from=0.5)
    used, least = network_flops(generator, condition, DecodeConfig(loop="unrolled", **ramp))
    assert used == least
    plain, same = network_flops(generator, condition, DecodeConfig(loop="fori", **ramp))
    known = np.array([0, 16, 32, 48])  # at the start of each step: rows of logits that a plain loop makes for nothing
    branches = np.array([1, 2, 2, 2])
    assert same == least and plain - least == (branches * known).sum() * 2 * 2 * generator.cfg.width * codes
    assert cells == generator.cfg.grid[0] * generator.cfg.grid[1]


@pytest.mark.slow
def test_a_row_of_the_table(small):
    row = measured(*small, ClassCondition(jnp.arange(1)), DecodeConfig(steps=2), repeats=1)
    assert min(row["vq_s"], row["seconds"], row["cpu_s"]) > 0
    assert row["network_s"] == pytest.approx(row["seconds"] - row["sampling_s"] - row["vq_s"], abs=0.002)


@pytest.mark.slow
def test_the_pytorch_twin_has_the_same_networks(small):
    """Logits and images agree, and both of its loops fill a canvas with codes."""
    pytest.importorskip("torch")
    from benchmarks import torch_decode

    network, pixels = torch_decode.Llama(small[0]).eval(), torch_decode.Pixels(small[1]).eval()
    torch_decode.check(network, pixels, *small)
    small[0].head.kernel[...] += 1e-2 * jax.random.normal(jax.random.key(0), small[0].head.kernel.shape)
    with pytest.raises(AssertionError):
        torch_decode.check(network, pixels, *small)


def test_the_pytorch_training_twin_has_the_same_losses(monkeypatch):
    """A tokenizer with every kind of part, and a generator; one step of the twin changes its weights."""
    torch = pytest.importorskip("torch")
    from benchmarks import torch_train

    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    vq = VQConfig(
        channels=8, multipliers=(1, 2), res_blocks=1, latent_dim=8, codebook_size=16, norm_groups=4, patch=2, image_size=16
    )
    options = SimpleNamespace(learning_rate=1e-3, beta1=0.9, beta2=0.99, weight_decay=0.0, clip_norm=1.0, ema_decay=0.9)
    loss = VQLossConfig(l1=1.0, l2=1.0, perceptual=0.0, adversarial=0.0)
    step = torch_train.tokenizer_forms(create(vq, jax.random.key(0)), loss, options, batch=2)["PyTorch, eager"]
    before = step.module.codes.detach().clone()
    step()
    assert not torch.equal(before, step.module.codes)
    llama = LlamaConfig(codebook_size=16, num_classes=3, grid=(4, 6), patch=2, width=16, depth=2, heads=2, mlp_width=24)
    generator = create(llama, jax.random.key(0))
    generator.head.kernel[...] = jax.random.normal(jax.random.key(1), generator.head.kernel.shape)
    step = torch_train.generator_forms(generator, Objective(), options, batch=4)["PyTorch, eager"]
    before = step.module.network.tokens.weight.detach().clone()
    step()
    assert not torch.equal(before, step.module.network.tokens.weight)
    with pytest.raises(AssertionError, match=r"tokenizer: .*loss"):
        torch_train._check("tokenizer", 1.0, 1.01)


@pytest.mark.slow
def test_folder_of_the_conversion_benchmark_fits_together(tmp_path):
    assert convert_memory.write_folder(tmp_path) == pytest.approx(3.51e9, rel=0.01)
    config = json.loads((tmp_path / "text_encoder" / "config.json").read_text())
    assert read_text_config(config, "config.json") == convert_memory.TEXT
    options = {"text_tokens": convert_memory.TEXT.positions, "pooled_dim": convert_memory.TEXT.projection}
    plan = planned(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors", options=options)
    assert plan.cfg.grid == convert_memory.UVIT.grid and plan.cfg.pooled_dim == convert_memory.UVIT.pooled_dim
