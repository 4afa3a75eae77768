"""Parts shared by the transformers: linear maps, norms, stateless dropout, and the walk over stacked layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maskgil_jax.config import ConfigError
from maskgil_jax.keys import fold_keys
from maskgil_jax.platforms import platform
from maskgil_jax.sharding import split_rows

# Names of what `remat="dots"` keeps beside the outputs of linear maps: an attention's output, and the states between the two
# halves of a layer.
ATTENTION, BETWEEN = "attention", "between"
normal_init = nnx.initializers.normal(0.02)  # GPT-2's, used by LlamaGen and MaskGIL for linear maps and tables


def check_learned_grid(cfg, grid: tuple[int, int] | None) -> None:
    """Raises a `ConfigError` for another grid than the trained one (None): each of its places has a learned position."""
    if grid is not None and tuple(grid) != tuple(cfg.grid):
        raise ConfigError(
            f"grid: learned positions exist for {cfg.grid} only, got {tuple(grid)}; use a Llama with 2-D positions"
        )


@jax.custom_vjp
def product(x_bld: jax.Array, kernel_df: jax.Array) -> jax.Array:
    """`x @ kernel`, with a gradient of the kernel that transposes the narrower of its two operands.

    JAX's own transposes the output's gradient. XLA's CPU code then computes that gradient, such as the derivative of an
    activation, a second time with strided writes; the input's transpose is shared by all maps that read the same input.
    """
    return jax.lax.dot_general(x_bld, kernel_df, (((x_bld.ndim - 1,), (0,)), ((), ())))


def _product_forward(x_bld, kernel_df):
    return product(x_bld, kernel_df), (x_bld, kernel_df)


def _product_backward(saved, grad_blf):
    x_bld, kernel_df = saved
    x_nd, grad_nf = (y.reshape(-1, y.shape[-1]) for y in (x_bld, grad_blf))
    over_rows = (((0,), (0,)), ((), ()))
    if kernel_df.shape[0] <= kernel_df.shape[1]:
        grad_df = jax.lax.dot_general(x_nd, grad_nf, over_rows)
    else:
        grad_df = jax.lax.dot_general(grad_nf, x_nd, over_rows).T
    return jax.lax.dot_general(grad_blf, kernel_df, (((grad_blf.ndim - 1,), (1,)), ((), ()))), grad_df


product.defvjp(_product_forward, _product_backward)


class Linear(nnx.Linear):
    """A linear map without bias; on a CPU by `product`."""

    def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
        if platform() != "cpu" or self.use_bias or out_sharding is not None:
            return super().__call__(inputs, out_sharding=out_sharding)
        return product(inputs.astype(self.dtype), self.kernel[...].astype(self.dtype))


def linear(d_in: int, d_out: int, *, dtype: str, rngs: nnx.Rngs, bias: bool = False, zero: bool = False) -> nnx.Linear:
    """A linear map with float32 parameters computed in `dtype`; `zero=True` starts it at zero."""
    init = nnx.initializers.zeros if zero else normal_init
    return Linear(d_in, d_out, use_bias=bias, kernel_init=init, dtype=jnp.dtype(dtype), rngs=rngs)


def embedding(rows: int, width: int, *, rngs: nnx.Rngs) -> nnx.Embed:
    """A float32 table of `rows` vectors."""
    return nnx.Embed(rows, width, embedding_init=normal_init, rngs=rngs)


def unit_rms(x: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) over the last axis, computed in float32 and cast back."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale; the mean square is taken in float32, then cast back, then scaled (as in LLaMA)."""

    def __init__(self, width: int, *, eps: float, rngs: nnx.Rngs):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return unit_rms(x, self.eps) * jnp.broadcast_to(self.scale[...].astype(x.dtype), x.shape)


class LayerNorm(nnx.Module):
    """LayerNorm with scale and bias, computed in float32."""

    def __init__(self, width: int, *, eps: float, rngs: nnx.Rngs):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.eps)
        scale, bias = (jnp.broadcast_to(p[...], x.shape) for p in (self.scale, self.bias))
        return (normed * scale + bias).astype(x.dtype)


def attend(q_blhk: jax.Array, k_bshk: jax.Array, v_bshk: jax.Array, mask=None, causal: bool = False) -> jax.Array:
    """Attention (b, l, h, k), scores and softmax in float32: `jax.nn.dot_product_attention`.

    Where everything sees everything, a CPU gets its heads brought together first: products of (length, k) by (k, length)
    that lie in memory in one piece take two thirds of the time.
    """
    if platform() != "cpu" or mask is not None or causal or q_blhk.shape[2] != k_bshk.shape[2]:
        return jax.nn.dot_product_attention(q_blhk, k_bshk, v_bshk, mask=mask, is_causal=causal)
    q_bhlk, k_bhsk, v_bhsk = (x.transpose(0, 2, 1, 3) for x in (q_blhk, k_bshk, v_bshk))
    scores_bhls = jnp.einsum("bhlk,bhsk->bhls", q_bhlk, k_bhsk, preferred_element_type=jnp.float32)
    weights_bhls = jax.nn.softmax(scores_bhls * q_blhk.shape[-1] ** -0.5, axis=-1).astype(v_bshk.dtype)
    return jnp.einsum("bhls,bhsk->bhlk", weights_bhls, v_bhsk).transpose(0, 2, 1, 3)


