"""Evaluates a tokenizer on an image set in one pass: rFID against the originals and against a training reference, PSNR,
SSIM, LPIPS, codebook usage, and a contact sheet of originals above their reconstructions (paper, Table 1)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from maskgil_jax.checkpoints.weights import Weights, load_network
from maskgil_jax.config import ConfigError, require
from maskgil_jax.evaluation.extraction import BatchedApply, ImageChecks, local_mesh, rebatch, split_batch
from maskgil_jax.evaluation.features import FeatureExtractor
from maskgil_jax.evaluation.images import ImageSet
from maskgil_jax.evaluation.metrics import reconstruction_metrics
from maskgil_jax.evaluation.metrics.base import MetricResult, Reconstructions
from maskgil_jax.evaluation.metrics.frechet import FeatureStatistics, frechet_distance, singular_warnings
from maskgil_jax.evaluation.reference import Reference, require_two
from maskgil_jax.evaluation.report import environment
from maskgil_jax.evaluation.run import comparison_warnings
from maskgil_jax.files.images import contact_sheet
from maskgil_jax.runtime.mesh import batch_sharding, replicated
from maskgil_jax.tokenizers.images import to_uint8, to_unit

SHEET_IMAGES, SHEET_COLUMNS = 32, 16


class _Reconstructor:
    """Reconstructs batches of images and accumulates the metrics of pixels and codes."""

    def __init__(self, tokenizer: Weights, lpips, batch_size: int, mesh: Mesh):
        self.batch_size, self.codebook_size = batch_size, tokenizer.cfg.codebook_size
        self.images, place = batch_sharding(mesh), replicated(mesh)
        self.network, self.lpips = jax.device_put(tokenizer.build(), place), lpips and jax.device_put(lpips, place)
        self.metrics = [row for row in reconstruction_metrics().values() if lpips is not None or "lpips" not in row.needs]
        self.sums: dict[str, dict] = {row.name: {} for row in self.metrics}
        self.count = 0
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []

        @jax.jit
        def run(network, lpips, images_bhwc):
            codes_bhw = network.encode(to_unit(images_bhwc))
            copies_bhwc = to_uint8(network.decode(codes_bhw))
            if lpips is None:
                return codes_bhw, copies_bhwc, None
            return codes_bhw, copies_bhwc, lpips(to_unit(images_bhwc), to_unit(copies_bhwc))

        self._run = run

    def __call__(self, batches) -> Iterator[np.ndarray]:
        """Yields, for each batch of originals, a batch of twice the size: the originals, then their reconstructions."""
        for images in batches:
            rows = len(images)
            padded = np.pad(images, ((0, self.batch_size - rows), (0, 0), (0, 0), (0, 0)))
            outputs = jax.device_get(self._run(self.network, self.lpips, jax.device_put(padded, self.images)))
            codes, copies, distance = (output if output is None else output[:rows] for output in outputs)
            batch = Reconstructions(images, copies, codes, distance, self.codebook_size)
            for row in self.metrics:
                sums = self.sums[row.name]
                for name, value in row.accumulate(batch).items():
                    sums[name] = sums.get(name, 0) + value
            if len(self.pairs) < SHEET_IMAGES:
                self.pairs += list(zip(batch.originals_bhwc, batch.copies_bhwc))[: SHEET_IMAGES - len(self.pairs)]
            self.count += rows
            yield np.concatenate([images, copies])

    def result(self) -> MetricResult:
        """Figures and settings of all images that were reconstructed."""
        found = MetricResult({})
        for row in self.metrics:
            result = row.finish(self.sums[row.name], self.count)
            found.values.update(result.values)
            found.settings.update(result.settings)
            found.warnings.extend(result.warnings)
        return found

    def sheet(self) -> np.ndarray:
        """Rows of originals, each above its reconstructions: uint8 (h, w, 3)."""
        rows = []
        for start in range(0, len(self.pairs), SHEET_COLUMNS):
            part = self.pairs[start : start + SHEET_COLUMNS]
            blank = [np.full_like(part[0][0], 255)] * (SHEET_COLUMNS - len(part) if start else 0)
            rows += [*(original for original, _ in part), *blank, *(copy for _, copy in part), *blank]
        return contact_sheet(np.stack(rows), columns=min(SHEET_COLUMNS, len(self.pairs)))


def evaluate_tokenizer(
    tokenizer: Weights,
    images: ImageSet,
    extractor: FeatureExtractor,
    *,
    train_reference: Reference | None = None,
    lpips=None,
    batch_size: int = 32,
    mesh: Mesh | None = None,
) -> tuple[dict, np.ndarray]:
    """Evaluates a tokenizer in one pass; returns (result as of `run.evaluate`, contact sheet uint8 (h, w, 3)).

    rfid: against the originals (the set itself, usually the validation images); rfid_train: against `train_reference`.
    lpips: the network of `open_lpips`; None omits LPIPS. Raises a `ValueError` for images that the tokenizer does not
    support.
    """
    began, mesh = time.perf_counter(), local_mesh() if mesh is None else mesh
    factor = getattr(tokenizer.cfg, "downsample", None)
    if factor is None:
        raise ConfigError(f"{tokenizer.path}: holds no tokenizer")
    require_two(images.name, images.count)
    require(
        images.size[0] % factor == 0 and images.size[1] % factor == 0,
        f"{images.name}: images of {images.size[1]}x{images.size[0]}, but the sides must be multiples of the tokenizer's "
        f"downsampling factor {factor}; give --image-size {tokenizer.cfg.image_size}",
    )
    size = split_batch(batch_size, mesh)
    reconstruct, checks = _Reconstructor(tokenizer, lpips, size, mesh), ImageChecks()
    originals, copies = FeatureStatistics(), FeatureStatistics()
    run = BatchedApply(
        lambda network, images_bhwc: {"features": extractor.apply(network, images_bhwc)["features"]},
        extractor.network,
        batch_size=2 * size,
        mesh=mesh,
    )
    with tqdm(total=images.count, desc=images.name, unit="image", disable=None) as bar:
        for outputs in run(reconstruct(checks(rebatch(images.batches(size), size)))):
            features_nd = outputs["features"]
            rows = len(features_nd) // 2
            originals.update(features_nd[:rows])
            copies.update(features_nd[rows:])
            bar.update(rows)
    figures = {"rfid": frechet_distance(originals.mean, originals.covariance, copies.mean, copies.covariance)}
    warnings = [*checks.warnings("images"), *singular_warnings("rfid", checks.count, len(copies.mean))]
    if train_reference is not None:
        moments = train_reference.moments["features"]
        figures["rfid_train"] = frechet_distance(*moments, copies.mean, copies.covariance)
        warnings += [*comparison_warnings(images, train_reference, extractor), *train_reference.warnings]
    others = reconstruct.result()
    result = {
        **environment(),
        "figures": {**figures, **others.values},
        "settings": others.settings,
        "samples": {
            **images.provenance,
            "name": images.name,
            "count": checks.count,
            "size": f"{images.size[1]}x{images.size[0]}",
            "hash": checks.hash,
            "tokenizer": {"path": str(tokenizer.path), "hash": tokenizer.hash},
        },
        "reference": train_reference and train_reference.metadata(),
        "extractor": extractor.metadata(),
        "warnings": [*warnings, *others.warnings],
        "notes": [
            "rFID: the originals themselves are the reference",
            *(f"images: {note}" for note in images.notes),
            *(train_reference.notes if train_reference else []),
        ],
        "seconds": round(time.perf_counter() - began, 1),
    }
    return result, reconstruct.sheet()


def open_lpips(path):
    """Loads the LPIPS network of a weights folder. Raises a `ConfigError` without a path."""
    if not path:
        raise ConfigError(
            "--lpips: LPIPS needs its weights, which are not part of this package: give the folder that maskgil convert "
            "makes of them; without --lpips it is left out"
        )
    return load_network(path, "lpips")
