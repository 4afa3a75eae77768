"""Weights folders: `config.json` (family, options, class names, hashes) beside `model.safetensors`; no code inside.

A pipeline folder holds two of them, `tokenizer/` and `generator/`; every loader here takes either kind, the name of
weights shipped with the package ("demo"), "hf://owner/repo[@revision]" or "gs://bucket/folder".
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shutil
import tempfile
import uuid
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import ConfigError, choose, from_dict, to_dict
from maskgil_jax.params import FAMILIES, abstract_params, build, compare_trees, family_of, fingerprint, flatten, unflatten
from maskgil_jax.storage import is_remote, local_copy, upload

FORMAT = "maskgil_jax weights 1"
SHIPPED = pathlib.Path(__file__).parents[1] / "weights"


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network's options, its parameters (nested dict of float32 arrays) and what else its folder says about it."""

    cfg: Any
    params: dict
    about: dict
    path: pathlib.Path

    @property
    def hash(self) -> str:
        """Identity of the parameters as loaded."""
        return fingerprint(self.params)

    def build(self) -> Any:
        """The network, ready to call, its arrays on the device (else every call would move them there again)."""
        return build(self.cfg, jax.tree.map(jnp.asarray, self.params), str(self.path))


@contextlib.contextmanager
def replace_folder(path):
    """Yields a temporary folder that takes the place of `path` when the block ends well; on an error nothing changes.

    In a bucket ("gs://bucket/folder") its files are copied there, over those of the same name.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as room:
            yield pathlib.Path(room)
            upload(pathlib.Path(room), path)
        return
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, old = (path.with_name(f".{path.name}.{tag}-{uuid.uuid4().hex[:8]}") for tag in ("part", "old"))
    part.mkdir()
    try:
        yield part
        if path.exists():
            path.rename(old)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def save_weights(path, cfg, params: dict, *, about: dict | None = None, dtype: str = "float32") -> None:
    """Writes a weights folder, whole or not at all. `dtype="float16"` halves its size; loading gives float32 again."""
    from safetensors.numpy import save_file

    choose("dtype", dtype, ("float32", "float16"))
    compare_trees(params, abstract_params(cfg), str(path))
    flat = {name: np.ascontiguousarray(np.asarray(leaf).astype(dtype)) for name, leaf in flatten(params).items()}
    for name, array in flat.items():
        if not np.isfinite(array).all():
            raise ValueError(
                f"{path}: {name} holds {np.count_nonzero(~np.isfinite(array))} values that are not finite in {dtype}"
            )
    config = {"format": FORMAT, "family": family_of(cfg), "options": to_dict(cfg), **(about or {})}
    with replace_folder(path) as folder:
        save_file(flat, folder / "model.safetensors")
        (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private to its owner
        (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def resolve(path: str | pathlib.Path, part: str | None = None) -> pathlib.Path:
    """Local folder for a path, a shipped name or a hub address; with `part`, the sub-folder of that name if there is one."""
    text = str(path)
    shipped = sorted(p.name for p in SHIPPED.glob("*") if p.is_dir())
    if text.startswith("hf://"):
        folder = _download(text)
    elif is_remote(text):
        folder = local_copy(text)
    else:
        folder = SHIPPED / text if text in shipped else pathlib.Path(text)  # "./demo" is a local folder of that name
    if not folder.is_dir():
        raise ConfigError(f"{path}: no such weights folder (shipped with the package: {', '.join(shipped) or 'none'})")
    if part and (folder / part).is_dir():
        return folder / part
    return folder


def _download(address: str) -> pathlib.Path:
    """Fetches the weights files of "hf://owner/repo[@revision]" into the hub's cache; only JSON and safetensors."""
    from huggingface_hub import snapshot_download

    repo, _, revision = address[len("hf://") :].partition("@")
    wanted = ["*.json", "*.safetensors", "*/*.json", "*/*.safetensors"]
    try:
        return pathlib.Path(snapshot_download(repo, revision=revision or None, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{address}: could not be fetched ({str(error).strip().splitlines()[0]})") from error


def load_weights(path, part: str | None = None) -> Weights:
    """Reads a weights folder and checks it: every tensor present once, with the right shape and finite values."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = resolve(path, part)
    about = read_about(folder)
    choose(f"{folder}/config.json: family", about["family"], FAMILIES)
    cfg = from_dict(FAMILIES[about["family"]][0], about["options"], f"{folder}/config.json")
    file = folder / "model.safetensors"
    try:
        flat = load_file(file)
    except FileNotFoundError:
        raise ValueError(f"{file}: missing; a weights folder holds config.json and model.safetensors") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: not a readable safetensors file ({error})") from None
    params = unflatten({name: array.astype(np.float32, copy=False) for name, array in flat.items()})
    compare_trees(params, abstract_params(cfg), str(file))
    for name, array in flat.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{file}: {name} holds {np.count_nonzero(~np.isfinite(array))} values that are not finite")
    return Weights(cfg, params, about, folder)


def read_about(folder: pathlib.Path) -> dict:
    """`config.json` of a weights folder as a dict."""
    file = folder / "config.json"
    try:
        about = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{file}: missing; a weights folder holds config.json and model.safetensors") from None
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT or not {"family", "options"} <= about.keys():
        found = about.get("format") if isinstance(about, dict) else type(about).__name__
        raise ValueError(f"{file}: expected format {FORMAT!r} with family and options, found {found!r}")
    return about


def extra(about: dict) -> dict:
    """What a `config.json` says besides the network itself: to be kept when its weights are written again."""
    return {name: value for name, value in about.items() if name not in ("format", "family", "options")}


def load_tokenizer(path) -> Any:
    """A tokenizer: `.encode(images_bhwc in [-1, 1]) -> codes_bhw int32`, `.decode(codes_bhw) -> images_bhwc float32`."""
    return _load(path, "tokenizer", ("vqgan", "magvit2", "maskgit_vqgan")).build()


def load_generator(path) -> Any:
    """A generator: `generator(tokens_bl, condition, *, grid=(h, w)) -> logits_blv` float32, v = codebook size."""
    return _load(path, "generator", ("llama", "bert", "adaln", "maskgit")).build()


def load_network(path, family: str) -> Any:
    """A network of one family, such as "inception" or "lpips", from its weights folder."""
    return _load(path, family, (family,)).build()


def _load(path, part: str, families: tuple[str, ...]) -> Weights:
    weights = load_weights(path, part)
    if (found := family_of(weights.cfg)) not in families:
        expected = part if families == (part,) else f"a {part} ({' or '.join(families)})"
        raise ValueError(f"{weights.path}: holds a {found}, expected {expected}")
    return weights
