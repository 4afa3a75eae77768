"""The report of the demo: figures of a trained pipeline, each with its baselines.

It evaluates the tokenizer on held-out images, the generator's predictions of masked codes, and the predictions of a
classifier, trained on real images only, for generated ones.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from maskgil_jax.checkpoints.weights import Weights, load_weights
from maskgil_jax.config import ClassifierConfig, ConfigError, require
from maskgil_jax.evaluation.benchmarks.layouts import spread
from maskgil_jax.evaluation.metrics import codebook_perplexity, codebook_usage, count_codes, psnr
from maskgil_jax.pipelines.pipeline import Pipeline
from maskgil_jax.tokenizers.images import to_uint8, to_unit
from maskgil_jax.training.classifier import accuracy, in_batches, pixels_and_labels, predict
from maskgil_jax.training.losses import corrupt

MAX_IMAGES = 10_000  # images used of a set, evenly spread over it; the built-in one is smaller
THUMBNAIL_SIDE = 32  # image size at which the nearest training image is searched


def summarize(
    pipeline: Pipeline, train_source, held_out_source, *, classifier: Weights | None = None, count: int = 500, seed: int = 0
) -> str:
    """Computes the `figures` and formats them as a Markdown table."""
    return as_markdown(figures(pipeline, train_source, held_out_source, classifier=classifier, count=count, seed=seed))


def figures(
    pipeline: Pipeline,
    train_source,
    held_out_source,
    *,
    classifier: Weights | None = None,
    count: int = 500,
    seed: int = 0,
    schedule: str = "arccos",
    batch_size: int = 64,
) -> dict:
    """Computes all figures as nested dicts, ready for JSON: fractions in [0, 1], PSNR in dB, grey levels.

    train_source, held_out_source: image sources (`data.images.open_images`) of the pipeline's classes and image size;
      the first is the training set of pipeline and classifier. classifier: default the shipped one, of the built-in
      emoji.
    count: images to generate; their classes have the frequencies of the training set. schedule: of the mask ratio. The
    same `seed` gives the same figures.
    Raises a `ValueError` if classes, sizes or networks do not match.
    """
    classifier = load_weights("demo", "classifier") if classifier is None else classifier
    _check(pipeline, classifier, (train_source, held_out_source), count)
    run = functools.partial(in_batches, batch_size=batch_size)
    train_images, train_labels = pixels_and_labels(train_source, _part(len(train_source), MAX_IMAGES))
    test_images, test_labels = pixels_and_labels(held_out_source, _part(len(held_out_source), MAX_IMAGES))
    _check_sizes(pipeline, classifier, train_images, test_images)
    # As many training images as held-out ones, for the figures that do not need all of them.
    part = _part(len(train_images), len(test_images))

    # tokenizer
    encode = functools.partial(_encode, pipeline.tokenizer)
    decode = functools.partial(_decode, pipeline.tokenizer)
    train_codes = run(encode, train_images, desc="codes of training images")
    test_codes = run(encode, test_images, desc="codes of held-out images")
    test_copies = run(decode, test_codes, desc="held-out images from codes")
    train_copies = run(decode, train_codes[part], desc="training images from codes")
    size = pipeline.tokenizer.cfg.codebook_size
    counts = {"held_out": count_codes(test_codes, size), "train": count_codes(train_codes, size)}
    tokenizer = {
        "codebook_size": size,
        "usage": {name: codebook_usage(c) for name, c in counts.items()},
        "perplexity": {name: codebook_perplexity(c) for name, c in counts.items()},
        "psnr": {
            "held_out": float(psnr(test_images, test_copies).mean()),
            "train": float(psnr(train_images[part], train_copies).mean()),
        },
    }

    # masked codes: both sets with the same masks, so that only the images differ
    mask_key, code_key = jax.random.split(jax.random.key(seed))
    options = dict(conditioner=pipeline.conditioner, grid=train_codes.shape[1:])
    predict_codes = functools.partial(_predict_codes, pipeline.generator, **options)
    hits = {}
    test_bl, train_bl = (codes.reshape(len(codes), -1) for codes in (test_codes, train_codes))
    for name, codes_bl, label_b in (("held_out", test_bl, test_labels), ("train", train_bl[part], train_labels[part])):
        inputs_bl, mask_bl = jax.device_get(corrupt(mask_key, jnp.asarray(codes_bl), schedule, pipeline.generator.cfg.mask_id))
        predicted_bl = run(predict_codes, inputs_bl, label_b, desc=f"masked codes, {name}")
        hits[name] = float((predicted_bl == codes_bl)[mask_bl].mean())
        if name == "held_out":
            frequent_l = np.asarray([count_codes(column, size).argmax() for column in train_bl.T])
            hits["most_frequent_code"] = float((counts["train"].argmax() == codes_bl)[mask_bl].mean())
            hits["most_frequent_code_of_position"] = float((frequent_l[None] == codes_bl)[mask_bl].mean())

    # generated images, and the classifier's predictions for them, for training images and for images of random codes
    requested = np.sort(train_labels)[spread(len(train_labels), count)]
    with tqdm(total=count, desc="generated images", unit="image", disable=None) as bar:
        made = []
        for images in pipeline.batches(requested, seed=seed, batch_size=batch_size):
            made.append(images)
            bar.update(len(images))
    generated = np.concatenate(made)
    random_codes = jax.device_get(jax.random.randint(code_key, (count, *train_codes.shape[1:]), 0, size))
    sets = {
        "generated": (generated, requested),
        "random_codes": (run(decode, random_codes, desc="images from random codes"), requested),
        "held_out": (test_images, test_labels),
        "held_out_copies": (test_copies, test_labels),
        "train": (train_images[part], train_labels[part]),
        "train_copies": (train_copies, train_labels[part]),
    }
    network, agreement, predicted = classifier.build(), {}, {}
    for name, (images, label_b) in sets.items():
        logits = predict(network, images, batch_size=batch_size, desc=f"classifier, {name}")
        agreement[name] = {"top1": accuracy(logits, label_b), "top5": accuracy(logits, label_b, 5)}
        predicted[name] = logits.argmax(axis=1)
    classes = len(pipeline.class_names)
    # How often predicted and requested class would agree if the images were assigned to the requests at random.
    fractions = (np.bincount(label_b, minlength=classes) / count for label_b in (predicted["generated"], requested))
    agreement["label_ignored"] = {"top1": float(np.dot(*fractions))}
    agreement["chance"] = {"top1": 1 / classes, "top5": min(5 / classes, 1.0)}

    compared = {"generated": generated, "held_out_copies": test_copies, "train_copies": train_copies}
    return {
        "seed": seed,
        "classes": classes,
        "images": {"train": len(train_images), "held_out": len(test_images), "generated": count},
        "tokenizer": tokenizer,
        "masked_accuracy": hits,
        "agreement": agreement,
        "nearest_training_image": {name: nearest(images, train_images, batch_size) for name, images in compared.items()},
    }


def nearest(images_nhwc: np.ndarray, train_mhwc: np.ndarray, batch_size: int = 64) -> float:
    """Median over images of the RMS distance to the nearest training image, in grey levels, at 32x32 pixels."""
    thumbs = in_batches(_thumbnails, train_mhwc, batch_size=batch_size)
    return float(np.median(in_batches(functools.partial(_nearest, thumbs), images_nhwc, batch_size=batch_size)))


@jax.jit
def _encode(tokenizer, images_bhwc):
    return tokenizer.encode(to_unit(images_bhwc))


@jax.jit
def _decode(tokenizer, codes_bhw):
    return to_uint8(tokenizer.decode(codes_bhw))


@functools.partial(jax.jit, static_argnames=("conditioner", "grid"))
def _predict_codes(generator, inputs_bl, label_b, conditioner, grid):
    condition = conditioner.from_batch({"label": label_b})
    return jnp.argmax(generator(inputs_bl, condition, grid=grid), axis=-1)


@jax.jit
def _thumbnails(images_bhwc):
    small = jax.image.resize(
        to_unit(images_bhwc), (len(images_bhwc), THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), "linear", antialias=True
    )
    return 127.5 * small.reshape(len(images_bhwc), -1)


@jax.jit
def _nearest(thumbs_mp, images_bhwc):
    a_bp = _thumbnails(images_bhwc)
    product_bm = jnp.matmul(a_bp, thumbs_mp.T, precision=jax.lax.Precision.HIGHEST)
    found_b = jnp.argmin(jnp.sum(thumbs_mp**2, axis=1)[None] - 2.0 * product_bm, axis=1)
    # Recomputed from the pixels: the difference of large squares above finds the nearest image, but loses digits.
    return jnp.sqrt(jnp.mean((a_bp - thumbs_mp[found_b]) ** 2, axis=1))


def _part(length: int, most: int) -> np.ndarray:
    """At most `most` indices evenly spread over 0..length-1."""
    return spread(length, min(length, most))


def _check(pipeline: Pipeline, classifier: Weights, sources, count: int) -> None:
    require(count >= 1, f"count: must be at least 1, got {count}")
    if not isinstance(classifier.cfg, ClassifierConfig):
        raise ConfigError(f"{classifier.path}: holds no classifier; train one with configs/demo_classifier.py")
    require(
        not pipeline.generator.cfg.causal,
        "the generator is causal: it was not trained to predict masked codes",
    )
    lists = {str(classifier.path): classifier.about.get("class_names", ()), **{s.name: s.class_names for s in sources}}
    for name, found in lists.items():
        if tuple(found) != tuple(pipeline.class_names):
            unmatched = sorted(set(found) ^ set(pipeline.class_names))[:3]
            differ = f"only one has {', '.join(map(repr, unmatched))}" if unmatched else "their order differs"
            raise ConfigError(
                f"{name}: its {len(found)} classes are not the pipeline's {len(pipeline.class_names)} ({differ}); the "
                "report needs images and a classifier of the classes the generator was trained on (for others than the "
                "built-in ones: maskgil train --config configs/demo_classifier.py --config.data.path=...)"
            )


def _check_sizes(pipeline: Pipeline, classifier: Weights, *sets) -> None:
    size = tuple(rows * pipeline.tokenizer.cfg.downsample for rows in pipeline.generator.cfg.grid)
    for images in sets:
        require(
            images.shape[1:3] == size, f"images are {images.shape[1:3]}, the generator makes {size}: open them at that size"
        )
    require(
        size == (classifier.cfg.image_size,) * 2,
        f"{classifier.path}: trained on images of side {classifier.cfg.image_size}, the generator makes {size}",
    )


def as_markdown(numbers: dict) -> str:
    """Formats the dict of `figures` as a Markdown table."""
    head, *rows = table(numbers)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def table(numbers: dict) -> list[tuple[str, str, str]]:
    """The rows of a table of the dict of `figures`, the first is the head: figure, value, baselines."""
    tok, hits, agree, near = (numbers[n] for n in ("tokenizer", "masked_accuracy", "agreement", "nearest_training_image"))
    usage, perplexity, quality, images = tok["usage"], tok["perplexity"], tok["psnr"], numbers["images"]

    def pct(value: float) -> str:
        return f"{100 * value:.1f}%"

    def both(name: str) -> str:
        return f"{pct(agree[name]['top1'])} ({pct(agree[name]['top5'])})"

    def db(value: float) -> str:
        return f"{value:.2f} dB" if math.isfinite(value) else "no loss"

    return [
        ("Figure", "Value", "Compare with"),
        (
            f"Codes used, of {tok['codebook_size']}, on {images['held_out']} held-out images",
            pct(usage["held_out"]),
            f"{pct(usage['train'])} on {images['train']} training images",
        ),
        (
            "Codebook perplexity, held-out images",
            f"{perplexity['held_out']:.0f}",
            f"{perplexity['train']:.0f} on training images",
        ),
        ("Reconstruction PSNR, held-out images", db(quality["held_out"]), f"{db(quality['train'])} on training images"),
        (
            "Masked codes predicted correctly, held-out images",
            pct(hits["held_out"]),
            f"{pct(hits['train'])} on training images; always the most frequent code {pct(hits['most_frequent_code'])}; "
            f"the most frequent of the position {pct(hits['most_frequent_code_of_position'])}",
        ),
        (
            f"{images['generated']} generated images classified as the requested class (among the first five)",
            both("generated"),
            f"real held-out images {both('held_out')}, through the tokenizer {both('held_out_copies')}; "
            f"real training images {both('train')}, through the tokenizer {both('train_copies')}; "
            f"images of random codes {both('random_codes')}; chance {both('chance')}; "
            f"a generator of these images that ignores the label {pct(agree['label_ignored']['top1'])}",
        ),
        (
            "Distance of generated images to the nearest training image, grey levels",
            f"{near['generated']:.1f}",
            f"held-out images through the tokenizer {near['held_out_copies']:.1f}; "
            f"training images through the tokenizer {near['train_copies']:.1f}, which a memorised image would have",
        ),
    ]
