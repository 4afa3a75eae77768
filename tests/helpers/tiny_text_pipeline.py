"""A pipeline of tiny random networks that take notice of their prompt, and the same as a weights folder."""

import dataclasses
import functools

import jax

from maskgil_jax.checkpoints.weights import save_weights
from maskgil_jax.conditioning import TextConditioner
from maskgil_jax.config import DecodeConfig, LlamaConfig
from maskgil_jax.networks import build, create, fingerprint, params_of
from maskgil_jax.pipelines.pipeline import Pipeline

from .tiny_pipeline import VQ

TOKENS, WIDTH = 12, 32  # of the golden encoders
TEXT_LLAMA = LlamaConfig(
    codebook_size=16,
    grid=(4, 4),
    width=32,
    depth=1,
    heads=2,
    mlp_width=32,
    condition="text",
    text_tokens=TOKENS,
    text_dim=WIDTH,
    prefix_rotation="identity",
    caption_norm=True,
    null_text="encoder",
)
DECODE = DecodeConfig(steps=2)


def _llama(encoder):
    """The generator's sizes for features as wide as the encoder's."""
    return dataclasses.replace(TEXT_LLAMA, text_dim=getattr(encoder, "width", WIDTH))


@functools.cache
def _params(cfg):
    params = params_of(create(cfg, jax.random.key(0)))
    params["head"] = {"kernel": jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape) / 2}
    params["caption_down"] = {"kernel": params["caption_down"]["kernel"] * 2000}
    return params


def text_pipeline(encoder):
    """A pipeline whose prompts are read by `encoder`, whose output for "" is the null text."""
    cfg = _llama(encoder)
    conditioner = TextConditioner(TOKENS, cfg.text_dim, encoder, getattr(encoder, "about", {}))
    generator = build(cfg, {**_params(cfg), **conditioner.fixed_parameters(cfg)})
    return Pipeline(create(VQ, jax.random.key(2)), generator, conditioner, DECODE, "tiny text")


def save_text_pipeline(folder, encoder):
    """Writes `text_pipeline(encoder)` as a weights folder."""
    pipeline = text_pipeline(encoder)
    tokenizer = params_of(pipeline.tokenizer)
    save_weights(folder / "tokenizer", VQ, tokenizer)
    about = {"tokenizer_hash": fingerprint(tokenizer), "decode": {"steps": DECODE.steps}, **pipeline.conditioner.metadata()}
    save_weights(folder / "generator", pipeline.generator.cfg, params_of(pipeline.generator), metadata=about)
    return folder
