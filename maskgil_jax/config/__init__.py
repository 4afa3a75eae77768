"""Sizes and options as frozen dataclasses: hashable, so they can be static under `jax.jit`, and plain enough for `config.json`.

Each network has one dataclass and, beside it, its table of `*_PRESETS`. This room knows nothing else of the package.
"""

from .base import ConfigError, choose, from_dict, require, to_dict
from .classifier import ClassifierConfig
from .decoding import DECODE_PRESETS, ORDERS, PLANS, REMASK_RULES, SCHEDULES, DecodeConfig, decode_preset
from .generators import BERT_PRESETS, LLAMA_PRESETS, BertConfig, LlamaConfig
from .tokenizers import VQ_PRESETS, VQConfig

__all__ = [
    "BERT_PRESETS",
    "DECODE_PRESETS",
    "LLAMA_PRESETS",
    "ORDERS",
    "PLANS",
    "REMASK_RULES",
    "SCHEDULES",
    "VQ_PRESETS",
    "BertConfig",
    "ClassifierConfig",
    "ConfigError",
    "DecodeConfig",
    "LlamaConfig",
    "VQConfig",
    "choose",
    "decode_preset",
    "from_dict",
    "require",
    "to_dict",
]
