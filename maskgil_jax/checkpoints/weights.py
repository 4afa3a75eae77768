"""Weights folders: `config.json` (family, options, class names, hashes) and `model.safetensors`, in one file or several
shards; no code.

A pipeline folder holds two of them, `tokenizer/` and `generator/`; every loader here takes either kind, the name of
weights shipped with the package ("demo"), "hf://owner/repo[@revision]" or "gs://bucket/folder".
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.checkpoints.shards import SCALES, SHARD_BYTES, Tensors, quantized, write_tensors
from maskgil_jax.config import ConfigError, choose, from_dict, require, to_dict
from maskgil_jax.files.atomic import writing
from maskgil_jax.files.hub import download
from maskgil_jax.files.paths import free_bytes, is_remote, local_copy, size_text, upload
from maskgil_jax.networks import FAMILIES, abstract_params, build, compare_trees, family_of, fingerprint, flatten, unflatten

FORMAT = "maskgil_jax weights 1"
_log = logging.getLogger(__name__)
SHIPPED = pathlib.Path(__file__).parents[1] / "weights"


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network's options, its parameters (nested dict of float32 arrays), and the metadata and path of its folder."""

    cfg: Any
    params: dict
    metadata: dict
    path: pathlib.Path

    @property
    def about(self) -> dict:
        """Old name of `metadata`."""
        return self.metadata

    @property
    def hash(self) -> str:
        """Identity of the loaded parameters."""
        return fingerprint(self.params)

    def build(self) -> Any:
        """Builds the network with its arrays on the device, so that calls do not copy them there again."""
        return build(self.cfg, jax.tree.map(jnp.asarray, self.params), str(self.path))


