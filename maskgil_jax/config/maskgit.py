"""Options of Google's MaskGIT (Chang et al. 2022), which began masked image generation:
its tokenizer and its Transformer."""

from __future__ import annotations

import dataclasses

from .base import require
from .generators import GeneratorConfig
from .tokenizers import Levels


@dataclasses.dataclass(frozen=True)
class MaskGITVQConfig(Levels):
    """Google's VQGAN without attention. Levels run from full resolution down; each but the last halves by averaging."""

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # width of each level, times `channels`
    res_blocks: int = 2  # per level and in the middle, in the encoder and in the decoder
    codebook_size: int = 1024
    codebook_dim: int = 256  # also the encoder's output width: nothing lies between encoder, codebook and decoder
    norm_groups: int = 32  # of GroupNorm; a width it does not divide takes the greatest common divisor
    image_size: int = 256  # training resolution; only a default: any multiple of `downsample` encodes
    dtype: str = "float32"  # compute dtype of the convolutions; the code search is always float32

    def __post_init__(self):
        super().__post_init__()
        require(self.codebook_size >= 2, f"codebook_size: must be at least 2, got {self.codebook_size}")


@dataclasses.dataclass(frozen=True)
class MaskGITConfig(GeneratorConfig):
    """Google's Transformer, a BERT: norms after each residual sum, learned positions,
    one table for all that is embedded.

    It has no null class, so it cannot be guided. Dropout acts on the embeddings and on the outputs of attention and
    MLP. [MASK] is one past the codebook, as in every generator here; the published code writes -1.
    """

    codebook_size: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_width: int = 3072

    def __post_init__(self):
        super().__post_init__()
        require(self.width % self.heads == 0, f"width: {self.width} is not a multiple of heads {self.heads}")

    @property
    def vocabulary(self) -> int:
        """Rows of the one table: the codes, the classes, [MASK]."""
        return self.codebook_size + self.num_classes + 1


# The published sizes: 54.52M parameters; 172.46M and 173.05M.
MASKGIT_VQ_PRESETS = {"256": MaskGITVQConfig(), "512": MaskGITVQConfig(image_size=512)}
MASKGIT_PRESETS = {"256": MaskGITConfig(), "512": MaskGITConfig(grid=(32, 32))}
