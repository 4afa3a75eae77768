"""The one boundary between Flax modules and nested dicts of arrays.

Trainers, checkpoints and converters see only dicts.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx, traverse_util

from maskgil_jax.config import (
    AdaLNConfig,
    BertConfig,
    ChameleonConfig,
    ClassifierConfig,
    InceptionConfig,
    LlamaConfig,
    LPIPSConfig,
    MagvitConfig,
    MaskGITConfig,
    MaskGITVQConfig,
    UViTConfig,
    VQConfig,
)
from maskgil_jax.models.adaln import AdaLN
from maskgil_jax.models.bert import Bert
from maskgil_jax.models.chameleon import Chameleon
from maskgil_jax.models.classifier import Classifier
from maskgil_jax.models.inception import InceptionV3
from maskgil_jax.models.llama import Llama
from maskgil_jax.models.lpips import LPIPS
from maskgil_jax.models.maskgit import MaskGIT
from maskgil_jax.models.uvit import UViT
from maskgil_jax.tokenizers.magvit2 import Magvit2
from maskgil_jax.tokenizers.maskgit_vqgan import MaskGITVQGAN
from maskgil_jax.tokenizers.vqgan import VQGAN

# family name in `config.json` -> (options, network)
FAMILIES = {
    "llama": (LlamaConfig, Llama),
    "bert": (BertConfig, Bert),
    "maskgit": (MaskGITConfig, MaskGIT),
    "adaln": (AdaLNConfig, AdaLN),
    "uvit": (UViTConfig, UViT),
    "chameleon": (ChameleonConfig, Chameleon),
    "vqgan": (VQConfig, VQGAN),
    "maskgit_vqgan": (MaskGITVQConfig, MaskGITVQGAN),
    "magvit2": (MagvitConfig, Magvit2),
    "classifier": (ClassifierConfig, Classifier),
    "inception": (InceptionConfig, InceptionV3),
    "lpips": (LPIPSConfig, LPIPS),
}


def family_of(cfg) -> str:
    """The family name of a network's options."""
    for name, (options, _) in FAMILIES.items():
        if isinstance(cfg, options):
            return name
    raise TypeError(f"no network has options of type {type(cfg).__name__}")


def create(cfg, key: jax.Array) -> Any:
    """A freshly initialised network for its options."""
    return FAMILIES[family_of(cfg)][1](cfg, rngs=nnx.Rngs(key))


def params_of(model: nnx.Module) -> dict:
    """Network -> nested dict of arrays."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@functools.cache
def _blueprint(cfg):
    model = nnx.eval_shape(lambda: create(cfg, jax.random.key(0)))
    return nnx.graphdef(model), params_of(model)


def abstract_params(cfg) -> dict:
    """Names and shapes of all parameters as a nested dict of `jax.ShapeDtypeStruct`; nothing is allocated."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _blueprint(cfg)[1])


def count_params(cfg) -> int:
    """Number of parameters, by shape evaluation."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(_blueprint(cfg)[1]))


def compare_trees(params: dict, expected: dict, where: str) -> None:
    """Raises a `ValueError` that lists what is missing, unexpected or of another shape (first five of each)."""
    flat, wanted = flatten(params), flatten(expected)

    def some(names):
        names = sorted(names)
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    problems = []
    if missing := wanted.keys() - flat.keys():
        problems.append(f"missing {some(missing)}")
    if extra := flat.keys() - wanted.keys():
        problems.append(f"unexpected {some(extra)}")
    shapes = {n for n in flat.keys() & wanted.keys() if tuple(flat[n].shape) != tuple(wanted[n].shape)}
    if shapes:
        problems.append(
            "shapes differ: " + some(f"{n} is {tuple(flat[n].shape)}, expected {tuple(wanted[n].shape)}" for n in shapes)
        )
    if problems:
        raise ValueError(f"{where}: weights do not fit the network: " + "; ".join(problems))


def build(cfg, params: dict, where: str = "params") -> Any:
    """Nested dict -> network.

    `nnx.merge` pairs leaves by sorted position unchecked, so the trees are compared first.
    """
    graphdef, expected = _blueprint(cfg)
    compare_trees(params, expected, where)
    return nnx.merge(graphdef, params)


def flatten(params: dict) -> dict:
    """Nested dict -> {"a/b/c": leaf}."""
    return traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: dict) -> dict:
    """Inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def fingerprint(params: dict) -> str:
    """A hash of names, shapes and float32 values: the identity of a tokenizer, kept with everything made by it."""
    return fingerprint_of(sorted(flatten(params).items()))


def fingerprint_of(arrays: Iterable[tuple[str, Any]]) -> str:
    """`fingerprint` of (path, array) pairs in the order of their paths, of which one is in memory at a time."""
    digest = hashlib.sha256()
    for name, leaf in arrays:
        array = np.ascontiguousarray(np.asarray(leaf, np.float32))
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
