"""Trains the classifier whose features evaluate generated images; on real images only."""

from __future__ import annotations

import functools
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Average
from flax import nnx
from tqdm import tqdm

from maskgil_jax import networks as network
from maskgil_jax.checkpoints.weights import save_weights
from maskgil_jax.config import ClassifierConfig, from_dict, height_width, require
from maskgil_jax.config.training import Augment
from maskgil_jax.data.images import image_batches, open_images
from maskgil_jax.files.paths import open_folder
from maskgil_jax.runtime.mesh import place, replicated, to_host
from maskgil_jax.runtime.rng import image_keys
from maskgil_jax.tokenizers.images import to_unit
from maskgil_jax.training.loop import data_identity, fit, loader_config, open_mesh, with_arrays
from maskgil_jax.training.losses import token_losses
from maskgil_jax.training.optimizer import learning_rate, make_optimizer
from maskgil_jax.training.skip_updates import skip_bad_updates, skip_config, step_metrics
from maskgil_jax.training.state import TrainState, apply_gradients, init_state

_log = logging.getLogger(__name__)


def augment(key_b: jax.Array, images_bhwc: jax.Array, options: Augment) -> jax.Array:
    """Scales, shifts, mirrors and tints each image by its own key.

    Pixels in [-1, 1]; the image is padded with white.
    """
    chex.assert_shape(images_bhwc, (len(key_b), None, None, 3))
    b, h, w, _ = images_bhwc.shape
    draws_bn = jax.vmap(lambda key: jax.random.uniform(key, (14,), minval=-1.0))(key_b)
    zoom_b2 = jnp.exp(options.scale * draws_bn[:, 0:2])
    shift_b2 = options.shift * draws_bn[:, 2:4]
    mirror_b = jnp.where(draws_bn[:, 4] < 2.0 * options.flip - 1.0, -1.0, 1.0)
    rows_bij = _resampling(h, 1.0 / zoom_b2[:, 0], shift_b2[:, 0])
    columns_bij = _resampling(w, mirror_b / zoom_b2[:, 1], shift_b2[:, 1])
    tint_bcd = jnp.eye(3)[None] + options.colour * draws_bn[:, 5:14].reshape(b, 3, 3)
    ink_bhwc = (1.0 - images_bhwc) / 2.0  # white is 0, which is what weights outside of the image give
    ink_bhwc = jnp.einsum("bih,bhwc->biwc", rows_bij, ink_bhwc)
    ink_bhwc = jnp.einsum("bjw,bhwc,bcd->bhjd", columns_bij, ink_bhwc, tint_bcd)
    return 1.0 - 2.0 * jnp.clip(ink_bhwc, 0.0, 1.0)


def _resampling(size: int, step_b: jax.Array, shift_b: jax.Array) -> jax.Array:
    """Bilinear weights (b, size, size): output pixel i samples centre + step * (i - centre) + shift * size."""
    centre, position_i = (size - 1) / 2.0, jnp.arange(size, dtype=jnp.float32)
    source_bi = centre + step_b[:, None] * (position_i - centre)[None] + size * shift_b[:, None]
    return jnp.maximum(0.0, 1.0 - jnp.abs(source_bi[:, :, None] - position_i[None, None, :]))


def jitted_step(cfg: ClassifierConfig, config, options: Augment, tx, schedule, state_sharding):
    """The program (state, batch, key) -> (state, metrics); the state is donated."""

    @functools.partial(jax.jit, donate_argnames="state", out_shardings=(state_sharding, None))
    def train_step(state: TrainState, batch: dict, key: jax.Array):
        label_b = batch["label"]
        key_b = image_keys(jax.random.fold_in(key, state.step), label_b.shape[0])
        images_bhwc = augment(key_b, to_unit(batch["image"]), options)

        def loss_fn(params):
            logits_bc = network.build(cfg, params)(images_bhwc)
            return jnp.mean(token_losses(logits_bc, label_b, config.label_smoothing)), logits_bc

        (loss, logits_bc), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        metrics = {
            "loss": loss,
            "accuracy": jnp.mean(jnp.argmax(logits_bc, axis=-1) == label_b),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        new = apply_gradients(state, grads, tx, config.optimizer.ema_decay)
        means = {name: Average(value, jnp.ones(())) for name, value in metrics.items()}
        return new, means | step_metrics(grads, state.params, new.params, new.opt_state)

    return train_step


@jax.jit
def _logits(classifier, images_bhwc):
    return classifier(to_unit(images_bhwc))


def in_batches(call: Callable, *arrays_n: np.ndarray, batch_size: int = 64, desc: str = "") -> Any:
    """Applies `call` to rows of equally long arrays, `batch_size` at a time; returns the concatenated results as NumPy.

    `call` returns an array or a pytree of arrays.

    The last batch is padded with copies, whose results are dropped, so that `call` compiles once. desc: name of a
    progress bar; empty shows none.
    """
    count, results = len(arrays_n[0]), []
    with tqdm(total=count, desc=desc, unit="image", disable=None if desc else True) as bar:
        for start in range(0, count, batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), count - 1)
            made = jax.device_get(call(*(array[rows] for array in arrays_n)))
            results.append(jax.tree.map(lambda leaf, left=count - start: leaf[:left], made))
            bar.update(min(batch_size, count - start))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def predict(classifier: nnx.Module, images_nhwc: np.ndarray, *, batch_size: int = 64, desc: str = "") -> np.ndarray:
    """Logits (n, classes) of uint8 images (n, h, w, 3), as `in_batches`."""
    return in_batches(functools.partial(_logits, classifier), images_nhwc, batch_size=batch_size, desc=desc)


