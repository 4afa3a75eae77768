"""A run of seconds on any machine to test an installation. Its samples are noise.

maskgil train --config configs/debug.py --workdir runs/debug
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import demo


def get_config() -> ConfigDict:
    """`demo.py` with a two-layer network and twenty steps. The shipped tokenizer encodes images in the train step."""
    config = demo.get_config()
    config.batch_size = 16
    config.total_steps = 20
    config.model.update(preset="tiny", patch=None)
    config.optimizer.update(name="adamw", learning_rate=2e-3, warmup_steps=5, ema_decay=0.0)
    config.checkpoint.update(every=10, keep=2)
    config.log_every = 5
    config.sample_every = 20
    return config
