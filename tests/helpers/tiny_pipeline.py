"""A pipeline of tiny random networks that take notice of their class, and the same as a weights folder."""

import functools

import jax
import numpy as np

from maskgil_jax.checkpoints.weights import save_weights
from maskgil_jax.config import DecodeConfig, LlamaConfig, VQConfig
from maskgil_jax.networks import build, create, fingerprint, params_of
from maskgil_jax.pipelines.pipeline import Pipeline

VQ = VQConfig(channels=8, multipliers=(1, 1, 2), res_blocks=1, latent_dim=8, codebook_size=16, codebook_dim=4, image_size=16)
LLAMA = LlamaConfig(codebook_size=16, num_classes=3, grid=(4, 4), width=32, depth=1, heads=2, mlp_width=32)
NAMES = ("ant", "bee", "cat")
DECODE = DecodeConfig(steps=2)
CELL, SIDE = 4, 16  # pixels


@functools.cache
def generator_params():
    params = params_of(create(LLAMA, jax.random.key(0)))
    params["classes"]["embedding"] = params["classes"]["embedding"] * 60
    params["head"] = {"kernel": jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape) / 2}
    return params


@functools.cache
def tiny_pipeline():
    return Pipeline(create(VQ, jax.random.key(2)), build(LLAMA, generator_params()), NAMES, DECODE, "tiny")


def save_pipeline(folder):
    """Writes `tiny_pipeline()` as a weights folder, for the command."""
    tokenizer = params_of(tiny_pipeline().tokenizer)
    save_weights(folder / "tokenizer", VQ, tokenizer)
    about = {"class_names": list(NAMES), "tokenizer_hash": fingerprint(tokenizer), "decode": {"steps": DECODE.steps}}
    save_weights(folder / "generator", LLAMA, generator_params(), metadata=about)
    return folder


def assert_same_pictures(found, expected):
    """Equal to one level of 255: convolutions of another batch shape round differently,
    the tokens behind are the same."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=1)
