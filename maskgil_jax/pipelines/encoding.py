"""Images <-> codes with a pipeline's tokenizer; sources -> code stores of a tokenizer, text stores of an encoder."""

from __future__ import annotations

import functools
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.checkpoints.weights import Weights
from maskgil_jax.config import height_width, require
from maskgil_jax.data.encode import encode_dataset
from maskgil_jax.data.text_store import caption_ids, write_text_store
from maskgil_jax.pipelines.pictures import as_images, with_output
from maskgil_jax.text_encoders import FrozenTextEncoder
from maskgil_jax.tokenizers.images import encoder_of, to_pixels, to_tokens

_log = logging.getLogger(__name__)


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

    Returns (its path, the number of captions, the number of different ones). Equal captions are encoded once. Captions
    that are longer than `encoder.max_tokens` are counted in one warning.
    """
    texts: dict[str, str] = {}
    for number in range(len(source)):
        record = source[number]
        texts.update(zip(caption_ids(record["id"], len(record["captions"])), record["captions"], strict=True))
    different = list(dict.fromkeys(texts.values()))
    if cut := encoder.cut(different):
        longer = f"{len(cut)} of {len(different)} captions are longer than max_tokens={encoder.max_tokens} and are cut"
        _log.warning("%s; the first of them: %.200s", longer, cut[0])
    encode_quietly = functools.partial(encoder, warn=False)
    store = write_text_store(texts, out, encode_quietly, about=encoder.about, batch_size=batch_size)
    return store, len(texts), len(different)


def encode(pipeline: Any, images: Any) -> np.ndarray:
    """The codes of images: int32 (b, rows, columns). images: uint8 arrays,
    PIL images or paths (`pictures.as_images`)."""
    images_bhwc = as_images(images)
    rows, columns = pipeline.grid_of(*images_bhwc.shape[1:3])
    return jax.device_get(to_tokens(pipeline.tokenizer, images_bhwc)).reshape(-1, rows, columns)


@with_output
def decode(pipeline: Any, codes_bhw: Any) -> np.ndarray:
    """The images of codes (b, rows, columns): uint8 (b, height, width, 3). output: "numpy" or "pil"."""
    codes_bhw = np.asarray(codes_bhw)
    size = pipeline.tokenizer.cfg.codebook_size
    sound = codes_bhw.ndim == 3 and codes_bhw.size and np.issubdtype(codes_bhw.dtype, np.integer)
    require(bool(sound), f"codes: expected whole numbers (b, rows, columns), got {codes_bhw.dtype} {codes_bhw.shape}")
    inside = codes_bhw.min() >= 0 and codes_bhw.max() < size
    require(bool(inside), f"codes: must be in 0..{size - 1}, got {codes_bhw.min()}..{codes_bhw.max()}")
    tokens_bl = jnp.asarray(codes_bhw.reshape(len(codes_bhw), -1), jnp.int32)
    return jax.device_get(to_pixels(pipeline.tokenizer, tokens_bl, codes_bhw.shape[1:]))


@with_output
def reconstruct(pipeline: Any, images: Any) -> np.ndarray:
    """Images through the tokenizer and back: uint8 (b, height, width, 3). output: "numpy" or "pil"."""
    return decode(pipeline, encode(pipeline, images))
