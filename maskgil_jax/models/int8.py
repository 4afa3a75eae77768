"""Linear maps whose weights are 8-bit integers: half of the memory and of the traffic of bfloat16 ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskgil_jax.config import ConfigError


class Int8Linear(nnx.Module):
    """y = (x @ kernel) * scale, with an int8 kernel and a float32 scale for each output; no bias.

    The scale is applied to the product: `qwix.dot_general` with one quantised operand multiplies by a float32 copy of
    the weights instead.
    """

    def __init__(self, d_in: int, d_out: int, *, dtype: str):
        self.dtype = jnp.dtype(dtype)
        self.kernel = nnx.Param(jnp.zeros((d_in, d_out), jnp.int8))
        self.scale = nnx.Param(jnp.ones((d_out,), jnp.float32))

    def __call__(self, x_bld: jax.Array) -> jax.Array:
        contract = (((x_bld.ndim - 1,), (0,)), ((), ()))
        kernel = self.kernel[...].astype(self.dtype)
        y = jax.lax.dot_general(x_bld.astype(self.dtype), kernel, contract, preferred_element_type=jnp.float32)
        return (y * jnp.broadcast_to(self.scale[...], y.shape)).astype(self.dtype)


def quantize(kernel: Any) -> tuple[jax.Array, jax.Array]:
    """A kernel (..., in, out) -> (int8 of the same shape, float32 scales (..., out)), by `qwix`."""
    try:
        import qwix
    except ImportError:
        raise ConfigError("kernels: 'int8' needs qwix; pip install 'maskgil_jax[int8]'") from None
    kernel = jnp.asarray(kernel, jnp.float32)
    channels = tuple(axis for axis in range(kernel.ndim) if axis != kernel.ndim - 2)
    found = qwix.quantize(kernel, jnp.int8, channelwise_axes=channels)
    return found.qvalue, jnp.squeeze(found.scale, axis=-2).astype(jnp.float32)


def quantize_layers(params: dict) -> dict:
    """The parameters of a network with `kernels="float"` as those of one with `kernels="int8"`.

    The layers' kernels change.
    """

    def of(tree: dict) -> dict:
        if set(tree) == {"kernel"}:
            kernel, scale = quantize(tree["kernel"])
            return {"kernel": kernel, "scale": scale}
        return {name: of(value) if isinstance(value, dict) else value for name, value in tree.items()}

    return {**params, "layers": of(params["layers"])}
