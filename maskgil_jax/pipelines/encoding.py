"""Sources -> code stores of a tokenizer's weights folder, and text stores of a text encoder."""

from __future__ import annotations

import pathlib
from typing import Any

from maskgil_jax.checkpoints.weights import Weights
from maskgil_jax.config import height_width
from maskgil_jax.data.encode import encode_dataset
from maskgil_jax.data.text_store import caption_ids, write_text_store
from maskgil_jax.text_encoders import FrozenTextEncoder
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


def encode_texts(source: Any, out: Any, encoder: FrozenTextEncoder, *, batch_size: int = 64) -> tuple[pathlib.Path, int, int]:
    """Writes the features of all captions of a captioned source or code store to the text store `out`.

    Returns (its path, the number of captions, the number of different ones). Equal captions are encoded once.
    """
    texts: dict[str, str] = {}
    for number in range(len(source)):
        record = source[number]
        texts.update(zip(caption_ids(record["id"], len(record["captions"])), record["captions"], strict=True))
    store = write_text_store(texts, out, encoder, about=encoder.about, batch_size=batch_size)
    return store, len(texts), len(set(texts.values()))
