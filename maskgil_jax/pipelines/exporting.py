"""The sampling program as a StableHLO artefact that needs JAX alone: conditions and seeds in, images out."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from maskgil_jax.checkpoints.weights import replace_folder
from maskgil_jax.config import choose, require, to_dict
from maskgil_jax.runtime.batch_sizes import MAX_BATCH
from maskgil_jax.runtime.platform import target_platform
from maskgil_jax.runtime.rng import fold_keys
from maskgil_jax.tokenizers.images import to_pixels

FORMAT = "maskgil_jax stablehlo 1"
MANIFEST, PROGRAM, WEIGHTS = "manifest.json", "program.bin", "weights.npz"
PLATFORMS = ("cpu", "tpu", "cuda")


def export_program(
    pipeline: Any,
    out: str | os.PathLike,
    *,
    batch_size: int = 4,
    platforms: Sequence[str] = ("cpu",),
    cfg: Any = None,
    grid: tuple[int, int] | None = None,
    **decoding: Any,
) -> dict[str, Any]:
    """Writes the folder `out`, atomically: `program.bin` (`jax.export`), `weights.npz`, `manifest.json`.

    Returns the manifest.

    The program takes the weights, the condition and uint32 seeds (b,), and gives uint8 images (b, height, width, 3):
    those of `pipeline(..., seeds=seeds)`. Batch size, image size and decoding options are fixed. The weights are
    arguments in a file beside the program: as constants of it they would be kept once more in memory, and a serialised
    program is limited to 2 GB.

    platforms: of `PLATFORMS`. With several, one program serves all and makes none of the choices by platform (`loop`,
    `batch_mode`), which change images by rounding only.
    """
    require(1 <= batch_size <= MAX_BATCH, f"batch_size: must be in 1..{MAX_BATCH}, got {batch_size}")
    require(bool(platforms) and len(set(platforms)) == len(platforms), f"platforms: give each once, got {list(platforms)}")
    for platform in platforms:
        choose("platforms", platform, PLATFORMS)
    path = pathlib.Path(out)
    other = sorted(e.name for e in path.iterdir() if e.name not in (MANIFEST, PROGRAM, WEIGHTS)) if path.is_dir() else []
    require(not other, f"{path}: holds {other[:1]}, which is no part of an export and would be lost; give another folder")
    cfg, grid = pipeline.options(cfg, **decoding), pipeline.grid_of(None, None, grid)
    weights, tree = jax.tree.flatten((pipeline.tokenizer, pipeline.generator))
    condition = jax.tree.map(jnp.asarray, pipeline.conditioner.examples(batch_size))
    rows, condition_tree = jax.tree.flatten(condition)
    names = [jax.tree_util.keystr(key, simple=True, separator="/") for key, _ in jax.tree_util.tree_leaves_with_path(condition)]

    def sample(weights: list, rows: list, seeds_b: jax.Array) -> jax.Array:
        tokenizer, generator = jax.tree.unflatten(tree, weights)
        own = dataclasses.replace(pipeline, tokenizer=tokenizer, generator=generator, mesh=None)
        key_b = fold_keys(jax.vmap(jax.random.key)(seeds_b), 0)
        tokens_bl = own.tokens(jax.tree.unflatten(condition_tree, rows), key_b, cfg=cfg, grid=grid)
        return to_pixels(tokenizer, tokens_bl, grid)

    seeds_b = jax.ShapeDtypeStruct((batch_size,), jnp.uint32)
    target = target_platform({"cuda": "gpu"}.get(platforms[0], platforms[0]) if len(platforms) == 1 else "gpu")
    with target if jax.default_backend() != platforms[0] or len(platforms) > 1 else contextlib.nullcontext():
        made = export.export(jax.jit(sample), platforms=tuple(platforms))(weights, rows, seeds_b)
    arrays = {f"{i:05d}": _storable(leaf) for i, leaf in enumerate(weights)}
    manifest = {
        "format": FORMAT,
        "program": PROGRAM,
        "weights": WEIGHTS,
        "weights_dtypes": {f"{i:05d}": "bfloat16" for i, leaf in enumerate(weights) if leaf.dtype == jnp.bfloat16},
        "platforms": list(platforms),
        "jax": jax.__version__,
        "inputs": [
            *({"name": name, "shape": list(row.shape), "dtype": str(row.dtype)} for name, row in zip(names, rows, strict=True)),
            {"name": "seeds", "shape": [batch_size], "dtype": "uint32"},
        ],
        "output": {"name": "images", "shape": list(made.out_avals[0].shape), "dtype": "uint8"},
        "grid": list(grid),
        "generator": pipeline.name,
        "decode": to_dict(cfg),
        **pipeline.conditioner.metadata(),
    }
    with replace_folder(path) as part:
        (part / PROGRAM).write_bytes(made.serialize())
        np.savez(part / WEIGHTS, allow_pickle=False, **arrays)
        with open(part / WEIGHTS, "rb") as file:
            manifest["weights_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def _storable(leaf: jax.Array) -> np.ndarray:
    """An array that NumPy's files hold: the bits of bfloat16 as uint16."""
    array = np.asarray(leaf)
    return array.view(np.uint16) if leaf.dtype == jnp.bfloat16 else array
