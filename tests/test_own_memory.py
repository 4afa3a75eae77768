"""Canvases and caches are made inside the programs or written over from step to step.

What callers pass stays theirs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.decode_twin import CODES, GRID, HASTY, LENGTH, Stub, batch, hasty  # noqa: F401
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maskgil_jax.config import CausalConfig, DecodeConfig, LlamaConfig
from maskgil_jax.decoding import masked
from maskgil_jax.decoding.causal import _decode_causal, decode_causal
from maskgil_jax.decoding.hybrid import decode_hybrid
from maskgil_jax.decoding.masked import decode, decode_steps
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.networks import create

SURE = DecodeConfig(steps=3, remask="cap", remask_eta=0.5, remask_pick="confidence")  # a step needs more than the canvas


def size(*trees):
    """Bytes of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(trees))


def memory(program, *arguments, **static):
    return program.lower(*arguments, **static).compile(compiler_options=HASTY).memory_analysis()


@pytest.mark.slow
def test_decode_allocates_the_canvas_inside_and_donates_it_between_steps(monkeypatch):
    monkeypatch.undo()  # the function as shipped
    labels, keys, tokens = batch()
    network = Stub(), ClassCondition(labels), keys
    static = dict(cfg=SURE, grid=GRID, trajectory=False)
    whole = memory(masked._decode, *network, None, None, None, None, **static)
    assert (whole.argument_size_in_bytes, whole.alias_size_in_bytes) == (size(network), 0)
    given = memory(masked._decode, *network, tokens, None, None, None, **static)
    assert (given.argument_size_in_bytes, given.alias_size_in_bytes) == (size(network, tokens), 0)
    state = jnp.full((4, LENGTH), CODES), jnp.zeros((4, LENGTH))
    part = memory(masked._decode, *network, tokens, *state, jnp.arange(2), **static)
    assert part.alias_size_in_bytes == size(state)


@pytest.mark.parametrize("given", ["nothing", "jax", "numpy", "eight devices"])
def test_decode_does_not_donate_arguments_of_callers(given, monkeypatch):
    labels, keys, tokens = batch(b=8)
    before, clone = np.array(tokens), jax.random.clone
    if given == "eight devices":
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        labels, tokens = jax.device_put((labels, tokens), NamedSharding(mesh, PartitionSpec("data")))
    tokens = {"nothing": None, "numpy": before.copy()}.get(given, tokens)
    used, seen, step = [], [], masked._decode

    def recorded(*arguments, **static):
        used.extend(arguments[4:6])
        return step(*arguments, **static)

    monkeypatch.setattr(masked, "_decode", recorded)
    call = Stub(), ClassCondition(labels)
    last = decode(*call, clone(keys), SURE, tokens, on_step=lambda _, canvas_bl: seen.append(canvas_bl))
    assert len(used) == 2 * SURE.steps and all(array.is_deleted() for array in used)
    kept = [*seen, last, *jax.tree.leaves((call, keys)), *([tokens] if isinstance(tokens, jax.Array) else [])]
    assert not any(array.is_deleted() for array in kept)
    np.testing.assert_array_equal(np.stack(seen), decode_steps(*call, clone(keys), SURE, tokens))
    if tokens is not None:
        np.testing.assert_array_equal(tokens, before)


@pytest.fixture(scope="module")
def networks():
    cfg = dict(codebook_size=13, num_classes=3, grid=(8, 8), width=16, depth=2, heads=2, mlp_width=16)
    return [create(LlamaConfig(**cfg, causal=causal), jax.random.key(0)) for causal in (True, False)]


def test_decode_causal_holds_one_kv_cache(networks):
    """Of both branches up to the tenth token, of one from there on: neither a cache that comes in nor a second one."""
    cache = 2 * 8 * 2 * 64 * 16 * 4  # keys and values, rows of both branches, layers, positions, width, bytes
    call = networks[0], ClassCondition(jnp.arange(4) % 3), jax.random.key(0)
    used = memory(_decode_causal, *call, None, None, CausalConfig(cfg_interval=8), (8, 8), 64)
    assert (used.argument_size_in_bytes, used.alias_size_in_bytes) == (size(call), 0)
    assert cache < used.temp_size_in_bytes < 2 * cache


@pytest.mark.slow
def test_decode_causal_and_hybrid_do_not_donate_arguments(networks, monkeypatch):
    monkeypatch.undo()
    condition, key, tokens = ClassCondition(jnp.arange(2)), jax.random.key(1), jnp.full((2, 64), 13).at[0, :9].set(4)
    written = decode_causal(
        networks[0], condition, key, CausalConfig(), tokens[:, :4], kept_bl=jnp.where(tokens == 13, -1, tokens)
    )
    hybrid = decode_hybrid(*networks, condition, key, CausalConfig(), DecodeConfig(steps=2), 0.5, tokens_bl=tokens)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((networks, condition, key, tokens, written)))
    np.testing.assert_array_equal(hybrid[0, :9], tokens[0, :9])
