"""The tokenizer that ships with the package as "demo": `demo_tokenizer.py` for seven times as long.

maskgil train --config configs/emoji_tokenizer.py --workdir runs/emoji_tokenizer
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """`demo_tokenizer.py` with more steps and averaged weights."""
    config = runpy.run_path(str(pathlib.Path(__file__).with_name("demo_tokenizer.py")))["get_config"]()
    config.total_steps = 3000
    config.optimizer.ema_decay = 0.995
    config.log_every = 50
    config.sample_every = 1000
    config.checkpoint.every = 500
    return config
