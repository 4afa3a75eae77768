"""A small VQ tokenizer on the built-in emoji: about two minutes on two CPU cores. `maskgil demo` runs it first.

maskgil train --config configs/demo_tokenizer.py --workdir runs/demo_tokenizer
"""

from ml_collections import ConfigDict

from maskgil_jax.config import MagvitConfig, VQConfig
from maskgil_jax.config.run_files import changes, section
from maskgil_jax.config.training import (
    CheckpointConfig,
    DataConfig,
    DiscriminatorConfig,
    MeshConfig,
    OptimizerConfig,
    SkipConfig,
    VQLossConfig,
)


def get_config() -> ConfigDict:
    """64x64 images <-> 16x16 codes, from 8,000 images."""
    config = ConfigDict()
    config.task = "tokenizer"
    config.seed = 0
    config.total_steps = 500
    config.batch_size = 16
    config.data = section(
        DataConfig,
        skip=("codes",),
        path="emoji",
        held_out="test",
        label="subgroup",
        image_size=64,
        crop="center",
        flip=True,
    )
    config.model = changes(VQConfig, MagvitConfig, skip=("image_size",), preset="patches")

    # No adversarial and no perceptual loss: neither improves the result within two minutes.
    config.loss = section(VQLossConfig, l1=1.0, l2=1.0, perceptual=0.0, adversarial=0.0, disc_start=0)
    config.lpips = ""
    adam = dict(beta2=0.99, weight_decay=0.0, warmup_steps=20, decay="cosine")
    config.optimizer = section(OptimizerConfig, learning_rate=2e-3, ema_decay=0.99, **adam)
    config.discriminator = ConfigDict()
    config.discriminator.net = section(DiscriminatorConfig, width=32, layers=2, norm="group")
    config.discriminator.optimizer = section(OptimizerConfig, learning_rate=1e-3, ema_decay=0.99, **adam)
    config.restart_after = 25
    config.usage_window = 50

    config.mesh = section(MeshConfig)
    config.checkpoint = section(CheckpointConfig, every=200, keep=1)
    config.guard = section(SkipConfig)
    config.log_every = 20
    config.sample_every = 200
    return config
