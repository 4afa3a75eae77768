"""Scores of the reveal orders that do not depend on the network's predictions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maskgil_jax.config.orders import ORDERS, Order, halton_ranks
from maskgil_jax.models.condition import SizedCondition

__all__ = ["ORDERS", "Order", "halton_ranks", "order_scores"]


def order_scores(order: Order, key_b, grid: tuple[int, int], sizes: SizedCondition | None = None) -> jax.Array | None:
    """Scores (b, l) of a fixed order, float32: the higher, the sooner. None for an order that is not fixed.

    sizes: of the images on a canvas of `grid` tokens, each of which has the order of its own grid.
    """
    if order.ranks is None:
        return None
    length, count_b = grid[0] * grid[1], jnp.full(len(key_b), grid[0] * grid[1])
    if sizes is None:
        rank_bl = jnp.asarray(order.ranks(grid))[None]
    else:
        assert order.ranks_of_sizes is not None
        rank_bl, count_b = order.ranks_of_sizes(sizes.rows_b, sizes.columns_b, length), sizes.rows_b * sizes.columns_b
    if order.rolled:
        shift_b = jax.vmap(lambda key, count: jax.random.randint(key, (), 0, count))(key_b, count_b)
        rank_bl = (rank_bl + shift_b[:, None]) % count_b[:, None]
    return jnp.broadcast_to(-rank_bl.astype(jnp.float32), (len(key_b), length))
