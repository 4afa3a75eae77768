"""Attention as Pallas kernels for a TPU: rotation, scores, softmax and sums at once,
and their gradients in a second kernel.

XLA writes the scores to memory and reads them back several times, each 257 x 257 square padded to 264 x 384. Here they
never leave the chip's vector memory. An image's keys are few enough to be there whole, so every part of its queries
sees them all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from maskgil_jax.config import ConfigError, check_flash_length
from maskgil_jax.models.layers import dot_product_attention
from maskgil_jax.models.rope import rotate

LANES = 128  # columns of a TPU's vector registers and matrix units
BLOCK = 200_000  # the most entries of each array in vector memory at a time: 768 columns of 257 positions
SCORES = 100_000  # about the most scores of a head at a time: all of 257 queries, 128 of more than 390
LOG2 = math.log(2.0)
ROWS = P(("data", "fsdp"), None, "tensor")  # (b, l, d) on the mesh: images over data and fsdp, heads over tensor


def xla_attention(q_bld: jax.Array, k_bld: jax.Array, v_bld: jax.Array, rotation, head_dim: int, causal: bool) -> jax.Array:
    """What `flash_attention` computes, left to XLA."""
    b, l, _ = q_bld.shape
    q, k, v = (y.reshape(b, l, -1, head_dim) for y in (q_bld, k_bld, v_bld))
    q, k = rotate(q, *rotation), rotate(k, *rotation)
    return dot_product_attention(q, k, v, causal=causal).reshape(b, l, -1)


def flash_attention(
    q_bld: jax.Array, k_bld: jax.Array, v_bld: jax.Array, rotation, head_dim: int, causal: bool = False, *, interpret=False
) -> jax.Array:
    """softmax(rotate(q) rotate(k)^T / sqrt(head_dim)) v for every head.

    Heads stand side by side in d = heads * head_dim.

    rotation: NumPy (cos, sin) of `rope.rotation_table`, each (l, head_dim / 2). Products take the dtype of the inputs
    and add up in float32, as the softmax does. In a mesh context (`jax.sharding.use_abstract_mesh`) every device takes
    its images and heads; without one all is on one device. Compiled for anything but a TPU it is `xla_attention`,
    unless `interpret` asks for the kernels, which is slow and for tests.
    """
    plain = functools.partial(xla_attention, rotation=rotation, head_dim=head_dim, causal=causal)

    def run(kernel: Callable, results: int, default: Callable, *x: jax.Array) -> tuple[jax.Array, ...]:
        on_tpu = functools.partial(_run, kernel, results, rotation, head_dim, causal, interpret)
        return on_tpu(*x) if interpret else jax.lax.platform_dependent(*x, tpu=on_tpu, default=default)

    def forward(*qkv):
        return run(_forward, 1, lambda *x: (plain(*x),), *qkv)[0]

    def backward(qkv, grad):
        return run(_backward, 3, lambda *x: jax.vjp(plain, *x[:3])[1](x[3]), *qkv, grad)

    attention = jax.custom_vjp(forward)
    attention.defvjp(lambda *qkv: (forward(*qkv), qkv), backward)
    return attention(q_bld, k_bld, v_bld)


def _run(kernel: Callable, results: int, rotation, head_dim: int, causal: bool, interpret: bool, *x_bld: jax.Array):
    """Runs `kernel` for all images and heads, on every device of the context's mesh for its own."""

    def local(*x_bld):
        b, l, d = x_bld[0].shape
        check_flash_length(l, x_bld[0].dtype.name)
        if d % head_dim:
            raise ConfigError(
                f'attention: "flash" needs whole heads of {head_dim} on a device, got {d} columns; split them over fewer'
            )
        lanes = head_dim * max(1, LANES // head_dim)  # what the kernel works on at once: full lanes, or else all heads
        lanes = lanes if d % lanes == 0 else d
        block = max(c for c in range(lanes, d + 1, lanes) if d % c == 0 and (c == lanes or c * l <= BLOCK))
        rows = pl.BlockSpec((1, l, block), lambda image, part: (image, 0, part))
        table = pl.BlockSpec((l, lanes), lambda image, part: (0, 0))
        found = pl.pallas_call(
            functools.partial(kernel, head_dim=head_dim, causal=causal),
            grid=(b, d // block),
            in_specs=[table, table] + [rows] * len(x_bld),
            out_specs=[rows] * results,
            out_shape=[jax.ShapeDtypeStruct(x_bld[0].shape, x_bld[0].dtype)] * results,
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
            cost_estimate=_cost(5 if results == 3 else 2, results + len(x_bld), x_bld[0], head_dim, lanes),
            interpret=interpret,
            name=kernel.__name__.strip("_") + "_attention",
        )(*_tables(rotation, lanes // head_dim), *x_bld)
        return tuple(found)

    if not jax.sharding.get_abstract_mesh().empty:
        local = jax.shard_map(local, in_specs=(ROWS,) * len(x_bld), out_specs=(ROWS,) * results, check_vma=False)
    return local(*x_bld)


def _tables(rotation, heads: int) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) for every column of some heads; sin with the sign that `_turned` needs."""
    cos, sin = (np.tile(np.repeat(table, 2, axis=1), (1, heads)) for table in rotation)
    return jnp.asarray(cos), jnp.asarray(sin * np.where(np.arange(sin.shape[1]) % 2, 1, -1).astype(sin.dtype))


def _cost(products: int, arrays: int, x_bld, head_dim: int, lanes: int) -> pl.CostEstimate:
    """What the kernel asks of the machine, for the compiler's schedule and for `maskgil plan`.

    The products as they fill the matrix unit: every head as wide as `lanes`, rows of scores in whole lanes.
    """
    b, l, d = x_bld.shape
    padded = -(-l // LANES) * LANES
    return pl.CostEstimate(
        flops=2 * products * b * (d // head_dim) * l * padded * lanes,
        transcendentals=b * (d // head_dim) * l * l,
        bytes_accessed=arrays * x_bld.size * x_bld.dtype.itemsize,
    )


def _turned(x_lc: jax.Array, cos_lc: jax.Array, sin_lc: jax.Array) -> jax.Array:
    """`rope.rotate` of heads side by side, float32; with -sin it turns back, which is also its gradient."""
    x_lc, columns = x_lc.astype(jnp.float32), x_lc.shape[1]
    even = jax.lax.broadcasted_iota(jnp.int32, x_lc.shape, 1) % 2 == 0
    return x_lc * cos_lc + jnp.where(even, pltpu.roll(x_lc, columns - 1, 1), pltpu.roll(x_lc, 1, 1)) * sin_lc


def _product(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
    """The product of two matrices over one axis of each, added up in float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    axes = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def _scaled(x_lc: jax.Array, cos_lc: jax.Array, sin_lc: jax.Array, head_dim: int) -> jax.Array:
    """Turned queries whose products with keys are scores / log(2): 2 to that power is what the softmax takes."""
    return (_turned(x_lc, cos_lc, sin_lc) * (head_dim**-0.5 / LOG2)).astype(x_lc.dtype)


def _powers(scores: jax.Array, axis: int, first: int, causal: bool) -> tuple[jax.Array, jax.Array]:
    """2^(score - the query's highest) and, for every query, one over their sum; in float32.

    axis: along which the keys lie. first: the number of the first query, for the causal mask.
    """
    if causal:
        key, query = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, i) for i in (axis, 1 - axis))
        scores = jnp.where(query + first >= key, scores, -jnp.inf)
    powers = jnp.exp2(scores - jnp.max(scores, axis=axis, keepdims=True))
    return powers, 1.0 / jnp.sum(powers, axis=axis, keepdims=True)


def _kept(own: jax.Array, x_lc: jax.Array) -> jax.Array:
    """The columns `own` of x, zero elsewhere; chosen in float32, as vector units without bfloat16 can."""
    return jnp.where(own, x_lc.astype(jnp.float32), 0.0).astype(x_lc.dtype)


def _heads(shape: tuple[int, int], head_dim: int) -> list[jax.Array]:
    """For every head side by side, which columns are its own.

    Products run over all columns with the others' zero: they take the matrix unit no longer than half of its width
    would, and nothing has to be moved between lanes.
    """
    head = jax.lax.broadcasted_iota(jnp.int32, shape, 1) // head_dim
    return [head == i for i in range(shape[1] // head_dim)]


def _parts(length: int) -> list[slice]:
    """The queries in parts of whole lanes, about SCORES scores of a head each.

    The last one may be half as long again: a query alone would be no product.
    """
    size = LANES * max(1, SCORES // (length * LANES))
    firsts = list(range(0, max(length - size // 2, 1), size))
    return [slice(first, end) for first, end in zip(firsts, [*firsts[1:], length], strict=True)]


def _each(refs, columns: int, work: Callable) -> None:
    """Calls `work(slice)` for every group of heads in the block."""

    def step(i, carry):
        work((0, slice(None), pl.ds(pl.multiple_of(i * columns, columns), columns)))
        return carry

    jax.lax.fori_loop(0, refs.shape[2] // columns, step, 0)


def _forward(cos_ref, sin_ref, q_ref, k_ref, v_ref, out_ref, *, head_dim: int, causal: bool) -> None:
    cos, sin, dtype = cos_ref[...], sin_ref[...], q_ref.dtype

    def work(at):
        q, k, v = _scaled(q_ref[at], cos, sin, head_dim), _turned(k_ref[at], cos, sin).astype(dtype), v_ref[at]
        for rows in _parts(v.shape[0]):
            out = jnp.zeros(q[rows].shape, jnp.float32)
            for own in _heads(out.shape, head_dim):
                powers, share = _powers(_product(_kept(own, q[rows]), k, (1, 1)), 1, rows.start, causal)
                out = jnp.where(own, _product(powers.astype(dtype), v, (1, 0)) * share, out)
            out_ref[0, rows, at[2]] = out.astype(dtype)

    _each(out_ref, cos.shape[1], work)


def _backward(cos_ref, sin_ref, q_ref, k_ref, v_ref, grad_ref, dq_ref, dk_ref, dv_ref, *, head_dim: int, causal: bool) -> None:
    """Scores lie on their side here, keys by queries: so two of the three gradients are products as they are."""
    cos, sin, dtype = cos_ref[...], sin_ref[...], q_ref.dtype

    def work(at):
        q, k, v = _scaled(q_ref[at], cos, sin, head_dim), _turned(k_ref[at], cos, sin).astype(dtype), v_ref[at]
        grad = grad_ref[at]
        dk, dv = (jnp.zeros(v.shape, jnp.float32) for _ in range(2))
        for rows in _parts(v.shape[0]):
            dq = jnp.zeros(q[rows].shape, jnp.float32)
            for own in _heads(dq.shape, head_dim):
                own_q, own_grad = _kept(own, q[rows]), _kept(own, grad[rows])
                powers, share = _powers(_product(k, own_q, (1, 1)), 0, rows.start, causal)
                weights = powers * share
                towards = _product(v, own_grad, (1, 1))
                turn = (weights * (towards - jnp.sum(weights * towards, axis=0, keepdims=True))).astype(dtype)
                dq = jnp.where(own, _product(turn, k, (0, 0)), dq)
                dk += _product(turn, own_q, (1, 0))  # zero in the columns of other heads, as own_q is
                dv += _product(weights.astype(dtype), own_grad, (1, 0))
            dq_ref[0, rows, at[2]] = _turned(dq * head_dim**-0.5, cos[rows], -sin[rows]).astype(dtype)
        dk_ref[at] = _turned(dk * LOG2, cos, -sin).astype(dtype)
        dv_ref[at] = dv.astype(dtype)

    _each(dv_ref, cos.shape[1], work)
