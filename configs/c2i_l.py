"""MaskGIL-L (343M) on ImageNet 256x256: the recipe of `c2i_b.py` at another size, 400 epochs.

maskgil train --config configs/c2i_l.py --workdir runs/c2i_l
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """`c2i_b.py` with what differs at this size."""
    config = runpy.run_path(str(pathlib.Path(__file__).with_name("c2i_b.py")))["get_config"]()
    config.model.preset = "L"
    # docs/scaling.md, L on v5e:16x16: at 16 images a chip 16.9 GiB with the state whole on every chip, 10.8 with it split;
    # up to 8 images a chip data=-1, fsdp=1 fits as well.
    config.mesh.update(data=1, fsdp=-1)  # parameters and moments split over all devices
    return config
