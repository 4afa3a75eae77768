"""Functions shared by the encoders. Parameters are dicts; `weight` of a linear map is (out, in), as in the files."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

HIDDEN = -1e30  # score of an invisible position; finite, so that a row that sees nothing gives numbers

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
# What configuration files call them.
ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


def linear(part: dict, x: jax.Array) -> jax.Array:
    """x @ weight.T, plus a bias if there is one, rounded to x's dtype at the end.

    The product is asked for in float32: XLA's CPU backend has a bfloat16 kernel for that, but none with a bfloat16
    result.
    """
    y = jnp.einsum("...i,oi->...o", x, part["weight"], preferred_element_type=jnp.float32)
    y = y + jnp.broadcast_to(part["bias"].astype(y.dtype), y.shape) if "bias" in part else y
    return y.astype(x.dtype)


def rms_norm(part: dict, x: jax.Array, eps: float, shift: float = 0.0) -> jax.Array:
    """x / rms(x) * (weight + shift), in float32."""
    wide, weight = x.astype(jnp.float32), part["weight"].astype(jnp.float32) + shift
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (normed * jnp.broadcast_to(weight, x.shape)).astype(x.dtype)


def layer_norm(part: dict, x: jax.Array, eps: float) -> jax.Array:
    """LayerNorm with weight and bias, in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    weight, bias = (jnp.broadcast_to(part[name].astype(jnp.float32), x.shape) for name in ("weight", "bias"))
    return (normed * weight + bias).astype(x.dtype)


def split_heads(x_btd: jax.Array, head_width: int) -> jax.Array:
    """(b, t, h * k) -> (b, t, h, k)."""
    return x_btd.reshape(*x_btd.shape[:2], -1, head_width)


def causal(length: int) -> jax.Array:
    """(t, s), True where position t sees position s <= t."""
    at_t = jnp.arange(length)
    return at_t[:, None] >= at_t[None, :]


def attend(
    q_bthk: jax.Array,
    k_bsgk: jax.Array,
    v_bsgk: jax.Array,
    *,
    scale: float,
    keys_bs: jax.Array | None = None,
    visible_ts: jax.Array | None = None,
    bias_hts: jax.Array | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """Attention (b, t, h * k); scores and softmax in float32.

    keys_bs: which positions may be seen at all. visible_ts: which of them position t sees. bias_hts: added to the
    scores. Query heads h are a multiple of key heads g; neighbouring query heads share one.
    """
    b, t, h, k = q_bthk.shape
    g = k_bsgk.shape[2]
    q_btgrk = q_bthk.reshape(b, t, g, h // g, k)
    scores = jnp.einsum("btgrk,bsgk->bgrts", q_btgrk, k_bsgk, preferred_element_type=jnp.float32) * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if bias_hts is not None:
        scores = scores + bias_hts.astype(jnp.float32).reshape(1, g, h // g, *bias_hts.shape[1:])
    if keys_bs is not None:
        scores = jnp.where(keys_bs[:, None, None, None, :], scores, HIDDEN)
    if visible_ts is not None:
        scores = jnp.where(visible_ts[None, None, None], scores, HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_bsgk.dtype)
    out = jnp.einsum("bgrts,bsgk->btgrk", weights, v_bsgk, preferred_element_type=jnp.float32)
    return out.astype(v_bsgk.dtype).reshape(b, t, h * k)
