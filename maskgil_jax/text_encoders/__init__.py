"""Frozen text encoders: Gemma 1 and 2, T5, CLIP and BERT from Hugging Face folders, with their text tokenizers.

Every network is a pure function of nested dicts of arrays; a folder's `config.json` decides which one.
"""

from .base import TextEncoder
from .clip_model import CLIP, load_clip
from .encoder import FrozenTextEncoder
from .load import load_text_encoder
from .placement import shardings

__all__ = ["CLIP", "FrozenTextEncoder", "TextEncoder", "load_clip", "load_text_encoder", "shardings"]
