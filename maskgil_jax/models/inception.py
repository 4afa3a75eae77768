"""The FID InceptionV3 (the network of 2015-12-05 behind FID, IS, sFID and Precision/Recall).

It differs from the usual InceptionV3 in four ways: average pools leave padding out of the count, the pool branch of the
last block is a max pool, BatchNorm has epsilon 1e-3 and there are 1008 classes. Inference only: the statistics are
parameters. The parameter paths follow the published names: `Mixed_5b.branch1x1.conv.weight` is
`mixed_5b/branch1x1/kernel`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from maskgil_jax.config import InceptionConfig

CLASSES = 1008
BN_EPSILON = 1e-3
SPATIAL_CHANNELS = 7  # sFID keeps the first seven channels of `mixed_6/conv`: 17 * 17 * 7 = 2023 features


# ------------------------------------------------------------------------------------------------ the network as tables
class Conv(NamedTuple):
    """One convolution with its norm and ReLU."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


# A branch is a chain of steps: a `Conv`, the name of a pool, or a tuple of `Conv`s that all read the same input.
def _down(name: str, width: int) -> Conv:
    return Conv(name, width, (3, 3), 2, "VALID")


def _mixed_35(pool_width: int) -> tuple:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
        ("average", Conv("branch_pool", pool_width)),
    )


def _mixed_17(inner: int) -> tuple:
    double = (((7, 1), inner), ((1, 7), inner), ((7, 1), inner), ((1, 7), 192))
    return (
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", inner), Conv("branch7x7_2", inner, (1, 7)), Conv("branch7x7_3", 192, (7, 1))),
        (Conv("branch7x7dbl_1", inner), *(Conv(f"branch7x7dbl_{i}", w, k) for i, (k, w) in enumerate(double, 2))),
        ("average", Conv("branch_pool", 192)),
    )


def _mixed_8(pool: str) -> tuple:
    def fork(name):
        return Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))

    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), fork("branch3x3_2")),
        (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)), fork("branch3x3dbl_3")),
        (pool, Conv("branch_pool", 192)),
    )


STEM = (
    (_down("conv_1a_3x3", 32), Conv("conv_2a_3x3", 32, (3, 3), padding="VALID"), Conv("conv_2b_3x3", 64, (3, 3)), "halve"),
    (Conv("conv_3b_1x1", 80), Conv("conv_4a_3x3", 192, (3, 3), padding="VALID"), "halve"),
)
BLOCKS: dict[str, tuple] = {
    "mixed_5b": _mixed_35(32),
    "mixed_5c": _mixed_35(64),
    "mixed_5d": _mixed_35(64),
    "mixed_6a": (
        (_down("branch3x3", 384),),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), _down("branch3x3dbl_3", 96)),
        ("halve",),
    ),
    "mixed_6b": _mixed_17(128),
    "mixed_6c": _mixed_17(160),
    "mixed_6d": _mixed_17(160),
    "mixed_6e": _mixed_17(192),
    "mixed_7a": (
        (Conv("branch3x3_1", 192), _down("branch3x3_2", 320)),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            _down("branch7x7x3_4", 192),
        ),
        ("halve",),
    ),
    "mixed_7b": _mixed_8("average"),
    "mixed_7c": _mixed_8("max"),
}


# ------------------------------------------------------------------------------------------------ modules
class ConvNorm(nnx.Module):
    """Convolution without bias, BatchNorm with fixed statistics, ReLU. The norm is applied as one multiply and one
    add."""

    def __init__(self, spec: Conv, width_in: int, *, rngs: nnx.Rngs):
        self.stride, self.padding = spec.stride, spec.padding
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (*spec.kernel, width_in, spec.width), jnp.float32))
        self.scale, self.var = (nnx.Param(jnp.ones((spec.width,), jnp.float32)) for _ in range(2))
        self.bias, self.mean = (nnx.Param(jnp.zeros((spec.width,), jnp.float32)) for _ in range(2))

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        y_bhwc = jax.lax.conv_general_dilated(
            x_bhwc,
            self.kernel[...],
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,  # TensorFloat-32 or bfloat16 passes would move FID
        )
        gain_c = self.scale[...] * jax.lax.rsqrt(self.var[...] + BN_EPSILON)
        shift_c = self.bias[...] - self.mean[...] * gain_c
        return jax.nn.relu(y_bhwc * gain_c.reshape(1, 1, 1, -1) + shift_c.reshape(1, 1, 1, -1))


