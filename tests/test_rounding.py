"""What is left of the difference to the published code is rounding: in float64,
ours equals the published code's float64.

The reference outputs are float32; how far each lies from the same code run in float64 was measured when they were made
(`OWN_ERRORS`). If our network is the same function, our float64 run must lie exactly that far from them.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.gpt_weights import llama_config, published_params, recipe_getter
from helpers.recipe import load_case
from test_vqgan import reference_case

from maskgil_jax.models import layers, llama, rope
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.networks import _blueprint, build, params_of
from maskgil_jax.tokenizers import quantizers, vqgan

# The published code's own largest float32 error, output by output.
OWN_ERRORS = {
    "maskgil": {"logits": 8.434475038399114e-06, "logits_drop": 8.434475038399114e-06},
    "vq": {"enc0": 2.687984984733882e-06, "z0": 2.908965944625752e-06, "rec_codes0": 1.956562983884691e-05},
}
# Our float64 run and theirs differ only by float64 rounding, some 1e-14, against errors of 1e-6 and more.
SAME = 1e-6


def attention(q_blhk, k_bmhk, v_bmhk, mask=None, is_causal=False):
    """jax.nn.dot_product_attention, but for its softmax, which is float32 whatever it is given."""
    assert mask is None and not is_causal
    scores_bhlm = jnp.einsum("blhk,bmhk->bhlm", q_blhk, k_bmhk) / np.sqrt(q_blhk.shape[-1])
    return jnp.einsum("bhlm,bmhk->blhk", jax.nn.softmax(scores_bhlm, axis=-1), v_bmhk)


@pytest.fixture
def float64(monkeypatch):
    """Within it every cast to float32 in the networks is one to float64."""
    wide_jnp = types.SimpleNamespace(**{**vars(jnp), "float32": jnp.float64})
    for module in (layers, llama, rope, quantizers, vqgan):
        monkeypatch.setattr(module, "jnp", wide_jnp)
    monkeypatch.setattr(rope, "np", types.SimpleNamespace(**{**vars(np), "float32": np.float64}))
    wide_nn = types.SimpleNamespace(**{**vars(jax.nn), "dot_product_attention": attention})
    monkeypatch.setattr(llama, "jax", types.SimpleNamespace(**{**vars(jax), "nn": wide_nn}))
    _blueprint.cache_clear()
    with jax.enable_x64(True):
        yield
    _blueprint.cache_clear()


def wide(model):
    """The same network with float64 parameters, computing in float64."""
    cfg = dataclasses.replace(model.cfg)
    object.__setattr__(cfg, "dtype", "float64")  # not offered to users
    return build(cfg, jax.tree.map(lambda p: np.asarray(p, np.float64), params_of(model)))


def check(kind: str, name: str, ours64, ours32, golden32) -> None:
    ours64, golden32 = np.asarray(ours64), golden32.astype(np.float64)
    assert ours64.dtype == np.float64
    theirs = OWN_ERRORS[kind][name]
    assert abs(np.abs(golden32 - ours64).max() / theirs - 1) < SAME, (name, np.abs(golden32 - ours64).max(), theirs)
    own = np.abs(np.asarray(ours32, np.float64) - ours64).max()
    assert 0.05 * theirs < own < 10 * theirs, (name, own, theirs)


def test_llama_in_float64_equals_the_reference(request):
    config, io = load_case("maskgil_gpt/tiny")
    cfg = llama_config(config["hparams"])
    model = build(cfg, published_params("maskgil", cfg, recipe_getter(config)))
    tokens = io["in.idx"].reshape(2, -1).astype(np.int32)
    labels = {"logits": io["in.cond"], "logits_drop": np.where(io["in.drop_label"], cfg.num_classes, io["in.cond"])}

    def logits(network) -> dict:
        run = jax.jit(lambda n, label_b: n.logits(n.hidden(tokens, ClassCondition(label_b))))
        return {name: run(network, label.astype(np.int32)) for name, label in labels.items()}

    ours32 = jax.device_get(logits(model))
    request.getfixturevalue("float64")
    for name, ours64 in logits(wide(model)).items():
        check("maskgil", name, ours64, ours32[name], io[f"out.{name}"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")  # of initial values, which are not used
def test_vqgan_in_float64_equals_the_reference(request):
    tokenizer, _, arrays = reference_case("llamagen_vq16")
    image, codes = arrays["in.img0"].transpose(0, 2, 3, 1), arrays["in.codes0"].astype(np.int32)

    def outputs(network) -> dict:
        run = jax.jit(lambda n, x, c: {"enc0": n.encoder(x), "z0": n.latents(x), "rec_codes0": n.decode(c)})
        return run(network, image.astype(network.codebook.embedding[...].dtype), codes)

    ours32 = jax.device_get(outputs(tokenizer))
    request.getfixturevalue("float64")
    for name, ours64 in outputs(wide(tokenizer)).items():
        check("vq", name, ours64, ours32[name], arrays[f"out.{name}"].transpose(0, 2, 3, 1))
