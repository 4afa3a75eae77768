"""MaskGIL-XXL (1.4B) on ImageNet 256x256: the recipe of `c2i_b.py`, 300 epochs; QK-Norm and Post-Norm (paper 4.1).

maskgil train --config configs/c2i_xxl.py --workdir runs/c2i_xxl
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """`c2i_b.py` with what differs at this size."""
    config = runpy.run_path(str(pathlib.Path(__file__).with_name("c2i_b.py")))["get_config"]()
    config.model.preset = "XXL"
    config.total_steps = 300 * 1_281_167 // config.batch_size
    config.decode.guidance = 2.5
    # The state whole on every chip takes 40 GiB at 4 images a chip (docs/scaling.md, XXL on v5p:4x4x4): v5p may set
    # remat="none" and data=-1, fsdp=1; what stands here is for chips of 16 and 32 GiB.
    config.model.remat = "full"
    config.mesh.update(data=1, fsdp=-1)  # parameters and moments split over all devices
    return config
