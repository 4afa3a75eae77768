"""Uploads a weights folder or a pipeline to the Hugging Face hub, with a model card."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from maskgil_jax.checkpoints.weights import open_weights, resolve
from maskgil_jax.config import ConfigError, require
from maskgil_jax.files.hub import is_tensor_file, split_address, upload
from maskgil_jax.networks import count_params, family_of

# Of each family: a description for the model card, and the loader's name if there is one.
_KINDS = {
    "vqgan": ("tokenizer: images to grids of codes and back", "load_tokenizer"),
    "classifier": ("classifier: the features that evaluate generated images", None),
}
_GENERATOR = ("generator: labels to grids of codes", "load_generator")


@dataclasses.dataclass(frozen=True)
class Part:
    """One weights folder of an upload. name: its sub-folder; empty for a single network."""

    name: str
    folder: pathlib.Path
    cfg: Any
    metadata: dict

    @property
    def title(self) -> str:
        return _KINDS.get(family_of(self.cfg), _GENERATOR)[0]

    @property
    def files(self) -> dict[str, pathlib.Path]:
        """{path in the repository: file}."""
        names = sorted(p.name for p in self.folder.iterdir() if p.name == "config.json" or is_tensor_file(p.name))
        return {f"{self.name}/{name}".lstrip("/"): self.folder / name for name in names}


def push(
    path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload weights",
    licence: str | None = None,
) -> str:
    """Uploads the weights folder or pipeline `path` to `owner/repo` as one commit; returns the commit's address.

    licence: the hub's identifier, such as "mit" (default: the licence in the folder's metadata). A README.md of the
    folder is uploaded as it is; without one a model card is written. Raises a ValueError for a damaged folder, before
    the upload; a ConfigError for a missing licence or if the hub refuses.
    """
    name, branch = split_address(repo)
    require(not branch, f"{repo}: write the branch as --revision {branch}")
    folder = resolve(path)
    parts = _parts(folder)
    files: dict[str, pathlib.Path | bytes] = {}
    for part in parts:
        files |= part.files
    readme = folder / "README.md"
    files["README.md"] = (
        readme if readme.exists() else model_card(parts, name, licence or _licence(folder, parts), revision).encode()
    )
    return upload(name, files, private=private, revision=revision, message=message)


def _parts(folder: pathlib.Path) -> list[Part]:
    """The folder itself or, of a pipeline, its sub-folders, after checking names and shapes of their tensors."""
    single = (folder / "config.json").exists()
    names = [""] if single else sorted(f.name for f in folder.iterdir() if (f / "config.json").exists())
    require(bool(names), f"{folder}: neither it nor a sub-folder is a weights folder (config.json and model.safetensors)")
    parts = []
    for name in names:
        cfg, metadata, _ = open_weights(folder / name)
        parts.append(Part(name, folder / name, cfg, metadata))
    return parts


def _licence(folder: pathlib.Path, parts: list[Part]) -> str:
    """The licence that all parts name. Raises a ConfigError if they name none, several, or no identifier."""
    named = {str(part.metadata.get("licence") or _source(part).get("licence") or "") for part in parts}
    identifiers = {text.lower() for text in named}
    if len(identifiers) == 1 and re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", found := identifiers.pop()):
        return found
    found = "; ".join(sorted(text for text in named if text)) or "none"
    raise ConfigError(f"{folder}: licence in its metadata: {found}; expected one identifier: give --license, e.g. mit or other")


def _source(part: Part) -> Mapping[str, Any]:
    source = part.metadata.get("source")
    return source if isinstance(source, dict) else {}


# ------------------------------------------------------------------------------------------------ the model card
def model_card(parts: list[Part], repo: str, licence: str, revision: str | None = None) -> str:
    """The README.md of a repository: description, loading, sizes, sources and hashes. Reads every file once."""
    require(
        re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", licence) is not None, f"--license: {licence!r} is not an identifier such as mit"
    )
    tags = ["jax", "flax", "image-generation", *dict.fromkeys(family_of(part.cfg) for part in parts)]
    front_matter = ["---", "library_name: maskgil_jax", f"license: {licence}", "tags:", *(f"- {tag}" for tag in tags), "---"]
    body = ["", f"# {repo.rpartition('/')[2]}", "", "Weights for maskgil_jax, masked image generation in JAX.", ""]
    body += ["## Contents", "", "| part | network | parameters | options other than the defaults |", "|---|---|---|---|"]
    for part in parts:
        row = (part.name or "(this folder)", part.title, f"{count_params(part.cfg):,}", _options(part.cfg))
        body.append("| " + " | ".join(row) + " |")
    body += _loading(parts, repo, revision)
    body += ["", "## Files", "", "| file | bytes | sha256 |", "|---|---|---|"]
    for part in parts:
        for name, file in part.files.items():
            with open(file, "rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            body.append(f"| {name} | {file.stat().st_size:,} | `{digest}` |")
    body += ["", "## Where the weights come from", ""]
    for part in parts:
        body += [f"- {part.name or 'This network'}: {_origin(part)}"]
    return "\n".join([*front_matter, *body]) + "\n"


def _options(cfg) -> str:
    fields = [(f.name, getattr(cfg, f.name), f.default) for f in dataclasses.fields(cfg)]
    return ", ".join(f"{name} {value}" for name, value, default in fields if value != default) or "none"


def _loading(parts: list[Part], repo: str, revision: str | None) -> list[str]:
    address = f"hf://{repo}" + (f"@{revision}" if revision else "")
    lines = ["", "## How to load it", "", "    pip install 'maskgil-jax[hub]'", "", "    import maskgil_jax"]
    if {"tokenizer", "generator"} <= {part.name for part in parts}:
        lines += [
            f'    pipeline = maskgil_jax.load("{address}")',
            "    images = pipeline([0, 1], seed=1)  # uint8 (b, h, w, 3)",
        ]
        return [*lines, "", f"or, from the command line, `maskgil sample --weights {address}`."]
    for part in parts:
        if loader := _KINDS.get(family_of(part.cfg), _GENERATOR)[1]:
            lines.append(f'    network = maskgil_jax.{loader}("{address}")')
    return lines


def _origin(part: Part) -> str:
    source = _source(part)
    if not source:
        return "trained with maskgil_jax." if part.metadata.get("tokenizer_hash") else "unknown."
    text = f"converted from `{source.get('file')}` (sha256 `{source.get('sha256')}`), {source.get('published')}."
    text += f" Licence of the published weights: {source.get('licence')}."
    if assumed := source.get("assumed"):
        text += " Assumed: " + "; ".join(map(str, assumed)) + "."
    return " ".join(text.split())
