"""What `maskgil demo` does: pictures of a pipeline on one page; and the training of one on the built-in drawings."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from maskgil_jax.checkpoints.weights import load_weights
from maskgil_jax.commands.demo_page import Section, write_page
from maskgil_jax.data.images import open_images
from maskgil_jax.files.images import contact_sheet, save_png
from maskgil_jax.pipelines.pipeline import Pipeline, load
from maskgil_jax.tokenizers.images import reconstruct

_log = logging.getLogger(__name__)

# Classes that are easy to recognise, in the sheet's order; one row each.
SHOWN = ("hearts", "country flags", "smiling", "cat faces", "time", "fruit", "birds", "buildings")
PER_CLASS, SCALE = 8, 2
# Height, width and prompts of each part of the prompt sheet.
PROMPTS = {
    (64, 64): ("a red heart", "a smiling cat", "a green apple", "a shaded drawing of a rocket"),
    (64, 128): ("a tree to the left of a house", "three red hearts", "a cat and a dog", "a bright drawing of two stars"),
}


def draw(workdir: pathlib.Path, weights: Any, text_weights: Any = None, *, report: bool = True) -> None:
    """Draws the pictures of the pipeline `weights` into `workdir` and writes index.html, with figures if `report`."""
    began = time.perf_counter()
    workdir.mkdir(parents=True, exist_ok=True)
    with _stage("weights: loading"):
        pipeline = load(weights)
    side = pipeline.generator.cfg.grid[0] * pipeline.tokenizer.cfg.downsample
    sets = {split: open_images("emoji", split=split, label="subgroup", size=side) for split in ("train", "test")}
    sections = []

    def add(name: str, title: str, caption: str, picture: np.ndarray, command: str = "") -> None:
        save_png(workdir / f"{name}.png", picture)
        sections.append(Section(title, workdir / f"{name}.png", caption, command, SCALE))

    with _stage(f"classes: {PER_CLASS * len(shown_classes(pipeline))} images, after compiling the sampler"):
        names = ",".join(shown_classes(pipeline))
        command = f'maskgil sample --weights {weights} --labels "{names}" --per-class {PER_CLASS}'
        add("samples", "Images by class", f"One class a row: {names.replace(',', ', ')}.", samples(pipeline), command)
    if text_weights is not None:
        with _stage("prompts: images of two sizes, after compiling a sampler for each"):
            text_pipeline = load(text_weights)
            for (height, width), prompts in PROMPTS.items():
                images = text_pipeline(prompts=list(prompts), height=height, width=width)
                asked = " ".join(f'--prompt "{prompt}"' for prompt in prompts)
                command = f"maskgil sample --weights {text_weights} --height {height} --width {width} {asked}"
                title = f"Images by prompt, {width} x {height}"
                add(f"prompts_{width}x{height}", title, "; ".join(prompts) + ".", contact_sheet(images, columns=4), command)
    with _stage("inpainting: 8 images with a hole"):
        caption = "Held-out drawings; the same with a hole; the hole filled in, given the class."
        command = inpaint_command(pipeline, sets["test"], workdir, weights)
        add("inpainting", "Inpainting", caption, inpainting(pipeline, sets["test"]), command)
    with _stage("trajectory: the canvas after each step"):
        caption = "The canvas after each step. Grey tokens are still masked."
        names = ",".join(shown_classes(pipeline)[:4])
        command = f'maskgil sample --weights {weights} --labels "{names}" --per-class 1 --trajectory'
        add("trajectory", "Masked decoding, step by step", caption, trajectory(pipeline), command)
    with _stage("reconstructions: 32 held-out drawings through the tokenizer"):
        caption = "Held-out drawings, each above what the tokenizer makes of it."
        add("reconstructions", "Reconstructions", caption, reconstructions(pipeline, sets["test"]))
    if (workdir / "curves.png").is_file():
        sections.append(Section("Training", workdir / "curves.png", "Losses of the tokenizer and of the generator."))
    page, introduction = workdir / "index.html", f"Drawn by the weights '{weights}' on {jax.default_backend().upper()}."
    write_page(page, "maskgil_jax demo", introduction, sections)
    print(f"pictures after {time.perf_counter() - began:.0f} s: {page}", flush=True)
    if report:
        from maskgil_jax.evaluation.benchmarks.demo_report import as_markdown, figures, table

        with _stage("figures: 500 generated images, a classifier, distances"):
            numbers = figures(pipeline, sets["train"], sets["test"])
        write_page(page, "maskgil_jax demo", introduction, sections, table(numbers))
        print("\n" + as_markdown(numbers))
    print(f"\ndone in {(time.perf_counter() - began) / 60:.1f} minutes: {page}")
    print(f"draw more with: maskgil sample --weights {weights}")


@contextlib.contextmanager
def _stage(text: str) -> Iterator[None]:
    """Logs what is being done, and how long it took."""
    _log.info("%s", text)
    began = time.perf_counter()
    yield
    _log.info("%s: %.1f s", text.partition(":")[0], time.perf_counter() - began)


def train(workdir: pathlib.Path, read_run_file) -> pathlib.Path:
    """Trains tokenizer and generator; each step is reused if it is finished and continued if it is not."""
    from maskgil_jax.evaluation.plots import loss_curves
    from maskgil_jax.pipelines.encoding import encode_source
    from maskgil_jax.training import generator, tokenizer

    workdir.mkdir(parents=True, exist_ok=True)
    _log.info("1/3 tokenizer: images -> codes and back")
    tokenizer_weights = tokenizer.train(read_run_file("demo_tokenizer", []), workdir / "tokenizer")
    weights = load_weights(tokenizer_weights)
    _log.info("2/3 code store: every training image as %dx%d codes", *weights.cfg.grid)
    codes = str(workdir / "codes")
    config = read_run_file("demo", [f"--config.tokenizer={tokenizer_weights}", f"--config.data.codes={codes}"])
    source = open_images(config.data.path, split=config.data.split, label=config.data.label, size=config.data.image_size)
    encode_source(weights, source, codes, size=config.data.image_size)
    _log.info("3/3 generator: masked codes, given a class")
    result = generator.train(config, workdir / "generator")
    runs = {"tokenizer": workdir / "tokenizer", "generator": workdir / "generator"}
    save_png(workdir / "curves.png", loss_curves(runs))
    return result


def shown_classes(pipeline: Pipeline) -> list[str]:
    """The rows of the sample sheet."""
    return [name for name in SHOWN if name in pipeline.class_names] or list(pipeline.class_names[:8])


def samples(pipeline: Pipeline, per_class: int = PER_CLASS, seed: int = 0) -> np.ndarray:
    """A contact sheet, one class a row."""
    labels = np.repeat(pipeline.label_ids(shown_classes(pipeline)), per_class)
    return contact_sheet(pipeline(labels, seed=seed), columns=per_class)


def holes(source, count: int = 8) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Drawings, uint8 (b, h, w, 3), the mask of their right half, bool (h, w), and their class names."""
    records = [source[int(i)] for i in np.linspace(0, len(source) - 1, count)]
    images = np.stack([record["image"] for record in records])
    mask = np.zeros(images[0].shape[:2], bool)
    mask[:, images.shape[2] // 2 :] = True
    return images, mask, [source.class_names[record["label"]] for record in records]


def inpainting(pipeline: Pipeline, source) -> np.ndarray:
    """Three rows: drawings, the same with a hole, filled in."""
    images, mask, labels = holes(source)
    with_hole = np.where(mask[None, :, :, None], np.uint8(160), images)
    return contact_sheet(np.concatenate([images, with_hole, pipeline.inpaint(images, mask, labels)]), columns=len(images))


def inpaint_command(pipeline: Pipeline, source, workdir: pathlib.Path, weights: Any) -> str:
    """Writes the first image and its mask; the command that fills it."""
    images, mask, labels = holes(source)
    save_png(workdir / "picture.png", images[0])
    save_png(workdir / "hole.png", np.repeat(np.where(mask, np.uint8(255), np.uint8(0))[..., None], 3, axis=2))
    files = f"{workdir / 'picture.png'} --mask {workdir / 'hole.png'}"
    return f'maskgil edit inpaint {files} --weights {weights} --labels "{labels[0]}" --count 1'


def trajectory(pipeline: Pipeline, count: int = 4) -> np.ndarray:
    """One image a row, one step a column."""
    steps_sbhwc = pipeline.trajectory(shown_classes(pipeline)[:count])
    return contact_sheet(np.concatenate(np.moveaxis(steps_sbhwc, 0, 1)), columns=len(steps_sbhwc))


def reconstructions(pipeline: Pipeline, source, count: int = 32, columns: int = 16) -> np.ndarray:
    """Rows of held-out images, each above what the tokenizer makes of it."""
    images = np.stack([source[int(i)]["image"] for i in np.linspace(0, len(source) - 1, count)])
    copies = jax.device_get(reconstruct(pipeline.tokenizer, images))
    rows = [part[i : i + columns] for i in range(0, count, columns) for part in (images, copies)]
    return contact_sheet(np.concatenate(rows), columns=columns)
