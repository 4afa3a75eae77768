"""Figures of a generator in training: samples of the averaged weights,
generated and evaluated on all devices of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maskgil_jax.conditioning import Conditioner
from maskgil_jax.config import ConfigError, choose, require
from maskgil_jax.evaluation.extraction import feature_rows, split_batch
from maskgil_jax.evaluation.features import load_feature_extractor
from maskgil_jax.evaluation.generated import cycled_labels
from maskgil_jax.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from maskgil_jax.evaluation.reference import open_reference
from maskgil_jax.pipelines.draw import draw
from maskgil_jax.pipelines.pipeline import Pipeline

# figure -> whether more of it is better
FIGURES = {"fid": False, "agreement": True}


class SampleEvaluator:
    """Figures of a generator in training, `{"fid": ..., "agreement": ...}`; given to `training.generator.train`.

    options: the `evaluate` part of a run file: features, reference, split, count, batch_size, seed and best, the figure
    by which the best weights are kept. The reference is opened and measured once, when this is made. `agreement`, the
    share of samples in which the extractor sees the class asked for, comes with a classifier of the generator's
    classes.

    Every process of the run calls it with its mesh and gets the same figures: samples are one request, drawn in parts.
    """

    def __init__(self, options, *, image_size: int, data_label: str = "subgroup", data_dir: str | None = None):
        require(options.count >= 2, f"config.evaluate.count: must be at least 2, got {options.count}")
        require(bool(options.reference), "config.evaluate.reference: is empty; give an .npz, a stats file or images")
        self.best = choose("config.evaluate.best", options.best, FIGURES)
        self.options, self.extractor = options, load_feature_extractor(options.features)
        self.reference = open_reference(
            options.reference,
            self.extractor,
            moments=("features",),
            keep=False,
            image_size=image_size,
            batch_size=options.batch_size,
            split=options.split,
            label=data_label,
            data_dir=data_dir,
        )
        self._features: dict[Mesh, Callable] = {}

    def __call__(self, tokenizer: Any, generator: Any, conditioner: Conditioner, cfg: Any, mesh: Mesh) -> dict[str, float]:
        """The figures of networks that lie on the mesh; the same samples for the same weights."""
        pipeline = Pipeline(tokenizer, generator, conditioner, cfg, mesh=mesh)
        count, size = self.options.count, split_batch(self.options.batch_size, mesh)
        knows_classes = tuple(pipeline.class_names) == self.extractor.class_names
        if self.best == "agreement" and not knows_classes:
            raise ConfigError(
                "config.evaluate.best: agreement needs a classifier of the generator's classes, "
                f"{self.extractor.name} has others"
            )
        label_n = cycled_labels(count, len(pipeline.class_names))
        if mesh not in self._features:
            self._features[mesh] = feature_rows(self.extractor, mesh)
        features_of, key = self._features[mesh], jax.random.key(self.options.seed)
        statistics, hits = FeatureStatistics(), 0
        drawn = draw(pipeline, pipeline.conditioner.encode(label_n), key, np.arange(count), size=size)
        for start, (images_bhwc, num_valid) in zip(range(0, count, size), drawn):
            rows = jax.device_get(features_of(images_bhwc))
            statistics.update(rows["features"][:num_valid])
            hits += int((np.argmax(rows["logits"], axis=1)[:num_valid] == label_n[start : start + size]).sum())
        figures = {"fid": frechet_distance(*self.reference.moments["features"], statistics.mean, statistics.covariance)}
        return {**figures, "agreement": hits / count} if knows_classes else figures

    def better(self, figures: dict[str, float], than: float | None) -> bool:
        """Whether these figures beat the best value so far (None: there is none)."""
        value = figures[self.best]
        return than is None or (value > than if FIGURES[self.best] else value < than)
