"""Sizes and options as frozen dataclasses: hashable, so they can be static under `jax.jit`,
and plain enough for `config.json`.

Each network has one dataclass and, beside it, its table of `*_PRESETS`. Imports nothing else of the package.
"""

from .base import ConfigError, choose, from_dict, renamed, require, to_dict
from .captions import CaptionConfig
from .chameleon import CHAMELEON_PRESETS, ChameleonConfig
from .data import LoaderConfig, height_width
from .decoding import DECODE_PRESETS, PLANS, REMASK_RULES, CausalConfig, DecodeConfig, decode_preset
from .feature_networks import ClassifierConfig, InceptionConfig, LPIPSConfig
from .generators import (
    ADALN_PRESETS,
    BERT_PRESETS,
    LLAMA_PRESETS,
    TEXT_RECIPE,
    AdaLNConfig,
    BertConfig,
    GeneratorConfig,
    LlamaConfig,
    check_flash_length,
    is_causal,
)
from .maskgit import MASKGIT_PRESETS, MASKGIT_VQ_PRESETS, MaskGITConfig, MaskGITVQConfig
from .orders import ORDERS
from .schedules import SCHEDULES
from .serving import ServeConfig
from .tokenizers import MAGVIT_PRESETS, VQ_PRESETS, MagvitConfig, VQConfig
from .uvit import UVIT_PRESETS, UViTConfig

__all__ = [
    "ADALN_PRESETS",
    "BERT_PRESETS",
    "CHAMELEON_PRESETS",
    "DECODE_PRESETS",
    "LLAMA_PRESETS",
    "MAGVIT_PRESETS",
    "MASKGIT_PRESETS",
    "MASKGIT_VQ_PRESETS",
    "ORDERS",
    "PLANS",
    "REMASK_RULES",
    "SCHEDULES",
    "TEXT_RECIPE",
    "UVIT_PRESETS",
    "VQ_PRESETS",
    "AdaLNConfig",
    "BertConfig",
    "CaptionConfig",
    "CausalConfig",
    "ChameleonConfig",
    "ClassifierConfig",
    "ConfigError",
    "DecodeConfig",
    "GeneratorConfig",
    "InceptionConfig",
    "LPIPSConfig",
    "LlamaConfig",
    "LoaderConfig",
    "MagvitConfig",
    "MaskGITConfig",
    "MaskGITVQConfig",
    "ServeConfig",
    "UViTConfig",
    "VQConfig",
    "check_flash_length",
    "choose",
    "decode_preset",
    "from_dict",
    "height_width",
    "is_causal",
    "renamed",
    "require",
    "to_dict",
]
