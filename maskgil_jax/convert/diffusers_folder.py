"""A pipeline folder of diffusers (`model_index.json`, transformer/, vqvae/, text_encoder/, ...)
-> a pipeline folder here.

Supported are aMUSEd's pipelines. Every part is checked from its configuration and headers before anything is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskgil_jax.checkpoints.shards import Tensors
from maskgil_jax.checkpoints.weights import replace_folder, require_free_space
from maskgil_jax.config import ConfigError, require
from maskgil_jax.files.hub import INDEX, WHOLE
from maskgil_jax.networks import fingerprint_of
from maskgil_jax.text_encoders.clip import read_text_config
from maskgil_jax.text_encoders.clip_model import clip_names
from maskgil_jax.text_encoders.folder import read_json, stored_tensors

from .main import Conversion, convert, family_of_file, planned
from .planner import Plan

MODEL_INDEX = "model_index.json"
PIPELINES = ("AmusedPipeline", "AmusedImg2ImgPipeline", "AmusedInpaintPipeline")
# folder -> (its configuration file, the key in it that says what it holds, what that may be)
_PARTS = {
    "transformer": ("config.json", "_class_name", ("UVit2DModel",)),
    "vqvae": ("config.json", "_class_name", ("VQModel",)),
    "scheduler": ("scheduler_config.json", "_class_name", ("AmusedScheduler",)),
    "text_encoder": ("config.json", "model_type", ("clip_text_model", "clip")),
}
_FAMILIES = {"transformer": "amused", "vqvae": "amused-vq"}
_TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
_COPIED = 16 << 20  # bytes copied and hashed at a time


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a pipeline folder holds, checked. weights: part -> its weight file, or index of shards."""

    folder: pathlib.Path
    configs: Mapping[str, dict]
    weights: Mapping[str, pathlib.Path]
    tokenizer: tuple[pathlib.Path, ...]
    licence: str | None

    def files(self) -> list[pathlib.Path]:
        """Every file that a conversion reads."""
        found = [self.folder / MODEL_INDEX, *self.tokenizer]
        found += [self.folder / part / name for part, (name, _, _) in _PARTS.items()]
        return found + [file for path in self.weights.values() for file in with_shards(path)]


def is_pipeline_folder(path: str | os.PathLike) -> bool:
    """Whether `path` is a folder of diffusers."""
    return pathlib.Path(path, MODEL_INDEX).is_file()


def find_parts(folder: pathlib.Path, variant: str | None = None) -> Parts:
    """The parts of a folder. variant: of the weight files, such as "fp16".

    None takes the plain ones, or fp16 where only these exist. Raises: ConfigError, one line, for a part that is missing
    or holds something else.
    """
    kind = read_json(folder / MODEL_INDEX).get("_class_name")
    require(kind in PIPELINES, f"{folder / MODEL_INDEX}: _class_name is {kind!r}, expected one of {', '.join(PIPELINES)}")
    configs: dict[str, dict] = {}
    for part, (name, key, accepted) in _PARTS.items():
        _require_folder(folder, part)
        configs[part] = read_json(folder / part / name)
        found = configs[part].get(key)
        if found not in accepted:
            belongs = next((other for other, (_, _, kinds) in _PARTS.items() if found in kinds), None)
            hint = f"; that belongs in {belongs}/" if belongs else ""
            raise ConfigError(f"{folder / part / name}: {key} is {found!r}, expected {' or '.join(accepted)}{hint}")
    _require_folder(folder, "tokenizer")
    tokenizer = tuple(folder / "tokenizer" / name for name in _TOKENIZER if (folder / "tokenizer" / name).is_file())
    names = {file.name for file in tokenizer}
    require(
        "tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names,
        f"{folder / 'tokenizer'}: holds no tokenizer.json, nor vocab.json with merges.txt; fetch the folder again",
    )
    weights = {part: weight_file(folder / part, variant) for part in ("transformer", "vqvae", "text_encoder")}
    return Parts(folder, configs, weights, tokenizer, _licence(folder))


