"""A pipeline folder of a tiny masked network that reads MiniLM-like texts,
and one of a tiny Chameleon of the same codes."""

import dataclasses
import functools

import jax

from helpers.chameleon_files import NAMES, save_tokenizer
from maskgil_jax.checkpoints.weights import save_weights
from maskgil_jax.config import CHAMELEON_PRESETS
from maskgil_jax.networks import create, fingerprint, params_of

from .tiny_pipeline import VQ

# 16 codes in an order of their own, on 4 x 4 canvases; frame tokens are those of `chameleon_files`.
CFG = dataclasses.replace(
    CHAMELEON_PRESETS["tiny"],
    codebook_size=16,
    first_image_id=4,
    image_ids=tuple(4 + 5 * code % 16 for code in range(16)),
    end_image=NAMES["<eoss>"],
    begin_image=NAMES["<racm3:break>"],
    end_turn=NAMES["<reserved08706>"],
    newline=NAMES["<reserved08799>"],
    size_zero=NAMES["<reserved08800>"],
)


@functools.cache
def chameleon_params(cfg=CFG):
    """Random parameters with which the prompt and earlier codes change the logits."""
    return jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim > 1 else leaf, params_of(create(cfg, jax.random.key(5))))


def save_chameleon(folder, cfg=CFG):
    """Writes a causal pipeline folder with the tokenizer of `tiny_pipeline`."""
    tokenizer = params_of(create(VQ, jax.random.key(2)))
    save_weights(folder / "tokenizer", VQ, tokenizer)
    about = {"tokenizer_hash": fingerprint(tokenizer), "decode": {"guidance": 4.0, "top_k": 12}}
    save_weights(folder / "generator", cfg, chameleon_params(cfg), metadata=about)
    save_tokenizer(folder / "generator")
    return folder
