"""The causal twin of `emoji.py`, for hybrid sampling: same codes, same size, same tokenizer, trained on the next token.

maskgil train --config configs/emoji_ar.py --workdir runs/emoji_ar
maskgil sample --weights runs/emoji/weights --ar runs/emoji_ar/weights --ar-ratio 0.25
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """`emoji.py` made causal."""
    here = pathlib.Path(__file__)
    make_causal = runpy.run_path(str(here.with_name("c2i_ar_b.py")))["make_causal"]
    return make_causal(runpy.run_path(str(here.with_name("emoji.py")))["get_config"]())