def _require_folder(folder: pathlib.Path, part: str) -> None:
    parts = ", ".join(f"{name}/" for name in (*_PARTS, "tokenizer"))
    require((folder / part).is_dir(), f"{folder / part}: missing; a pipeline folder of aMUSEd has {parts}; fetch it again")


def weight_file(folder: pathlib.Path, variant: str | None = None) -> pathlib.Path:
    """The safetensors file, or index of shards, of a part. Raises: ConfigError, one line, if there is none."""
    variants = [variant] if variant else [None, "fp16"]
    for one in variants:
        for base in ("diffusion_pytorch_model", "model"):
            dot = f".{one}" if one else ""
            for name in (f"{base}{dot}.safetensors", f"{base}.safetensors.index{dot}.json"):
                if (folder / name).is_file():
                    return folder / name
    wanted = (
        f"weights of variant {variant!r}" if variant else "weights (diffusion_pytorch_model.safetensors or model.safetensors)"
    )
    raise ConfigError(f"{folder}: holds no {wanted}; fetch it again, as safetensors")


def with_shards(path: pathlib.Path) -> list[pathlib.Path]:
    """A weight file, or an index and its shards."""
    if path.suffix != ".json":
        return [path]
    places = read_json(path).get("weight_map")
    good = isinstance(places, dict) and all(isinstance(name, str) and "/" not in name for name in places.values())
    require(good, f"{path}: its weight_map names no files; fetch it again")
    return [path, *(path.parent / name for name in sorted(set(dict(places or {}).values())))]


