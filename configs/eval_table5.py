"""Table 5 of the paper: the first tokens of each image by LlamaGen-L, the rest by MaskGIL-B in 8 steps, CFG 2.0.

maskgil evaluate --config configs/eval_table5.py --weights weights --out runs/table5
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import eval_table3


def get_config() -> ConfigDict:
    """`eval_table3.py` with the shares of causal sampling for rows."""
    config = eval_table3.get_config()
    config.title = "Table 5: shares of causal (AR) sampling, ImageNet 256x256, CFG 2.0"
    config.decode.guidance = 2.0
    config.rows = (
        dict(name="AR-100", weights="LlamaGen-L", paper=dict(fid=3.80)),
        *(
            dict(name=f"AR-{share}", weights="MaskGIL-B", ar="LlamaGen-L", ar_ratio=share / 100, paper=dict(fid=fid))
            for share, fid in ((75, 3.96), (50, 4.23), (25, 4.68))
        ),
        dict(name="AR-0", weights="MaskGIL-B", paper=dict(fid=5.64)),
    )
    config.footnotes = (
        "Steps: 256 / 200 / 136 / 72 / 8, that is the causal steps plus 8; Figure 7 of the paper has 132 = 128 + 4.",
    )
    return config
