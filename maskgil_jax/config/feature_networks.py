"""Options of the feature networks: the classifier trained here, Inception and LPIPS."""

from __future__ import annotations

import dataclasses

from .base import check_ranges, choose, require


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Small convolutional classifier; the defaults have 0.24M parameters."""

    num_classes: int = 98
    channels: tuple[int, ...] = (24, 48, 80)  # width at 1/2, 1/4, ... of the resolution
    feature_dim: int = 128
    norm_groups: int = 8  # of GroupNorm; a width it does not divide takes the greatest common divisor
    image_size: int = 64  # training resolution
    dtype: str = "float32"  # compute dtype of the convolutions

    def __post_init__(self):
        check_ranges(self)
        choose("dtype", self.dtype, ("float32", "bfloat16"))
        require(bool(self.channels), "channels: needs at least one width, got ()")


@dataclasses.dataclass(frozen=True)
class InceptionConfig:
    """The FID InceptionV3 of 2015-12-05. It has no options."""


@dataclasses.dataclass(frozen=True)
class LPIPSConfig:
    """The LPIPS distance over the five stages of a VGG; the defaults are VGG16, as published."""

    channels: tuple[int, ...] = (64, 128, 256, 512, 512)  # width of each stage; the image is halved between two
    convolutions: tuple[int, ...] = (2, 2, 3, 3, 3)  # in each stage

    def __post_init__(self):
        check_ranges(self)
        require(
            bool(self.channels) and len(self.channels) == len(self.convolutions),
            f"channels: needs one width for each of the {len(self.convolutions)} stages in convolutions, got {self.channels}",
        )
