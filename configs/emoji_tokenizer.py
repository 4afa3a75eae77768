"""The tokenizer that ships with the package as "demo": `demo_tokenizer.py` for seven times as long.

maskgil train --config configs/emoji_tokenizer.py --workdir runs/emoji_tokenizer
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import demo_tokenizer


def get_config() -> ConfigDict:
    """`demo_tokenizer.py` with more steps and averaged weights."""
    config = demo_tokenizer.get_config()
    config.total_steps = 3000
    config.optimizer.ema_decay = 0.995
    config.log_every = 50
    config.sample_every = 1000
    config.checkpoint.every = 500
    return config
