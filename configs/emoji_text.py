"""A text-conditional generator of the built-in drawings and of scenes composed of them, in five sizes, on a few CPU cores.

maskgil encode --tokenizer runs/emoji_tokenizer/weights --data.path emoji*10,scenes:60000 --captions \
    --sizes 64x64,64x96,96x64,64x128,128x64 --out runs/emoji_text_codes
maskgil train --config configs/emoji_text.py --workdir runs/emoji_text

The drawings are repeated so that they are more than a third of an epoch. The encoder is the one that the package brings along;
it computes in the train step. To start from the class-conditional trunk of `emoji.py`, add --config.init_from=WEIGHTS.
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import emoji


def get_config() -> ConfigDict:
    """`emoji.py` with captions in place of classes."""
    config = emoji.get_config()
    config.data.update(path="emoji*10,scenes:60000", label="", codes="runs/emoji_text_codes")
    # Captions of drawings and scenes have 5 to 24 tokens with start and end; lists of tags are cut.
    config.text_encoder.update(path="minilm", max_tokens=24)
    # 32x16 codes in patches of 2x2 are 128 positions, and 24 of text.
    config.batch_size = 32
    return config
