"""A small classifier of the built-in emoji, trained on the training split; `maskgil demo` rates its samples with it.

maskgil train --config configs/demo_classifier.py --workdir runs/demo_classifier

Its weights are shipped. It has seen real drawings only, never a generated one.
"""

from ml_collections import ConfigDict

from maskgil_jax.config import ClassifierConfig
from maskgil_jax.config.run_files import section
from maskgil_jax.config.training import Augment, CheckpointConfig, DataConfig, MeshConfig, OptimizerConfig, SkipConfig


def get_config() -> ConfigDict:
    """About 42 epochs of 4,617 drawings, in nine minutes of CPU time: five minutes on two idle cores."""
    config = ConfigDict()
    config.task = "classifier"
    config.seed = 0
    config.total_steps = 6000
    config.batch_size = 32
    config.data = section(
        DataConfig,
        skip=("codes", "flip"),
        path="emoji",
        held_out="test",
        label="subgroup",
        image_size=64,
        crop="center",
    )
    config.model = section(ClassifierConfig, skip=("num_classes", "image_size"))
    config.augment = section(Augment, scale=0.15, shift=0.08, flip=0.5, colour=0.12)
    config.label_smoothing = 0.1
    config.optimizer = section(
        OptimizerConfig,
        learning_rate=3e-3,
        beta2=0.99,
        weight_decay=0.05,
        warmup_steps=100,
        decay="cosine",
        ema_decay=0.995,
    )
    config.mesh = section(MeshConfig)
    config.checkpoint = section(CheckpointConfig, every=1500, keep=1)
    config.guard = section(SkipConfig)
    config.log_every = 100
    config.sample_every = 0
    return config
