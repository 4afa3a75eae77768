"""A text-conditional generator of the built-in drawings and of scenes composed of them, in five sizes: stage 2 of 2.

maskgil encode --tokenizer demo --data.path emoji*3,scenes:6000@fixed,pairs:12000@fixed --captions \
    --sizes 64x64,64x96,96x64,64x128,128x64 --out runs/emoji_text_codes
maskgil train --config configs/emoji_text.py --workdir runs/emoji_text --config.init_from=runs/emoji_text_square/weights

Stage 1, `emoji_text_square.py`, makes the stored features and sees squares alone, which have 16 positions where the
canvas of all sizes has 32.
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import emoji_text_square


def get_config() -> ConfigDict:
    """`emoji_text_square.py` on images of five sizes, with a learning rate that decays to 0."""
    config = emoji_text_square.get_config()
    config.data.update(path="emoji*3,scenes:6000@fixed,pairs:12000@fixed", codes="runs/emoji_text_codes")
    config.total_steps = 5000
    config.optimizer.decay = "cosine"
    return config
