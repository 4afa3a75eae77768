"""What `load` does with each weights folder: checks that the parts fit, and options given beside those of the folder."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from maskgil_jax.checkpoints.weights import Weights
from maskgil_jax.config import CausalConfig, ConfigError, DecodeConfig, GeneratorConfig, from_dict, is_causal, require
from maskgil_jax.networks import flatten, unflatten


def in_dtype(weights: Weights, dtype: str | None) -> Weights:
    """The weights of a network that computes in `dtype`; None: as they are.

    A generator in bfloat16 has its matrices in it. Norms, biases and all of a tokenizer stay in float32.
    """
    if dtype is None:
        return weights
    params, cfg = weights.params, dataclasses.replace(weights.cfg, dtype=dtype)
    if dtype == "bfloat16" and isinstance(cfg, GeneratorConfig):
        flat = flatten(params).items()
        matrices = ("kernel", "embedding")
        params = unflatten({n: x.astype(jnp.bfloat16) if n.rpartition("/")[2] in matrices else x for n, x in flat})
    return dataclasses.replace(weights, cfg=cfg, params=params)


def scaled(path, generator: Weights, rope_scaling: str | None) -> Weights:
    """The generator of `path` with another `rope_scaling`, if any is given."""
    if rope_scaling is None:
        return generator
    require(
        generator.cfg.rope_scaling is not None,
        f"rope_scaling: {path} holds a generator with learned positions, for its {generator.cfg.grid} canvas only",
    )
    return dataclasses.replace(generator, cfg=dataclasses.replace(generator.cfg, rope_scaling=rope_scaling))


def check_tokenizer(path, generator: Weights, tokenizer: Weights, holder: str = "this folder") -> None:
    """Refuses the generator of `path` if its codes are not those of this tokenizer, which lies in `holder`."""
    if generator.cfg.codebook_size != tokenizer.cfg.codebook_size:
        raise ConfigError(
            f"{path}: the generator has {generator.cfg.codebook_size} codes, the tokenizer {tokenizer.cfg.codebook_size}"
        )
    trained_with = generator.about.get("tokenizer_hash")
    if trained_with and trained_with != tokenizer.hash:
        raise ConfigError(f"{path}: the generator was trained with tokenizer {trained_with}, {holder} has {tokenizer.hash}")


def decoding(generator: Weights) -> Any:
    """The decoding options stored with a generator, of the kind its network needs."""
    kind = CausalConfig if is_causal(generator.cfg) else DecodeConfig
    return from_dict(kind, generator.about.get("decode", {}), f"{generator.path}/config.json: decode")