def dropout(x_bld: jax.Array, rate: float, key_b: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and rescales the rest; `key_b=None` (sampling) returns the input.

    One key per image, so the draw does not depend on how a batch is split over devices or accumulation steps. Each key
    gives one random word, which `mixed` spreads over the image's entries: JAX's own generator would cost as much as the
    matrix products do.
    """
    if key_b is None or rate == 0.0:
        return x_bld
    word_b = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(key_b)
    rows, columns = (jax.lax.broadcasted_iota(jnp.uint32, x_bld.shape, axis) for axis in (1, 2))
    bits = mixed(jax.lax.broadcast_in_dim(word_b, x_bld.shape, (0,)) ^ (rows * jnp.uint32(x_bld.shape[2]) + columns))
    threshold = round(rate * 2**32)
    return jnp.where(bits >= jnp.uint32(threshold), x_bld / (1.0 - rate), jnp.zeros_like(x_bld))


def mixed(bits: jax.Array) -> jax.Array:
    """uint32 -> uint32, one to one, such that inputs that differ in any bit differ in about half of the output's bits.

    Multiply and xor-shift with the constants that a search for the least bias found (Wellons, "Prospecting for hash
    functions", 2018). Fit for dropout masks, not for statistics.
    """
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def attended(out: jax.Array) -> jax.Array:
    """An attention's output, one vector a position, before its last linear map: `remat="dots"` keeps it."""
    return checkpoint_name(out, ATTENTION)


def between(x_bld: jax.Array) -> jax.Array:
    """A layer's states after attention, which `remat="dots"` keeps where layers are unrolled, and the vectors that were added
    need not be kept. In a scan a TPU takes longer to fetch them than to add again."""
    return checkpoint_name(x_bld, BETWEEN)


def _keep_linear_maps(primitive, *avals, **parameters) -> bool:
    """Keeps what linear maps make of (b, l, d), but not the rotation's (b, l, h, k), in float32 and cheap to repeat."""
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *avals, **parameters) and avals[0].ndim < 4


# Which intermediate values the backward pass keeps, by whether layers are unrolled; the rest is computed again. "none": all.
REMAT_POLICIES: dict[str, Callable[[bool], Any]] = {
    "dots": lambda unrolled: jax.checkpoint_policies.save_from_both_policies(
        _keep_linear_maps, jax.checkpoint_policies.save_only_these_names(ATTENTION, *[BETWEEN] * unrolled)
    ),
    "full": lambda unrolled: jax.checkpoint_policies.nothing_saveable,
    "offload": lambda unrolled: jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


def unstacked(network: Any) -> Any:
    """The network for a loop that calls it often: if its layers are not scanned, they are cut out of their stack.

    Each call copies the weights of unrolled layers out of the stack; those cut apart before a loop are copied once.
    """
    if not _unrolled(network.cfg.layers):
        return network
    loose = copy.copy(network)
    row = lambda i: jax.tree.map(lambda leaf: leaf[i], network.layers)  # noqa: E731
    loose.layers = nnx.List([row(i) for i in range(network.cfg.depth)])
    return loose


def walk_layers(layers: Any, x_bld: Any, key_b: jax.Array | None, *, depth: int, layers_mode: str, remat: str, call: Callable):
    """Runs stacked `layers` (a leading axis of `depth` on every parameter) over `x_bld` with `call(layer, x, key_b)`.

    Both may be pytrees, such as a network's layers with their numbers, and the states with a cache. `layers` may also be a
    list of what is otherwise stacked (`unstacked`).

    `layers_mode` "scan" compiles one layer and loops (fast to compile, the choice on TPU and GPU), "unroll" writes all out
    (faster to run on CPU), "auto" chooses by platform. Both give the same numbers.
    """

    def step(x, inputs):
        layer, index = inputs
        x = split_rows(x) if isinstance(x, jax.Array) else x
        return call(layer, x, fold_keys(key_b, index)), None

    if remat != "none":
        unrolled = _unrolled(layers_mode)
        step = jax.checkpoint(step, policy=REMAT_POLICIES[remat](unrolled), prevent_cse=unrolled)
    if isinstance(layers, list | nnx.List):
        for index, layer in enumerate(layers):
            x_bld, _ = step(x_bld, (layer, index))
        return x_bld
    x_bld, _ = jax.lax.scan(step, x_bld, (layers, jnp.arange(depth)), unroll=depth if _unrolled(layers_mode) else 1)
    return x_bld


def _unrolled(layers_mode: str) -> bool:
    return layers_mode == "unroll" or (layers_mode == "auto" and platform() == "cpu")