def pool(kind: str, x_bhwc: jax.Array) -> jax.Array:
    """The 3x3 pools: `average` (stride 1, padding not counted), `max` (stride 1), `halve` (max, stride 2,
    no padding)."""
    if kind == "average":
        return nnx.avg_pool(x_bhwc, (3, 3), (1, 1), "SAME", count_include_pad=False)
    if kind == "max":
        return nnx.max_pool(x_bhwc, (3, 3), (1, 1), "SAME")
    return nnx.max_pool(x_bhwc, (3, 3), (2, 2), "VALID")


class Mixed(nnx.Module):
    """One block: parallel branches read the same input and their outputs are joined along the channels."""

    def __init__(self, name: str, width_in: int, *, rngs: nnx.Rngs):
        self.name, self.width = name, 0
        for branch in BLOCKS[name]:
            width = width_in
            for step in branch:
                convs = () if isinstance(step, str) else (step,) if isinstance(step, Conv) else step
                for conv in convs:
                    setattr(self, conv.name, ConvNorm(conv, width, rngs=rngs))
                width = sum(conv.width for conv in convs) or width
            self.width += width

    def __call__(self, x_bhwc: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The joined output and the output of the first branch alone."""
        outputs = []
        for branch in BLOCKS[self.name]:
            y_bhwc = x_bhwc
            for step in branch:
                if isinstance(step, str):
                    y_bhwc = pool(step, y_bhwc)
                elif isinstance(step, Conv):
                    y_bhwc = getattr(self, step.name)(y_bhwc)
                else:
                    y_bhwc = jnp.concatenate([getattr(self, conv.name)(y_bhwc) for conv in step], axis=-1)
            outputs.append(y_bhwc)
        return jnp.concatenate(outputs, axis=-1), outputs[0]


class InceptionV3(nnx.Module):
    """The network: images_bhwc float32 about [-1, 1], normally 299x299 -> {tap: array}; see `__call__`."""

    def __init__(self, cfg: InceptionConfig, *, rngs: nnx.Rngs):
        self.cfg, width = cfg, 3
        for conv in (step for stage in STEM for step in stage if isinstance(step, Conv)):
            setattr(self, conv.name, ConvNorm(conv, width, rngs=rngs))
            width = conv.width
        for name in BLOCKS:
            block = Mixed(name, width, rngs=rngs)
            setattr(self, name, block)
            width = block.width
        self.fc = nnx.Linear(width, CLASSES, precision=jax.lax.Precision.HIGHEST, rngs=rngs)

    def __call__(self, images_bhwc: jax.Array) -> dict[str, jax.Array]:
        """All taps, float32; under `jit` those not used cost nothing.

        `pool3` (b, 2048); `spatial` (b, 2023): the first 7 channels of `mixed_6/conv`, flattened from (rows, columns,
        channels); `logits` (b, 1008) and `logits_unbiased` without the bias; `block0`, `block1`, `block2`: feature maps
        (b, h, w, 64 / 192 / 768) after the first and the second stem pool and after `mixed_6e`.
        """
        x_bhwc, taps = images_bhwc, {}
        for index, stage in enumerate(STEM):
            for step in stage:
                x_bhwc = pool(step, x_bhwc) if isinstance(step, str) else getattr(self, step.name)(x_bhwc)
            taps[f"block{index}"] = x_bhwc
        for name in BLOCKS:
            x_bhwc, first_bhwc = getattr(self, name)(x_bhwc)
            if name == "mixed_6d":  # the graph's `mixed_6` is the block that later code calls 6d
                taps["spatial"] = first_bhwc[..., :SPATIAL_CHANNELS].reshape(first_bhwc.shape[0], -1)
            if name == "mixed_6e":
                taps["block2"] = x_bhwc
        taps["pool3"] = x_bhwc.mean(axis=(1, 2))
        taps["logits_unbiased"] = jnp.dot(taps["pool3"], self.fc.kernel[...], precision=jax.lax.Precision.HIGHEST)
        taps["logits"] = self.fc(taps["pool3"])
        return taps
