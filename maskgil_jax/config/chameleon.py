"""Options of Chameleon (Meta 2024) as a causal generator of images; Lumina-mGPT's networks have the same form."""

from __future__ import annotations

import dataclasses

from .base import choose, require
from .generators import GeneratorConfig


@dataclasses.dataclass(frozen=True)
class ChameleonConfig(GeneratorConfig):
    """A language model whose vocabulary holds words, the codes of an image, and tokens that frame an image.

    The sequence is: prompt, begin of image, number of rows, number of columns (both in units of `size_unit` codes),
    then the codes row by row, each row closed by a newline token. Positions are one-dimensional and count from the
    first token of the prompt; without a prompt, from the begin of image. The defaults are the published 7B network.
    """

    codebook_size: int = 8192
    grid: tuple[int, int] = (32, 32)
    width: int = 4096
    depth: int = 32
    heads: int = 32
    dropout: float = 0.0
    dtype: str = "bfloat16"
    kv_heads: int | None = None  # fewer than `heads`: grouped-query attention (34B)
    mlp_width: int = 11008
    qk_norm_groups: int = 32  # weights of the QK-Norm, each for heads / groups neighbouring heads; 1 in Lumina-mGPT's files
    swin_norm: bool = False  # x + norm(f(x)) instead of x + f(norm(x)) (34B)
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    text_tokens: int = 512  # the longest prompt
    vocabulary: int = 65536
    image_ids: tuple[int, ...] = ()  # token of each code; (): `first_image_id` and the following, in order
    first_image_id: int = 4  # the smallest of them; they are consecutive, in any order
    end_image: int = 8196
    begin_image: int = 8197
    end_turn: int = 8710  # closes the prompt
    newline: int = 8803
    size_zero: int = 8804  # size n has the token size_zero + n
    size_unit: int = 2  # codes in one unit of size, 32 pixels as published
    text_head: bool = False  # keep the rows of the head that score words; decoding does not read them, writing the file does
    kernels: str = "float"  # "int8": weights of the layers as 8-bit integers with a scale for each output (extra [int8])

    def __post_init__(self):
        super().__post_init__()
        choose("kernels", self.kernels, ("float", "int8"))
        require(self.width % self.heads == 0, f"width: {self.width} is not a multiple of heads {self.heads}")
        require(self.head_dim % 2 == 0, f"heads: head width {self.head_dim} must be even for rotary positions")
        kv_heads, groups = self.kv_heads or self.heads, self.qk_norm_groups
        require(kv_heads >= 1 and self.heads % kv_heads == 0, f"kv_heads: {kv_heads} does not divide heads {self.heads}")
        require(
            groups >= 1 and self.heads % groups == 0 and kv_heads % self.k_norm_groups == 0,
            f"qk_norm_groups: {groups} does not divide heads {self.heads} and kv_heads {kv_heads}",
        )
        codes = self.image_ids or range(self.first_image_id, self.first_image_id + self.codebook_size)
        last = self.first_image_id + self.codebook_size
        require(
            len(codes) == self.codebook_size and set(codes) == set(range(self.first_image_id, last)),
            f"image_ids: expected the {self.codebook_size} ids from first_image_id {self.first_image_id} on, each once, got "
            f"{len(codes)} from {min(codes)} to {max(codes)}",
        )
        require(last <= self.vocabulary, f"vocabulary: {self.vocabulary} rows do not hold the image tokens up to {last - 1}")
        require(
            min(self.text_tokens, self.size_unit) >= 1,
            f"text_tokens, size_unit: must be at least 1, got {self.text_tokens}, {self.size_unit}",
        )
        for name in ("end_image", "begin_image", "end_turn", "newline", "size_zero"):
            value = getattr(self, name)
            require(0 <= value < self.vocabulary, f"{name}: must be an id below vocabulary {self.vocabulary}, got {value}")
        self.frame(self.grid)

    def frame(self, grid: tuple[int, int]) -> tuple[int, int, int]:
        """The tokens before the codes: begin of image, rows, columns.

        Raises a `ConfigError` for a size without a token.
        """
        rows, columns = (side // self.size_unit for side in grid)
        whole = not (grid[0] % self.size_unit or grid[1] % self.size_unit)
        require(
            whole and self.size_zero + max(rows, columns) < self.vocabulary,
            f"grid: sides must be multiples of {self.size_unit} codes that have a size token, got {grid[0]}x{grid[1]}",
        )
        return self.begin_image, self.size_zero + rows, self.size_zero + columns

    @property
    def causal(self) -> bool:
        return True

    @property
    def condition(self) -> str:
        return "tokens"

    @property
    def prefix_tokens(self) -> int:
        """Positions before the first code, with the longest prompt."""
        return self.text_tokens + 3

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def k_norm_groups(self) -> int:
        """Weights of the norm of keys."""
        return min(self.qk_norm_groups, self.kv_heads or self.heads)


# "tiny": for tests; codes 4..67, frame tokens behind them.
CHAMELEON_PRESETS = {
    "tiny": ChameleonConfig(
        codebook_size=64,
        grid=(4, 4),
        width=32,
        depth=2,
        heads=4,
        dtype="float32",
        mlp_width=48,
        qk_norm_groups=4,
        text_tokens=24,
        vocabulary=128,
        end_image=68,
        begin_image=69,
        end_turn=70,
        newline=71,
        size_zero=72,
    ),
    "7B": ChameleonConfig(),
}