def accuracy(logits_nc: np.ndarray, label_n: np.ndarray, k: int = 1) -> float:
    """Top-k accuracy: the fraction of rows whose label is among the `k` largest logits.

    Ties go to the lower class number.
    """
    order_nk = np.argsort(-logits_nc, axis=1, kind="stable")[:, :k]
    return float((order_nk == np.asarray(label_n)[:, None]).any(axis=1).mean())


def pixels_and_labels(source, index_n=None) -> tuple[np.ndarray, np.ndarray]:
    """Reads a source whose images have one size, or the given rows of it: uint8 (n, h, w, 3) and int32 (n,)."""
    records = [source[int(i)] for i in (range(len(source)) if index_n is None else index_n)]
    sizes = {record["image"].shape for record in records}
    require(len(sizes) == 1, f"{source.name}: expected images of one size, found {sorted(sizes)[:3]}")
    return np.stack([r["image"] for r in records]), np.asarray([r["label"] for r in records], np.int32)


def group_of_class(source) -> list[int] | None:
    """The group (0, 1, ...) of each class, for a source with groups (the emoji's subgroups); else None."""
    if not hasattr(source, "record"):
        return None
    groups: dict[int, set[str]] = {}
    for i in range(len(source)):
        groups.setdefault(source[i]["label"], set()).add(source.record(i)["group"])
    if len(groups) < len(source.class_names) or any(len(names) > 1 for names in groups.values()):
        return None
    numbers = {name: number for number, name in enumerate(sorted(set().union(*groups.values())))}
    return [numbers[groups[label].pop()] for label in range(len(source.class_names))]


def held_out_metrics(cfg: ClassifierConfig, params: dict, source, train_source) -> dict:
    """Accuracy on held-out images: top-1, top-5 and, if classes have groups, of the group of the top-1 class."""
    images, label_n = pixels_and_labels(source)
    logits = predict(network.build(cfg, jax.tree.map(jnp.asarray, params)), images)
    found = {
        "data": source.name,
        "images": len(images),
        "top1": accuracy(logits, label_n),
        "top5": accuracy(logits, label_n, 5),
    }
    if groups := group_of_class(train_source):
        group_c = np.asarray(groups)
        found["group_top1"] = float((group_c[logits.argmax(axis=1)] == group_c[label_n]).mean())
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


def train(config, workdir) -> pathlib.Path:
    """Trains the classifier of a run file and returns its weights folder, `workdir`/weights.

    The weights are stored in half precision, with their accuracy on the held-out split, which is not used for
    selection: the number of steps is fixed. A `workdir` with checkpoints is continued. Raises a `ValueError` for
    options that do not fit together.
    """
    mesh = open_mesh(config)
    init_key, step_key = (place(k, replicated(mesh)) for k in jax.random.split(jax.random.key(config.seed)))

    # data
    data = config.data
    size = height_width(data.image_size, "config.data.image_size")
    require(size[0] == size[1], f"config.data.image_size: classifiers are trained on squares, got {size[0]} x {size[1]}")
    options = dict(label=data.label, size=size, data_dir=data.data_dir or None)
    source, loader = open_images(data.path, split=data.split, **options), loader_config(config)
    batches = functools.partial(image_batches, source, loader, size=size, crop=data.crop)
    require(0.0 <= config.label_smoothing < 1.0, f"config.label_smoothing: must be in [0, 1), got {config.label_smoothing}")

    # model and optimizer
    fixed = dict(num_classes=len(source.class_names), image_size=size[0])
    cfg = from_dict(ClassifierConfig, {**config.model.to_dict(), **fixed}, "config.model")
    changes = from_dict(Augment, config.augment.to_dict(), "config.augment")
    tx, schedule = make_optimizer(config.optimizer, config.total_steps), learning_rate(config.optimizer, config.total_steps)
    tx = skip_bad_updates(tx, skip_config(config))

    state = fit(
        config,
        workdir,
        mesh,
        name="classifier",
        primary_metric="loss",
        init=init_state(lambda key: network.params_of(network.create(cfg, key)), tx, ema=config.optimizer.ema_decay > 0),
        init_key=init_key,
        make_step=functools.partial(jitted_step, cfg, config, changes, tx, schedule),
        frozen=(step_key,),
        batches=with_arrays(batches, ("image", "label")),
        fingerprint_inputs={
            "model": cfg,
            "data": data_identity(config, source),
            "augment": changes,
            "label_smoothing": config.label_smoothing,
            "seed": config.seed,
            "batch_size": config.batch_size,
        },
    )

    # weights: rounded before their accuracy is measured
    weights, averaged = open_folder(workdir) / "weights", to_host(state.averaged)
    if jax.process_index() == 0:
        halves = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16).astype(np.float32), averaged)
        metadata = {
            "class_names": list(source.class_names),
            "trained": {"steps": config.total_steps, "batch_size": config.batch_size, "data": source.name},
        }
        if data.held_out:
            metadata["held_out"] = held_out_metrics(cfg, halves, open_images(data.path, split=data.held_out, **options), source)
            _log.info("classifier: %s", metadata["held_out"])
        save_weights(weights, cfg, halves, metadata=metadata, dtype="float16")
    return weights
