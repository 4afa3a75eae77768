"""The smallest weights that the commands accept: a classifier for features, and a pipeline for samples."""

import jax
import numpy as np
import pytest
from PIL import Image

from maskgil_jax.checkpoints.weights import load_weights, save_weights
from maskgil_jax.config import VQ_PRESETS, ClassifierConfig, LlamaConfig, VQConfig
from maskgil_jax.evaluation.features import feature_extractor_of
from maskgil_jax.networks import create, params_of

SIDE = 16
CLASSES = ("a", "b", "c", "d")
CLASSIFIER = ClassifierConfig(num_classes=4, channels=(8,), feature_dim=6, norm_groups=4, image_size=SIDE)
VQ = VQConfig(channels=8, multipliers=(1, 1), res_blocks=1, latent_dim=8, codebook_size=16, codebook_dim=4, image_size=SIDE)
LLAMA = LlamaConfig(width=32, depth=1, heads=2, mlp_width=32, codebook_size=16, num_classes=4, grid=(8, 8))


def random_params(cfg, seed):
    """Fresh parameters; those that start at zero (heads) are drawn too, so that nothing is constant."""
    params, rng = params_of(create(cfg, jax.random.key(seed))), np.random.default_rng(seed)
    return jax.tree.map(lambda a: np.asarray(a) if np.any(a) else rng.normal(0, 0.3, a.shape).astype(np.float32), params)


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory):
    """A weights folder with a classifier of four classes."""
    folder = tmp_path_factory.mktemp("extractor") / "extractor"
    save_weights(folder, CLASSIFIER, random_params(CLASSIFIER, 1), metadata={"class_names": list(CLASSES)})
    return folder


@pytest.fixture(scope="session")
def extractor(classifier_folder):
    """The feature extractor of `classifier_folder`."""
    return feature_extractor_of(load_weights(classifier_folder), name="extractor")


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """A pipeline folder of 16x16 images and four classes."""
    folder = tmp_path_factory.mktemp("pipeline") / "MaskGIL-B"
    save_weights(folder / "tokenizer", VQ, random_params(VQ, 2))
    tokenizer = load_weights(folder, "tokenizer").hash
    about = {"class_names": list(CLASSES), "tokenizer_hash": tokenizer, "decode": {"steps": 2}}
    save_weights(folder / "generator", LLAMA, random_params(LLAMA, 3), metadata=about)
    return folder


@pytest.fixture
def tiny_preset(monkeypatch):
    """`model.preset=tiny` for the tokenizer's trainer: two levels instead of four,
    whose step compiles twice as fast."""
    cfg = VQConfig(channels=8, multipliers=(1, 2), res_blocks=1, latent_dim=16, codebook_size=32, norm_groups=4, image_size=16)
    monkeypatch.setitem(VQ_PRESETS, "tiny", cfg)


def random_images(count, seed=0, side=SIDE):
    """uint8 noise, coarse enough to have features."""
    small = np.random.default_rng(seed).integers(0, 256, (count, side // 4, side // 4, 3), np.uint8)
    return small.repeat(4, axis=1).repeat(4, axis=2)


def write_folder(folder, images):
    """A folder of PNGs."""
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder
