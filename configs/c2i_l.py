"""MaskGIL-L (343M) on ImageNet 256x256: the recipe of `c2i_b.py` at another size, 400 epochs.

maskgil train --config configs/c2i_l.py --workdir runs/c2i_l
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """`c2i_b.py` with what differs at this size."""
    config = runpy.run_path(str(pathlib.Path(__file__).with_name("c2i_b.py")))["get_config"]()
    # Mesh and remat of B: 9.4 GiB at 4 images a chip, 17 at 16 (docs/scaling.md, L on v5p:4x4x4), so chips of 16 GiB want 32 or
    # more for the batch of 256, or remat="dots".
    config.model.preset = "L"
    return config
