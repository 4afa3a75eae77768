"""Options of the generators, and their published sizes."""

from __future__ import annotations

import dataclasses

from .base import MAX_LAYERS, check_ranges, choose, option, require

# By dtype, the longest sequence that the attention kernels were compiled for: 32 x 32 tokens and a class, 16 x 16 and a
# class.
FLASH_LENGTH = {"bfloat16": 1025, "float32": 257}


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


REMAT = ("none", "dots", "full", "offload")


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """Options that every generator has. What decoders and trainers ask of a network's options is declared here.

    layers: "scan" compiles one layer and loops over them, "unroll" writes all of them out, "auto" unrolls on a CPU
    alone.
    remat: what the backward pass keeps: everything ("none"), matrix products ("dots", or "offload" to host memory), or
    nothing ("full").
    """

    codebook_size: int = 16384
    num_classes: int = 1000
    grid: tuple[int, int] = (16, 16)  # (rows, columns) of the training canvas
    width: int = 768
    depth: int = 12
    heads: int = 12
    dropout: float = option(0.1, "in training only", low=0.0, high=1.0, open_high=True)
    dtype: str = "float32"  # compute dtype; parameters stay float32
    layers: str = "auto"
    remat: str = "none"

    def __post_init__(self):
        check_ranges(self)
        require(self.depth <= MAX_LAYERS, f"depth: must be at most {MAX_LAYERS}, got {self.depth}")
        choose("layers", self.layers, ("auto", "scan", "unroll"))
        choose("remat", self.remat, REMAT)
        choose("dtype", self.dtype, ("float32", "bfloat16"))

    @property
    def mask_id(self) -> int:
        """Token id of [MASK]: one past the codebook."""
        return self.codebook_size

    @property
    def causal(self) -> bool:
        """Whether the network predicts the next token instead of the masked ones."""
        return False

    @property
    def condition(self) -> str:
        """Kind of condition: "class" or "text"."""
        return "class"

    @property
    def prefix_tokens(self) -> int:
        """Positions that the condition takes up in the sequence."""
        return 1

    @property
    def rope_scaling(self) -> str | None:
        """Treatment of canvases larger than `grid`.

        None for networks with learned positions, which know `grid` alone.
        """
        return None


def is_causal(cfg: object) -> bool:
    """Whether a network of these options predicts the next token."""
    return isinstance(cfg, GeneratorConfig) and cfg.causal


def check_flash_length(positions: int, dtype: str) -> None:
    """Raises a `ConfigError` if the Pallas attention kernels do not support so long a sequence."""
    require(
        positions <= FLASH_LENGTH[dtype],
        f'attention: "flash" supports sequences of at most {FLASH_LENGTH[dtype]} positions in {dtype}, prefix included, '
        f'got {positions}; use "xla", or a smaller grid',
    )


