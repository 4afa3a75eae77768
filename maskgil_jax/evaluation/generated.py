"""The samples of a pipeline as an image set: generated over all devices, batch by batch, and not written to disk."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

from maskgil_jax.config import CausalConfig, DecodeConfig, require, to_dict
from maskgil_jax.evaluation.extraction import local_mesh, split_batch
from maskgil_jax.evaluation.images import ImageSet
from maskgil_jax.models.condition import batch_size as batch_size_of
from maskgil_jax.pipelines.pipeline import Pipeline


def cycled_labels(count: int, classes: int) -> np.ndarray:
    """Every class equally often, in turn 0, 1, 2, ...: each part of the set holds all classes,
    as the Inception Score needs."""
    return (np.arange(count) % classes).astype(np.int32)


def labels_like(reference_n: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` labels with the frequencies of a reference set (evenly spread over its sorted labels),
    in a shuffled order."""
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
    """The images `pipeline(labels, seed=seed, cfg=cfg)` as a set: the same pixels whatever the batch size and the
    devices.

    The networks are copied to every device of the mesh (default: this process's) and each batch is split over them.
    hashes: of the weights, for the output. more: further arguments of `Pipeline.batches`.
    """
    mesh, condition = local_mesh() if mesh is None else mesh, pipeline.conditioner.encode(labels)
    require(0 <= seed < 2**32, f"seed: must be in 0..2^32-1, got {seed}")
    ids_n, count = np.asarray(condition.label_b), batch_size_of(condition)  # class numbers, also of names
    how, size = cfg or pipeline.cfg, split_batch(batch_size, mesh)
    grid = tuple(pipeline.generator.cfg.grid)
    factor = pipeline.tokenizer.cfg.downsample

    def batches(_rows: int) -> Iterator[np.ndarray]:  # sampling needs more memory than features: `batch_size` decides
        options = dict(seed=seed, cfg=how, batch_size=size, **(more or {}))
        yield from pipeline.over(mesh=mesh).batches(condition, **options)

    return ImageSet(
        name=f"samples of {pipeline.name or 'a pipeline'}",
        count=count,
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


def even_counts(count: int, classes: int) -> list[str]:
    """A warning if not every class gets the same number of images."""
    if count % classes == 0:
        return []
    return [f"{count} images of {classes} classes: some have {math.ceil(count / classes)}, others {count // classes}"]
