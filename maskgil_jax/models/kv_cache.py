"""The KV cache of a causal network: a new token costs one position instead of the whole sequence."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class KVCache:
    """Keys and values of every layer; the batch axis leads everywhere, so rows are picked with a plain `jax.tree.map`.

    keys_bnshk, values_bnshk: (b, layers n, positions s, kv heads h, head width k) in the network's compute dtype.
    visible_bs: bool, the positions that others may attend to (not the padding of a text). Positions that are not
    written yet are hidden by the causal mask.
    Bytes: `2 * b * layers * positions * kv_heads * head_width * bytes of a number`, and b * s flags.
    """

    keys_bnshk: jax.Array
    values_bnshk: jax.Array
    visible_bs: jax.Array

    def put(self, layer, start, keys_bqhk: jax.Array, values_bqhk: jax.Array) -> KVCache:
        """The cache with one layer's keys and values of the positions from `start` on written."""
        at = (0, layer, start, 0, 0)
        return KVCache(
            jax.lax.dynamic_update_slice(self.keys_bnshk, keys_bqhk[:, None], at),
            jax.lax.dynamic_update_slice(self.values_bnshk, values_bqhk[:, None], at),
            self.visible_bs,
        )

    def of(self, layer) -> tuple[jax.Array, jax.Array]:
        """Keys and values of one layer at all positions, each (b, s, h, k)."""
        keys_bshk = jax.lax.dynamic_index_in_dim(self.keys_bnshk, layer, axis=1, keepdims=False)
        return keys_bshk, jax.lax.dynamic_index_in_dim(self.values_bnshk, layer, axis=1, keepdims=False)


def attention_mask(visible_bs: jax.Array, positions_q: jax.Array, causal: bool) -> jax.Array:
    """Bool (b, 1, q, s): what queries at the positions `positions_q` attend to: visible positions,
    and always themselves.

    The latter keeps the softmax of padding from being empty. `causal`: no later positions.
    """
    places_s = jnp.arange(visible_bs.shape[1])
    mask_bqs = visible_bs[:, None] | (places_s[None] == positions_q[:, None])[None]
    if causal:
        mask_bqs &= (places_s[None] <= positions_q[:, None])[None]
    return mask_bqs[:, None]
