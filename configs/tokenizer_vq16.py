"""The LlamaGen VQ-16 tokenizer (72M parameters) on ImageNet 256x256: LlamaGen's recipe, 40 epochs.

maskgil train --config configs/tokenizer_vq16.py --workdir runs/vq16 --config.lpips=weights/lpips

`maskgil convert` makes the LPIPS folder (docs/checkpoints.md). Without one the perceptual term is off, which the log
says; reconstructions are then blurred.
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import demo_tokenizer

IMAGENET_IMAGES = 1_281_167


def get_config() -> ConfigDict:
    """`demo_tokenizer.py` at full size, with all terms of the loss."""
    config = demo_tokenizer.get_config()
    config.batch_size = 128
    config.total_steps = 40 * IMAGENET_IMAGES // config.batch_size
    config.data.update(
        path="tfds:imagenet2012", held_out="validation", label="", image_size=256, crop="random", flip=True, num_workers=8
    )
    config.model.update(preset="VQ-16")
    config.model.dtype = "bfloat16"
    config.loss.update(l1=0.0, l2=1.0, perceptual=1.0, adversarial=0.5, disc_start=20_000)
    config.optimizer.update(learning_rate=1e-4, weight_decay=5e-2, warmup_steps=0, decay="constant")
    config.discriminator.net.update(width=64, layers=3, norm="batch")
    config.discriminator.optimizer.update(learning_rate=1e-4, weight_decay=5e-2, warmup_steps=0, decay="constant")
    config.restart_after = 0
    config.usage_window = 100
    config.checkpoint.update(every=5_000, keep=3)
    config.log_every = 100
    config.sample_every = 5_000
    return config
