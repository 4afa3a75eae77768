"""Reference weights by recipe, and the map from published PyTorch names to our parameter paths.

A recipe draws every tensor on its own from its name, so whole state dicts are rebuilt bit for bit from a list of names and
shapes; `state_hash` proves it against the hash stored with the reference outputs.
"""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
import re
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"


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


# First match wins; {u} stands for "highest level minus u": taming counts the decoder's levels from full resolution down.
_VQ_PARTS = (
    (r"quantize\.embedding\.weight", r"codebook/embedding"),
    (r"(quant_conv|post_quant_conv)\.(\w+)", r"\1/\2"),
    (r"(encoder|decoder)\.(conv_in|conv_out|norm_out)\.(\w+)", r"\1/\2/\3"),
    (r"(encoder|decoder)\.mid\.(?:0|block_1)\.(.+)", r"\1/mid/res1/\2"),
    (r"(encoder|decoder)\.mid\.(?:1|attn_1)\.(.+)", r"\1/mid/attn/\2"),
    (r"(encoder|decoder)\.mid\.(?:2|block_2)\.(.+)", r"\1/mid/res2/\2"),
    (r"(encoder|decoder)\.conv_blocks\.(\d+)\.(res|attn)\.(.+)", r"\1/levels/\2/\3/\4"),
    (r"(encoder|decoder)\.conv_blocks\.(\d+)\.(downsample|upsample)\.conv\.(\w+)", r"\1/\3/\2/\4"),
    (r"encoder\.down\.(\d+)\.block\.(.+)", r"encoder/levels/\1/res/\2"),
    (r"encoder\.down\.(\d+)\.attn\.(.+)", r"encoder/levels/\1/attn/\2"),
    (r"encoder\.down\.(\d+)\.downsample\.conv\.(\w+)", r"encoder/downsample/\1/\2"),
    (r"decoder\.up\.(\d+)\.block\.(.+)", r"decoder/levels/{\1}/res/\2"),
    (r"decoder\.up\.(\d+)\.attn\.(.+)", r"decoder/levels/{\1}/attn/\2"),
    (r"decoder\.up\.(\d+)\.upsample\.conv\.(\w+)", r"decoder/upsample/{\1}/\2"),
)


def vq_path(name: str, levels: int) -> str | None:
    """Our path of a LlamaGen, taming or Chameleon tokenizer tensor; None for what inference does not need."""
    if name.startswith("loss.") or name == "quantize.codebook_used":
        return None
    for pattern, target in _VQ_PARTS:
        if match := re.fullmatch(pattern, name):
            path = match.expand(target).replace(".", "/")
            break
    else:
        raise KeyError(name)
    path = re.sub(r"\{(\d+)\}", lambda m: str(levels - 1 - int(m[1])), path)
    path = path.replace("nin_shortcut", "shortcut").replace("proj_out", "out")
    parent, leaf = path.rsplit("/", 1)
    if leaf == "weight":
        leaf = "scale" if parent.rsplit("/", 1)[-1].startswith("norm") else "kernel"
    return f"{parent}/{leaf}"


def vq_params(state: dict[str, np.ndarray], levels: int) -> dict[str, np.ndarray]:
    """A tokenizer's state dict -> flat {path: array} in our layout."""
    paths = {name: vq_path(name, levels) for name in state}
    return {path: to_flax(path, state[name]) for name, path in paths.items() if path is not None}
