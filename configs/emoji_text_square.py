"""A text-conditional generator of the built-in drawings and of scenes composed of them, on squares: stage 1 of 2.

maskgil encode --tokenizer demo --data.path emoji*4,scenes:4000:64x64@16 --captions --sizes 64x64 \
    --out runs/emoji_text_square_codes
maskgil encode --text-encoder minilm --max-tokens 20 --data.path emoji,scenes:4000:64x64@16,scenes:8000@16 --captions \
    --out runs/emoji_text_features
maskgil train --config configs/emoji_text_square.py --workdir runs/emoji_text_square

An image is 8x8 codes, and the layers run on 4x4 patches of them: so small a network learns its drawings by heart, which
takes many passes over few tokens. A patch has a side of 16 pixels, and the drawings of a scene stand at multiples of
it. The features of both stages are computed once. Muon needs less than half of AdamW's steps here
(docs/results/training.md). The learning rate is constant; stage 2, `emoji_text.py`, lets it fall.
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import emoji


def get_config() -> ConfigDict:
    """`emoji.py` with captions in place of classes, a coarser tokenizer, and Muon."""
    config = emoji.get_config()
    config.tokenizer = "demo"
    config.data.update(
        path="emoji*4,scenes:4000:64x64@16",
        label="",
        codes="runs/emoji_text_square_codes",
        texts="runs/emoji_text_features",
    )
    config.batch_size = 64
    config.total_steps = 6000
    config.model.update(dropout=0.0, text_pool="mean")
    config.optimizer.update(name="muon", learning_rate=4e-3)
    # The captions' score hardly depends on the two (docs/results/shipped_weights.md).
    config.decode.update(guidance=2.5, temperature=0.5)
    return config
