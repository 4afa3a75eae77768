"""MaskGIL-XL (775M) on ImageNet 256x256: the recipe of `c2i_b.py` at another size, 400 epochs.

maskgil train --config configs/c2i_xl.py --workdir runs/c2i_xl
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import c2i_b


def get_config() -> ConfigDict:
    """`c2i_b.py` with what differs at this size."""
    config = c2i_b.get_config()
    config.model.preset = "XL"
    config.decode.guidance = 2.5
    # docs/scaling.md, XL on v5e:16x16: at 16 images a chip (16 chips for the batch of 256) 4.8 GiB; with the state
    # whole on every chip 8 images do not fit any more.
    config.mesh.update(data=1, fsdp=-1)  # parameters and moments split over all devices
    return config
