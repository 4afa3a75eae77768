"""LPIPS against the published code, from its own file and from inside a tokenizer's checkpoint,
and as a part of training."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.feature_network_weights import SCALING, lpips_network, lpips_state
from helpers.gpt_weights import published_tensors
from helpers.torch_names import generated, golden, state_hash
from safetensors.numpy import load_file, save_file

from maskgil_jax import cli
from maskgil_jax.checkpoints.weights import load_network
from maskgil_jax.config import ConfigError, LPIPSConfig
from maskgil_jax.convert.main import convert, export_file
from maskgil_jax.convert.readers.checkpoint import BadWeightFile
from maskgil_jax.models.lpips import _unit_channels

RTOL = 1e-5  # beside each value's own atol: ten times the reference's float32 error against float64
TINY = LPIPSConfig(channels=(4, 6, 8), convolutions=(1, 2, 3))


def nhwc(x):
    return jnp.asarray(x).transpose(0, 2, 3, 1)


@pytest.mark.slow
def test_lpips_matches_the_published_code():
    meta, arrays = golden("vq_losses", "lpips_vgg16")
    assert state_hash(lpips_state(meta["recipe"])) == meta["state_sha256"]
    lpips = lpips_network(meta["recipe"])
    a, b = (nhwc(generated(meta["generated"][n])) for n in "ab")
    distance = jax.jit(lambda m, x, y: (m(x, y), m.features(x)))
    for case, pair in {"lpips": (a, b), "lpips_ba": (b, a), "lpips_aa": (a, a)}.items():
        value, stages = distance(lpips, *pair)
        atol = max(meta["atol"][case], 1e-12)  # the two passes may be compiled apart: equal images differ by 1e-15, not 0
        np.testing.assert_allclose(value, arrays[f"out.{case}"].reshape(-1), RTOL, atol, err_msg=case)
        if case == "lpips":
            for stage, name in zip(stages, ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"), strict=True):
                flat = np.asarray(stage).transpose(0, 3, 1, 2).reshape(-1)
                picks = flat[np.linspace(0, flat.size - 1, 32).astype(int)]
                for part, kept in {"mean": flat.mean(), "std": flat.std(ddof=1), "slice32": picks}.items():
                    key = f"{name}.{part}"
                    np.testing.assert_allclose(kept, arrays[f"out.{key}"], RTOL, meta["atol"][key], err_msg=key)


def test_lpips_gradient_is_finite_where_no_channel_is_active():
    grad = jax.grad(lambda x: _unit_channels(x).sum())(jnp.array([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(grad, [[1.0, 1.0], [0.032, -0.024]], atol=1e-6)


def test_wrong_sizes_are_named():
    with pytest.raises(ConfigError, match=r"channels: needs one width for each of the 5 stages in convolutions, got \(64,\)"):
        LPIPSConfig(channels=(64,))
    with pytest.raises(ConfigError, match=r"convolutions: must be a whole number >= 1 each, got \(0,\)"):
        LPIPSConfig(channels=(64,), convolutions=(0,))


# ------------------------------------------------------------------------------------------------ files
@pytest.fixture(scope="module")
def tiny_state():
    """A small LPIPS under the published names; weights of the heads are never negative."""
    rng = np.random.default_rng(0)
    shapes = {name: tensor.shape for name, tensor in published_tensors("lpips", TINY).items()}
    return {name: np.abs(rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()} | SCALING


def test_its_file_goes_in_and_comes_back_bit_for_bit(tiny_state, tmp_path):
    assert {"net.slice3.8.weight", "lin2.model.1.weight"} <= tiny_state.keys(), "VGG's numbers count activations and pools"
    copies = {f"lins.{i}.model.1.weight": tiny_state[f"lin{i}.model.1.weight"] for i in range(3)}
    save_file(tiny_state | copies, tmp_path / "file.safetensors")
    done = convert(tmp_path / "file.safetensors", tmp_path / "lpips")
    assert (done.plan.name, done.plan.cfg, len(done.plan.ignored)) == ("lpips", TINY, 5)
    assert "feature network: " in str(done) and "CC BY 4.0" in str(done)
    network = load_network(tmp_path / "lpips", "lpips")
    np.testing.assert_array_equal(network.heads["2"][0, 0, :, 0], tiny_state["lin2.model.1.weight"][0, :, 0, 0])
    back = load_file(export_file(tmp_path / "lpips", tmp_path / "back.safetensors", "lpips"))
    assert back.keys() == tiny_state.keys() and all(np.array_equal(back[n], tiny_state[n]) for n in back)


def test_it_is_found_inside_a_tokenizers_checkpoint(tiny_state, tmp_path):
    """taming-transformers keeps its training losses in the file, so it is one that holds all of LPIPS."""
    within = {f"loss.perceptual_loss.{name}": array for name, array in tiny_state.items()}
    save_file(within | {"encoder.conv_in.weight": np.zeros((2, 3, 3, 3), np.float32)}, tmp_path / "last.safetensors")
    save_file(tiny_state, tmp_path / "file.safetensors")
    done = convert(tmp_path / "last.safetensors", tmp_path / "inside", family="lpips")
    assert done.plan.ignored["encoder.conv_in.weight"] == "not under loss.perceptual_loss."
    convert(tmp_path / "file.safetensors", tmp_path / "alone")
    inside, alone = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("inside", "alone"))
    assert inside == alone


@pytest.mark.parametrize(
    "change,match",
    {
        "scaling": ({"scaling_layer.shift": np.zeros((1, 3, 1, 1), np.float32)}, r"scaling_layer\.shift: should be \[-0\.03"),
        "head": ({"lin1.model.1.weight": np.ones((1, 7, 1, 1), np.float32)}, r"has shape \(6, 4, 3, 3\), expected \(7, 4"),
        "unknown": ({"lins.0.bias": np.ones(6, np.float32)}, r"lins\.0\.bias: unknown"),
    }.values(),
)
def test_wrong_files_are_refused(change, match, tiny_state, tmp_path):
    save_file(tiny_state | change, tmp_path / "bad.safetensors")
    with pytest.raises(BadWeightFile, match=match):
        convert(tmp_path / "bad.safetensors", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


def test_the_heads_alone_are_not_enough(tiny_state, tmp_path):
    """The vgg.pth of 7 kB that taming-transformers downloads."""
    heads = {name: array for name, array in tiny_state.items() if name.startswith("lin")}
    save_file(heads, tmp_path / "vgg.safetensors")
    with pytest.raises(BadWeightFile, match=r"net\.slice1: missing; a file of the heads alone"):
        convert(tmp_path / "vgg.safetensors", tmp_path / "out", family="lpips")


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_preset")
def test_the_tokenizer_trains_with_it(tiny_state, tmp_path):
    save_file(tiny_state, tmp_path / "file.safetensors")
    convert(tmp_path / "file.safetensors", tmp_path / "lpips")
    options = {"model.preset": "tiny", "data.image_size": 16, "data.crop": "center", "batch_size": 8, "total_steps": 1}
    options |= {"loss.perceptual": 1e6, "lpips": tmp_path / "lpips", "log_every": 1, "sample_every": 0}
    flags = [f"--config.{name}={value}" for name, value in options.items()]
    assert cli.main(["train", "--config", "demo_tokenizer", "--workdir", str(tmp_path / "run"), *flags]) == 0
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["reconstruction"] > 100, "pixels alone are never that far apart"
