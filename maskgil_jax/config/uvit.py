"""Options of aMUSEd's U-ViT (Patil et al. 2024), a masked generator conditioned on CLIP texts,
and its published sizes."""

from __future__ import annotations

import dataclasses

from .base import require
from .generators import GeneratorConfig


@dataclasses.dataclass(frozen=True)
class UViTConfig(GeneratorConfig):
    """Convolutional blocks around a Transformer, all modulated by a pooled text and five numbers (micro-conditioning).

    No part has a bias or a learned position, so any grid works; with `downsample` its sides must be even. Dropout acts
    on the outputs of attention and MLP. The defaults are the published 256-pixel network.
    """

    codebook_size: int = 8192
    width: int = 1024
    depth: int = 22
    heads: int = 16
    dropout: float = 0.0
    vocabulary: int = 8256  # rows of the token table; the last one is [MASK], and those between it and the codes are unused
    mlp_width: int = 2816
    channels: int = 768  # width of the convolutional blocks, and of the token table
    block_heads: int = 12  # attention heads of the convolutional blocks
    res_blocks: int = 3  # pairs of a residual and an attention block, before the Transformer and after it
    downsample: bool = False  # halve the grid before the Transformer and double it after
    text_tokens: int = 77
    text_dim: int = 768  # width of the text's states
    pooled_dim: int = 768  # width of the text's embedding
    micro_values: int = 5  # width, height, crop (two numbers) in the original image, aesthetic score
    micro_dim: int = 256  # width of the sinusoidal embedding of each
    norm_eps: float = 1e-6

    def __post_init__(self):
        super().__post_init__()
        require(
            self.vocabulary > self.codebook_size,
            f"vocabulary: must be above codebook_size {self.codebook_size} to hold [MASK], got {self.vocabulary}",
        )
        require(self.width % self.heads == 0, f"width: {self.width} is not a multiple of heads {self.heads}")
        require(
            self.channels % self.block_heads == 0,
            f"channels: {self.channels} is not a multiple of block_heads {self.block_heads}",
        )
        require(self.micro_dim % 2 == 0, f"micro_dim: must be even (cosines and sines), got {self.micro_dim}")
        self.check_grid(self.grid)

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Raises a `ConfigError` for a grid that cannot be halved, if the network halves it."""
        require(
            not self.downsample or (grid[0] % 2, grid[1] % 2) == (0, 0),
            f"grid: a network with downsample needs even sides, got {grid[0]}x{grid[1]}",
        )

    @property
    def mask_id(self) -> int:
        """Token id of [MASK]: the last row of the table, as published."""
        return self.vocabulary - 1

    @property
    def condition(self) -> str:
        """Kind of condition."""
        return "pooled_text"

    @property
    def prefix_tokens(self) -> int:
        """Positions of the condition in the sequence: none, it acts through cross-attention and the norms."""
        return 0


# The published sizes: 603.5M and 608.3M parameters; and one for trying things out.
UVIT_PRESETS = {
    "256": UViTConfig(),
    "512": UViTConfig(downsample=True, grid=(32, 32)),
    "tiny": UViTConfig(
        width=64, depth=2, heads=2, mlp_width=192, channels=32, block_heads=2, res_blocks=1, pooled_dim=64, micro_dim=16
    ),
}
