"""`maskgil push`: a weights folder, or a pipeline of several, to the Hugging Face hub, with a model card."""

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

# What a network of each kind is, and how it is loaded; the latter only where there is a loader of that name.
_KINDS = {
    "vqgan": ("tokenizer: images to grids of codes and back", "load_tokenizer"),
    "classifier": ("classifier: the features that figures of merit are measured with", None),
}
_GENERATOR = ("generator: labels to grids of codes", "load_generator")


@dataclasses.dataclass(frozen=True)
class Part:
    """One weights folder of what is pushed; `name` is its sub-folder, empty if it stands alone."""

    name: str
    folder: pathlib.Path
    cfg: Any
    about: dict

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

    licence: the hub's identifier, such as "mit" (default: what the folder says about where its weights came from). A
    README.md of the folder is uploaded as it is; without one a model card is written.
    Raises: ValueError for a damaged folder, before anything is sent; ConfigError for a missing licence or the hub's refusal.
    """
    name, behind = split_address(repo)
    require(not behind, f"{repo}: write the branch as --revision {behind}")
    folder = resolve(path)
    parts = _parts(folder)
    files: dict[str, pathlib.Path | bytes] = {}
    for part in parts:
        files |= part.files
    own = folder / "README.md"
    files["README.md"] = own if own.exists() else model_card(parts, name, licence or _licence(folder, parts), revision).encode()
    return upload(name, files, private=private, revision=revision, message=message)


def _parts(folder: pathlib.Path) -> list[Part]:
    """The folder itself or, of a pipeline, its sub-folders; each is checked, names and shapes of its tensors included."""
    alone = (folder / "config.json").exists()
    names = [""] if alone else sorted(f.name for f in folder.iterdir() if (f / "config.json").exists())
    require(bool(names), f"{folder}: no weights folder (config.json beside model.safetensors), nor sub-folders that are")
    parts = []
    for name in names:
        cfg, about, _ = open_weights(folder / name)
        parts.append(Part(name, folder / name, cfg, about))
    return parts


def _licence(folder: pathlib.Path, parts: list[Part]) -> str:
    """The one licence that the parts name. Raises: ConfigError if they name none, several, or one that is a sentence."""
    named = {str(part.about.get("licence") or _source(part).get("licence") or "") for part in parts}
    identifiers = {text.lower() for text in named}
    if len(identifiers) == 1 and re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", found := identifiers.pop()):
        return found
    said = "; ".join(sorted(text for text in named if text)) or "nothing"
    raise ConfigError(f"{folder}: about its licence it says: {said}. Say it with --license, e.g. mit, apache-2.0 or other")


def _source(part: Part) -> Mapping[str, Any]:
    source = part.about.get("source")
    return source if isinstance(source, dict) else {}


# ------------------------------------------------------------------------------------------------ the model card
def model_card(parts: list[Part], repo: str, licence: str, revision: str | None = None) -> str:
    """README.md of a repository: what it is, how to load it, sizes, sources and hashes. Reads every file once."""
    require(re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", licence) is not None, f"--license: {licence!r} is no identifier such as mit")
    tags = ["jax", "flax", "image-generation", *dict.fromkeys(family_of(part.cfg) for part in parts)]
    head = ["---", "library_name: maskgil_jax", f"license: {licence}", "tags:", *(f"- {tag}" for tag in tags), "---"]
    body = ["", f"# {repo.rpartition('/')[2]}", "", "Weights for maskgil_jax, masked image generation in JAX.", ""]
    body += ["## What it is", "", "| part | network | parameters | options that are not the defaults |", "|---|---|---|---|"]
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
    return "\n".join([*head, *body]) + "\n"


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
        return "trained with maskgil_jax." if part.about.get("tokenizer_hash") else "not said."
    text = f"converted from `{source.get('file')}` (sha256 `{source.get('sha256')}`), {source.get('published')}."
    text += f" Licence of the published weights: {source.get('licence')}."
    if assumed := source.get("assumed"):
        text += " Assumed: " + "; ".join(map(str, assumed)) + "."
    return " ".join(text.split())
