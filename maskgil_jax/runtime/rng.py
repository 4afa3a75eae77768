"""One random key per image, so that an image depends neither on its batch nor on how that is split over devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def image_keys(key, count: int) -> jax.Array:
    """Keys (count,): a single key is folded with each image's index in the batch, an array of keys is used as it is."""
    key = typed_key(key)
    return key if key.ndim else keys_for_indices(key, jnp.arange(count))


def keys_for_indices(key, indices_n) -> jax.Array:
    """The keys (n,) of the images with these indices: `fold_in(key, index)`, of one key or of a key for each image."""
    key = typed_key(key)
    return jax.vmap(jax.random.fold_in, (0 if key.ndim else None, 0))(key, indices_n)


def fold_keys(key_b, data):
    """`jax.random.fold_in` of the same `data` into each of a batch of keys; None stays None."""
    return None if key_b is None else jax.vmap(jax.random.fold_in, (0, None))(key_b, data)


def typed_key(key) -> jax.Array:
    """Accepts keys of `jax.random.key` and raw `jax.random.PRNGKey` data alike."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
