"""A text-conditional generator of the built-in drawings and of scenes composed of them, on squares: stage 1 of 2.

maskgil encode --tokenizer demo --data.path emoji*4,scenes:4000:64x64@fixed,pairs:9000:64x64@fixed \
    --captions --sizes 64x64 --out runs/emoji_text_square_codes
maskgil encode --text-encoder minilm --max-tokens 20 --captions \
    --data.path emoji,scenes:4000:64x64@fixed,pairs:9000:64x64@fixed,scenes:6000@fixed,pairs:12000@fixed \
    --out runs/emoji_text_features
maskgil train --config configs/emoji_text_square.py --workdir runs/emoji_text_square

An image is 8x8 codes, and the layers run on 4x4 patches of them: so small a network learns its drawings by heart, which
takes many passes over few tokens. Scenes have one layout for a canvas, number and relation: tokens that are revealed in
the same step cannot agree on a place that the caption does not tell. Pairs of different things are learned slowest, so
they have the largest share of the scenes. The learning rate decays in the second stage. The features of both stages are
computed once. Muon needs less than half of AdamW's steps here (docs/results/training.md).
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import emoji


def get_config() -> ConfigDict:
    """`emoji.py` with captions in place of classes, a coarser tokenizer, and Muon."""
    config = emoji.get_config()
    config.tokenizer = "demo"
    config.data.update(
        path="emoji*4,scenes:4000:64x64@fixed,pairs:9000:64x64@fixed",
        label="",
        codes="runs/emoji_text_square_codes",
        texts="runs/emoji_text_features",
    )
    config.batch_size = 64
    config.total_steps = 6000
    config.model.update(dropout=0.0, text_pool="mean")
    config.optimizer.update(name="muon", learning_rate=3e-3, warmup_steps=30, decay="constant")
    config.decode.update(guidance=1.5, temperature=0.5)
    return config
