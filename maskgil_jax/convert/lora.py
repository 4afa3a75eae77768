"""LoRA files (Hu et al. 2021, arXiv 2106.09685): low-rank changes of a network's weights, read, merged and written.

Names are those of diffusers and PEFT: `transformer.NAME.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank),
NAME that of the weight in the published file. Of networks that diffusers does not have, NAME is our path with its
layer's number.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskgil_jax.checkpoints.weights import Weights
from maskgil_jax.config import ConfigError, UViTConfig, require
from maskgil_jax.files.atomic import writing
from maskgil_jax.networks import abstract_params, flatten, unflatten

from .engine import LINEAR, Foreign, Table, foreign_tensors, rule
from .readers.detect import read
from .tables.amused import uvit_table

# What stands before a name, and how the two factors are called: PEFT, diffusers' loaders, and its older attention
# processors.
_PREFIX = re.compile(r"^(base_model\.model\.|transformer\.|unet\.|generator\.)+")
_FACTORS = (
    (r"\.lora_A(\.default)?\.weight$", "down"),
    (r"\.lora_B(\.default)?\.weight$", "up"),
    (r"\.lora(_linear_layer)?\.down\.weight$", "down"),
    (r"\.lora(_linear_layer)?\.up\.weight$", "up"),
    (r"_lora\.down\.weight$", "down"),
    (r"_lora\.up\.weight$", "up"),
    (r"(\.lora)?\.alpha$", "alpha"),
)
NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors", "lora.safetensors")  # in a folder


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The change of one weight in the layout of PyTorch: scale * up @ down, (out, in)."""

    down: np.ndarray
    up: np.ndarray
    scale: float

    def delta(self, shape: tuple[int, ...]) -> np.ndarray:
        """The change as an array of the weight's shape, which may be that of a 1x1 convolution."""
        down, up = (x.reshape(x.shape[0], -1).astype(np.float32) for x in (self.down, self.up))
        return (self.scale * (up @ down)).reshape(shape)


def foreign_names(cfg: Any) -> dict[str, Foreign]:
    """{name in a LoRA file, without `.weight`: the weight} of the matrices of a generator."""
    leaves = {path: tuple(leaf.shape) for path, leaf in flatten(abstract_params(cfg)).items()}
    if isinstance(cfg, UViTConfig):
        table = uvit_table(cfg)
    else:
        leaves = {path: shape for path, shape in leaves.items() if path.endswith("kernel")}
        leaves = {path: shape for path, shape in leaves.items() if len(shape) - path.startswith("layers/") == 2}
        table = Table(tuple(rule(path, _own_name(path), LINEAR) for path in leaves))
    found = foreign_tensors(table, leaves)
    return {name.removesuffix(".weight"): tensor for name, tensor in found.items() if name.endswith(".weight")}


def _own_name(path: str) -> str:
    """ "layers/attn/q/kernel" -> "layers.{layer}.attn.q.weight"."""
    name = path.removesuffix("/kernel").replace("/", ".") + ".weight"
    return name.replace("layers.", "layers.{layer}.", 1) if path.startswith("layers/") else name


# ------------------------------------------------------------------------------------------------ reading and merging
def read_lora(path: str | os.PathLike) -> dict[str, LowRank]:
    """{name of a weight: its change} of a LoRA file, or of a folder with one. Raises a `ValueError` of one line."""
    file = _file_in(pathlib.Path(path))
    checkpoint, found = read(file), {}
    alphas, default = {}, _alpha_beside(file)
    for key in checkpoint:
        require(
            not key.startswith(("text_encoder.", "lora_te")),
            f"{file}: {key} changes the text encoder; only changes of the transformer are merged here",
        )
        name, kind = _split(key)
        require(
            kind is not None,
            f"{file}: {key} is no part of a LoRA; expected names that end in .lora_A.weight or .lora.up.weight",
        )
        if kind == "alpha":
            alphas[name] = float(np.asarray(checkpoint[key]).reshape(-1)[0])
        else:
            found.setdefault(name, {})[kind] = np.asarray(checkpoint[key])
    require(bool(found), f"{file}: holds no LoRA")
    changes = {}
    for name, parts in found.items():
        missing = next((kind for kind in ("down", "up") if kind not in parts), None)
        require(missing is None, f"{file}: {name} has no {missing} factor (lora_A is down, lora_B is up); fetch it again")
        rank = parts["down"].shape[0]
        require(
            parts["up"].ndim >= 2 and parts["up"].shape[1] == rank,
            f"{file}: {name} has factors of shapes {parts['down'].shape} and {parts['up'].shape}, whose ranks differ",
        )
        alpha = alphas.get(name, default)
        changes[name] = LowRank(parts["down"], parts["up"], 1.0 if alpha is None else alpha / rank)
    return changes


