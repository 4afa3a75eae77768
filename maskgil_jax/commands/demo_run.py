"""The whole job on the built-in emoji: tokenizer, codes, generator, pictures, figures. What `maskgil demo` runs."""

from __future__ import annotations

import logging
import pathlib
import time

import jax
import numpy as np

from maskgil_jax.checkpoints.weights import load_weights
from maskgil_jax.data.images import open_images
from maskgil_jax.files.images import contact_sheet, save_png
from maskgil_jax.pipelines.encoding import encode_source
from maskgil_jax.pipelines.pipeline import Pipeline, load
from maskgil_jax.tokenizers.images import reconstruct

_log = logging.getLogger(__name__)

# Classes with a look of their own, first in the demo's sample sheet; one row each.
SHOWN = ("hearts", "country flags", "smiling", "cat faces", "time", "fruit", "birds", "buildings")


def run(workdir: pathlib.Path, *, report: bool, weights: pathlib.Path | str | None, read_run_file) -> None:
    """Trains what `workdir` does not hold yet (or takes `weights`), draws the pictures, prints where everything is."""
    began = time.perf_counter()
    workdir.mkdir(parents=True, exist_ok=True)
    data = read_run_file("demo", []).data
    if weights is None:
        weights = train(workdir, read_run_file)
    pipeline = load(weights)
    held_out = open_images(data.path, split="test", label=data.label, size=data.image_size)
    save_png(workdir / "reconstructions.png", reconstructions(pipeline, held_out))
    save_png(workdir / "samples.png", samples(pipeline))
    print(f"\ndone in {(time.perf_counter() - began) / 60:.1f} minutes")
    print(f"  generated images            {workdir / 'samples.png'}  (a row each: {', '.join(shown_classes(pipeline))})")
    print(f"  held-out images and copies  {workdir / 'reconstructions.png'}")
    if (workdir / "curves.png").exists():
        print(f"  loss curves                 {workdir / 'curves.png'}")
    print(f"  weights folder              {weights}  (maskgil sample --weights {weights})")
    if report:
        from maskgil_jax.evaluation.benchmarks.demo_report import summarize

        train_set = open_images(data.path, split="train", label=data.label, size=data.image_size)
        print("\n" + summarize(pipeline, train_set, held_out))


def train(workdir: pathlib.Path, read_run_file) -> pathlib.Path:
    """Tokenizer, code store, generator; each step is reused if it is finished and continued if it is not."""
    from maskgil_jax.evaluation.plots import loss_curves
    from maskgil_jax.training import generator, tokenizer

    _log.info("1/3 tokenizer: images -> codes and back")
    tokenizer_weights = tokenizer.train(read_run_file("demo_tokenizer", []), workdir / "tokenizer")
    weights = load_weights(tokenizer_weights)
    _log.info("2/3 code store: every training image as %dx%d codes", *weights.cfg.grid)
    codes = str(workdir / "codes")
    config = read_run_file("demo", [f"--config.tokenizer={tokenizer_weights}", f"--config.data.codes={codes}"])
    source = open_images(config.data.path, split=config.data.split, label=config.data.label, size=config.data.image_size)
    encode_source(weights, source, codes, size=config.data.image_size)
    _log.info("3/3 generator: fill in masked codes, given a class")
    result = generator.train(config, workdir / "generator")
    runs = {"tokenizer": workdir / "tokenizer", "generator": workdir / "generator"}
    save_png(workdir / "curves.png", loss_curves(runs))
    return result


def shown_classes(pipeline: Pipeline) -> list[str]:
    """The rows of the sample sheet."""
    return [name for name in SHOWN if name in pipeline.class_names] or list(pipeline.class_names[:8])


def samples(pipeline: Pipeline, per_class: int = 8, seed: int = 0) -> np.ndarray:
    """A contact sheet, one class a row."""
    labels = np.repeat(pipeline.label_ids(shown_classes(pipeline)), per_class)
    return contact_sheet(pipeline(labels, seed=seed, batch_size=32), columns=per_class)


def reconstructions(pipeline: Pipeline, source, count: int = 32, columns: int = 16) -> np.ndarray:
    """Rows of held-out images, each above what the tokenizer makes of it."""
    images = np.stack([source[int(i)]["image"] for i in np.linspace(0, len(source) - 1, count)])
    copies = jax.device_get(reconstruct(pipeline.tokenizer, images))
    rows = [part[i : i + columns] for i in range(0, count, columns) for part in (images, copies)]
    return contact_sheet(np.concatenate(rows), columns=columns)
