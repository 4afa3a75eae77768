"""Training of a generator, masked (paper 4.3) or causal: one loop, read top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu.metrics import Average

from maskgil_jax import params as network
from maskgil_jax.checkpoints.weights import Weights, extra, load_weights, read_about, save_weights
from maskgil_jax.config import (
    ADALN_PRESETS,
    BERT_PRESETS,
    LLAMA_PRESETS,
    CausalConfig,
    DecodeConfig,
    choose,
    from_dict,
    require,
    to_dict,
)
from maskgil_jax.data.codes import CodeStore, code_batches
from maskgil_jax.data.images import image_batches, open_images, to_unit
from maskgil_jax.decoding.causal import decode_causal
from maskgil_jax.decoding.masked import decode
from maskgil_jax.keys import image_keys
from maskgil_jax.masking import MASKING_LAWS, chunked_cross_entropy, corrupt, drop_labels, masked_cross_entropy
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.pictures import grid_of
from maskgil_jax.pipeline import Pipeline, to_pixels
from maskgil_jax.sharding import batch_sharding, place, replicated, to_host, whole_tables
from maskgil_jax.storage import open_folder
from maskgil_jax.training.guards import guard_config, guarded, step_metrics
from maskgil_jax.training.loop import data_identity, fit, open_mesh, process_rows
from maskgil_jax.training.optim import learning_rate, make_optimizer
from maskgil_jax.training.state import TrainState, apply_gradients, init_state

PRESETS: dict[str, dict] = {"llama": LLAMA_PRESETS, "bert": BERT_PRESETS, "adaln": ADALN_PRESETS}


@dataclasses.dataclass(frozen=True)
class Objective:
    """How examples are made and scored; the defaults are the paper's (2.3, 4.3).

    A causal network is trained on the next token (teacher forcing): every token is a target, so `schedule`, `law` and
    `unmasked_weight` say nothing, and LlamaGen trains it without label smoothing.
    """

    schedule: str = "arccos"
    law: str = "exact"
    label_smoothing: float = 0.1
    unmasked_weight: float = 0.0
    class_dropout: float = 0.1
    accumulate: int = 1  # parts a batch is computed in, one after another
    loss_chunks: int = 1  # parts of each image's tokens whose logits exist at once: for codebooks too large for memory
    z_loss: float = 0.0  # weight of the squared log of the softmax's denominator; 1e-4 where logits drift

    def __post_init__(self):
        choose("objective.law", self.law, MASKING_LAWS)
        require(self.accumulate >= 1, f"objective.accumulate: must be at least 1, got {self.accumulate}")
        require(self.loss_chunks >= 1, f"objective.loss_chunks: must be at least 1, got {self.loss_chunks}")
        require(self.z_loss >= 0, f"objective.z_loss: must not be negative, got {self.z_loss}")


def model_options(model, *, codebook_size: int, num_classes: int, grid: tuple[int, int]):
    """The `model` part of a run file -> network options. Sizes that the data and tokenizer fix are filled in."""
    options = {name: value for name, value in model.items() if value is not None}
    family, preset = options.pop("family"), options.pop("preset")
    choose("config.model.family", family, PRESETS)
    choose("config.model.preset", preset, PRESETS[family])
    fixed = dict(codebook_size=codebook_size, num_classes=num_classes, grid=tuple(grid))
    return from_dict(type(PRESETS[family][preset]), {**to_dict(PRESETS[family][preset]), **options, **fixed}, "config.model")


def is_causal(cfg) -> bool:
    """Whether a network of these options is trained, and drawn from, one token after the other."""
    return getattr(cfg, "causal", False)


def corrupt_batch(key: jax.Array, codes_bl, label_b, cfg, objective: Objective) -> dict:
    """Codes and labels -> what one example needs: inputs, targets, mask, labels (some dropped), a dropout key per image."""
    mask_key, label_key, dropout_key = jax.random.split(key, 3)
    if is_causal(cfg):  # next-token training: everything is a target, the network shifts by itself
        inputs_bl, mask_bl = codes_bl, jnp.ones(codes_bl.shape, bool)
    else:
        inputs_bl, mask_bl = corrupt(mask_key, codes_bl, objective.schedule, cfg.mask_id, objective.law)
    return {
        "inputs": inputs_bl,
        "targets": codes_bl,
        "mask": mask_bl,
        "label": drop_labels(label_key, label_b, objective.class_dropout, cfg.num_classes),
        "key": image_keys(dropout_key, codes_bl.shape[0]),
    }


def loss_sum(params: dict, part: dict, cfg, objective: Objective):
    """Summed (not averaged) loss of a part of a batch, so that parts add up exactly, and the sums for the metrics."""
    model = network.build(cfg, whole_tables(params))
    inputs, condition, sizes = part["inputs"], ClassCondition(part["label"]), {}
    if hasattr(model, "last_output"):  # where there is one, its size is worth watching (the paper's Fig. 4c)
        output_bld = model.last_output(inputs, condition, key_b=part["key"])
        hidden_bld = model.states(output_bld)
        norm_bl = jnp.linalg.norm(jax.lax.stop_gradient(output_bld).astype(jnp.float32), axis=-1)
        sizes = {"output_norm": jnp.sum(norm_bl), "outputs": jnp.float32(norm_bl.size)}
    else:
        hidden_bld = model.hidden(inputs, condition, key_b=part["key"])
    options = objective.label_smoothing, objective.unmasked_weight, objective.z_loss
    tokens = part["targets"], part["mask"]
    with jax.named_scope("loss"):
        if objective.loss_chunks == 1:
            sums = masked_cross_entropy(model.logits(hidden_bld), *tokens, *options)[1]
        else:
            sums = chunked_cross_entropy(model.logits, hidden_bld, *tokens, objective.loss_chunks, *options)
    return sums["loss_sum"], sums | sizes


def gradients(params: dict, batch: dict, cfg, objective: Objective):
    """Gradient of the batch's mean loss, and the metric sums, in `objective.accumulate` parts: the big batch's, exactly."""
    grad = jax.grad(functools.partial(loss_sum, cfg=cfg, objective=objective), has_aux=True)
    count = objective.accumulate
    if count == 1:
        total, sums = grad(params, batch)
    else:
        # Every device keeps rows of every part: rows are dealt out, not cut off.
        parts = jax.tree.map(lambda rows: jnp.moveaxis(rows.reshape(-1, count, *rows.shape[1:]), 1, 0), batch)
        shape = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), parts)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(grad, params, shape))
        (total, sums), _ = jax.lax.scan(
            lambda carry, part: (jax.tree.map(jnp.add, carry, grad(params, part)), None), zeros, parts
        )
    return jax.tree.map(lambda g: g / jnp.maximum(sums["weight_sum"], 1e-8), total), sums


def token_metrics(sums: dict, causal: bool) -> dict[str, Average]:
    """What is logged of the sums of `masked_cross_entropy`; masked and unmasked apart unless every token is a target."""
    loss = {"loss": Average(sums["loss_sum"], sums["weight_sum"])}
    if causal:
        return loss | {"accuracy": Average(sums["masked_hits"], sums["masked"])}
    return loss | {
        f"{kind}_{name}": Average(sums[f"{kind}_{total}"], sums[kind])
        for kind in ("masked", "unmasked")
        for name, total in (("loss", "loss"), ("accuracy", "hits"))
    }


def jitted_step(cfg, objective: Objective, tx: optax.GradientTransformation, schedule, ema_decay: float, layout):
    """The program (state, batch, key, tokenizer) -> (state, metrics); the state is donated. `tokenizer`: None for codes."""

    # Kernels are told where arrays lie; XLA finds out by itself.
    placed = (
        contextlib.nullcontext if layout is None else lambda: jax.sharding.use_abstract_mesh(layout.step.mesh.abstract_mesh)
    )

    @functools.partial(jax.jit, donate_argnames="state", out_shardings=(layout, None))
    def train_step(state: TrainState, batch: dict, key: jax.Array, tokenizer):
        codes = batch["codes"] if tokenizer is None else tokenizer.encode(to_unit(batch["image"]))
        codes_bl = codes.reshape(codes.shape[0], -1).astype(jnp.int32)
        examples = corrupt_batch(jax.random.fold_in(key, state.step), codes_bl, batch["label"], cfg, objective)
        with placed():
            grads, sums = gradients(state.params, examples, cfg, objective)
        one = jnp.ones(())
        metrics = {  # averages over tokens, or over steps
            **token_metrics(sums, is_causal(cfg)),
            "learning_rate": Average(jnp.asarray(schedule(state.step), jnp.float32), one),
        }
        if "output_norm" in sums:
            metrics["output_norm"] = Average(sums["output_norm"], sums["outputs"])
        with jax.named_scope("update"):
            new = apply_gradients(state, grads, tx, ema_decay)
            return new, metrics | step_metrics(grads, state.params, new.params, new.opt_state)

    return train_step


def open_data(config, tokenizer: Weights):
    """The training stream: (function start_step -> batches, fields of a batch, class names, grid of codes)."""
    data, factor = config.data, tokenizer.cfg.downsample
    require(
        data.image_size % factor == 0,
        f"config.data.image_size: {data.image_size} is not a multiple of the tokenizer's downsampling factor {factor}",
    )
    grid = (data.image_size // factor,) * 2
    if data.codes:
        store = CodeStore(data.codes)
        store.check(tokenizer_hash=tokenizer.hash, grid=grid, codebook_size=tokenizer.cfg.codebook_size)
        return functools.partial(code_batches, store, **process_rows(config)), ("codes", "label"), store.class_names, grid
    source = open_images(data.path, split=data.split, label=data.label, size=data.image_size, data_dir=data.data_dir or None)
    options = dict(image_size=data.image_size, crop=data.crop, flip=data.flip, **process_rows(config))
    return functools.partial(image_batches, source, **options), ("image", "label"), source.class_names, grid


def sample_picture(params, tokenizer, label_b, key, *, cfg, decode_cfg: DecodeConfig | CausalConfig) -> np.ndarray:
    """A contact sheet of generated images, uint8 (h, w, 3)."""
    generator, condition, key = network.build(cfg, params), ClassCondition(label_b), jax.random.clone(key)
    if isinstance(decode_cfg, CausalConfig):
        tokens_bl = decode_causal(generator, condition, key, decode_cfg)
    else:
        tokens_bl = decode(generator, condition, key, decode_cfg)
    return grid_of(to_host(to_pixels(tokenizer, tokens_bl, tuple(cfg.grid))))


def train(config, workdir, judge=None) -> pathlib.Path:
    """Trains the generator that `config` (a run file) describes and returns its pipeline folder, `workdir`/weights.

    judge: (pipeline, mesh) -> {figure: value} with `better` and `best` (`evaluation.during`), asked every
    `config.evaluate.every` steps; the weights it finds best are kept as a pipeline folder too, `workdir`/best.
    A `workdir` with checkpoints is continued. Raises a `ValueError` for options that do not fit together.
    """
    objective = from_dict(Objective, config.objective.to_dict(), "config.objective")
    mesh = open_mesh(config, objective.accumulate)
    init_key, step_key, sample_key = (place(k, replicated(mesh)) for k in jax.random.split(jax.random.key(config.seed), 3))

    # data
    require(bool(config.tokenizer), "config.tokenizer: is empty; give the weights folder of a tokenizer")
    tokenizer = load_weights(config.tokenizer, "tokenizer")
    stream, fields, class_names, grid = open_data(config, tokenizer)
    tokenizer_network = place(tokenizer.build(), replicated(mesh))

    # model and optimizer
    cfg = model_options(
        config.model.to_dict(), codebook_size=tokenizer.cfg.codebook_size, num_classes=len(class_names), grid=grid
    )
    decode_cfg = from_dict(CausalConfig if is_causal(cfg) else DecodeConfig, config.decode.to_dict(), "config.decode")
    tx, schedule = make_optimizer(config.optimizer, config.total_steps), learning_rate(config.optimizer, config.total_steps)
    tx = guarded(tx, guard_config(config))

    # pictures: some classes, the same at every step, as many as fill the devices
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    shown = np.linspace(0, len(class_names) - 1, -(-config.sample_count // shards) * shards).astype(np.int32)
    shown = place(shown, batch_sharding(mesh))

    # weights: tokenizer and generator side by side, ready for `maskgil_jax.load`
    def save(folder: pathlib.Path, averaged: dict, steps: int, **figures) -> None:
        save_weights(folder / "tokenizer", tokenizer.cfg, tokenizer.params, about=extra(tokenizer.about))
        save_weights(
            folder / "generator",
            cfg,
            averaged,
            about={
                "class_names": list(class_names),
                "tokenizer_hash": tokenizer.hash,
                "image_size": config.data.image_size,
                "decode": to_dict(decode_cfg),
                "trained": {"steps": steps, "batch_size": config.batch_size, "data": config.data.path},
                **figures,
            },
        )

    def score(step: int, state: TrainState) -> dict:
        averaged = network.build(cfg, state.averaged)
        figures = judge(Pipeline(tokenizer_network, averaged, tuple(class_names), decode_cfg), mesh)
        parameters = to_host(state.averaged)  # by all processes together
        if jax.process_index() == 0:
            keep_best(open_folder(workdir) / "best", judge, figures, functools.partial(save, averaged=parameters, steps=step))
        return figures

    state = fit(
        config,
        workdir,
        mesh,
        name="generator",
        headline="loss" if is_causal(cfg) else "masked_loss",
        init=init_state(lambda key: network.params_of(network.create(cfg, key)), tx, ema=config.optimizer.ema_decay > 0),
        init_key=init_key,
        make_step=functools.partial(jitted_step, cfg, objective, tx, schedule, config.optimizer.ema_decay),
        constants=(step_key, tokenizer_network if "image" in fields else None),
        stream=stream,
        fields=fields,
        about={
            "model": to_dict(cfg),
            "tokenizer": tokenizer.hash,
            "data": data_identity(config),
            "objective": config.objective.to_dict(),
            "seed": config.seed,
            "batch_size": config.batch_size,
        },
        picture=lambda state: {
            "samples": sample_picture(state.averaged, tokenizer_network, shown, sample_key, cfg=cfg, decode_cfg=decode_cfg)
        },
        score=score if judge else None,
    )

    weights, parameters = open_folder(workdir) / "weights", to_host(state.averaged)
    if jax.process_index() == 0:
        save(weights, parameters, config.total_steps)
    return weights


def keep_best(folder: pathlib.Path, judge, figures: dict, save) -> None:
    """Writes `folder` anew if the judge finds `figures` better than those it was written for; a continued run asks it too."""
    kept = read_about(folder / "generator")["evaluated"] if (folder / "generator").is_dir() else {}
    if judge.better(figures, kept.get(judge.best)):
        save(folder, evaluated=figures)
