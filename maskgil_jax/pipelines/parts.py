"""The parts of a pipeline folder: reading them, and whether they fit together."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maskgil_jax.checkpoints.placed import load_placed
from maskgil_jax.checkpoints.weights import Weights, load_weights, open_weights, resolve
from maskgil_jax.conditioning import ClassConditioner, Conditioner, conditioner_of
from maskgil_jax.config import (
    CausalConfig,
    ChameleonConfig,
    ConfigError,
    DecodeConfig,
    GeneratorConfig,
    from_dict,
    is_causal,
    require,
)
from maskgil_jax.convert.lora import merged
from maskgil_jax.convert.published import prepared
from maskgil_jax.networks import flatten, unflatten
from maskgil_jax.runtime.mesh import place, replicated, shardings


def open_parts(
    path,
    *,
    mesh: Mesh | None,
    kernels: str | None,
    cache_dir: Any = None,
    variant: str | None = None,
    lora: Any = None,
    lora_scale: float = 1.0,
) -> tuple[Any, Weights, Weights]:
    """(folder, tokenizer, generator) of a pipeline, read and compared with each other; see `pipeline.load`."""
    path = prepared(path, cache_dir, variant=variant)
    folder = cached(path, cache_dir)
    tokenizer, generator = load_weights(folder, "tokenizer"), load_generator_part(folder, mesh=mesh, kernels=kernels)
    parts = (("tokenizer", hasattr(tokenizer.cfg, "downsample")), ("generator", isinstance(generator.cfg, GeneratorConfig)))
    for part, sound in parts:
        require(sound, f"{path}: holds no {part}; expected sub-folders tokenizer/ and generator/")
    check_tokenizer(path, generator, tokenizer)
    return path, tokenizer, generator if lora is None else merged(generator, lora, lora_scale)


def cached(path, cache_dir: Any) -> Any:
    """The local folder of `path`; with `cache_dir` downloads from the hub are kept in its folder `hub`."""
    return path if cache_dir is None else resolve(path, cache_dir=pathlib.Path(cache_dir, "hub"))


def load_generator_part(path, *, mesh: Mesh | None = None, kernels: str | None = None) -> Weights:
    """The generator of a folder. A Chameleon's weights go to the devices as they are read."""
    if isinstance(open_weights(path, "generator")[0], ChameleonConfig):
        return load_placed(path, "generator", mesh=mesh, kernels=kernels)
    require(kernels in (None, "float"), f"kernels: {path} holds no Chameleon, whose layers alone can be {kernels!r}")
    return load_weights(path, "generator")


def built(weights: Weights, mesh: Mesh | None) -> Any:
    """The network; on a mesh sharded by the path rules, or whole on every device where the mesh does not divide an
    axis.

    A Chameleon's weights lie on the mesh already.
    """
    if mesh is None or isinstance(weights.cfg, ChameleonConfig):
        return weights.build()
    try:
        layout = shardings(weights.params, mesh)
    except ValueError:
        layout = jax.tree.map(lambda _: replicated(mesh), weights.params)
    return dataclasses.replace(weights, params=jax.tree.map(place, weights.params, layout)).build()


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


def decoding_of(generator: Weights) -> Any:
    """The decoding options stored with a generator, of the kind its network needs."""
    kind = CausalConfig if is_causal(generator.cfg) else DecodeConfig
    return from_dict(kind, generator.about.get("decode", {}), f"{generator.path}/config.json: decode")


def ar_conditioner_of(ar, causal: Weights, path, conditioner: Conditioner) -> Conditioner | None:
    """The conditioner of the causal network from `ar` beside the one of `path`; None if they are the same.

    Networks of classes must have the same ones. Both must read requests of one kind: labels or prompts.
    """
    encoder = None if causal.cfg.condition == "tokens" else getattr(conditioner, "encoder", None)
    if isinstance(conditioner, ClassConditioner) != (causal.cfg.condition == "class"):
        raise ConfigError(f"{ar}: is conditioned on {causal.cfg.condition}, {path} is not; both must take labels or prompts")
    try:
        own = conditioner_of(causal.cfg, causal.about, encoder, causal.path)
    except ConfigError:  # another text encoder
        own = conditioner_of(causal.cfg, causal.about)
    if own == conditioner:
        return None
    require(
        not isinstance(own, ClassConditioner),
        f"{ar}: was trained on other classes than {path}; both networks must have the same ones",
    )
    return own
