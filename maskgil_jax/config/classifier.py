"""Options of the classifier that judges generated images."""

from __future__ import annotations

import dataclasses

from .base import choose, require


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
