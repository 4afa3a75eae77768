"""The generator that ships with the package as "demo": class -> 16x16 codes of the tokenizer of `emoji_tokenizer.py`.

maskgil encode --tokenizer runs/emoji_tokenizer/weights --data.path emoji --out runs/emoji_codes
maskgil train --config configs/emoji.py --workdir runs/emoji
maskgil pack runs/emoji/weights maskgil_jax/weights/demo

The rate is constant and the weights are averaged, so a run may be stopped and continued for as long as there is time. To end
it, let the rate decay over its last fifth: the same command with --config.optimizer.decay=cosine and a --config.total_steps a
fifth above the step reached.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """`demo.py` with 5M parameters, 2x2 tokens at a position."""
    config = runpy.run_path(str(pathlib.Path(__file__).with_name("demo.py")))["get_config"]()
    config.batch_size = 32
    config.total_steps = 60_000
    config.tokenizer = "runs/emoji_tokenizer/weights"
    config.data.codes = "runs/emoji_codes"
    config.model.update(patch=2, width=256, depth=6, heads=4, mlp_width=704, dropout=0.05)
    # Smoothed targets leave a tenth of the probability to codes that do not fit, and sampling at temperature 1 takes them.
    config.objective.label_smoothing = 0.0
    config.optimizer.update(learning_rate=1e-3, warmup_steps=100, decay="constant", ema_decay=0.998)
    config.checkpoint.every = 200
    config.guard.watchdog_seconds = 1800.0
    config.log_every = 50
    config.sample_every = 500
    return config
