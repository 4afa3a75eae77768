"""Scores of the reveal orders that do not depend on the network's predictions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maskgil_jax.config.orders import ORDERS, Order, halton_ranks

__all__ = ["ORDERS", "Order", "halton_ranks", "order_scores"]


def order_scores(order: Order, key_b, grid: tuple[int, int]) -> jax.Array | None:
    """Scores (b, l) of a fixed order, float32: the higher, the sooner. None for an order that is not fixed."""
    if order.ranks is None:
        return None
    rank_bl = jnp.asarray(order.ranks(grid))[None]
    if order.rolled:
        length = rank_bl.shape[1]
        shift_b = jax.vmap(lambda key: jax.random.randint(key, (), 0, length))(key_b)
        rank_bl = (rank_bl + shift_b[:, None]) % length
    return jnp.broadcast_to(-rank_bl.astype(jnp.float32), (len(key_b), rank_bl.shape[1]))
