"""What `load` reads from and checks of the weights folders of a pipeline."""

from __future__ import annotations

import dataclasses
from typing import Any

from maskgil_jax.checkpoints.weights import Weights
from maskgil_jax.config import CausalConfig, ConfigError, DecodeConfig, from_dict, is_causal, require


def with_scaling(path, generator: Weights, rope_scaling: str | None) -> Weights:
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


def stored_decoding(generator: Weights) -> Any:
    """The decoding options stored with a generator, of the kind its network needs."""
    kind = CausalConfig if is_causal(generator.cfg) else DecodeConfig
    return from_dict(kind, generator.about.get("decode", {}), f"{generator.path}/config.json: decode")
