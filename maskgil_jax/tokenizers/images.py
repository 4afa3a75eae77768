"""uint8 images <-> tokens through any tokenizer; compiled once per shape however often they are called."""

from __future__ import annotations

import functools

import jax

from maskgil_jax.data.images import to_uint8, to_unit


@functools.partial(jax.jit, static_argnames="grid")
def to_pixels(tokenizer, tokens_bl, grid):
    """Codes (b, rows * columns) -> uint8 images."""
    return to_uint8(tokenizer.decode(tokens_bl.reshape(-1, *grid)))


@jax.jit
def to_tokens(tokenizer, images_bhwc):
    """uint8 images -> codes int32 (b, rows * columns)."""
    return tokenizer.encode(to_unit(images_bhwc)).reshape(len(images_bhwc), -1)
