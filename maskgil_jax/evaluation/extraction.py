"""Runs a feature network over an image set of any size: fixed batches, one compiled shape, split over devices.

`extract` computes the statistics of the features in one pass, checks the pixel values and keeps no image.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from tqdm import tqdm

from maskgil_jax.config import require
from maskgil_jax.evaluation.features import FeatureExtractor
from maskgil_jax.evaluation.images import ImageSet
from maskgil_jax.evaluation.metrics.frechet import FeatureStatistics
from maskgil_jax.runtime.mesh import AXES, batch_sharding, replicated


# ------------------------------------------------------------------------------------------------ batches
def local_mesh() -> Mesh:
    """A mesh of this process's devices alone, so that processes may have different numbers of images."""
    devices = np.asarray(jax.local_devices()).reshape(-1, 1, 1)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def split_batch(batch_size: int, mesh: Mesh) -> int:
    """Rounds `batch_size` up to a multiple of the devices that a batch is split over."""
    require(batch_size >= 1, f"batch_size: must be at least 1, got {batch_size}")
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-batch_size // shards) * shards


def rebatch(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Regroups image batches of any length into batches of `size` rows, the last one shorter, in the same order.

    Raises a `ValueError` for an array that is not (n, h, w, c), or whose height, width, channels or dtype differ from
    the first.
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


class BatchedApply:
    """`apply(network, images_bhwc) -> {name: array with a leading batch axis}` as one compiled program over a mesh.

    The network is copied to every device, each batch of `batch_size` images is split over them, and a last batch is
    padded with zeros that are dropped again, so exactly one shape is compiled. `mesh` holds devices of this process
    only (default: all of them); with several processes each one runs its own images, and the statistics are merged
    afterwards.

    Raises a `ConfigError` if the number of devices does not divide `batch_size`; calling it raises as `rebatch` does.
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
        """Yields the outputs of each batch, in order; the next batch is dispatched before the outputs are fetched."""
        pending = None
        for images_bhwc in rebatch(batches, self.batch_size):
            rows = len(images_bhwc)
            padded_bhwc = np.pad(images_bhwc, ((0, self.batch_size - rows), (0, 0), (0, 0), (0, 0)))
            running = rows, self._run(self._network, jax.device_put(padded_bhwc, self._images))
            if pending is not None:
                yield self._fetch(*pending)
            pending = running
        if pending is not None:
            yield self._fetch(*pending)

    @staticmethod
    def _fetch(rows: int, outputs: dict) -> dict[str, np.ndarray]:
        return {name: array[:rows] for name, array in jax.device_get(outputs).items()}


def feature_rows(extractor: FeatureExtractor, mesh: Mesh):
    """`images_bhwc -> {tap: rows}` over a mesh of any number of processes; the result is replicated on each of them."""
    network = jax.device_put(extractor.network, replicated(mesh))
    run = jax.jit(extractor.apply, in_shardings=(replicated(mesh), batch_sharding(mesh)), out_shardings=replicated(mesh))
    return lambda images_bhwc: run(network, images_bhwc)


# ------------------------------------------------------------------------------------------------ one pass over a set
class ImageChecks:
    """Counts images, value ranges and exact duplicates of the batches that pass through it.

    Keeps 16 bytes per image.
    """

    def __init__(self):
        self.count = self.constant = self.full_range = 0
        self.low, self.high = 255, 0
        self._hashes: set[bytes] = set()
        self._digest = hashlib.sha256()

    def __call__(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for images_bhwc in batches:
            lows, highs = images_bhwc.min(axis=(1, 2, 3)), images_bhwc.max(axis=(1, 2, 3))
            self.low, self.high = min(self.low, int(lows.min())), max(self.high, int(highs.max()))
            self.constant += int((lows == highs).sum())
            self.full_range += int(((lows == 0) & (highs == 255)).sum())
            for image in images_bhwc:
                key = hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
                self._hashes.add(key)
                self._digest.update(key)
            self.count += len(images_bhwc)
            yield images_bhwc

    @property
    def hash(self) -> str:
        """Hash of all pixels, in their order."""
        return self._digest.hexdigest()[:16]

    @property
    def duplicates(self) -> int:
        """Number of images that equal an earlier one, pixel by pixel."""
        return self.count - len(self._hashes)

    def warnings(self, name: str) -> list[str]:
        """Warnings about suspicious pixel values."""
        found = []
        if self.duplicates:
            found.append(f"{name}: {self.duplicates} of {self.count} images equal an earlier one, pixel by pixel")
        if self.high <= 1:
            found.append(f"{name}: no pixel is above {self.high} of 255; images in [0, 1] must be multiplied by 255")
        elif self.high < 128:
            found.append(f"{name}: no pixel is above {self.high} of 255; was the range [-1, 1] mapped to [0, 255]?")
        elif self.low > 127:
            found.append(f"{name}: no pixel is below {self.low} of 255; was the range [-1, 1] mapped to [0, 255]?")
        if self.constant > self.count // 10:
            found.append(f"{name}: {self.constant} of {self.count} images have one value only")
        if self.count >= 100 and self.full_range == self.count:
            found.append(
                f"{name}: every image spans 0 to 255 exactly, as if each had been rescaled by its own minimum and maximum; "
                "the usual protocols do not do that"
            )
        return found


@dataclasses.dataclass
class FeatureSet:
    """The features of an image set: moments by tap, the rows (n, d) of the taps that were kept,
    and the image checks."""

    statistics: dict[str, FeatureStatistics]
    rows: dict[str, np.ndarray]
    checks: ImageChecks

    @property
    def count(self) -> int:
        """Number of images."""
        return self.checks.count

    def moments(self, tap: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean (d,) and covariance (d, d) of a tap, float64."""
        return self.statistics[tap].mean, self.statistics[tap].covariance


def extract(
    images: ImageSet,
    extractor: FeatureExtractor,
    *,
    moments: Iterable[str] = ("features",),
    keep: Iterable[str] = (),
    batch_size: int = 64,
    mesh: Mesh | None = None,
    desc: str = "",
) -> FeatureSet:
    """Runs the extractor over a set, split over this process's devices.

    moments: taps whose mean and covariance are accumulated, in float64 and constant memory. keep: taps whose rows are
      kept, as float32 (n, width): 2048 features of 50 000 images are 410 MB, a classifier's 128 are 26 MB. Pixels are
      never kept.
    Raises a `ValueError` for images of mixed sizes or features that are not finite.
    """
    mesh = local_mesh() if mesh is None else mesh
    taps = tuple(dict.fromkeys([*moments, *keep]))
    run = BatchedApply(
        lambda network, images_bhwc: {tap: extractor.apply(network, images_bhwc)[tap] for tap in taps},
        extractor.network,
        batch_size=split_batch(batch_size, mesh),
        mesh=mesh,
    )
    checks, statistics = ImageChecks(), {tap: FeatureStatistics() for tap in moments}
    kept = {tap: _Rows(images.count) for tap in keep}
    with tqdm(total=images.count, desc=desc or images.name, unit="image", disable=None) as bar:
        for outputs in run(checks(images.batches(run.batch_size))):
            for tap, found in statistics.items():
                found.update(outputs[tap])
            for tap, rows in kept.items():
                rows.add(outputs[tap])
            bar.update(len(next(iter(outputs.values()))))
    return FeatureSet(statistics, {tap: rows.array for tap, rows in kept.items()}, checks)


class _Rows:
    """Copies rows of features into one preallocated array."""

    def __init__(self, count: int):
        self.count, self.seen = count, 0
        self._array: np.ndarray | None = None

    def add(self, rows_nd: np.ndarray) -> None:
        if self._array is None:
            self._array = np.empty((self.count, rows_nd.shape[1]), np.float32)
        self._array[self.seen : self.seen + len(rows_nd)] = rows_nd
        self.seen += len(rows_nd)

    @property
    def array(self) -> np.ndarray:
        if self._array is None or self.seen != self.count:
            raise ValueError(f"{self.seen} images were read, {self.count} were expected")
        return self._array
