"""Runs a feature network over any number of images: fixed batches, one compiled shape, split over this process's devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from maskgil_jax.config import require
from maskgil_jax.runtime.mesh import AXES, batch_sharding, replicated


def local_mesh() -> Mesh:
    """A mesh of this process's devices alone: processes then need not give the same number of images or step together."""
    devices = np.asarray(jax.local_devices()).reshape(-1, 1, 1)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def rebatch(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Image batches of any length -> batches of exactly `size` rows, the last one shorter, in the same order.

    Raises a `ValueError` for an array that is not (n, h, w, c), or of other height, width, channels or dtype than the first.
    """
    kept, count, first, seen = [], 0, None, 0
    for images_nhwc in batches:
        images_nhwc = np.asarray(images_nhwc)
        if images_nhwc.ndim != 4:
            raise ValueError(f"images: expected (n, height, width, channels), got shape {images_nhwc.shape}")
        kind = (*images_nhwc.shape[1:], images_nhwc.dtype)
        first = first or kind
        if kind != first:
            raise ValueError(
                f"images from number {seen} on are {kind[0]}x{kind[1]}x{kind[2]} {kind[3]}, the ones before "
                f"{first[0]}x{first[1]}x{first[2]} {first[3]}: give images of one size and dtype (crop or resize them first)"
            )
        seen += len(images_nhwc)
        while len(images_nhwc):
            kept.append(images_nhwc[: size - count])
            images_nhwc = images_nhwc[len(kept[-1]) :]
            count += len(kept[-1])
            if count == size:
                yield np.concatenate(kept) if len(kept) > 1 else kept[0]
                kept, count = [], 0
    if count:
        yield np.concatenate(kept)


class FeatureExtractor:
    """`apply(network, images_bhwc) -> {name: array with a leading batch axis}` as one compiled program over a mesh.

    The network is copied to every device, each batch of `batch_size` images is split over them and a last batch is filled
    up with zeros that are dropped again, so exactly one shape is compiled. `mesh` holds devices of this process only
    (default: all of them); with several processes each extracts its own images and the statistics are merged afterwards.
    Any network will do: `functools.partial(inception_features, protocol="adm")` or a small classifier.

    Raises a `ConfigError` if the devices do not divide `batch_size`; calling it raises as `rebatch` does.
    """

    def __init__(
        self, apply: Callable[[Any, jax.Array], dict], network: Any, *, batch_size: int = 64, mesh: Mesh | None = None
    ):
        mesh = local_mesh() if mesh is None else mesh
        split = mesh.shape["data"] * mesh.shape["fsdp"]
        require(batch_size >= 1 and batch_size % split == 0, f"batch_size: {batch_size} is not a multiple of {split} devices")
        self.batch_size, self._images = batch_size, batch_sharding(mesh)
        self._network = jax.device_put(network, replicated(mesh))
        self._run = jax.jit(apply, in_shardings=(replicated(mesh), self._images), out_shardings=self._images)

    def __call__(self, batches: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Yields the features of one batch after the other, in order; the next batch runs while one is handed out."""
        waiting = None
        for images_bhwc in rebatch(batches, self.batch_size):
            rows = len(images_bhwc)
            padded_bhwc = np.pad(images_bhwc, ((0, self.batch_size - rows), (0, 0), (0, 0), (0, 0)))
            running = rows, self._run(self._network, jax.device_put(padded_bhwc, self._images))
            if waiting is not None:
                yield self._fetch(*waiting)
            waiting = running
        if waiting is not None:
            yield self._fetch(*waiting)

    @staticmethod
    def _fetch(rows: int, outputs: dict) -> dict[str, np.ndarray]:
        return {name: array[:rows] for name, array in jax.device_get(outputs).items()}
