"""MaskGIL-L (343M) on ImageNet 256x256: the recipe of `c2i_b.py` at another size, 400 epochs.

maskgil train --config configs/c2i_l.py --workdir runs/c2i_l
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import c2i_b


def get_config() -> ConfigDict:
    """`c2i_b.py` with what differs at this size."""
    config = c2i_b.get_config()
    config.model.preset = "L"
    # The mesh of B: docs/scaling.md, L on v5e:16x16, 9.5 GiB at 16 images a chip with the state whole on every chip.
    return config
