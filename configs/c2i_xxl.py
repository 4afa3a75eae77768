"""MaskGIL-XXL (1.4B) on ImageNet 256x256: the recipe of `c2i_b.py`, 300 epochs; QK-Norm and Post-Norm (paper 4.1).

maskgil train --config configs/c2i_xxl.py --workdir runs/c2i_xxl
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import c2i_b


def get_config() -> ConfigDict:
    """`c2i_b.py` with what differs at this size."""
    config = c2i_b.get_config()
    config.model.preset = "XXL"
    config.total_steps = 300 * 1_281_167 // config.batch_size
    config.decode.guidance = 2.5
    # docs/scaling.md, XXL on v5e:16x16: 8.0 GiB at 16 images a chip (16 chips for the batch of 256).
    config.mesh.update(data=1, fsdp=-1)  # parameters and moments split over all devices
    return config
