"""An image source -> the code store of a tokenizer's weights folder."""

from __future__ import annotations

import pathlib
from typing import Any

from maskgil_jax.checkpoints.weights import Weights
from maskgil_jax.data.encode import encode_dataset
from maskgil_jax.tokenizers.images import encoder_of


def encode_source(
    tokenizer: Weights, source: Any, out: Any, *, image_size: int, batch_size: int = 32, **options: Any
) -> pathlib.Path:
    """Writes the code store `out` of an image source, under the tokenizer's hash. `options` are those of `encode_dataset`."""
    return encode_dataset(
        encoder_of(tokenizer.build()),
        source,
        out,
        tokenizer_hash=tokenizer.hash,
        grid=(image_size // tokenizer.cfg.downsample,) * 2,
        codebook_size=tokenizer.cfg.codebook_size,
        image_size=image_size,
        batch_size=batch_size,
        **options,
    )