@dataclasses.dataclass(frozen=True)
class LlamaConfig(GeneratorConfig):
    """LLaMA over VQ tokens (paper 3.2, Table 2): bidirectional for MaskGIL, `causal=True` for the AR model.

    The paper's reading is the default; `positions="1d_shifted"`, `class_position="last"` and `mask_logit=True`
    together are the layout of the published code. With 2-D positions any grid works beside the training one. Dropout
    acts on the outputs of attention and MLP.

    With `patch` 2, the layers run on one position for every 2x2 tokens: their vectors, of width / 4 each, are laid side
    by side, and after the last layer a linear map gives each token a state of its own. A quarter of the positions, and
    of the time; masks, logits and sampling are those of single tokens as before.
    """

    null_class: bool = True  # False: trained without class dropout, so there is no null class and no guidance
    condition: str = "class"  # "class": one learned vector each; "text": features of a text encoder through an MLP (LlamaGen)
    text_tokens: int = 120  # positions of a text; LlamaGen pads it on the left
    text_dim: int = 2048  # width of its features
    caption_norm: bool = False  # an RMSNorm of the features before the MLP: for encoders whose states are not normalised
    text_pool: str = "none"  # "mean": the mean of a text's vectors is also added to every position of the image; not causal
    null_text: str = "random"  # what stands for no text: a "random" vector per position, under the mask of the text that it
    # replaces (LlamaGen), or what the "encoder" makes of "", with a mask of its own
    patch: int = 1  # tokens along a side that share one position of the sequence; not causal
    kv_heads: int | None = None  # fewer than `heads`: grouped-query attention
    mlp_width: int | None = None  # None: round_up(int(8 * width / 3), 256)
    positions: str = "2d"  # "2d": rotary by (row, col); "1d_shifted": one zero row first, so token i gets angle i - 1
    prefix_rotation: str = "zero"  # rotation of the class token: "zero" (LlamaGen: q = k = 0) or "identity"
    class_position: str = "first"  # or "last"
    rope_base: float = 10000.0
    rope_scaling: str = "none"  # on canvases larger than `grid`: "interpolate" or "ntk" (models/rope.py); 2-D positions only
    qk_norm: str = "none"  # "per_head": over each head; "full": over all heads together (both before the rotation)
    qk_norm_kind: str = "layer"  # "layer" (with bias, as Chameleon) or "rms"
    post_norm: str = "none"  # "sandwich": x + norm(f(norm(x))); "swin": x + norm(f(x))
    norm_eps: float = 1e-5
    mask_logit: bool = False  # train the head on codebook_size + 1 classes (the published code); never sampled
    causal: bool = False
    attention: str = "xla"  # "cudnn": on a GPU (XLA elsewhere); "flash": models/experimental/flash_attention.py, on a TPU

    def __post_init__(self):
        super().__post_init__()
        choose("condition", self.condition, ("class", "text"))
        require(
            self.condition == "class" or (self.positions, self.class_position) == ("2d", "first"),
            'condition: a text comes first and needs positions "2d", got '
            f"positions {self.positions!r}, class_position {self.class_position!r}",
        )
        choose("null_text", self.null_text, ("random", "encoder"))
        choose("text_pool", self.text_pool, ("none", "mean"))
        require(
            self.condition == "text" or (self.caption_norm, self.null_text, self.text_pool) == (False, "random", "none"),
            'caption_norm, null_text and text_pool: are options of condition "text", got condition "class"',
        )
        require(self.text_pool == "none" or not self.causal, 'text_pool: "mean" is for bidirectional networks, got causal')
        choose("positions", self.positions, ("2d", "1d_shifted"))
        choose("rope_scaling", self.rope_scaling, ("none", "interpolate", "ntk"))
        require(
            self.rope_scaling == "none" or self.positions == "2d",
            f"rope_scaling: {self.rope_scaling!r} needs positions='2d', got positions={self.positions!r}",
        )
        choose("prefix_rotation", self.prefix_rotation, ("zero", "identity"))
        choose("class_position", self.class_position, ("first", "last"))
        choose("qk_norm", self.qk_norm, ("none", "per_head", "full"))
        choose("qk_norm_kind", self.qk_norm_kind, ("layer", "rms"))
        choose("post_norm", self.post_norm, ("none", "sandwich", "swin"))
        choose("attention", self.attention, ("xla", "cudnn", "flash"))
        require(
            self.attention != "cudnn" or self.dtype == "bfloat16",
            f'attention: "cudnn" computes in bfloat16, got dtype {self.dtype!r}; use dtype="bfloat16" or attention="xla"',
        )
        require(
            self.attention != "flash" or (self.condition == "class" and self.kv_heads in (None, self.heads)),
            'attention: "flash" supports neither text nor grouped queries, got '
            f'condition {self.condition!r} and {self.kv_heads} of {self.heads} kv_heads; use "xla"',
        )
        if self.attention == "flash":
            check_flash_length(self.grid[0] * self.grid[1] // self.patch**2 + (not self.causal), self.dtype)
        require(self.width % self.heads == 0, f"width: {self.width} is not a multiple of heads {self.heads}")
        require(
            self.heads % (self.kv_heads or self.heads) == 0, f"kv_heads: {self.kv_heads} does not divide heads {self.heads}"
        )
        require(
            self.head_dim % (4 if self.positions == "2d" else 2) == 0,
            f"heads: head width {self.head_dim} must be a multiple of 4 for 2-D positions (of 2 for 1-D)",
        )
        require(not (self.causal and self.patch > 1), f"patch: a causal network has one token a position, got {self.patch}")
        require(
            self.width % self.patch**2 == 0, f"width: {self.width} is not a multiple of the {self.patch**2} tokens of a patch"
        )
        require(
            not any(side % self.patch for side in self.grid),
            f"grid: sides must be multiples of patch {self.patch}, got {self.grid}",
        )

    @property
    def prefix_tokens(self) -> int:
        """Positions that the condition takes up in the sequence."""
        return self.text_tokens if self.condition == "text" else 1

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def state_width(self) -> int:
        """Width of the state of one token, which the head reads."""
        return self.width // self.patch

    @property
    def hidden(self) -> int:
        """Width of the SwiGLU MLP."""
        return self.mlp_width or _round_up(int(8 * self.width / 3), 256)


# Options of a generator that is trained on texts here; those of `LlamaConfig` are LlamaGen's. With rotation "zero" a
# text has no keys: every token attends to all words alike. The width is that of Gemma 2 2B; a conditioner replaces it
# by its own.
TEXT_RECIPE = {
    "condition": "text",
    "text_tokens": 128,
    "text_dim": 2304,
    "prefix_rotation": "identity",
    "caption_norm": True,
    "null_text": "encoder",
}

# The paper's Table 2; heads are always 64 wide. XXL adds QK-Norm and Post-Norm (section 4.1; their placement is our
# reading).
LLAMA_PRESETS = {
    "tiny": LlamaConfig(width=64, depth=2, heads=2, mlp_width=192),
    "small": LlamaConfig(width=128, depth=6, heads=4, mlp_width=384),
    "B": LlamaConfig(width=768, depth=12, heads=12),
    "L": LlamaConfig(width=1024, depth=24, heads=16),
    "XL": LlamaConfig(width=1280, depth=36, heads=20),
    "XXL": LlamaConfig(width=1536, depth=48, heads=24, qk_norm="per_head", post_norm="sandwich"),
}


@dataclasses.dataclass(frozen=True)
class BertConfig(GeneratorConfig):
    """Bidirectional Transformer baseline (paper 3.1.2): learned positions, LayerNorm, GELU,
    head tied to the token table."""

    mlp_width: int = 3072
    class_position: str = "last"  # where the class token stands (and which learned position it has)
    mask_logit: bool = False

    def __post_init__(self):
        super().__post_init__()
        choose("class_position", self.class_position, ("first", "last"))
        require(self.width % self.heads == 0, f"width: {self.width} is not a multiple of heads {self.heads}")


BERT_PRESETS = {
    "tiny": BertConfig(width=64, depth=2, heads=2, mlp_width=128),
    "B": BertConfig(),  # the paper's 12 layers, 12 heads, 768
    "B-24": BertConfig(depth=24, heads=16),  # the size in the published code
}


@dataclasses.dataclass(frozen=True)
class AdaLNConfig(GeneratorConfig):
    """Halton-MaskGIT's Transformer: the class modulates every norm (AdaLN-zero), learned positions,
    register tokens, tied head.

    Besnier et al. 2025 (arXiv 2503.17076); the defaults are its published base size. A head is int(width / heads) wide,
    so all heads together may be narrower than the width. Dropout acts on the output of attention and inside the MLP.
    """

    mlp_width: int | None = None  # None: round_up(int(8 * width / 3), 256)
    registers: int = option(1, "number of register tokens (Darcet et al. 2023) appended to the sequence", low=0)
    mask_logit: bool = True  # train the head on codebook_size + 1 classes, as published; [MASK] is never sampled

    def __post_init__(self):
        super().__post_init__()
        require(1 <= self.heads <= self.width, f"heads: must be between 1 and width {self.width}, got {self.heads}")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Width of the SwiGLU MLP."""
        return self.mlp_width or _round_up(int(8 * self.width / 3), 256)


# The published sizes: 23M, 69M, 142M and 480M parameters. Small's six heads are 85 wide, 510 together; small and base
# were published for a grid of 24x24 too, large for that one alone.
ADALN_PRESETS = {
    "tiny": AdaLNConfig(width=384, depth=6, heads=6),
    "small": AdaLNConfig(width=512, depth=12, heads=6),
    "base": AdaLNConfig(),
    "large": AdaLNConfig(width=1024, depth=24, heads=16, grid=(24, 24)),
}
