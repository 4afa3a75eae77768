"""Options of the frozen text encoders, and the sizes of their networks as a Hugging Face `config.json` gives them.

Defaults are those of transformers' configuration classes: a file that leaves a size out means them.
"""

from __future__ import annotations

import dataclasses

from .base import MAX_LAYERS, check_ranges, choose, option, require

GELU = ("gelu", "gelu_tanh", "quick_gelu")  # exact; with tanh; x * sigmoid(1.702 x)


@dataclasses.dataclass(frozen=True)
class TextEncoderOptions:
    """How texts become features, whatever the network."""

    layer: int | None = option(None, "index into transformers' `hidden_states`; None: `last_hidden_state`")
    max_tokens: int = 128  # longer texts are cut; networks with learned positions take at most as many as they have
    padding: str = "right"  # the side of the padding in features and mask
    template: str = ""  # put in front of each text; its tokens count
    dtype: str = "float32"  # of parameters and matrix products; norms, softmax and the resulting features are float32

    def __post_init__(self):
        check_ranges(self)
        choose("padding", self.padding, ("right", "left"))
        choose("dtype", self.dtype, ("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """Gemma 1 and 2: causal, RMSNorm, rotary positions, grouped keys and values, gated GELU."""

    vocabulary: int = 256000
    width: int = 3072
    mlp_width: int = 24576
    depth: int = option(28, "number of layers", low=1, high=MAX_LAYERS)
    heads: int = 16
    kv_heads: int = 16
    head_width: int = 256
    eps: float = 1e-6
    rope_theta: float = 10000.0
    scores_scale: float = 256.0**-0.5
    soft_cap: float | None = None  # attention scores s become cap * tanh(s / cap), before the mask
    window: int | None = None  # positions that a layer of `sliding` sees back, itself included
    sliding: tuple[bool, ...] = ()  # per layer; empty: none slides
    four_norms: bool = False  # Gemma 2 also normalises what attention and MLP add

    def __post_init__(self):
        check_ranges(self)
        require(self.heads % self.kv_heads == 0, f"heads: {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        require(self.head_width % 2 == 0, f"head_width: must be even, got {self.head_width}")
        require(
            self.sliding == () or len(self.sliding) == self.depth,
            f"sliding: expected one value for each of {self.depth} layers, got {len(self.sliding)}",
        )


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The encoder of T5 v1.1 and flan-T5: RMSNorm, learned relative positions shared by all layers, gated GELU."""

    vocabulary: int = 32128
    width: int = 512
    mlp_width: int = 2048
    depth: int = option(6, "number of layers", low=1, high=MAX_LAYERS)
    heads: int = 8
    head_width: int = 64
    eps: float = 1e-6
    buckets: int = 32  # of relative positions, half of them for later positions
    max_distance: int = 128  # from which on all positions share the last bucket

    def __post_init__(self):
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """CLIP's text network: causal, learned positions."""

    vocabulary: int = 49408
    positions: int = 77
    width: int = 512
    mlp_width: int = 2048
    depth: int = option(12, "number of layers", low=1, high=MAX_LAYERS)
    heads: int = 8
    projection: int = 512  # width shared with images
    activation: str = "quick_gelu"
    eps: float = 1e-5
    end_id: int = option(
        49407, "the first of it in a row gives the pooled state; 2, as in older files, means: the largest id", low=0
    )

    def __post_init__(self):
        check_ranges(self)
        choose("activation", self.activation, GELU)
        require(self.width % self.heads == 0, f"width: {self.width} is not a multiple of heads {self.heads}")


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """CLIP's image network: a class token and patches."""

    image_size: int = 224
    patch: int = 32
    channels: int = 3
    width: int = 768
    mlp_width: int = 3072
    depth: int = option(12, "number of layers", low=1, high=MAX_LAYERS)
    heads: int = 12
    projection: int = 512
    activation: str = "quick_gelu"
    eps: float = 1e-5

    def __post_init__(self):
        check_ranges(self)
        choose("activation", self.activation, GELU)
        require(self.width % self.heads == 0, f"width: {self.width} is not a multiple of heads {self.heads}")
        require(self.image_size % self.patch == 0, f"image_size: {self.image_size} is not a multiple of patch {self.patch}")

    @property
    def tokens(self) -> int:
        """The class token and the patches."""
        return (self.image_size // self.patch) ** 2 + 1


@dataclasses.dataclass(frozen=True)
class TextBertConfig:
    """BERT as a sentence encoder (MiniLM): norms after each residual sum, learned positions.

    `BertConfig` is a generator's.
    """

    vocabulary: int = 30522
    positions: int = 512
    token_types: int = 2
    width: int = 768
    mlp_width: int = 3072
    depth: int = option(12, "number of layers", low=1, high=MAX_LAYERS)
    heads: int = 12
    activation: str = "gelu"
    eps: float = 1e-12

    def __post_init__(self):
        check_ranges(self)
        choose("activation", self.activation, GELU)
        require(self.width % self.heads == 0, f"width: {self.width} is not a multiple of heads {self.heads}")
