"""Sizes and options as frozen dataclasses: hashable, so they can be static under `jax.jit`, and plain enough for `config.json`.

Each network has one dataclass and, beside it, its table of `*_PRESETS`. This module knows nothing else of the package.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any


class ConfigError(ValueError):
    """An option has an impossible name or value; the message names it and what is accepted."""


def choose(name: str, value: Any, allowed) -> Any:
    """Returns `value` if it is one of `allowed`, else raises a `ConfigError` that lists them and the nearest."""
    allowed = tuple(allowed)
    if value in allowed:
        return value
    near = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{name}: unknown value {value!r}; choose from {', '.join(map(str, allowed))}.{hint}")


def require(condition: bool, message: str) -> None:
    """Raises a `ConfigError` with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def from_dict(cls, values: dict, where: str = "config"):
    """Builds the dataclass `cls` from plain values (JSON lists become tuples); unknown names are refused by name."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{where}: {cls.__name__} has no option {name!r}{hint}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def to_dict(cfg) -> dict:
    """The dataclass as plain values for `config.json` (inverse of `from_dict`)."""
    return dataclasses.asdict(cfg)


# ------------------------------------------------------------------------------------------------ tokenizers
@dataclasses.dataclass(frozen=True)
class VQConfig:
    """Convolutional VQ-GAN of the LlamaGen / taming family. Levels run from full resolution down; each halves it."""

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # width of each level, times `channels`
    res_blocks: int = 2  # per level in the encoder; the decoder has one more
    attention_levels: tuple[int, ...] = (-1,)  # levels with attention besides the middle; negative counts from the lowest
    latent_dim: int = 256  # encoder output width, before the projection to `codebook_dim`
    codebook_size: int = 16384
    codebook_dim: int = 8
    norm_groups: int = 32  # of GroupNorm; a width it does not divide takes the greatest common divisor
    l2_normalize: bool = True  # codes live on the unit sphere (cosine search), as in LlamaGen and ViT-VQGAN
    image_size: int = 256  # training resolution; only a default: any multiple of `downsample` encodes
    dtype: str = "float32"  # compute dtype of the convolutions; the code search is always float32

    def __post_init__(self):
        choose("dtype", self.dtype, ("float32", "bfloat16"))
        require(
            len(self.multipliers) >= 1 and min(self.multipliers) >= 1, f"multipliers: need widths >= 1, got {self.multipliers}"
        )
        require(self.codebook_size >= 2, f"codebook_size: must be at least 2, got {self.codebook_size}")
        require(
            self.image_size % self.downsample == 0,
            f"image_size: {self.image_size} is not a multiple of the downsampling factor {self.downsample}",
        )

    @property
    def downsample(self) -> int:
        """Pixels per code along one side."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of codes at the training resolution."""
        return (self.image_size // self.downsample,) * 2


# VQ-16 and VQ-8: LlamaGen, 71.88M and 70.11M parameters.
VQ_PRESETS = {
    "VQ-16": VQConfig(),
    "VQ-8": VQConfig(multipliers=(1, 2, 2, 4)),
    "small": VQConfig(
        channels=8, multipliers=(1, 2, 4, 8), res_blocks=1, latent_dim=64, codebook_size=512, norm_groups=4, image_size=64
    ),
}


# ------------------------------------------------------------------------------------------------ generators
def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """LLaMA over VQ tokens (paper 3.2, Table 2): bidirectional for MaskGIL, `causal=True` for the AR model.

    The paper's reading is the default; `positions="1d_shifted"`, `class_position="last"` and `mask_logit=True`
    together are the layout of the published code.
    """

    codebook_size: int = 16384
    num_classes: int = 1000
    grid: tuple[int, int] = (16, 16)  # training canvas; with 2-D positions any other grid works too
    width: int = 768
    depth: int = 12
    heads: int = 12
    kv_heads: int | None = None  # fewer than `heads`: grouped-query attention
    mlp_width: int | None = None  # None: round_up(int(8 * width / 3), 256)
    positions: str = "2d"  # "2d": rotary by (row, col); "1d_shifted": one zero row first, so token i gets angle i - 1
    prefix_rotation: str = "zero"  # rotation of the class token: "zero" (LlamaGen: q = k = 0) or "identity"
    class_position: str = "first"  # or "last"
    rope_base: float = 10000.0
    qk_norm: str = "none"  # "per_head": over each head; "full": over all heads together (both before the rotation)
    qk_norm_kind: str = "layer"  # "layer" (with bias, as Chameleon) or "rms"
    post_norm: str = "none"  # "sandwich": x + norm(f(norm(x))); "swin": x + norm(f(x))
    norm_eps: float = 1e-5
    dropout: float = 0.1  # on the outputs of attention and MLP, in training only
    mask_logit: bool = False  # train the head on codebook_size + 1 classes (the published code); never sampled
    causal: bool = False
    dtype: str = "float32"  # compute dtype; parameters stay float32
    layers: str = "auto"  # "scan", "unroll", or by platform: unrolled on CPU, scanned elsewhere
    remat: str = "none"  # "none", "dots" (keep matrix products), "full", "offload" (keep them in host memory)

    def __post_init__(self):
        choose("positions", self.positions, ("2d", "1d_shifted"))
        choose("prefix_rotation", self.prefix_rotation, ("zero", "identity"))
        choose("class_position", self.class_position, ("first", "last"))
        choose("qk_norm", self.qk_norm, ("none", "per_head", "full"))
        choose("qk_norm_kind", self.qk_norm_kind, ("layer", "rms"))
        choose("post_norm", self.post_norm, ("none", "sandwich", "swin"))
        choose("layers", self.layers, ("auto", "scan", "unroll"))
        choose("remat", self.remat, ("none", "dots", "full", "offload"))
        choose("dtype", self.dtype, ("float32", "bfloat16"))
        require(0.0 <= self.dropout < 1.0, f"dropout: must be in [0, 1), got {self.dropout}")
        require(self.width % self.heads == 0, f"width: {self.width} is not a multiple of heads {self.heads}")
        require(
            self.heads % (self.kv_heads or self.heads) == 0, f"kv_heads: {self.kv_heads} does not divide heads {self.heads}"
        )
        require(
            self.head_dim % (4 if self.positions == "2d" else 2) == 0,
            f"heads: head width {self.head_dim} must be a multiple of 4 for 2-D positions (of 2 for 1-D)",
        )
        require(min(self.grid) >= 1, f"grid: sides must be at least 1, got {self.grid}")

    @property
    def mask_id(self) -> int:
        """Token id of [MASK]: one past the codebook."""
        return self.codebook_size

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Width of the SwiGLU MLP."""
        return self.mlp_width or _round_up(int(8 * self.width / 3), 256)


# The paper's Table 2; heads are always 64 wide. XXL adds QK-Norm and Post-Norm (section 4.1; their placement is our reading).
LLAMA_PRESETS = {
    "tiny": LlamaConfig(width=64, depth=2, heads=2, mlp_width=192),
    "small": LlamaConfig(width=128, depth=6, heads=4, mlp_width=384),
    "B": LlamaConfig(width=768, depth=12, heads=12),
    "L": LlamaConfig(width=1024, depth=24, heads=16),
    "XL": LlamaConfig(width=1280, depth=36, heads=20),
    "XXL": LlamaConfig(width=1536, depth=48, heads=24, qk_norm="per_head", post_norm="sandwich"),
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Bidirectional Transformer baseline (paper 3.1.2): learned positions, LayerNorm, GELU, head tied to the token table."""

    codebook_size: int = 16384
    num_classes: int = 1000
    grid: tuple[int, int] = (16, 16)
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    dropout: float = 0.1
    class_position: str = "last"  # where the class token stands (and which learned position it has)
    mask_logit: bool = False
    dtype: str = "float32"
    layers: str = "auto"
    remat: str = "none"

    def __post_init__(self):
        choose("class_position", self.class_position, ("first", "last"))
        choose("layers", self.layers, ("auto", "scan", "unroll"))
        choose("remat", self.remat, ("none", "dots", "full", "offload"))
        choose("dtype", self.dtype, ("float32", "bfloat16"))
        require(0.0 <= self.dropout < 1.0, f"dropout: must be in [0, 1), got {self.dropout}")
        require(self.width % self.heads == 0, f"width: {self.width} is not a multiple of heads {self.heads}")

    @property
    def mask_id(self) -> int:
        """Token id of [MASK]: one past the codebook."""
        return self.codebook_size


BERT_PRESETS = {
    "tiny": BertConfig(width=64, depth=2, heads=2, mlp_width=128),
    "B": BertConfig(),  # the paper's 12 layers, 12 heads, 768
    "B-24": BertConfig(depth=24, heads=16),  # the size in the published code
}


# ------------------------------------------------------------------------------------------------ classifier
@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Small convolutional network that judges generated images; the defaults hold 0.24M parameters."""

    num_classes: int = 98
    channels: tuple[int, ...] = (24, 48, 80)  # width at 1/2, 1/4, ... of the resolution
    feature_dim: int = 128
    norm_groups: int = 8  # of GroupNorm; a width it does not divide takes the greatest common divisor
    image_size: int = 64  # training resolution
    dtype: str = "float32"  # compute dtype of the convolutions

    def __post_init__(self):
        choose("dtype", self.dtype, ("float32", "bfloat16"))
        require(bool(self.channels) and min(self.channels) >= 1, f"channels: need widths >= 1, got {self.channels}")
        require(self.num_classes >= 1 and self.feature_dim >= 1, "num_classes and feature_dim: must be at least 1")


# ------------------------------------------------------------------------------------------------ decoding
SCHEDULES = ("root", "linear", "square", "cosine", "arccos")
PLANS = ("density", "gamma", "gamma_ceil", "cumulative")


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How masked decoding samples (paper 4.2); static under jit, so every distinct value compiles once.

    guidance: classifier-free scale s in `uncond + s * (cond - uncond)`; 1 means no second branch. With
    `guidance_ramp="linear"` the scale runs from 1 at the first step to `1 + guidance` at the last (the published code).
    temperature: divides the logits; 0 takes the likeliest code. choice_temperature: weight of the Gumbel noise on the
    confidence, falling to 0 at the last step. top_k, top_p: draw only from the likeliest codes. draw: how a code is
    drawn, the same law either way: "gumbel" (Gumbel-max), "inverse" (inverse CDF), or by platform: inverse on CPU.
    """

    steps: int = 8
    schedule: str = "arccos"
    plan: str = "density"
    guidance: float = 2.0
    guidance_ramp: str = "constant"
    order: str = "confidence"
    temperature: float = 1.0
    choice_temperature: float = 4.5
    top_k: int | None = None
    top_p: float | None = None
    remask: str | None = None
    draw: str = "auto"

    def __post_init__(self):
        choose("schedule", self.schedule, SCHEDULES)
        choose("plan", self.plan, PLANS)
        choose("guidance_ramp", self.guidance_ramp, ("constant", "linear"))
        choose("order", self.order, ("confidence", "random", "raster"))
        choose("remask", self.remask, (None,))
        choose("draw", self.draw, ("auto", "gumbel", "inverse"))
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool)
        require(whole and self.steps >= 1, f"steps: must be a whole number >= 1, got {self.steps!r}")
        require(0.0 <= self.guidance < float("inf"), f"guidance: must be a finite number >= 0, got {self.guidance}")
        require(0.0 <= self.temperature < float("inf"), f"temperature: must be a finite number >= 0, got {self.temperature}")
        require(
            0.0 <= self.choice_temperature < float("inf"),
            f"choice_temperature: must be a finite number >= 0, got {self.choice_temperature}",
        )
        require(self.top_k is None or self.top_k >= 1, f"top_k: must be None or >= 1, got {self.top_k}")
        require(self.top_p is None or 0.0 < self.top_p <= 1.0, f"top_p: must be None or in (0, 1], got {self.top_p}")
