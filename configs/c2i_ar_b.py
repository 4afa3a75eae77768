"""Causal LLaMA-B (111M) on ImageNet 256x256: the AR baseline of the paper (Table A.1), which is LlamaGen's GPT-B.

maskgil train --config configs/c2i_ar_b.py --workdir runs/c2i_ar_b

Same network, codes and batch as `c2i_b.py`; next-token prediction with LlamaGen's own optimizer: AdamW with betas 0.9
and 0.95, weight decay 0.05, gradients clipped at 1, constant 1e-4, 300 epochs, no label smoothing. Its dropout on token
embeddings is not there.
"""

from ml_collections import ConfigDict

from maskgil_jax.config import CausalConfig
from maskgil_jax.config.run_files import section
from maskgil_jax.configs import c2i_b


def make_causal(config: ConfigDict) -> ConfigDict:
    """Turns the run file of a masked generator into its causal counterpart: same network, data and tokenizer."""
    config.model.causal = True
    config.objective.label_smoothing = 0.0
    config.decode = section(CausalConfig)
    return config


def get_config() -> ConfigDict:
    """`c2i_b.py` made causal."""
    config = make_causal(c2i_b.get_config())
    config.total_steps = 300 * c2i_b.IMAGENET_IMAGES // config.batch_size
    config.optimizer.update(beta2=0.95, weight_decay=0.05)
    return config
