"""Writes a pipeline as the folder that `load` reads, on a disk, in a bucket or on the hub: methods of `Pipeline`."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import numpy as np

from maskgil_jax.checkpoints.push import push as push_folder
from maskgil_jax.checkpoints.weights import replace_folder, save_weights
from maskgil_jax.config import require, to_dict
from maskgil_jax.files.hub import split_address
from maskgil_jax.files.paths import is_remote
from maskgil_jax.networks import fingerprint, params_of

PARTS = ("tokenizer", "generator")
README = "README.md"


def save(pipeline: Any, folder: str | os.PathLike, *, dtype: str = "float32") -> None:
    """Writes `tokenizer/` and `generator/` to `folder`, a local path or "gs://bucket/folder", for `load`.

    Kept with the weights: the decoding options `pipeline.cfg`, class names or the entry of the text encoder, and what
    else the config.json files held. The text encoder and a causal network of `ar` are not written. An existing pipeline
    in `folder` is replaced at once when all is written, its README.md kept; a folder that holds anything else is
    refused.

    dtype: of the written parameters, "float32" or "float16"; rounding changes the tokenizer, and its hash is recorded
    anew.
    """
    kind = pipeline.generator.cfg.condition
    require(kind != "tokens", f"save: {pipeline.name} reads prompts by files of its folder, which are not kept; copy it")
    if is_remote(folder):
        _write(pipeline, os.fspath(folder).rstrip("/"), dtype)
        return
    path = pathlib.Path(folder)
    require(os.fspath(folder) != "", "save: the folder is empty; give a path")
    require(not path.exists() or path.is_dir(), f"{path}: is a file; give a folder")
    other = sorted(entry.name for entry in path.iterdir() if entry.name not in (*PARTS, README)) if path.exists() else []
    require(not other, f"{path}: holds {other[:1]}, which is no part of a pipeline and would be lost; give another folder")
    with replace_folder(path) as part:
        _write(pipeline, part, dtype)
        if (path / README).exists():
            shutil.copyfile(path / README, part / README)


def push(
    pipeline: Any,
    address: str,
    *,
    private: bool = False,
    message: str = "Upload weights",
    licence: str | None = None,
    dtype: str = "float32",
) -> str:
    """Uploads the pipeline to "hf://owner/repo[@branch]" with a model card, or to "gs://bucket/folder".

    Returns the address.

    private, message, licence: of the repository on the hub, as for `maskgil push`. dtype: as for `save`.
    """
    require(address.startswith(("hf://", "gs://")), f"{address}: expected hf://owner/repo or gs://bucket/folder; or use save")
    if address.startswith("gs://"):
        save(pipeline, address, dtype=dtype)
        return address
    repo, revision = split_address(address)
    with tempfile.TemporaryDirectory() as folder:
        save(pipeline, pathlib.Path(folder, "pipeline"), dtype=dtype)
        options: dict[str, Any] = dict(private=private, revision=revision, message=message, licence=licence)
        return push_folder(pathlib.Path(folder, "pipeline"), repo, **options)


def _write(pipeline: Any, folder: Any, dtype: str) -> None:
    """The two weights folders under `folder`."""
    tokenizer, generator = params_of(pipeline.tokenizer), params_of(pipeline.generator)
    known = {part: dict(pipeline.metadata.get(part, {})) for part in PARTS}
    save_weights(f"{folder}/tokenizer", pipeline.tokenizer.cfg, tokenizer, metadata=known["tokenizer"], dtype=dtype)
    written = tokenizer if dtype == "float32" else _rounded(tokenizer, dtype)
    known["generator"] |= {**pipeline.conditioner.metadata(), "decode": to_dict(pipeline.cfg)}
    known["generator"]["tokenizer_hash"] = fingerprint(written)
    save_weights(f"{folder}/generator", pipeline.generator.cfg, generator, metadata=known["generator"], dtype=dtype)


def _rounded(params: dict, dtype: str) -> dict:
    """The parameters as they are read again after they were written in `dtype`."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32).astype(dtype).astype(np.float32), params)
