"""The judge of the demo: a small classifier of the built-in emoji, trained on the training split of the real drawings only.

Its weights are shipped; `maskgil demo --report` asks it what generated images look like.

maskgil train --config configs/demo_classifier.py --workdir runs/demo_classifier
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """About 42 passes over 4,617 drawings, in nine minutes of CPU time: five on two cores that have nothing else to do."""
    config = ConfigDict()
    config.task = "classifier"
    config.seed = 0
    config.total_steps = 6000
    config.batch_size = 32
    config.data = ConfigDict(
        dict(
            path="emoji",
            split="train",
            held_out="test",
            label="subgroup",
            image_size=64,
            crop="none",
            num_workers=0,
            data_dir="",
        )
    )
    config.model = ConfigDict(dict(channels=(24, 48, 80), feature_dim=128))
    config.augment = ConfigDict(dict(scale=0.15, shift=0.08, flip=0.5, colour=0.12))
    config.label_smoothing = 0.1
    config.optimizer = ConfigDict(
        dict(
            learning_rate=3e-3,
            beta1=0.9,
            beta2=0.99,
            weight_decay=0.05,
            decay_on="matrices",
            clip_norm=1.0,
            warmup_steps=100,
            decay="cosine",
            ema_decay=0.995,
        )
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1, dcn_data=1))
    add_upkeep = runpy.run_path(str(pathlib.Path(__file__).with_name("c2i_b.py")))["add_upkeep"]
    add_upkeep(config, every=1500, keep=1)
    config.log_every = 100
    config.sample_every = 0
    return config
