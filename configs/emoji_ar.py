"""The causal counterpart of `emoji.py`, for hybrid sampling: same codes, size and tokenizer, trained on the next token.

maskgil train --config configs/emoji_ar.py --workdir runs/emoji_ar
maskgil sample --weights runs/emoji/weights --ar runs/emoji_ar/weights --ar-ratio 0.25
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import c2i_ar_b, emoji


def get_config() -> ConfigDict:
    """`emoji.py` made causal."""
    config = c2i_ar_b.make_causal(emoji.get_config())
    config.model.patch = None  # patches of tokens are predicted together, which token by token cannot be
    return config
