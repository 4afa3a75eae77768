"""Samples straight from a pipeline: drawn over all devices, handed on batch by batch, written only if somebody asks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maskgil_jax.config import CausalConfig, DecodeConfig, require, to_dict
from maskgil_jax.evaluation.extraction import local_mesh, split_batch
from maskgil_jax.evaluation.images import ImageSet
from maskgil_jax.pipelines.pipeline import Pipeline, to_pixels
from maskgil_jax.runtime.mesh import batch_sharding, replicated
from maskgil_jax.runtime.rng import keys_for_indices


def cycled_labels(count: int, classes: int) -> np.ndarray:
    """Every class equally often, in turn 0, 1, 2, ...: each part of the set holds all classes, as the Inception Score needs."""
    return (np.arange(count) % classes).astype(np.int32)


def labels_like(reference_n: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` labels with the frequencies of a reference set (evenly spread over its sorted labels), in a shuffled order."""
    rows = (np.arange(count) * len(reference_n) + len(reference_n) // 2) // count
    return np.random.default_rng(seed).permutation(np.sort(reference_n)[rows]).astype(np.int32)


def generated_set(
    pipeline: Pipeline,
    labels: np.ndarray,
    *,
    seed: int = 0,
    cfg: DecodeConfig | CausalConfig | None = None,
    batch_size: int = 64,
    mesh: Mesh | None = None,
    hashes: dict | None = None,
    more: dict | None = None,
) -> ImageSet:
    """The images `pipeline(labels, seed=seed, cfg=cfg)` as a set: the same pixels whatever the batch size and the devices.

    The networks are copied to every device of the mesh (default: this process's) and each batch is split over them.
    hashes: of the weights, for the output. more: further arguments of `Pipeline.tokens`.
    """
    mesh, ids_n = local_mesh() if mesh is None else mesh, pipeline.label_ids(labels)
    require(0 <= seed < 2**32, f"seed: must be in 0..2^32-1, got {seed}")
    how, size = cfg or pipeline.cfg, split_batch(batch_size, mesh)
    grid = tuple(pipeline.generator.cfg.grid)
    factor = pipeline.tokenizer.cfg.downsample

    def batches(_rows: int) -> Iterator[np.ndarray]:  # `batch_size` decides: drawing needs more memory than looking
        found = {name: getattr(pipeline, name, None) for name in ("tokenizer", "generator", "ar")}
        networks: dict[str, Any] = {n: jax.device_put(found[n], replicated(mesh)) for n in found if found[n] is not None}
        spread = dataclasses.replace(pipeline, **networks)
        key = jax.random.key(seed)
        for start in range(0, len(ids_n), size):
            images_bhwc = draw_images(spread, ids_n, start, size, key, how, mesh, **(more or {}))
            yield jax.device_get(images_bhwc)[: len(ids_n) - start]

    return ImageSet(
        name=f"samples of {pipeline.name or 'a pipeline'}",
        count=len(ids_n),
        size=(grid[0] * factor, grid[1] * factor),
        batches=batches,
        labels=lambda: ids_n,
        class_names=pipeline.class_names,
        provenance={
            "kind": "weights",
            "path": pipeline.name,
            "seed": seed,
            "sampler": {**to_dict(how), **(more or {})},
            "weights": hashes or {},
        },
    )


def draw_images(pipeline: Pipeline, ids_n: np.ndarray, start: int, size: int, key, cfg, mesh: Mesh, **more) -> jax.Array:
    """Images number `start` to `start + size` of a request, uint8 on the mesh; beyond its end the last one is repeated.

    Each image has a key of its own, folded from its number as `Pipeline.batches` does. The pipeline's networks lie on the mesh.
    """
    rows = np.minimum(np.arange(start, start + size), len(ids_n) - 1)
    label_b, rows_b = (jax.device_put(a.astype(np.int32), batch_sharding(mesh)) for a in (ids_n[rows], rows))
    key_b = _keys_at(jax.device_put(key, replicated(mesh)), rows_b)
    tokens_bl = pipeline.tokens(label_b, key_b, cfg=cfg, **more)
    return to_pixels(pipeline.tokenizer, tokens_bl, tuple(pipeline.generator.cfg.grid))


_keys_at = jax.jit(keys_for_indices)


def even_counts(count: int, classes: int) -> list[str]:
    """A warning if not every class gets the same number of images."""
    if count % classes == 0:
        return []
    return [f"{count} images of {classes} classes: some have {math.ceil(count / classes)}, others {count // classes}"]