def _split(key: str) -> tuple[str, str | None]:
    """(name of the weight, which factor) of a key; None for a key that is no factor."""
    for pattern, kind in _FACTORS:
        if match := re.search(pattern, key):
            name = _PREFIX.sub("", key[: match.start()]).replace(".processor.", ".")
            return re.sub(r"\.to_out$", ".to_out.0", name), kind
    return key, None


def _file_in(path: pathlib.Path) -> pathlib.Path:
    if not path.is_dir():
        require(path.is_file(), f"{path}: no such LoRA file")
        return path
    found = next((path / name for name in NAMES if (path / name).is_file()), None)
    if found is None:
        raise ConfigError(f"{path}: holds none of {', '.join(NAMES)}; give the LoRA file")
    return found


def _alpha_beside(file: pathlib.Path) -> float | None:
    """`lora_alpha` of PEFT's `adapter_config.json` beside the file, if there is one."""
    config = file.parent / "adapter_config.json"
    if not config.is_file():
        return None
    try:
        alpha = json.loads(config.read_text()).get("lora_alpha")
        return None if alpha is None else float(alpha)
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(f"{config}: not a PEFT configuration with a number lora_alpha; fetch it again") from None


def merged(weights: Weights, path: str | os.PathLike, scale: float = 1.0) -> Weights:
    """The weights with `scale` times the changes of a LoRA file added. Raises a `ValueError` of one line."""
    names, changes = foreign_names(weights.cfg), read_lora(path)
    params = dict(flatten(weights.params))
    copied: set[str] = set()
    for name, change in changes.items():
        tensor = names.get(name)
        if tensor is None:
            raise ConfigError(
                f"{path}: {name} is no weight of this {type(weights.cfg).__name__[:-6]}; the LoRA is for another network"
            )
        size = (change.up.shape[0], int(np.prod(change.down.shape[1:])))
        require(
            int(np.prod(tensor.shape)) == size[0] * size[1] and tensor.shape[0] == size[0],
            f"{path}: {name} changes a weight of shape {size}, this network has {tensor.shape}; the LoRA is for another size",
        )
        delta = scale * change.delta(tensor.shape)
        for part in tensor.parts:
            if part.path not in copied:
                params[part.path] = np.array(params[part.path], np.float32)
                copied.add(part.path)
            target = params[part.path] if part.layer is None else params[part.path][part.layer]
            target += tensor.ours(part, delta)
    return dataclasses.replace(weights, params=unflatten(params))


# ------------------------------------------------------------------------------------------------ writing
def write_lora(path: str | os.PathLike, cfg: Any, factors: Mapping[str, tuple[np.ndarray, np.ndarray]], scale: float) -> None:
    """Writes factors of training as a LoRA file that `merged` and diffusers (a U-ViT's) read.

    factors: {path of a kernel: (a (..., in, rank), b (..., rank, out))}, whose change is scale * a @ b; the scale is
    multiplied into the second factor. A weight of the file that is several of ours gets the factors of all of them.
    """
    from safetensors.numpy import save_file

    prefix = "transformer" if isinstance(cfg, UViTConfig) else "generator"
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in foreign_names(cfg).items():
        own = [part for part in tensor.parts if part.path in factors]
        if not own:
            continue
        downs, ups = [], []
        for part in own:
            a, b = (np.asarray(x if part.layer is None else x[part.layer], np.float32) for x in factors[part.path])
            up = np.zeros((tensor.shape[0], a.shape[-1]), np.float32)
            up[part.start : part.stop] = scale * b.T
            downs.append(a.T)
            ups.append(up)
        arrays[f"{prefix}.{name}.lora_A.weight"] = np.ascontiguousarray(np.concatenate(downs))
        arrays[f"{prefix}.{name}.lora_B.weight"] = np.ascontiguousarray(np.concatenate(ups, axis=1))
    with writing(path) as part_file:
        save_file(arrays, part_file, metadata={"format": "pt"})
