"""Reading a Hugging Face folder: `config.json`, and `model.safetensors` or its shards, tensor by tensor.

A table says which tensor of the file is which parameter and what shape it has. Every tensor of the file is in the table
or is ignored by name; anything else is an error.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.config.base import one_line, shown

Table = dict[str, tuple[str, tuple[int, ...]]]  # "layers/0/q/weight" -> (name in the file, shape)
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_LAYERS = 1000  # of a text encoder
_FLOATS = ("F32", "F16", "BF16")


class Stored(NamedTuple):
    """The file of a tensor, and what its header says."""

    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it, such as "BF16"


def refuse_unless(where: str, key: str, found: Any, allowed: Collection) -> None:
    """Raises a `ConfigError` unless the value of a configuration file is one that the network here computes."""
    accepted = " or ".join(repr(value) for value in allowed)
    known = isinstance(found, Hashable) and found in allowed
    require(known, f"{where}: {key} is {shown(found)}, expected {accepted}; this encoder does not compute the other form")


def locate(path) -> pathlib.Path:
    """A local folder, or "hf://owner/repo[@revision]" fetched into the hub's cache."""
    text = os.fspath(path)
    if text.startswith("hf://"):
        from maskgil_jax.files.hub import download

        return download(text)
    folder = pathlib.Path(text)
    require(folder.is_dir(), f"{text}: no such folder; expected a Hugging Face folder with config.json, or hf://owner/repo")
    return folder


def read_json(file: pathlib.Path) -> dict:
    """The object in a JSON file. Raises: ConfigError, one line."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: missing; copy the whole Hugging Face folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not readable as JSON ({one_line(error)}); fetch it again") from None
    require(isinstance(values, dict), f"{file}: expected an object, found a {type(values).__name__}; fetch it again")
    return values


def read_config(folder: pathlib.Path, kinds: Iterable[str]) -> dict:
    """`config.json`, whose `model_type` must be one of `kinds`."""
    values = read_json(folder / "config.json")
    found, known = values.get("model_type"), ", ".join(kinds)
    require(
        isinstance(found, str) and found in set(kinds),
        f"{folder / 'config.json'}: model_type is {shown(found)}, expected one of {known}; choose another folder",
    )
    return values


def network_options(read: Callable[[dict, str], Any], values: dict, where: Any) -> Any:
    """`read(values, where)`, the sizes of a network. Raises: ConfigError that names the file, for any values."""
    for section in (values, *(value for value in values.values() if isinstance(value, dict))):
        for name in ("num_hidden_layers", "num_layers"):  # checked first: lists of this length are made while reading
            depth = section.get(name, 1)
            sound = isinstance(depth, int) and 1 <= depth <= MAX_LAYERS
            require(sound, f"{where}: {name} is {shown(depth)}, expected a number in 1..{MAX_LAYERS}; fetch it again")
    try:
        return read(values, str(where))
    except ConfigError as error:
        named = str(error).startswith(str(where))
        raise error if named else ConfigError(f"{where}: {error}") from None
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ConfigError(f"{where}: an option has a value of another kind ({one_line(error)}); fetch it again") from None


def stored_tensors(folder: pathlib.Path, name: str | None = None) -> dict[str, Stored]:
    """Name -> place, shape and dtype of every tensor of the folder, from the headers.

    name: of the file or index; default `model.safetensors`, or its index if there is one.
    """
    from safetensors import SafetensorError, safe_open

    index = folder / (name if name is not None and name.endswith(".json") else INDEX)
    if index.exists() if name is None else name.endswith(".json"):
        places = read_json(index).get("weight_map")
        names = set(places.values()) if isinstance(places, dict) else set()
        good = bool(names) and all(isinstance(n, str) and re.fullmatch(r"[^/\\]+\.safetensors", n) for n in names)
        require(good, f"{index}: its weight_map names no safetensors files; fetch it again")
        files = [folder / name for name in sorted(names)]
    else:
        places, files = None, [folder / (name or WHOLE)]
    found: dict[str, Stored] = {}
    for file in files:
        require(file.exists(), f"{file}: missing; expected {WHOLE}, or the shards that {INDEX} names")
        try:
            with safe_open(file, "numpy") as opened:
                for key in opened.keys():  # noqa: SIM118 (an open file, not a dict)
                    if key in found:
                        raise ConfigError(f"{file}: {key} is in {found[key].file.name} too; fetch the folder again")
                    part = opened.get_slice(key)
                    found[key] = Stored(file, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{file}: not a readable safetensors file ({error}); fetch it again") from None
    for key, shard in (places or {}).items():
        there = key in found and found[key].file.name == shard
        require(there, f"{index}: {key} is not in {shard}, where the index says; fetch both again")
    return found


def match(
    where: Any,
    shapes: Mapping[str, tuple[int, ...]],
    table: Table,
    *,
    prefixes: tuple[str, ...] = ("",),
    ignored: str = "(?!)",
    aliases: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Parameter -> name in the file, after comparing names and shapes both ways.

    prefixes: what may stand before every name of the table; the first that fits. ignored: regular expression of names
    that are left in the file. aliases: name of the table -> another name of the same tensor. Raises: ConfigError, one
    line.
    """
    prefix = next((p for p in prefixes if any(p + name in shapes for name, _ in table.values())), prefixes[0])
    names, problems = {}, []
    used = {prefix + alias for alias in (aliases or {}).values()}
    for path, (bare, shape) in table.items():
        name = prefix + bare
        if name not in shapes and (alias := (aliases or {}).get(bare)):
            name = prefix + alias
        if name not in shapes:
            problems.append(f"{prefix + bare} is missing, expected shape {shape}")
        elif tuple(shapes[name]) != shape:
            problems.append(f"{name} has shape {tuple(shapes[name])}, expected {shape} by config.json")
        names[path] = name
        used.add(name)
    extra = [name for name in shapes if name not in used and not re.fullmatch(ignored, name)]
    problems += [f"{name} is not part of this network" for name in extra]
    more = f" (and {len(problems) - 1} more such tensors)" if len(problems) > 1 else ""
    require(not problems, f"{where}: {''.join(problems[:1])}{more}; config.json and weights must be of the same network")
    return names


