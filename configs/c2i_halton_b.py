"""Halton-MaskGIT's base Transformer (142M) on ImageNet 256x256 with the LlamaGen VQ-16 tokenizer.

maskgil encode --tokenizer weights/vq16 --data.path tfds:imagenet2012 --out codes/imagenet_vq16_unflipped
maskgil train --config configs/c2i_halton_b.py --workdir runs/c2i_halton_b

Its authors' published options, and what they recommended later (1.5M steps, no flipped images, EMA). They let the rate
fall over the last tenth of the steps, which is left out here, and do not say how many images a step sees on all their
GPUs.
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import c2i_b


def get_config() -> ConfigDict:
    """`c2i_b.py` with another network and what its authors trained it with."""
    config = c2i_b.get_config()
    config.total_steps = 1_500_000
    config.data.update(flip=False, codes="codes/imagenet_vq16_unflipped")
    config.model.update(family="adaln", preset="base")
    config.objective.update(label_smoothing=0.0)
    config.optimizer.update(beta2=0.999, weight_decay=3e-2, decay_on="all", warmup_steps=2500, ema_decay=0.9999)
    config.decode.update(steps=32, plan="gamma_ceil", guidance=1.7, order="halton", choice_temperature=0.0)
    return config
