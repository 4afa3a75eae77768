"""A tokenizer of the built-in drawings: 64x64 pixels <-> 16x16 codes out of 1024.

maskgil train --config configs/emoji_tokenizer.py --workdir runs/emoji_tokenizer
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import demo_tokenizer


def get_config() -> ConfigDict:
    """`demo_tokenizer.py` for six times as long: 48,000 images."""
    config = demo_tokenizer.get_config()
    config.total_steps = 3000
    config.optimizer.update(warmup_steps=50, ema_decay=0.995)
    config.log_every = 50
    config.sample_every = 1000
    config.checkpoint.every = 200
    config.guard.watchdog_seconds = 1800.0
    return config