def read_params(
    stored: Mapping[str, Stored], names: Mapping[str, str], dtype: str, put: Callable[[str, np.ndarray], Any]
) -> dict:
    """Reads the tensors of `names` (parameter -> name in the file) as `dtype` into nested dicts and lists of layers.

    The largest come first, and each file is mapped for one tensor only: beside what is kept, memory holds one tensor.
    put: parameter and host array -> array on the devices.
    """
    from safetensors import safe_open

    leaves = {}
    for path, name in sorted(names.items(), key=lambda item: -math.prod(stored[item[1]].shape)):
        file, _, kind = stored[name]
        require(kind in _FLOATS, f"{file}: {name} is stored as {kind}, expected one of {', '.join(_FLOATS)}; use full weights")
        with safe_open(file, "numpy") as opened:
            value = opened.get_tensor(name)
        leaves[path] = put(path, value.astype(np.dtype(dtype), copy=False))
        del value
    return nested({path: leaves[path] for path in names})


def nested(leaves: Mapping[str, Any]) -> dict:
    """{"layers/0/q/weight": x} -> {"layers": [{"q": {"weight": x}}]}; `layers` is always a list, perhaps empty."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parts, last = path.split("/")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = leaf

    def listed(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {
            key: [listed(value[i]) for i in sorted(value, key=int)] if key == "layers" else listed(value)
            for key, value in node.items()
        }

    return listed(tree)


def chosen_layers(layer: int | None, depth: int, norm_is_last: bool, where: Any) -> tuple[int, bool]:
    """(how many layers to run, whether the final norm follows) for an index into transformers' `hidden_states`.

    Entry 0 is the embeddings, entry i follows layer i, None is `last_hidden_state`. norm_is_last: whether the last
    entry is after the final norm.
    """
    if layer is None:
        return depth, True
    count = layer if layer >= 0 else depth + 1 + layer
    require(
        0 <= count <= depth,
        f"layer: {layer} is not one of the {depth + 1} hidden states of {where}; choose {-depth - 1}..{depth}",
    )
    return count, norm_is_last and count == depth


def is_used(path: str, layers: int, norm: bool) -> bool:
    """Whether the first `layers` layers, and the final norm if asked for, need the parameter at `path`."""
    if found := re.search(r"(^|/)layers/(\d+)/", path):
        return int(found[2]) < layers
    return norm or re.search(r"(^|/)norm/", path) is None
