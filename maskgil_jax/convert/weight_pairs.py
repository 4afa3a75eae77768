"""A published generator in one file, with its tokenizer in another -> a pipeline folder:
LlamaGen's and others of the list."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from maskgil_jax.checkpoints.weights import replace_folder
from maskgil_jax.config import require

from .diffusers_folder import ConvertedPipeline, hash_of
from .families import FAMILIES
from .main import convert, family_of_file, planned

ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".msgpack")
_T5 = ("t5-ckpt/flan-t5-xl", "flan-t5-xl")  # where LlamaGen's sampling looks for its text encoder, beside the generator


def is_generator_file(path: str | os.PathLike) -> bool:
    """Whether `path` is a weight file of a generator of a known family."""
    if not (os.path.isfile(path) and os.fspath(path).endswith(ENDINGS)):
        return False
    family = family_of_file(path)
    return family in FAMILIES and FAMILIES[family].kind == "generator"


def tokenizer_beside(path: str | os.PathLike, codebook_size: int) -> pathlib.Path:
    """The one tokenizer file with as many codes in the folder of a generator's file. Raises: ConfigError, one line."""
    folder = pathlib.Path(path).absolute().parent
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.name.endswith(ENDINGS)]
    families = {file: family_of_file(file) for file in files}
    found = [
        file
        for file, family in families.items()
        if family in FAMILIES
        and FAMILIES[family].kind == "tokenizer"
        and getattr(planned(file).cfg, "codebook_size", None) == codebook_size
    ]
    same = [file for file in found if _kind(file) == _kind(path)]
    found = same if len(found) > 1 and same else found
    names = ", ".join(file.name for file in found) or "none"
    require(
        len(found) == 1,
        f"{path}: needs one tokenizer of {codebook_size} codes in its folder, found {names}; put the right one there alone, or "
        "give it: maskgil convert FILE OUT --tokenizer TOKENIZER",
    )
    return found[0]


def _kind(path: str | os.PathLike) -> str | None:
    """ "t2i" or "c2i", where the name of a file says it, as LlamaGen's do."""
    found = re.search(r"t2i|c2i", os.path.basename(path))
    return found[0] if found else None


def convert_pair(
    path: str | os.PathLike,
    out: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
    text_encoder: str | os.PathLike | None = None,
    dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
) -> ConvertedPipeline:
    """Converts a generator's file and its tokenizer's into the pipeline folder `out`.

    tokenizer: its file; None looks for it in the folder of the generator. text_encoder: folder of flan-t5-xl, for
    LlamaGen's text network; its path is recorded, not its contents. None takes t5-ckpt/flan-t5-xl beside the generator
    if it is there.
    options: of the generator, as `convert` takes them. The grid is that of the image size in LlamaGen's file names
    (t2i_XL_stage2_512.pt), unless it is given.
    """
    path, out = pathlib.Path(path), pathlib.Path(out)
    require(not out.exists(), f"{out}: exists; remove it or choose another folder")
    plan = planned(path, options=options)
    require(plan.family.kind == "generator", f"{path}: holds {plan.family.title}, expected a generator")
    tokenizer = pathlib.Path(tokenizer or tokenizer_beside(path, plan.cfg.codebook_size))
    codes = planned(tokenizer)
    require(codes.family.kind == "tokenizer", f"{tokenizer}: holds {codes.family.title}, expected a tokenizer")
    require(
        codes.cfg.codebook_size == plan.cfg.codebook_size,
        f"{tokenizer}: has {codes.cfg.codebook_size} codes, {path} takes {plan.cfg.codebook_size}; give its own tokenizer",
    )
    factor, options = codes.cfg.downsample, dict(options or {})
    stated = re.search(r"_(\d{3})(?=\.)", path.name)
    if stated and plan.name.startswith("llamagen") and "grid" not in options and int(stated[1]) % factor == 0:
        options["grid"] = (int(stated[1]) // factor,) * 2
    grid = options.get("grid") or plan.cfg.grid
    side = (grid[0] if isinstance(grid, (tuple, list)) else grid) * factor
    about = {"tokenizer": tokenizer.name}
    with replace_folder(out) as part:
        first = convert(tokenizer, part / "tokenizer", dtype=dtype, options={"image_size": side})
        metadata: dict[str, Any] = {"image_size": side, "tokenizer_hash": hash_of(part / "tokenizer")}
        if getattr(plan.cfg, "condition", "") == "text":
            known = (path.absolute().parent / name for name in _T5)
            text_encoder = text_encoder or next((folder for folder in known if folder.is_dir()), None)
            entry: dict[str, Any] = {"max_tokens": plan.cfg.text_tokens, "padding": "left"}
            if text_encoder is not None:
                entry["path"] = _absolute(text_encoder)
            metadata["text_encoder"] = entry
        second = convert(path, part / "generator", dtype=dtype, options=options, metadata=metadata, origin=about)
    parts = tuple(dataclasses.replace(one, path=out / one.path.name) for one in (first, second))
    lines: tuple[str, ...] = ()
    if recorded := metadata.get("text_encoder"):
        lines = (f"text encoder: {recorded.get('path', 'none recorded; give load(..., text_encoder=FOLDER of flan-t5-xl)')}",)
    return ConvertedPipeline(out, parts, lines)


def _absolute(path: str | os.PathLike) -> str:
    return os.fspath(path) if "://" in os.fspath(path) else os.path.abspath(path)
