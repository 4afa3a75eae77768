"""One key per image, so that no draw depends on the batch an image stands in or on how the batch is split over devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def image_keys(key, count: int) -> jax.Array:
    """Keys (count,): a single key is folded with each image's index in the batch, an array of keys is used as it is."""
    key = typed_key(key)
    return key if key.ndim else keys_for_indices(key, jnp.arange(count))


def keys_for_indices(key, places_n) -> jax.Array:
    """The keys (n,) of the images with these numbers: `fold_in(key, place)`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(typed_key(key), places_n)


def fold_keys(key_b, data):
    """`jax.random.fold_in` of the same `data` into each of a batch of keys; None stays None."""
    return None if key_b is None else jax.vmap(jax.random.fold_in, (0, None))(key_b, data)


def typed_key(key) -> jax.Array:
    """Accepts keys of `jax.random.key` and raw `jax.random.PRNGKey` data alike."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
