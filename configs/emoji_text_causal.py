"""The causal counterpart of `emoji_text_square.py`, for hybrid sampling: same encoder and codes, the next token.

maskgil encode --tokenizer runs/emoji_tokenizer/weights --data.path emoji*4,scenes:12000:64x64 --captions \
    --sizes 64x64 --out runs/emoji_text_square_codes
maskgil train --config configs/emoji_text_causal.py --workdir runs/emoji_text_causal
maskgil sample --weights runs/emoji_text/weights --ar runs/emoji_text_causal/weights --ar-ratio 0.25 --prompt "two red cats"

All images have one size: a causal network takes no batch of several sizes.
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import c2i_ar_b, emoji_text_square


def get_config() -> ConfigDict:
    """`emoji_text_square.py` made causal."""
    config = c2i_ar_b.make_causal(emoji_text_square.get_config())
    config.model.patch = None  # patches of tokens are predicted together, which token by token cannot be
    config.model.update(width=192, depth=4, heads=4, mlp_width=512)  # 256 positions instead of 64: a smaller network
    config.total_steps = 530
    config.optimizer.update(learning_rate=5e-3, warmup_steps=50, decay="cosine")
    return config
