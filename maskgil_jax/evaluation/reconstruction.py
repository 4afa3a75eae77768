"""A tokenizer on images it is given: rFID against the originals and against a training reference in one pass, PSNR, SSIM,
LPIPS, how much of the codebook is used, and a sheet of originals above their reconstructions (paper, Table 1)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from maskgil_jax.checkpoints.weights import Weights, load_network
from maskgil_jax.config import ConfigError, require
from maskgil_jax.evaluation.collect import Watch, split_batch
from maskgil_jax.evaluation.extractor import Extractor
from maskgil_jax.evaluation.features import FeatureExtractor, local_mesh, rebatch
from maskgil_jax.evaluation.frechet import FeatureStatistics, frechet_distance
from maskgil_jax.evaluation.image_quality import SSIM_CONVENTIONS, psnr, ssim
from maskgil_jax.evaluation.image_sets import ImageSet
from maskgil_jax.evaluation.metrics import codebook_perplexity, codebook_usage, count_codes
from maskgil_jax.evaluation.reference import Reference, require_two
from maskgil_jax.evaluation.results import provenance
from maskgil_jax.evaluation.run import warnings_of
from maskgil_jax.files.images import contact_sheet
from maskgil_jax.runtime.mesh import batch_sharding, replicated
from maskgil_jax.tokenizers.images import to_uint8, to_unit

SHEET_IMAGES, SHEET_COLUMNS = 32, 16


class _Copies:
    """Runs images through the tokenizer and gathers what needs the pixels, while the features are taken elsewhere."""

    def __init__(self, tokenizer: Weights, lpips, batch_size: int, mesh: Mesh):
        self.size, self.codebook = batch_size, tokenizer.cfg.codebook_size
        self.images, place = batch_sharding(mesh), replicated(mesh)
        self.network, self.lpips = jax.device_put(tokenizer.build(), place), lpips and jax.device_put(lpips, place)
        self.counts, self.rows = np.zeros(self.codebook, np.int64), 0
        self.sums = {"psnr": 0.0, **dict.fromkeys(SSIM_CONVENTIONS, 0.0), "lpips": 0.0}
        self.perfect, self.shown = 0, []

        @jax.jit
        def run(network, lpips, images_bhwc):
            codes_bhw = network.encode(to_unit(images_bhwc))
            copies_bhwc = to_uint8(network.decode(codes_bhw))
            if lpips is None:
                return codes_bhw, copies_bhwc, jnp.zeros(images_bhwc.shape[0])
            return codes_bhw, copies_bhwc, lpips(to_unit(images_bhwc), to_unit(copies_bhwc))

        self._run = run

    def __call__(self, batches) -> Iterator[np.ndarray]:
        """Batches of originals -> batches of twice the size: the originals, then their reconstructions."""
        for images in batches:
            rows = len(images)
            padded = np.pad(images, ((0, self.size - rows), (0, 0), (0, 0), (0, 0)))
            results = jax.device_get(self._run(self.network, self.lpips, jax.device_put(padded, self.images)))
            codes, copies, distance = (result[:rows] for result in results)
            self.counts += count_codes(codes, self.codebook)
            decibels = psnr(images, copies)
            self.perfect += int(np.isinf(decibels).sum())
            self.sums["psnr"] += float(decibels[np.isfinite(decibels)].sum())
            for convention in SSIM_CONVENTIONS:
                self.sums[convention] += float(ssim(images, copies, convention=convention).sum())
            self.sums["lpips"] += float(distance.sum())
            if len(self.shown) < SHEET_IMAGES:
                self.shown += list(zip(images, copies))[: SHEET_IMAGES - len(self.shown)]
            self.rows += rows
            yield np.concatenate([images, copies])

    def figures(self) -> tuple[dict, dict]:
        """(figures, settings)."""
        means = {name: total / self.rows for name, total in self.sums.items()}
        figures = {
            # Images that come back unchanged have no PSNR; they are counted apart.
            "psnr": self.sums["psnr"] / max(self.rows - self.perfect, 1) if self.rows > self.perfect else float("inf"),
            "ssim": means["wang"],
            "usage": codebook_usage(self.counts),
            "perplexity": codebook_perplexity(self.counts),
        }
        if self.lpips is not None:
            figures["lpips"] = means["lpips"]
        settings = {
            "ssim": {"convention": "wang", **{f"by {name}": means[name] for name in SSIM_CONVENTIONS}},
            "psnr": {"of": "mean over images, data range 255", "images without loss": self.perfect},
            "usage": {"codes_used": int((self.counts > 0).sum()), "of": self.codebook, "codes_seen": int(self.counts.sum())},
        }
        return figures, settings

    def sheet(self) -> np.ndarray:
        """Rows of originals, each above its reconstructions: uint8 (h, w, 3)."""
        rows = []
        for start in range(0, len(self.shown), SHEET_COLUMNS):
            part = self.shown[start : start + SHEET_COLUMNS]
            blank = [np.full_like(part[0][0], 255)] * (SHEET_COLUMNS - len(part) if start else 0)
            rows += [*(original for original, _ in part), *blank, *(copy for _, copy in part), *blank]
        return contact_sheet(np.stack(rows), columns=min(SHEET_COLUMNS, len(self.shown)))


def evaluate_tokenizer(
    tokenizer: Weights,
    images: ImageSet,
    extractor: Extractor,
    *,
    train_reference: Reference | None = None,
    lpips=None,
    batch_size: int = 32,
    mesh: Mesh | None = None,
) -> tuple[dict, np.ndarray]:
    """(result as `run.evaluate` gives it, the sheet as uint8 (h, w, 3)) of a tokenizer on a set of images, in one pass.

    rfid: against the originals (the set itself, usually the validation images); rfid_train: against `train_reference`.
    lpips: the network of `open_lpips`; None leaves it out. Raises a `ValueError` for images the tokenizer cannot take.
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
    copies, watch = _Copies(tokenizer, lpips, size, mesh), Watch()
    original, copied = FeatureStatistics(), FeatureStatistics()
    run = FeatureExtractor(
        lambda network, images_bhwc: {"features": extractor.apply(network, images_bhwc)["features"]},
        extractor.network,
        batch_size=2 * size,
        mesh=mesh,
    )
    with tqdm(total=images.count, desc=images.name, unit="image", disable=None) as bar:
        for outputs in run(copies(watch(rebatch(images.batches(size), size)))):
            features_nd = outputs["features"]
            rows = len(features_nd) // 2
            original.update(features_nd[:rows])
            copied.update(features_nd[rows:])
            bar.update(rows)
    figures = {"rfid": frechet_distance(original.mean, original.covariance, copied.mean, copied.covariance)}
    warnings = watch.warnings("images")
    if train_reference is not None:
        moments = train_reference.moments["features"]
        figures["rfid_train"] = frechet_distance(*moments, copied.mean, copied.covariance)
        warnings += [*warnings_of(images, train_reference, extractor), *train_reference.warnings]
    others, settings = copies.figures()
    result = {
        **provenance(),
        "figures": {**figures, **others},
        "settings": settings,
        "samples": {
            **images.about,
            "name": images.name,
            "count": watch.count,
            "size": f"{images.size[1]}x{images.size[0]}",
            "hash": watch.hash,
            "tokenizer": {"path": str(tokenizer.path), "hash": tokenizer.hash},
        },
        "reference": train_reference and train_reference.about(),
        "extractor": extractor.about(),
        "warnings": warnings,
        "notes": [
            "rFID: the originals themselves are the reference",
            *(f"images: {note}" for note in images.notes),
            *(train_reference.notes if train_reference else []),
        ],
        "seconds": round(time.perf_counter() - began, 1),
    }
    return result, copies.sheet()


def open_lpips(path):
    """The LPIPS network of a weights folder; an error that says how to get one without a path."""
    if not path:
        raise ConfigError(
            "--lpips: LPIPS needs its weights, which are not part of this package: give the folder that maskgil convert "
            "makes of them; without --lpips it is left out"
        )
    return load_network(path, "lpips")
