"""Reference weights by recipe, under published PyTorch names.

A recipe draws every tensor on its own from its name, so whole state dicts are rebuilt bit for bit from a list of names
and shapes; `state_hash` proves it against the hash stored with the reference outputs.
"""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
import re
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def golden(topic: str, name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(`NAME.json`, arrays of `NAME.npz`) of one reference case."""
    folder = GOLDEN / topic
    with np.load(folder / f"{name}.npz") as arrays:
        return json.loads((folder / f"{name}.json").read_text()), dict(arrays)


def draw(name: str, shape, recipe: dict, keep: dict | None = None) -> np.ndarray:
    """One tensor of a recipe, in PyTorch's shape; `keep` holds the constants the recipe does not draw."""
    rule = next(rule for rule in recipe["rules"] if re.search(rule["match"], name))
    if rule["kind"] == "keep":
        return (keep or {})[name]
    mean, std = rule.get("mean", 0.0), rule.get("std")
    if rule["kind"] == "fan_in":
        mean, std = 0.0, rule["gain"] / math.sqrt(math.prod(shape[1:]))
    state = np.random.RandomState((zlib.crc32(name.encode("utf-8")) ^ recipe["seed"]) & 0xFFFFFFFF)
    uniform = state.random_sample(math.prod(shape))
    return (mean + std * math.sqrt(3.0) * (2.0 * uniform - 1.0)).astype(np.float32).reshape(shape)


def draw_all(shapes: dict, recipe: dict, keep: dict | None = None) -> dict[str, np.ndarray]:
    """{name: array} for {name: shape}."""
    return {name: draw(name, shape, recipe, keep) for name, shape in shapes.items()}


def state_hash(state: dict[str, np.ndarray]) -> str:
    """The hash stored with the reference outputs: names and raw bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode("utf-8") + b"\0" + np.ascontiguousarray(state[name]).tobytes())
    return digest.hexdigest()


def generated(spec: dict) -> np.ndarray:
    """An input image batch of a case that ships none: uniform in [-1, 1), as float32 NCHW."""
    return (-1.0 + 2.0 * np.random.RandomState(spec["seed"]).random_sample(spec["shape"])).astype(np.float32)


def to_flax(path: str, array: np.ndarray) -> np.ndarray:
    """PyTorch layout -> ours: convolutions (out, in, kh, kw) -> (kh, kw, in, out), matrices (out, in) -> (in, out)."""
    if path.endswith("kernel"):
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return array