def _licence(folder: pathlib.Path) -> str | None:
    """The licence that the model card states, if the folder has one."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace")[:4096] if card.is_file() else ""
    found = re.search(r"^license:\s*(\S+)", text, re.MULTILINE)
    return found[1] if found else None


# ------------------------------------------------------------------------------------------------ conversion
@dataclasses.dataclass(frozen=True)
class ConvertedPipeline:
    """What was written; `str()` is the summary that the command prints."""

    path: pathlib.Path
    parts: tuple[Conversion, ...]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([*(str(part) for part in self.parts), *self.lines, f"pipeline: {self.path}"])

    @property
    def licences(self) -> str:
        """The licences of the parts, each once."""
        return "; ".join(dict.fromkeys(part.plan.family.licence for part in self.parts))


def convert_folder(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    *,
    variant: str | None = None,
    dtype: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> ConvertedPipeline:
    """Converts a pipeline folder of diffusers into the pipeline folder `out`: tokenizer/, generator/ and text_encoder/.

    variant: see `find_parts`. dtype: of the values written, "float32" or "float16"; None: float16 if all weights are
    stored in 16 bits. origin: where the folder is from, recorded as `source` in `config.json` ({"repository": ...,
    "revision": ...}). Tensors are read and written one by one. Raises a `ValueError` of one line for a part that is
    missing, holds something else or does not fit the others; nothing is left behind then.
    """
    out = pathlib.Path(out)
    require(not out.exists(), f"{out}: exists; remove it or choose another folder")
    parts = find_parts(pathlib.Path(folder), variant)
    text = read_text_config(parts.configs["text_encoder"], str(parts.folder / "text_encoder" / "config.json"))
    shapes = {name: tensor.shape for name, tensor in stored_tensors(*_split(parts.weights["text_encoder"])).items()}
    names = clip_names(parts.folder / "text_encoder", text, None, {n: s for n, s in shapes.items() if _is_text(n)})
    require(
        "text/projection/weight" in names,
        f"{parts.folder / 'text_encoder'}: has no text_projection.weight; expected CLIP's text network with projection",
    )
    plan = _plan(parts, "transformer", {"text_tokens": text.positions, "pooled_dim": text.projection})
    codes = _plan(parts, "vqvae", {})
    _check(parts, plan, codes, text)
    side = plan.cfg.grid[0] * codes.cfg.downsample
    kind = dtype or ("float16" if _half(parts) else "float32")
    require_free_space(out, (plan.parameters + codes.parameters) * np.dtype(kind).itemsize)
    about: dict[str, Any] = {"pipeline": parts.folder.name, **(origin or {})}
    if parts.licence:
        about["model_card_licence"] = parts.licence
    with replace_folder(out) as part:
        options = {"image_size": side}
        first = convert(parts.weights["vqvae"], part / "tokenizer", dtype=kind, options=options, origin=about)
        digests = _copy_text_encoder(parts, part / "text_encoder")
        metadata = {
            "image_size": side,
            "tokenizer_hash": hash_of(part / "tokenizer"),
            "text_encoder": {"path": "../text_encoder", "source_sha256": digests},
            "decode": {**plan.decode, "schedule": parts.configs["scheduler"].get("masking_schedule", "cosine")},
        }
        options = {"text_tokens": text.positions, "pooled_dim": text.projection}
        second = convert(
            parts.weights["transformer"], part / "generator", dtype=kind, options=options, origin=about, metadata=metadata
        )
    done = [dataclasses.replace(one, path=out / one.path.name) for one in (first, second)]
    lines = [f"text encoder: CLIP, {text.depth} x {text.width}, with its tokenizer"]
    lines += [f"{name}: {value}" for name, value in about.items() if name != "pipeline"]
    return ConvertedPipeline(out, tuple(done), tuple(lines))


def hash_of(folder: pathlib.Path) -> str:
    """`Weights.hash` of a weights folder, read tensor by tensor."""
    tensors = Tensors(folder)
    return fingerprint_of((name, tensors[name]) for name in sorted(tensors))


def _split(path: pathlib.Path) -> tuple[pathlib.Path, str | None]:
    """The folder and name of a weight file, for `stored_tensors`."""
    return path.parent, path.name


def _is_text(name: str) -> bool:
    return not re.match(r"vision_model\.|visual_projection\.|logit_scale$", name)


def _plan(parts: Parts, part: str, options: Mapping[str, Any]) -> Plan:
    found, wanted = family_of_file(parts.weights[part]), _FAMILIES[part]
    belongs = next((f"; that belongs in {other}/" for other, name in _FAMILIES.items() if name == found), "")
    require(
        found in (wanted, None),  # None: planning says what is wrong
        f"{parts.weights[part]}: holds {found}, expected {wanted}{belongs}",
    )
    return planned(parts.weights[part], options=options)


def _half(parts: Parts) -> bool:
    """Whether the transformer and the VQ model are stored in half precision."""
    stored = [tensor.dtype for part in _FAMILIES for tensor in stored_tensors(*_split(parts.weights[part])).values()]
    return all(kind == "F16" for kind in stored)


def _check(parts: Parts, plan: Plan, codes: Plan, text: Any) -> None:
    """Compares the sizes of the parts with each other."""
    cfg, scheduler, where = plan.cfg, parts.configs["scheduler"], parts.folder
    mask_id = scheduler.get("mask_token_id", cfg.mask_id)
    schedule = scheduler.get("masking_schedule", "cosine")
    require(
        schedule in ("cosine", "linear"),
        f"{where / 'scheduler'}: masking_schedule is {schedule!r}, expected cosine or linear",
    )
    pairs = (
        ("vqvae", "codes", codes.cfg.codebook_size, cfg.codebook_size),
        ("text_encoder", "numbers a text state", text.width, cfg.text_dim),
        ("scheduler", "as mask_token_id", mask_id, cfg.mask_id),
    )
    for part, what, found, expected in pairs:
        require(
            found == expected,
            f"{where / part}: has {found} {what}, transformer/ takes {expected}; these parts are of different pipelines",
        )


def _copy_text_encoder(parts: Parts, out: pathlib.Path) -> dict[str, str]:
    """Copies the text encoder and its tokenizer into one folder. Returns {file: sha256} of the weights."""
    out.mkdir()
    weights = parts.weights["text_encoder"]
    digests = {}
    for file in with_shards(weights):
        name = (INDEX if file.suffix == ".json" else WHOLE) if file == weights else file.name
        digests[name] = _copy(file, out / name)
    for file in (parts.folder / "text_encoder" / "config.json", *parts.tokenizer):
        _copy(file, out / file.name)
    return digests


def _copy(file: pathlib.Path, target: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as source, open(target, "wb") as copy:
        while block := source.read(_COPIED):
            digest.update(block)
            copy.write(block)
    shutil.copymode(file, target)
    return digest.hexdigest()
