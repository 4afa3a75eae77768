"""Masked generative image LLaMA in JAX: train, sample and port.

The names below are the public API. Each loads its module on first use, so that `import maskgil_jax` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> the module it lives in
_LAZY_IMPORTS = {
    "BertConfig": "maskgil_jax.config",
    "CausalConfig": "maskgil_jax.config",
    "ClassCondition": "maskgil_jax.models.condition",
    "DecodeConfig": "maskgil_jax.config",
    "LlamaConfig": "maskgil_jax.config",
    "MagvitConfig": "maskgil_jax.config",
    "Pipeline": "maskgil_jax.pipelines.pipeline",
    "TextCondition": "maskgil_jax.models.condition",
    "TrainState": "maskgil_jax.training.state",
    "VQConfig": "maskgil_jax.config",
    "buckets": "maskgil_jax.data.buckets",
    "corrupt": "maskgil_jax.training.losses",
    "decode": "maskgil_jax.decoding.masked",
    "decode_causal": "maskgil_jax.decoding.causal",
    "decode_hybrid": "maskgil_jax.decoding.hybrid",
    "load": "maskgil_jax.pipelines.pipeline",
    "load_generator": "maskgil_jax.checkpoints.weights",
    "load_tokenizer": "maskgil_jax.checkpoints.weights",
    "make_mesh": "maskgil_jax.runtime.mesh",
    "masked_cross_entropy": "maskgil_jax.training.losses",
    "nearest_bucket": "maskgil_jax.data.buckets",
    "reveal_counts": "maskgil_jax.decoding.schedules",
    "shardings": "maskgil_jax.runtime.mesh",
}

if TYPE_CHECKING:  # what editors and type checkers see: the same names, from the same homes
    from maskgil_jax.checkpoints.weights import load_generator, load_tokenizer
    from maskgil_jax.config import BertConfig, CausalConfig, DecodeConfig, LlamaConfig, MagvitConfig, VQConfig
    from maskgil_jax.data.buckets import buckets, nearest_bucket
    from maskgil_jax.decoding.causal import decode_causal
    from maskgil_jax.decoding.hybrid import decode_hybrid
    from maskgil_jax.decoding.masked import decode
    from maskgil_jax.decoding.schedules import reveal_counts
    from maskgil_jax.models.condition import ClassCondition, TextCondition
    from maskgil_jax.pipelines.pipeline import Pipeline, load
    from maskgil_jax.runtime.mesh import make_mesh, shardings
    from maskgil_jax.training.losses import corrupt, masked_cross_entropy
    from maskgil_jax.training.state import TrainState

__all__ = [
    "BertConfig",
    "CausalConfig",
    "ClassCondition",
    "DecodeConfig",
    "LlamaConfig",
    "MagvitConfig",
    "Pipeline",
    "TextCondition",
    "TrainState",
    "VQConfig",
    "__version__",
    "buckets",
    "corrupt",
    "decode",
    "decode_causal",
    "decode_hybrid",
    "load",
    "load_generator",
    "load_tokenizer",
    "make_mesh",
    "masked_cross_entropy",
    "nearest_bucket",
    "reveal_counts",
    "shardings",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY_IMPORTS[name]), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
