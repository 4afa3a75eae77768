"""A text-conditional generator of the built-in drawings and of scenes composed of them, in five sizes: stage 2 of 2.

maskgil encode --tokenizer runs/emoji_tokenizer/weights --data.path emoji*3,scenes:20000 --captions \
    --sizes 64x64,64x96,96x64,64x128,128x64 --out runs/emoji_text_codes
maskgil train --config configs/emoji_text.py --workdir runs/emoji_text --config.init_from=runs/emoji_text_square/weights

The drawings are repeated so that they are about two fifths of an epoch. Stage 1, `emoji_text_square.py`, sees squares alone,
which have 64 positions of 2x2 codes where the canvas of all sizes has 128.
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import emoji_text_square


def get_config() -> ConfigDict:
    """`emoji_text_square.py` on images of five sizes, with a falling learning rate."""
    config = emoji_text_square.get_config()
    config.data.update(path="emoji*3,scenes:20000", codes="runs/emoji_text_codes")
    config.total_steps = 600
    config.optimizer.update(warmup_steps=20, decay="cosine")
    return config
