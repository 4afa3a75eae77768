"""One random key per image, so that an image depends neither on its batch nor on how that is split over devices."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import require


def image_keys(key, count: int) -> jax.Array:
    """Keys (count,): a single key is folded with each image's index in the batch, an array of keys is used as it is."""
    key = typed_key(key)
    return key if key.ndim else keys_for_indices(key, jnp.arange(count))


def keys_for_indices(key, indices_n) -> jax.Array:
    """The keys (n,) of the images with these indices: `fold_in(key, index)`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(typed_key(key), indices_n)


def keys_of_seeds(seeds: Sequence[int]) -> jax.Array:
    """Keys (n,): for each seed that of the first image of a request with this seed."""
    for seed in seeds:
        whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
        require(whole and 0 <= seed < 2**32, f"seeds: must be whole numbers in 0..2^32-1, got {seed!r}")
    keys_n = jax.vmap(jax.random.key)(jnp.asarray(np.asarray(seeds, np.uint32)))
    return jax.vmap(jax.random.fold_in, (0, None))(keys_n, 0)


def fold_keys(key_b, data):
    """`jax.random.fold_in` of the same `data` into each of a batch of keys; None stays None."""
    return None if key_b is None else jax.vmap(jax.random.fold_in, (0, None))(key_b, data)


def typed_key(key) -> jax.Array:
    """Accepts keys of `jax.random.key` and raw `jax.random.PRNGKey` data alike."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
