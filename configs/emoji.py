"""The generator that ships with the package as "demo": a wider one than `demo.py`'s, for longer, from a code store.

maskgil encode --tokenizer runs/emoji_tokenizer/weights --data.path emoji --out runs/emoji_codes
maskgil train --config configs/emoji.py --workdir runs/emoji
maskgil pack runs/emoji/weights maskgil_jax/weights/demo
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import demo


def get_config() -> ConfigDict:
    """`demo.py` with 2.7M parameters and more steps."""
    config = demo.get_config()
    config.batch_size = 64
    config.total_steps = 1700
    config.tokenizer = "runs/emoji_tokenizer/weights"
    config.data.codes = "runs/emoji_codes"
    config.model.update(width=192, heads=6, mlp_width=448)
    config.optimizer.update(learning_rate=1.5e-3, warmup_steps=100, ema_decay=0.998)
    config.checkpoint.every = 200
    config.log_every = 50
    config.sample_every = 400
    return config
