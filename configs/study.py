"""The tokenizer x generator study at about 100M parameters (paper 3.1, Tables A.1 and A.2): 200 epochs each.

maskgil train --config configs/study.py:llamagen-bi_llama --workdir runs/llamagen-bi_llama

The argument is TOKENIZER-GENERATOR; the suffix "-norm" adds QK-Norm and Post-Norm (LLaMAs only). The tokenizer is read
from weights/TOKENIZER and the codes from codes/imagenet_TOKENIZER (`maskgil encode`); both can be changed.
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import c2i_b

# Codes in the codebook. Published files: taming's VQGAN f16-1024, Chameleon's, LlamaGen's VQ-16, Open-MAGVIT2's at 256.
TOKENIZERS = {"maskgit-vq": 1024, "chameleon": 8192, "llamagen": 16384, "open-magvit2": 2**18}
GENERATORS = {
    "bi_transformer": dict(family="bert", preset="B"),  # 89M, 96M, 105M, 357M with the four codebooks
    "bi_llama": dict(family="llama", preset="B"),  # 87M, 98M, 111M, 488M
    "causal_llama": dict(family="llama", preset="B", causal=True),
}
# The scale with the lowest FID of those in the two tables (3.0, 2.5, 2.0); 3.0 where the paper gives none.
GUIDANCE = {("llamagen", "bi_llama"): 2.0, ("llamagen", "bi_transformer"): 2.5, ("llamagen", "causal_llama"): 2.5}
GUIDANCE |= {("chameleon", "bi_llama"): 2.5}
IMAGENET_IMAGES = 1_281_167


def get_config(argument: str = "llamagen-bi_llama") -> ConfigDict:
    """`c2i_b.py` with another tokenizer and network."""
    name, norm, rest = argument.partition("-norm")
    tokenizer, _, generator = name.rpartition("-")
    if tokenizer not in TOKENIZERS or generator not in GENERATORS or rest or (norm and generator == "bi_transformer"):
        raise ValueError(
            f"configs/study.py: expected TOKENIZER-GENERATOR or, for LLaMAs, TOKENIZER-GENERATOR-norm with a tokenizer of "
            f"{', '.join(TOKENIZERS)} and a generator of {', '.join(GENERATORS)}; got {argument!r}"
        )
    config = c2i_b.get_config()
    config.total_steps = 200 * IMAGENET_IMAGES // config.batch_size
    config.tokenizer = f"weights/{tokenizer}"
    config.data.codes = f"codes/imagenet_{tokenizer}"
    config.model.update(GENERATORS[generator])
    if norm:
        config.model.update(qk_norm="per_head", post_norm="sandwich")
    config.decode.guidance = GUIDANCE.get((tokenizer, generator), 3.0)
    if generator == "causal_llama":  # "consistent with LlamaGen" (A.1): where the defaults of its train_c2i.py differ from ours
        config.objective.label_smoothing = 0.0
        config.optimizer.update(beta2=0.95, weight_decay=5e-2)
        config.sample_every = 0
    return config
