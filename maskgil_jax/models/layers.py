"""Parts shared by the transformers: linear maps, norms, attention, stateless dropout, and the loop over layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maskgil_jax.config import ConfigError
from maskgil_jax.runtime.mesh import constrain_batch
from maskgil_jax.runtime.platform import platform
from maskgil_jax.runtime.rng import fold_keys

ATTENTION_MULTIPLE = 8  # cuDNN refuses odd lengths; a multiple of 8 also aligns masks
# Names (`checkpoint_name`) of what `remat="dots"` keeps beside the outputs of linear maps: the output of attention,
# and, where layers are unrolled, the states after the residual sum of attention. In a scan, a TPU takes longer to fetch
# the latter from memory than to add them again.
ATTENTION_OUT, ATTENTION_RESIDUAL, LINEAR_OUT = "attn_out", "attn_residual", "linear_out"
normal_init = nnx.initializers.normal(0.02)  # GPT-2's, used by LlamaGen and MaskGIL for linear maps and tables


def check_learned_grid(cfg, grid: tuple[int, int] | None) -> None:
    """Raises a `ConfigError` for another grid than the trained one (None):
    each of its places has a learned position."""
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
        # Named, since remat policies do not see the products inside a function with a gradient of its own.
        return checkpoint_name(product(inputs.astype(self.dtype), self.kernel[...].astype(self.dtype)), LINEAR_OUT)


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
    """LayerNorm with scale and, unless `bias=False`, bias, computed in float32."""

    def __init__(self, width: int, *, eps: float, rngs: nnx.Rngs, bias: bool = True):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.eps)
        normed = normed * jnp.broadcast_to(self.scale[...], x.shape)
        return (normed if self.bias is None else normed + jnp.broadcast_to(self.bias[...], x.shape)).astype(x.dtype)


def dot_product_attention(
    q_blhk: jax.Array, k_bshk: jax.Array, v_bshk: jax.Array, mask=None, causal: bool = False
) -> jax.Array:
    """Attention (b, l, h, k), scores and softmax in float32: `jax.nn.dot_product_attention`.

    On a CPU heads are moved in front of the positions, unless query heads share keys or there is a single query, for
    which a cache of keys is not moved: products of contiguous (length, k) by (k, length) matrices take two thirds of
    the time.
    """
    if platform() != "cpu" or causal or q_blhk.shape[1] == 1 or q_blhk.shape[2] != k_bshk.shape[2]:
        return jax.nn.dot_product_attention(q_blhk, k_bshk, v_bshk, mask=mask, is_causal=causal)
    q_bhlk, k_bhsk, v_bhsk = (x.transpose(0, 2, 1, 3) for x in (q_blhk, k_bshk, v_bshk))
    scores_bhls = jnp.einsum("bhlk,bhsk->bhls", q_bhlk, k_bhsk, preferred_element_type=jnp.float32)
    scores_bhls = scores_bhls * q_blhk.shape[-1] ** -0.5
    if mask is not None:
        scores_bhls = jnp.where(mask, scores_bhls, 0.7 * jnp.finfo(jnp.float32).min)  # the value that jax.nn takes
    weights_bhls = jax.nn.softmax(scores_bhls, axis=-1).astype(v_bshk.dtype)
    return jnp.einsum("bhls,bhsk->bhlk", weights_bhls, v_bhsk).transpose(0, 2, 1, 3)


def padded_attention(
    q_blhk: jax.Array, k_bshk: jax.Array, v_bshk: jax.Array, mask=None, causal: bool = False, implementation: str = "cudnn"
) -> jax.Array:
    """Attention (b, l, h, k) by an implementation that needs lengths in multiples of `ATTENTION_MULTIPLE`,
    as cuDNN's does.

    Queries and keys are padded with zeros; padded keys are masked by their lengths or, with a `mask` (b, 1, l, s), by
    it.
    """
    b, l, s = q_blhk.shape[0], q_blhk.shape[1], k_bshk.shape[1]
    more_l, more_s = -l % ATTENTION_MULTIPLE, -s % ATTENTION_MULTIPLE
    q_blhk, k_bshk, v_bshk = (
        jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) for x, more in ((q_blhk, more_l), (k_bshk, more_s), (v_bshk, more_s))
    )
    lengths: dict[str, Any] = {}
    if mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, more_l), (0, more_s)))
    elif more_l or more_s:
        lengths = dict(query_seq_lengths=jnp.full(b, l, jnp.int32), key_value_seq_lengths=jnp.full(b, s, jnp.int32))
    options: dict[str, Any] = dict(mask=mask, is_causal=causal, implementation=implementation, **lengths)
    out_blhk = jax.nn.dot_product_attention(q_blhk, k_bshk, v_bshk, **options)
    return out_blhk[:, :l]


def dropout(x_bld: jax.Array, rate: float, key_b: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and rescales the rest; `key_b=None` (sampling) returns the input.

    One key per image, so the mask does not depend on how a batch is split over devices or accumulation steps. Each key
    gives one random word, and `hash_uint32` makes the bits of every entry of the image from it. Threefry bits for every
    entry would take as long as the matrix products.
    """
    if key_b is None or rate == 0.0:
        return x_bld
    word_b = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(key_b)
    rows, columns = (jax.lax.broadcasted_iota(jnp.uint32, x_bld.shape, axis) for axis in (1, 2))
    bits = hash_uint32(jax.lax.broadcast_in_dim(word_b, x_bld.shape, (0,)) ^ (rows * jnp.uint32(x_bld.shape[2]) + columns))
    threshold = round(rate * 2**32)
    return jnp.where(bits >= jnp.uint32(threshold), x_bld / (1.0 - rate), jnp.zeros_like(x_bld))


