"""Table A.1 of the paper: causal (AR) LLaMA of 12 layers on four tokenizers, by epochs and CFG. ImageNet 256x256.

maskgil evaluate --config configs/eval_a1.py --weights weights --out runs/a1

Weights: one sub-folder for each tokenizer and number of epochs, e.g. AR-LlamaGen-VQ-200ep.
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import eval_table3

EPOCHS = (50, 100, 200)
# tokenizer -> CFG -> (FID, IS) at each number of epochs
FIGURES = {
    "MaskGIT-VQ": {
        3.0: ((9.8846, 160.1574), (9.1567, 170.2633), (8.7525, 175.5390)),
        2.5: ((10.2998, 135.7815), (9.4809, 145.6140), (9.1254, 149.5679)),
        2.0: ((12.6750, 102.6800), (11.5306, 110.0108), (11.2182, 114.8622)),
    },
    "Chameleon-VQ": {
        3.0: ((8.5799, 180.8341), (8.1700, 193.9580), (7.5208, 200.0188)),
        2.5: ((8.9955, 153.5894), (8.2882, 165.1865), (7.7708, 175.9126)),
        2.0: ((11.6736, 115.8210), (10.5847, 125.7858), (9.6992, 133.8924)),
    },
    "LlamaGen-VQ": {
        3.0: ((9.2867, 199.3415), (8.8726, 215.3014), (8.0206, 221.3254)),
        2.5: ((8.2499, 171.4478), (7.7843, 185.0560), (6.8314, 191.7435)),
        2.0: ((8.7104, 133.0047), (7.8188, 144.1255), (7.0980, 149.0620)),
    },
    "Open-MAGVIT2-VQ": {
        3.0: ((10.9688, 129.7520), (10.8770, 131.0903), (9.5125, 146.1105)),
        2.5: ((15.5837, 96.4929), (14.8460, 100.0897), (14.8755, 100.2676)),
        2.0: ((25.2163, 63.6719), (24.1729, 66.1162), (22.7751, 71.5757)),
    },
}


def get_config() -> ConfigDict:
    """`eval_table3.py` with these rows."""
    config = eval_table3.get_config()
    config.title = "Table A.1: causal LLaMA on four tokenizers"
    config.metrics = ("fid", "is")
    config.decode = ConfigDict()  # nothing is masked: no schedule, one step per code
    config.rows = tuple(
        dict(
            name=f"AR-{tokenizer}-{epochs}ep-cfg{guidance}",
            weights=f"AR-{tokenizer}-{epochs}ep",
            decode=dict(guidance=guidance),
            paper={"fid": fid, "is": score},
        )
        for tokenizer, by_guidance in FIGURES.items()
        for guidance, by_epochs in by_guidance.items()
        for epochs, (fid, score) in zip(EPOCHS, by_epochs)
    )
    config.footnotes = ()
    return config
