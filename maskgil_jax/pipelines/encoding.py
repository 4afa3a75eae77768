"""An image source -> the code store of a tokenizer's weights folder."""

from __future__ import annotations

import pathlib
from typing import Any

from maskgil_jax.checkpoints.weights import Weights
from maskgil_jax.config import height_width
from maskgil_jax.data.encode import encode_dataset
from maskgil_jax.tokenizers.images import encoder_of


def encode_source(
    tokenizer: Weights, source: Any, out: Any, *, size: int | tuple[int, int], batch_size: int = 32, **options: Any
) -> pathlib.Path:
    """Encodes an image source to the code store `out`. size: (height, width), or the side of a square.

    options: those of `encode_dataset`.
    """
    height, width = height_width(size, "image_size")
    factor = tokenizer.cfg.downsample
    return encode_dataset(
        encoder_of(tokenizer.build()),
        source,
        out,
        tokenizer_hash=tokenizer.hash,
        grid=(height // factor, width // factor),
        codebook_size=tokenizer.cfg.codebook_size,
        size=(height, width),
        batch_size=batch_size,
        **options,
    )
