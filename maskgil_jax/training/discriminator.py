"""PatchGAN discriminator: one real/fake logit for each of overlapping image patches (Isola et al. 2017;
VQGAN, LlamaGen)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from maskgil_jax.config import choose, require

_EPS = 1e-5
_MOMENTUM = 0.1  # weight of the new batch in the running statistics

Stats = dict  # {"1": {"mean": (c,), "var": (c,)}, ...}; empty without batch normalisation


class _Affine(nnx.Module):
    """Scale and bias of a batch normalisation, whose statistics are arguments."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(1.0 + 0.02 * jax.random.normal(rngs.params(), (channels,)))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x_bhwc: jax.Array, mean_c: jax.Array, var_c: jax.Array) -> jax.Array:
        factor_c = self.scale[...] * jax.lax.rsqrt(var_c + _EPS)
        return x_bhwc * factor_c[None, None, None] + (self.bias[...] - mean_c * factor_c)[None, None, None]


class PatchGAN(nnx.Module):
    """Images (b, H, W, 3) in [-1, 1] -> logits (b, h, w, 1): `layers` + 2 convolutions,
    normalised after all but the outer two.

    norm="batch" is the published form. Its running statistics are an argument and a result; under a sharded jit they
    are of the whole global batch. norm="group" has no statistics, and images do not depend on the others of the batch.
    """

    def __init__(self, width: int = 64, layers: int = 3, norm: str = "batch", *, rngs: nnx.Rngs):
        self.norm = choose("norm", norm, ("batch", "group"))
        require(layers >= 1, f"layers: must be at least 1, got {layers}")
        self.layers = layers
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        init = nnx.initializers.normal(0.02)

        def conv(inputs, outputs, strides, use_bias):
            return nnx.Conv(
                inputs, outputs, (4, 4), strides, padding=((1, 1), (1, 1)), use_bias=use_bias, kernel_init=init, rngs=rngs
            )

        def normalization(channels):
            if norm == "batch":
                return _Affine(channels, rngs=rngs)
            return nnx.GroupNorm(channels, num_groups=math.gcd(8, channels), epsilon=_EPS, rngs=rngs)

        convs = [conv(3, widths[0], 2, True)]
        convs += [conv(widths[i - 1], widths[i], 2 if i < layers else 1, False) for i in range(1, layers + 1)]
        convs.append(conv(widths[-1], 1, 1, True))
        self.convs = nnx.Dict({str(i): module for i, module in enumerate(convs)})
        self.norms = nnx.Dict({str(i): normalization(widths[i]) for i in range(1, layers + 1)})

    def initial_stats(self) -> Stats:
        """Running statistics before the first batch: mean 0, variance 1."""
        if self.norm != "batch":
            return {}
        sizes = {str(i): self.norms[str(i)].scale.shape for i in range(1, self.layers + 1)}
        return {i: {"mean": jnp.zeros(shape), "var": jnp.ones(shape)} for i, shape in sizes.items()}

    def __call__(self, images_bhwc: jax.Array, stats: Stats, *, train: bool) -> tuple[jax.Array, Stats]:
        """Logits, and the statistics for the next call.

        train: normalise by this batch and update the statistics; else normalise by `stats` and return them unchanged.
        """
        x_bhwc, moved = jax.nn.leaky_relu(self.convs["0"](images_bhwc), 0.2), {}
        for i in map(str, range(1, self.layers + 1)):
            x_bhwc = self.convs[i](x_bhwc)
            if self.norm == "group":
                x_bhwc = self.norms[i](x_bhwc)
            else:
                used, moved[i] = _batch_moments(x_bhwc, stats[i]) if train else (stats[i], stats[i])
                x_bhwc = self.norms[i](x_bhwc, used["mean"], used["var"])
            x_bhwc = jax.nn.leaky_relu(x_bhwc, 0.2)
        return self.convs[str(self.layers + 1)](x_bhwc), moved


def _batch_moments(x_bhwc: jax.Array, running: dict) -> tuple[dict, dict]:
    """(moments of this batch, updated running moments). As in PyTorch, the running variance is the unbiased one."""
    count = math.prod(x_bhwc.shape[:-1])
    batch = {"mean": jnp.mean(x_bhwc, axis=(0, 1, 2)), "var": jnp.var(x_bhwc, axis=(0, 1, 2))}
    seen = {"mean": batch["mean"], "var": batch["var"] * (count / max(count - 1, 1))}
    moved = {name: (1 - _MOMENTUM) * running[name] + _MOMENTUM * jax.lax.stop_gradient(seen[name]) for name in seen}
    return batch, moved
