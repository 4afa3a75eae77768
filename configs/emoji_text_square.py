"""A text-conditional generator of the built-in drawings and of scenes composed of them, on squares: stage 1 of 2.

maskgil encode --tokenizer runs/emoji_tokenizer/weights --data.path emoji*4,scenes:12000:64x64 --captions \
    --sizes 64x64 --out runs/emoji_text_square_codes
maskgil train --config configs/emoji_text_square.py --workdir runs/emoji_text_square

The encoder is the one that the package brings along; it computes in the train step. Muon needs less than half of AdamW's steps
here (docs/results/training.md). The learning rate is constant; stage 2, `emoji_text.py`, lets it fall. To start from
other weights, such as the class-conditional ones of `emoji.py`, add --config.init_from=WEIGHTS.
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import emoji


def get_config() -> ConfigDict:
    """`emoji.py` with captions in place of classes, and Muon."""
    config = emoji.get_config()
    config.data.update(path="emoji*4,scenes:12000:64x64", label="", codes="runs/emoji_text_square_codes")
    # Captions of drawings and scenes have 5 to 24 tokens with start and end; lists of tags are cut.
    config.text_encoder.update(path="minilm", max_tokens=24)
    config.batch_size = 64
    config.total_steps = 800
    config.model.dropout = 0.0
    config.optimizer.update(name="muon", learning_rate=2.5e-3)
    return config
