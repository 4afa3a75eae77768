"""MaskGIL-XL (775M) on ImageNet 256x256: the recipe of `c2i_b.py` at another size, 400 epochs.

maskgil train --config configs/c2i_xl.py --workdir runs/c2i_xl
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """`c2i_b.py` with what differs at this size."""
    config = runpy.run_path(str(pathlib.Path(__file__).with_name("c2i_b.py")))["get_config"]()
    config.model.preset = "XL"
    config.decode.guidance = 2.5
    # The state whole on every chip takes 20 GiB at 4 images a chip, 54 at 32 (docs/scaling.md, XL on v5p:4x4x4): v5p and 80 GiB
    # GPUs may set remat="none" and data=-1, fsdp=1; what stands here is for chips of 16 and 32 GiB.
    config.model.remat = "dots"
    config.mesh.update(data=1, fsdp=-1)  # parameters and moments split over all devices
    return config