@contextlib.contextmanager
def replace_folder(path):
    """Yields a temporary folder that replaces `path` if the block ends without an error.

    In a bucket ("gs://bucket/folder") its files are uploaded and replace those of the same name.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            yield pathlib.Path(folder)
            upload(pathlib.Path(folder), path)
        return
    path = pathlib.Path(path)
    with writing(path) as part:
        part.mkdir()
        yield part
        old = part.with_suffix(".old")  # renaming does not replace a folder that is not empty
        if path.exists():
            path.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def require_free_space(path: pathlib.Path, size: int) -> None:
    """Raises a `ConfigError` unless a folder of `size` bytes can be written at `path`.

    To be called before long work.
    """
    parent = next(folder for folder in pathlib.Path(path).absolute().parents if folder.exists())
    writable = parent.is_dir() and os.access(parent, os.W_OK)
    require(writable, f"{path}: cannot write: {parent} is not a directory or is not writable")
    free = free_bytes(parent)
    require(
        free >= size, f"{path}: needs {size_text(size)}, {size_text(free)} are free there; delete files or choose another disk"
    )


def save_weights(
    path,
    cfg,
    params: dict,
    *,
    metadata: dict | None = None,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    about: dict | None = None,
) -> None:
    """Writes a weights folder atomically.

    `dtype="float16"` halves its size, "int8" quarters it; loading gives float32 again.

    int8: matrices are stored as int8 with a scale per row or column (`shards.quantized`), vectors as float16.
    metadata: further entries of config.json. Parameters of more than `shard_bytes` are written to several files.
    about: old name of metadata, accepted for one version.
    """
    if about is not None:
        _log.warning("save_weights: about= is now called metadata=")
        metadata = {**about, **(metadata or {})}
    choose("dtype", dtype, ("float32", "float16", "int8"))
    compare_trees(params, abstract_params(cfg), str(path))
    leaves = dict(sorted(flatten(params).items()))

    shapes, dtypes = {}, {}
    for name, leaf in leaves.items():
        shapes[name], dtypes[name] = leaf.shape, dtype
        if dtype == "int8":
            dtypes[name] = "int8" if len(leaf.shape) > 1 else "float16"
        if dtypes[name] == "int8":
            axis = quantized(np.asarray(leaf))[1].shape
            shapes[name + SCALES], dtypes[name + SCALES] = axis, "float16"

    def arrays() -> Iterator[np.ndarray]:
        for name, leaf in leaves.items():
            parts = quantized(np.asarray(leaf)) if dtypes[name] == "int8" else (np.asarray(leaf).astype(dtypes[name]),)
            for array in parts:
                require_finite(str(path), name, array, f" in {dtype}")
                yield array

    config = {"format": FORMAT, "family": family_of(cfg), "options": to_dict(cfg), **(metadata or {})}
    with replace_folder(path) as folder:
        write_tensors(folder, shapes, dtypes, arrays(), shard_bytes)
        (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def require_finite(where: str, name: str, array: np.ndarray, suffix: str = "") -> None:
    """Raises a ValueError that names the tensor if it holds NaN or infinity."""
    finite = np.isfinite(array)
    if not finite.all():
        raise ValueError(f"{where}: {name} holds {np.count_nonzero(~finite)} values that are not finite{suffix}")


def resolve(path: str | pathlib.Path, part: str | None = None, cache_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """The local folder of a path, a shipped name or a hub address.

    With `part`, its sub-folder of that name if it exists.

    cache_dir: where downloads of the hub are kept; default the hub's own cache.
    """
    text = str(path)
    shipped = sorted(p.name for p in SHIPPED.glob("*") if p.is_dir())
    if text.startswith("hf://"):
        folder = download(text, cache_dir=cache_dir)
    elif is_remote(text):
        folder = local_copy(text)
    else:
        folder = SHIPPED / text if text in shipped else pathlib.Path(text)  # "./demo" is a local folder of that name
    if not folder.is_dir():
        hint = f"; a repository of the hub is written hf://{text}" if re.fullmatch(r"[\w.-]+/[\w.-]+", text) else ""
        raise ConfigError(f"{path}: no such weights folder{hint} (shipped with the package: {', '.join(shipped) or 'none'})")
    if not (folder / "config.json").exists() and not (part and (folder / part).is_dir()) and (folder / "weights").is_dir():
        raise ConfigError(f"{path}: is no weights folder but holds one; give {text.rstrip('/')}/weights")
    if part and (folder / part).is_dir():
        return folder / part
    return folder


def open_weights(path, part: str | None = None) -> tuple[Any, dict, Tensors]:
    """(options, metadata, tensors) of a weights folder. Compares names and shapes; reads no values."""
    folder = resolve(path, part)
    metadata = read_metadata(folder)
    choose(f"{folder}/config.json: family", metadata["family"], FAMILIES)
    cfg = from_dict(FAMILIES[metadata["family"]][0], metadata["options"], f"{folder}/config.json")
    tensors = Tensors(folder)
    found = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in tensors.shapes.items()}
    compare_trees(unflatten(found), abstract_params(cfg), str(tensors.file))
    return cfg, metadata, tensors


def load_weights(path, part: str | None = None) -> Weights:
    """Reads a weights folder. Raises a ValueError for missing, duplicated, misshaped or not finite tensors."""
    cfg, metadata, tensors = open_weights(path, part)
    flat = {}
    for name in tensors:
        array = tensors[name]
        require_finite(str(tensors.file), name, array)
        flat[name] = array.astype(np.float32, copy=False)
    return Weights(cfg, unflatten(flat), metadata, tensors.file.parent)


def read_metadata(folder: pathlib.Path) -> dict:
    """`config.json` of a weights folder as a dict."""
    file = folder / "config.json"
    try:
        metadata = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{file}: missing; a weights folder holds config.json and model.safetensors") from None
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT or not {"family", "options"} <= metadata.keys():
        found = metadata.get("format") if isinstance(metadata, dict) else type(metadata).__name__
        raise ValueError(f"{file}: expected format {FORMAT!r} with family and options, found {found!r}")
    return metadata


def extra(metadata: dict) -> dict:
    """The entries of a `config.json` that do not describe the network:
    to be kept when its weights are written again."""
    return {name: value for name, value in metadata.items() if name not in ("format", "family", "options")}


def load_tokenizer(path) -> Any:
    """Loads a tokenizer: `.encode(images_bhwc in [-1, 1]) -> codes_bhw int32`,
    `.decode(codes_bhw) -> images_bhwc float32`."""
    return _load(path, "tokenizer", ("vqgan", "magvit2", "maskgit_vqgan")).build()


def load_generator(path) -> Any:
    """Loads a generator: `generator(tokens_bl, condition, *, grid=(h, w)) -> logits_blv` float32, v = codebook size."""
    return _load(path, "generator", ("llama", "bert", "adaln", "maskgit", "uvit", "chameleon")).build()


def load_network(path, family: str) -> Any:
    """Loads a network of one family, such as "inception" or "lpips"."""
    return _load(path, family, (family,)).build()


def _load(path, part: str, families: tuple[str, ...]) -> Weights:
    weights = load_weights(path, part)
    if (found := family_of(weights.cfg)) not in families:
        expected = part if families == (part,) else f"a {part} ({' or '.join(families)})"
        raise ValueError(f"{weights.path}: holds a {found}, expected {expected}")
    return weights
