"""A class-conditional generator of the built-in drawings, on the 16x16 codes of `emoji_tokenizer.py`.

maskgil encode --tokenizer runs/emoji_tokenizer/weights --data.path emoji --out runs/emoji_codes
maskgil train --config configs/emoji.py --workdir runs/emoji
maskgil pack runs/emoji/weights packed

The learning rate is constant and weights are averaged (EMA), so a run can be stopped at any step and continued later.
To finish it, decay the learning rate: continue with --config.optimizer.decay=cosine and --config.total_steps a fifth
above the current step.
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import demo


def get_config() -> ConfigDict:
    """`demo.py` with 5.2M parameters and 60,000 steps."""
    config = demo.get_config()
    config.batch_size = 32
    config.total_steps = 60_000
    config.tokenizer = "runs/emoji_tokenizer/weights"
    config.data.codes = "runs/emoji_codes"
    config.model.update(width=256, depth=6, heads=4, mlp_width=704, dropout=0.05)
    config.optimizer.update(name="adamw", learning_rate=1e-3, warmup_steps=100, decay="constant", ema_decay=0.998)
    config.decode.guidance = 4.0
    config.checkpoint.every = 200
    config.guard.watchdog_seconds = 1800.0
    config.log_every = 50
    config.sample_every = 500
    return config
