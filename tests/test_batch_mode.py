"""The images of a batch one after the other, inside the program: the same as all together,
and where that is the choice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.decode_twin import Headed, Stub, batch, hasty  # noqa: F401
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maskgil_jax.config import DecodeConfig, VQConfig
from maskgil_jax.decoding.masked import decode, decode_steps
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.networks import create
from maskgil_jax.runtime.platform import prefer_sequential, target_platform

# Of float32 images in about [-1, 1]: sums over a batch are taken in another order than those over one image.
ROUNDING = 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["fori", "unrolled"])
def test_batch_modes_give_the_same_tokens_without_retracing(loop):
    labels, keys, tokens = batch()
    cfg = DecodeConfig(steps=3, remask="cap", remask_eta=0.4, remask_pick="confidence", loop=loop, batch_mode="vmap")
    arguments, seen, clone = (Headed(), ClassCondition(labels)), {}, jax.random.clone
    together = decode_steps(*arguments, clone(keys), cfg, tokens)
    cfg = dataclasses.replace(cfg, batch_mode="map")
    np.testing.assert_array_equal(decode_steps(*arguments, clone(keys), cfg, tokens), together)
    watched = decode(*arguments, clone(keys), cfg, tokens, on_step=seen.__setitem__)
    np.testing.assert_array_equal(np.stack([seen[i] for i in (1, 2, 3)]), together)
    np.testing.assert_array_equal(watched, together[-1])
    traces, asked = Headed.traces, len(Headed.asked)
    decode_steps(arguments[0], ClassCondition(labels[::-1]), keys[::-1], cfg, tokens[::-1])
    assert (Headed.traces, len(Headed.asked)) == (traces, asked)


def test_batch_modes_give_the_same_tokenizer_output():
    cfg = VQConfig(channels=8, multipliers=(1, 1), res_blocks=1, latent_dim=8, codebook_size=16, codebook_dim=4, image_size=32)
    tokenizer, codes = create(cfg, jax.random.key(0)), jax.random.randint(jax.random.key(1), (3, 16, 16), 0, 16)
    program = jax.jit(lambda network, codes: network.decode(codes)).lower(tokenizer, codes)
    assert "while" in program.as_text()
    alone = program.compile()(tokenizer, codes)
    with target_platform("gpu"):
        together = jax.jit(lambda network, codes: network.decode(codes))(tokenizer, codes)
    np.testing.assert_allclose(alone, together, rtol=0, atol=ROUNDING)


def test_prefer_sequential_on_a_cpu_for_large_grids_on_one_device():
    label_b = jnp.zeros(8, jnp.int32)
    assert prefer_sequential(ClassCondition(label_b), 256)
    assert not prefer_sequential(label_b, 255)  # little work
    assert not prefer_sequential(label_b[:1], 256)  # nothing to part
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split_b = jax.device_put(label_b, NamedSharding(mesh, PartitionSpec("data")))
    inside = []
    jax.make_jaxpr(lambda split_b: inside.append(prefer_sequential(split_b + 1, 256)))(split_b)
    assert not prefer_sequential(split_b, 256) and inside == [False]
    for name in ("gpu", "tpu"):
        with target_platform(name):
            assert not prefer_sequential(label_b, 256)


def test_auto_batch_mode_reaches_the_network(monkeypatch):
    """Rows of a guided call: two for each image that is made at once."""
    monkeypatch.undo()
    labels, keys, _ = batch()
    rows = {}
    for batch_mode, codes in (("vmap", 12), ("map", 99), ("auto", 12), ("auto", 13)):
        monkeypatch.setattr("maskgil_jax.runtime.platform.MIN_SEQUENTIAL_CODES", codes)
        cfg = DecodeConfig(steps=7, batch_mode=batch_mode, temperature=codes / 10)  # a program of its own
        jax.make_jaxpr(lambda keys, cfg=cfg: decode(Stub(), ClassCondition(labels), keys, cfg))(keys)
        rows[batch_mode, codes] = Stub.rows
    assert rows == {("vmap", 12): 8, ("map", 99): 2, ("auto", 12): 2, ("auto", 13): 8}