def hash_uint32(bits: jax.Array) -> jax.Array:
    """Mixes the bits of uint32 numbers: a bijection in which any flipped input bit flips about half of the output bits.

    Multiply and xor-shift with the constants that a search for the least bias found (Wellons, "Prospecting for hash
    functions", 2018). Fit for dropout masks, not for statistics.
    """
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def _keep_linear_maps(primitive, *avals, **parameters) -> bool:
    """Keeps what linear maps make of (b, l, d), but not the rotation's (b, l, h, k), in float32 and cheap to repeat."""
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *avals, **parameters) and avals[0].ndim < 4


# Which intermediate values the backward pass keeps, by whether layers are unrolled; the rest is computed again. "none":
# all.
REMAT_POLICIES: dict[str, Callable[[bool], Any]] = {
    "dots": lambda unrolled: jax.checkpoint_policies.save_from_both_policies(
        _keep_linear_maps,
        jax.checkpoint_policies.save_only_these_names(ATTENTION_OUT, LINEAR_OUT, *[ATTENTION_RESIDUAL] * unrolled),
    ),
    "full": lambda unrolled: jax.checkpoint_policies.nothing_saveable,
    "offload": lambda unrolled: jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


def stack_layers(make: Callable, rngs: nnx.Rngs, depth: int, stacked: bool) -> Any:
    """`depth` layers `make(rngs)`: one whose parameters have a leading axis of `depth`, or a list of them."""
    if stacked:
        return jax.vmap(make)(rngs.split(depth))
    return nnx.List([make(rngs) for _ in range(depth)])


def apply_layers(layers: Any, x_bld: Any, key_b: jax.Array | None, *, depth: int, layers_mode: str, remat: str, call: Callable):
    """Runs stacked `layers` (a leading axis of `depth` on every parameter) over `x_bld` with `call(layer, x, key_b)`.

    Both may be pytrees, such as layers with their numbers, and states with a cache. `layers` may also be a list of what
    is otherwise stacked. `layers_mode`: see `GeneratorConfig`; all modes give the same numbers.
    """

    def step(x, inputs):
        layer, index = inputs
        x = constrain_batch(x) if isinstance(x, jax.Array) else x
        return call(layer, x, fold_keys(key_b, index)), None

    if remat != "none":
        unrolled = layers_unrolled(layers_mode)
        step = jax.checkpoint(step, policy=REMAT_POLICIES[remat](unrolled), prevent_cse=unrolled)
    if isinstance(layers, list | nnx.List):
        for index, layer in enumerate(layers):
            x_bld, _ = step(x_bld, (layer, index))
        return x_bld
    x_bld, _ = jax.lax.scan(step, x_bld, (layers, jnp.arange(depth)), unroll=depth if layers_unrolled(layers_mode) else 1)
    return x_bld


def layers_unrolled(layers_mode: str) -> bool:
    """Whether layers are compiled one by one: "unroll", or "auto" on a CPU."""
    return layers_mode == "unroll" or (layers_mode == "auto" and platform() == "cpu")


def masked_mean(x_btd: jax.Array, mask_bt: jax.Array) -> jax.Array:
    """The mean (b, d) of the vectors at the places of a mask; zeros where it has none."""
    weight_bt1 = mask_bt.astype(x_btd.dtype)[..., None]
    return jnp.sum(x_btd * weight_bt1, axis=1) / jnp.maximum(jnp.sum(weight_bt1, axis=1), 1)
