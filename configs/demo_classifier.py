"""The judge of the demo: a small classifier of the built-in emoji, trained on the training split of the real drawings only.

Its weights are shipped; `maskgil demo --report` asks it what generated images look like.

maskgil train --config configs/demo_classifier.py --workdir runs/demo_classifier
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """About 25 passes over 4,617 drawings; some minutes on two CPU cores."""
    config = ConfigDict()
    config.task = "classifier"
    config.seed = 0
    config.total_steps = 1800
    config.batch_size = 64
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
    config.augment = ConfigDict(dict(scale=0.2, shift=0.1, flip=0.5, colour=0.15))
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
            ema_decay=0.99,
        )
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    config.checkpoint = ConfigDict(dict(every=600, keep=1))
    config.log_every = 50
    config.sample_every = 0
    return config
