"""Every training row of the paper has a run file, and the networks have the sizes that follow from it."""

import math
import pathlib

import jax
import pytest

from maskgil_jax.commands.run_files import read_run_file
from maskgil_jax.config import ConfigError
from maskgil_jax.networks import abstract_params
from maskgil_jax.training.generator import model_options

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
STUDY = str(CONFIGS / "study.py")
CODES = {"maskgit-vq": 1024, "chameleon": 8192, "llamagen": 16384, "open-magvit2": 262144}
MILLIONS = {
    "bi_llama": (87.3, 98.3, 110.9, 488.4),
    "bi_transformer": (89.1, 96.5, 104.9, 356.8),
}  # computed from the original code
MILLIONS["causal_llama"] = MILLIONS["bi_llama"]


def millions(config, codebook_size):
    cfg = model_options(config.model.to_dict(), codebook_size=codebook_size, num_classes=1000, grid=(16, 16))
    return cfg, sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(cfg))) / 1e6


@pytest.mark.parametrize("generator", MILLIONS)
@pytest.mark.parametrize("tokenizer", CODES)
def test_the_study(tokenizer, generator):
    config = read_run_file(f"{STUDY}:{tokenizer}-{generator}", ["--config.seed=3"])
    assert config.seed == 3 and config.total_steps == 200 * 1_281_167 // 256 and config.tokenizer == f"weights/{tokenizer}"
    cfg, count = millions(config, CODES[tokenizer])
    assert count == pytest.approx(MILLIONS[generator][list(CODES).index(tokenizer)], rel=1e-3)
    assert getattr(cfg, "causal", False) == (generator == "causal_llama")
    # the defaults of LlamaGen's autoregressive/train/train_c2i.py; for the others the paper's 4.3
    found = tuple(config.optimizer[name] for name in ("learning_rate", "beta1", "beta2", "weight_decay", "clip_norm"))
    assert found == ((1e-4, 0.9, 0.95, 5e-2, 1.0) if generator == "causal_llama" else (1e-4, 0.9, 0.96, 1e-5, 1.0))
    assert config.objective.label_smoothing == (0.0 if generator == "causal_llama" else 0.1)
    if generator != "bi_transformer":
        normed = model_options(
            read_run_file(f"{STUDY}:{tokenizer}-{generator}-norm", []).model.to_dict(),
            codebook_size=CODES[tokenizer],
            num_classes=1000,
            grid=(16, 16),
        )
        assert (normed.qk_norm, normed.post_norm) == ("per_head", "sandwich") and (cfg.qk_norm, cfg.post_norm) == (
            "none",
            "none",
        )


@pytest.mark.parametrize("argument", [":", ":llamagen", ":llamagen-gpt", ":vq-bi_llama", ":llamagen-bi_transformer-norm"])
def test_an_unknown_row_is_refused_with_the_known_ones(argument):
    with pytest.raises(ValueError, match=r"^configs/study\.py: expected TOKENIZER-GENERATOR.*open-magvit2.*bi_llama"):
        read_run_file(STUDY + argument, [])


def test_other_run_files_take_no_argument():
    with pytest.raises(ConfigError, match="get_config"):
        read_run_file(str(CONFIGS / "c2i_b.py") + ":x", [])
    with pytest.raises(ConfigError, match="no run file nowhere"):
        read_run_file("nowhere:x", [])


@pytest.mark.parametrize(
    ("size", "epochs", "guidance", "count"),
    [("b", 400, 2.0, 110.9), ("l", 400, 2.0, 342.9), ("xl", 400, 2.5, 774.7), ("xxl", 300, 2.5, 1411.0)],
)
def test_the_sizes(size, epochs, guidance, count):
    """Tables 2 and 3, section 4.3."""
    config = read_run_file(str(CONFIGS / f"c2i_{size}.py"), [])
    cfg, found = millions(config, 16384)
    assert found == pytest.approx(count, rel=2e-3)
    assert config.total_steps == epochs * 1_281_167 // 256 and config.batch_size == 256
    assert config.decode.guidance == guidance and config.decode.steps == 8 and config.decode.schedule == "arccos"
    assert (config.optimizer.learning_rate, config.optimizer.beta2, config.optimizer.weight_decay) == (1e-4, 0.96, 1e-5)
    assert ((cfg.qk_norm, cfg.post_norm) != ("none", "none")) == (size == "xxl")
