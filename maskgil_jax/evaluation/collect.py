"""One pass over a set of images: what its features sum up to, and what a careful person would have noticed on the way."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from maskgil_jax.config import require
from maskgil_jax.evaluation.extractor import Extractor
from maskgil_jax.evaluation.features import FeatureExtractor, local_mesh
from maskgil_jax.evaluation.frechet import FeatureStatistics
from maskgil_jax.evaluation.image_sets import ImageSet

USUAL_COUNT, USUAL_SIDE = 10_000, 256  # what figures of class-conditional ImageNet are made of, at least


class Watch:
    """Looks at images that pass by: how many, what values, which of them are the same. 16 bytes an image are kept."""

    def __init__(self):
        self.count = self.constant = self.full_range = 0
        self.low, self.high = 255, 0
        self._seen: set[bytes] = set()
        self._digest = hashlib.sha256()

    def __call__(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for images_bhwc in batches:
            lows, highs = images_bhwc.min(axis=(1, 2, 3)), images_bhwc.max(axis=(1, 2, 3))
            self.low, self.high = min(self.low, int(lows.min())), max(self.high, int(highs.max()))
            self.constant += int((lows == highs).sum())
            self.full_range += int(((lows == 0) & (highs == 255)).sum())
            for image in images_bhwc:
                key = hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
                self._seen.add(key)
                self._digest.update(key)
            self.count += len(images_bhwc)
            yield images_bhwc

    @property
    def hash(self) -> str:
        """Identity of the pixels, in their order."""
        return self._digest.hexdigest()[:16]

    @property
    def duplicates(self) -> int:
        """Images that equal an earlier one, pixel by pixel."""
        return self.count - len(self._seen)

    def warnings(self, what: str) -> list[str]:
        """What is suspicious about the values."""
        found = []
        if self.duplicates:
            found.append(f"{what}: {self.duplicates} of {self.count} images equal an earlier one, pixel by pixel")
        if self.high <= 1:
            found.append(f"{what}: no pixel is above {self.high} of 255; images in [0, 1] must be multiplied by 255")
        elif self.high < 128:
            found.append(f"{what}: no pixel is above {self.high} of 255; was the range [-1, 1] mapped to [0, 255]?")
        elif self.low > 127:
            found.append(f"{what}: no pixel is below {self.low} of 255; was the range [-1, 1] mapped to [0, 255]?")
        if self.constant > self.count // 10:
            found.append(f"{what}: {self.constant} of {self.count} images have one value only")
        if self.count >= 100 and self.full_range == self.count:
            found.append(
                f"{what}: every image spans 0 to 255 exactly, as if each had been rescaled by its own minimum and maximum; "
                "that is not what the usual protocols measure"
            )
        return found


@dataclasses.dataclass
class Collected:
    """What is left of a set of images: moments of its features and, where asked for, the features or logits themselves."""

    statistics: dict[str, FeatureStatistics]
    kept: dict[str, np.ndarray]
    watch: Watch

    def moments(self, tap: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean (d,) and covariance (d, d) of a tap, float64."""
        return self.statistics[tap].mean, self.statistics[tap].covariance


def split_batch(batch_size: int, mesh: Mesh) -> int:
    """`batch_size`, or the next multiple of the devices it is split over."""
    require(batch_size >= 1, f"batch_size: must be at least 1, got {batch_size}")
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-batch_size // shards) * shards


def collect(
    images: ImageSet,
    extractor: Extractor,
    *,
    moments: Iterable[str] = ("features",),
    keep: Iterable[str] = (),
    batch_size: int = 64,
    mesh: Mesh | None = None,
    desc: str = "",
) -> Collected:
    """Runs the extractor over a set, split over this process's devices.

    moments: taps whose mean and covariance are summed up, in float64 and constant memory. keep: taps kept whole as float32
      (rows, width): 2048 features of 50 000 images are 410 MB, a classifier's 128 are 26 MB; pixels are never kept.
    Raises a `ValueError` for images of mixed sizes or features that are not finite.
    """
    mesh = local_mesh() if mesh is None else mesh
    taps = tuple(dict.fromkeys([*moments, *keep]))
    run = FeatureExtractor(
        lambda network, images_bhwc: {tap: extractor.apply(network, images_bhwc)[tap] for tap in taps},
        extractor.network,
        batch_size=split_batch(batch_size, mesh),
        mesh=mesh,
    )
    watch, found = Watch(), {tap: FeatureStatistics() for tap in moments}
    kept = {tap: _Rows(images.count) for tap in keep}
    with tqdm(total=images.count, desc=desc or images.name, unit="image", disable=None) as bar:
        for outputs in run(watch(images.batches(run.batch_size))):
            for tap, statistics in found.items():
                statistics.update(outputs[tap])
            for tap, rows in kept.items():
                rows.add(outputs[tap])
            bar.update(len(next(iter(outputs.values()))))
    return Collected(found, {tap: rows.array for tap, rows in kept.items()}, watch)


class _Rows:
    """Rows of features put into one array as they come, so that it never exists twice."""

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
            raise ValueError(f"{self.seen} images were read, {self.count} announced")
        return self._array


def feature_rows(extractor: Extractor, mesh: Mesh):
    """`images_bhwc -> {tap: rows}` over a whole mesh of any number of processes, the result whole on each of them."""
    from maskgil_jax.runtime.mesh import batch_sharding, replicated

    network = jax.device_put(extractor.network, replicated(mesh))
    run = jax.jit(extractor.apply, in_shardings=(replicated(mesh), batch_sharding(mesh)), out_shardings=replicated(mesh))
    return lambda images_bhwc: run(network, images_bhwc)
