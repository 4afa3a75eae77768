"""Options of the tokenizers, and their published sizes."""

from __future__ import annotations

import dataclasses

from .base import MAX_LAYERS, check_ranges, choose, option, require

MAX_LEVELS = 16  # of a tokenizer, each of which halves the image


class Levels:
    """What convolutional tokenizers have in common: levels that each halve the one before, down to a grid of codes."""

    multipliers: tuple[int, ...]
    res_blocks: int
    image_size: int
    dtype: str

    def __post_init__(self):
        check_ranges(self)
        require(self.res_blocks <= MAX_LAYERS, f"res_blocks: must be at most {MAX_LAYERS}, got {self.res_blocks}")
        choose("dtype", self.dtype, ("float32", "bfloat16"))
        require(
            1 <= len(self.multipliers) <= MAX_LEVELS,
            f"multipliers: need 1 to {MAX_LEVELS} widths, got {len(self.multipliers)}",
        )
        require(
            self.image_size % self.downsample == 0,
            f"image_size: {self.image_size} is not a multiple of the downsampling factor {self.downsample}",
        )

    @property
    def patch(self) -> int:
        """Pixels along a side that are folded into the channels before the first level."""
        return 1

    @property
    def downsample(self) -> int:
        """Pixels per code along one side."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of codes at the training resolution."""
        return (self.image_size // self.downsample,) * 2


@dataclasses.dataclass(frozen=True)
class VQConfig(Levels):
    """Convolutional VQ-GAN of the LlamaGen / taming family. Levels run from full resolution down; each halves it.

    With `patch` > 1 the first level works on patches instead of pixels (pixel unshuffle), so that no convolution runs
    at full resolution.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # width of each level, times `channels`
    res_blocks: int = 2  # per level in the encoder; the decoder has one more
    attention_levels: tuple[int, ...] = option(
        (-1,), "levels with attention besides the middle; negative counts from the lowest"
    )
    middle_attention: bool = True  # attention between the two blocks at the lowest resolution
    latent_dim: int = 256  # encoder output width, before the projection to `codebook_dim`
    codebook_size: int = 16384
    codebook_dim: int = 8
    norm_groups: int = 32  # of GroupNorm; a width it does not divide takes the greatest common divisor
    patch: int = 1  # pixels along a side that are folded into the channels before the first level, and unfolded after the last
    l2_normalize: bool = True  # codes live on the unit sphere (cosine search), as in LlamaGen and ViT-VQGAN
    image_size: int = 256  # training resolution; only a default: any multiple of `downsample` encodes
    dtype: str = "float32"  # compute dtype of the convolutions; the code search is always float32

    def __post_init__(self):
        super().__post_init__()
        require(self.codebook_size >= 2, f"codebook_size: must be at least 2, got {self.codebook_size}")

    @property
    def downsample(self) -> int:
        """Pixels per code along one side."""
        return self.patch * super().downsample


# VQ-16 and VQ-8: LlamaGen, 71.88M and 70.11M parameters. aMUSEd: 146.2M parameters, without attention.
VQ_PRESETS = {
    "VQ-16": VQConfig(),
    "VQ-8": VQConfig(multipliers=(1, 2, 2, 4)),
    "Chameleon": VQConfig(attention_levels=(), codebook_size=8192, codebook_dim=256, l2_normalize=False, image_size=512),
    "aMUSEd": VQConfig(
        multipliers=(1, 2, 2, 4, 6),
        attention_levels=(),
        middle_attention=False,
        latent_dim=64,
        codebook_size=8192,
        codebook_dim=64,
        l2_normalize=False,
        image_size=512,
    ),
    "small": VQConfig(
        channels=8, multipliers=(1, 2, 4, 8), res_blocks=1, latent_dim=64, codebook_size=512, norm_groups=4, image_size=64
    ),
    "patches": VQConfig(  # of 4x4 pixels; all layers at the resolution of the codes, in the middle alone with attention
        channels=64,
        multipliers=(1,),
        attention_levels=(),
        latent_dim=64,
        codebook_size=1024,
        norm_groups=8,
        patch=4,
        image_size=64,
    ),
}


@dataclasses.dataclass(frozen=True)
class MagvitConfig(Levels):
    """Open-MAGVIT2: convolutions without attention, and a code that is the signs of the latent, one bit a channel."""

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # width of each level, times `channels`
    res_blocks: int = 4  # per level and in the middle, in encoder and decoder alike
    bits: int = option(18, "channels of the latent; the codebook has 2^bits codes, none stored, each one int32", low=1, high=30)
    norm_groups: int = 32  # of GroupNorm; a width it does not divide takes the greatest common divisor
    image_size: int = 256  # training resolution; only a default: any multiple of `downsample` encodes
    dtype: str = "float32"  # compute dtype of the convolutions; signs and losses are always float32

    def __post_init__(self):
        super().__post_init__()

    @property
    def codebook_size(self) -> int:
        """How many codes there are."""
        return 2**self.bits

    @property
    def codebook_dim(self) -> int:
        """Channels of a latent."""
        return self.bits


# Open-MAGVIT2's two published sizes (imagenet_256_L and imagenet_128_L: 16x16 codes each), and one for trying things
# out.
MAGVIT_PRESETS = {
    "MAGVIT2-256": MagvitConfig(),
    "MAGVIT2-128": MagvitConfig(multipliers=(1, 2, 2, 4), image_size=128),
    "MAGVIT2-small": MagvitConfig(channels=8, multipliers=(1, 2, 4, 8), res_blocks=1, bits=9, norm_groups=4, image_size=64),
}
