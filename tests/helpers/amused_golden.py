"""The reference cases of aMUSEd (tests/golden/amused): options, files, inputs and outputs in this project's layout."""

import gzip
import json
import pathlib

import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import UViTConfig
from maskgil_jax.models.condition import PooledTextCondition

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "amused"
LISTINGS = json.loads(gzip.decompress((GOLDEN / "listings.json.gz").read_bytes()))
UVIT_FILE = GOLDEN / "uvit_256_like" / "diffusion_pytorch_model.safetensors"
VQ_FILE = GOLDEN / "vq" / "diffusion_pytorch_model.safetensors"
TINY = UViTConfig(
    codebook_size=32,
    vocabulary=40,
    grid=(8, 8),
    width=32,
    depth=2,
    heads=4,
    mlp_width=44,
    channels=24,
    block_heads=3,
    text_tokens=5,
    text_dim=16,
    pooled_dim=16,
    micro_dim=8,
)
# What no tensor and no `config.json` of the tiny network states.
UVIT_OPTIONS = {"text_tokens": 5}


def channels_last(x_nchw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x_nchw.transpose(0, 2, 3, 1))


def uvit_case(name: str):
    """(tokens, condition, logits (b, l, v), all arrays) of "uvit_256_like" or "uvit_512_like"."""
    with np.load(GOLDEN / name / "io.npz") as file:
        io = {key: file[key] for key in file.files}
    pooled, micro, logits = (io[key] for key in (("pool", "mc", "o") if "o" in io else ("pooled", "micro", "logits")))
    condition = PooledTextCondition(*map(jnp.asarray, (io["enc"], np.ones(io["enc"].shape[:2], bool), pooled, micro)))
    b, v = logits.shape[:2]
    return jnp.asarray(io["ids"].reshape(b, -1), jnp.int32), condition, channels_last(logits).reshape(b, -1, v), io


def listing(name: str) -> dict:
    """{tensor name: (shape, dtype)} of a published file."""
    return {key: (tuple(shape), np.dtype("float32")) for key, shape in LISTINGS[name]["tensors"].items()}
