"""Weights by formula: each tensor of a golden case is drawn from its name, so no checkpoint has to be stored.

w = mean + std * sqrt(3) * (2u - 1), u from NumPy's RandomState seeded with crc32(name) ^ seed: the same everywhere.
"""

import json
import math
import pathlib
import re
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def draw(name: str, shape: tuple[int, ...], recipe: dict) -> np.ndarray:
    """The float32 tensor called `name` (PyTorch name and shape)."""
    rule = next(r for r in recipe["rules"] if re.search(r["match"], name))
    if rule["kind"] == "keep":
        raise ValueError(f"{name}: the recipe keeps the module's own initial value")
    uniform = rule["kind"] == "uniform"
    mean, std = (rule["mean"], rule["std"]) if uniform else (0.0, rule["gain"] / math.sqrt(math.prod(shape[1:])))
    state = np.random.RandomState((zlib.crc32(name.encode()) ^ recipe["seed"]) & 0xFFFFFFFF)
    u = state.random_sample(math.prod(shape))
    return (mean + std * math.sqrt(3.0) * (2.0 * u - 1.0)).astype(np.float32).reshape(shape)


def load_case(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(config, arrays) of a golden case folder."""
    folder = GOLDEN / name
    return json.loads((folder / "config.json").read_text()), dict(np.load(folder / "io.npz"))
