"""A small MaskGIL on the built-in emoji, about five minutes on two CPU cores.

`maskgil demo` runs it after its tokenizer.

maskgil train --config configs/demo.py --workdir runs/demo --config.tokenizer=runs/demo_tokenizer/weights
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import c2i_b


def get_config() -> ConfigDict:
    """The recipe of `c2i_b.py` with a small network, small pictures and a faster learning rate."""
    config = c2i_b.get_config()
    config.batch_size = 32
    config.total_steps = 1600
    config.tokenizer = "demo"
    config.data.update(path="emoji", label="subgroup", image_size=64, crop="center", flip=False, num_workers=0, codes="")
    # Rematerialisation saves memory that a small network does not need.
    config.model.update(preset="small", dtype="float32", remat="none", patch=2)
    # Label smoothing trains a tenth of the probability onto wrong codes, which sampling at temperature 1 then draws.
    config.objective.label_smoothing = 0.0
    # Muon reaches AdamW's loss in less than half of the steps (docs/results/training.md).
    config.optimizer.update(name="muon", learning_rate=1e-2, weight_decay=1e-2, warmup_steps=50, decay="cosine", ema_decay=0.99)
    # The Halton order spreads the tokens of a step over the image: neighbours are not drawn independently of each
    # other.
    config.decode.update(order="halton", choice_temperature=0.0, guidance=2.5, temperature=0.9)
    config.evaluate.update(count=256, features="demo", reference="emoji", split="test", best="agreement")
    # Gradients are clipped, so a few large ones are harmless; skipping them would keep a short run where they are
    # large.
    config.guard.spike = 0.0
    config.checkpoint.update(every=100, keep=1)
    config.log_every = 10
    config.sample_every = 100
    return config
