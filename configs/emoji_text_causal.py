"""The causal counterpart of `emoji_text_square.py`, for hybrid sampling: same features and codes, the next token.

maskgil train --config configs/emoji_text_causal.py --workdir runs/emoji_text_causal
maskgil sample --weights runs/emoji_text/weights --ar runs/emoji_text_causal/weights --ar-ratio 0.25 \
    --prompt "a red heart"

The commands of `emoji_text_square.py` make the codes and features. All images have one size: a causal network takes no
batch of several sizes.
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import c2i_ar_b, emoji_text_square


def get_config() -> ConfigDict:
    """`emoji_text_square.py` made causal, with a smaller network."""
    config = c2i_ar_b.make_causal(emoji_text_square.get_config())
    # One token a position, which the masked network's patches and mean of the text are not made for.
    config.model.update(patch=None, text_pool=None, width=128, depth=4, heads=4, mlp_width=384)
    config.total_steps = 1000
    config.optimizer.update(learning_rate=5e-3, warmup_steps=50, decay="cosine")
    return config
