"""Fingerprints of arrays that do not depend on how an array is sharded over devices or processes.

A fingerprint is two sums, modulo 2^32, of a hash of every element's bits and its index. Integer sums do not depend on
the order, so every mesh gives the same numbers, and one changed bit changes both. The pass also counts values that are
not finite.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

CHUNK = 2**22  # elements hashed at a time on the host


def fingerprints(tree) -> tuple[dict[str, str], list[str]]:
    """({path of each array: fingerprint, 16 hex digits}, paths of the arrays that contain a NaN or an infinity).

    Runs one compiled pass on the devices, in all processes together; leaves may also be NumPy arrays.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names, arrays = [leaf_name(path) for path, _ in leaves], [leaf for _, leaf in leaves]
    if not arrays:
        return {}, []
    rows = jax.device_get(_compiled(getattr(arrays[0], "sharding", None))(arrays))
    return {name: f"{a:08x}{b:08x}" for name, (a, b, _) in zip(names, rows)}, [
        name for name, (_, _, bad) in zip(names, rows) if bad
    ]


def leaf_name(path) -> str:
    """A pytree path as "a.b.c", which is also how Orbax names the array on disk."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


@functools.cache
def _compiled(sharding) -> Callable:
    """The compiled pass. Its result is replicated, so that every process can read it."""
    replicated = NamedSharding(sharding.mesh, P()) if isinstance(sharding, NamedSharding) else None
    return jax.jit(lambda arrays: jnp.stack([_array_row(x) for x in arrays]), out_shardings=replicated)


def _array_row(x: jax.Array) -> jax.Array:
    """uint32 (3,): both sums and the count of elements that are not finite."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.inexact):
        bad = jnp.sum(~jnp.isfinite(x), dtype=jnp.uint32)
    else:
        bad = jnp.zeros((), jnp.uint32)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    elif jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)  # of 8 bytes, two words on a new last axis
    index, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
        stride = (stride * bits.shape[axis]) & 0xFFFFFFFF
    first, second = _hashes(bits, index, jnp.uint32)
    return jnp.stack([jnp.sum(first, dtype=jnp.uint32), jnp.sum(second, dtype=jnp.uint32), bad])


def _hashes(bits, index, uint32):
    """Both hashes of an element. Two rounds, so that a hash is not the sum of one of the bits and one of the index."""
    first = _mix(bits + _mix(index * uint32(0x9E3779B9) + uint32(1), uint32), uint32)
    second = _mix(bits ^ _mix(index + uint32(0x85EBCA6B), uint32), uint32)
    return first, second


def _mix(h, uint32):
    """A bijection of 32 bits in which every input bit reaches every output bit (the `lowbias32` constants,
    Wellons 2018)."""
    h = (h ^ (h >> uint32(16))) * uint32(0x7FEB352D)
    h = (h ^ (h >> uint32(15))) * uint32(0x846CA68B)
    return h ^ (h >> uint32(16))


def host_fingerprint(chunks: Iterator[np.ndarray]) -> str:
    """The fingerprint of an array that is read in pieces, in row-major order: the NumPy version of `fingerprints`."""
    start, sums = 0, [0, 0]
    for chunk in chunks:
        words = _words(np.ascontiguousarray(chunk).reshape(-1))
        for low in range(0, len(words), CHUNK):
            bits = words[low : low + CHUNK].astype(np.uint32)
            index = np.arange(start, start + len(bits), dtype=np.uint64).astype(np.uint32)
            for which, hashed in enumerate(_hashes(bits, index, np.uint32)):
                sums[which] += int(hashed.sum(dtype=np.uint64))
            start += len(bits)
    return "".join(f"{total & 0xFFFFFFFF:08x}" for total in sums)


def _words(flat: np.ndarray) -> np.ndarray:
    """The bits of a flat array as unsigned words of the element's width; 8-byte elements as two words."""
    size = flat.dtype.itemsize // (2 if flat.dtype.kind == "c" else 1)
    return flat.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[size])
