"""Training of a generator, masked (paper 4.3) or causal: one loop, read top to bottom."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu.metrics import Average

from maskgil_jax import networks
from maskgil_jax.checkpoints.weights import extra, load_weights, read_metadata, save_weights
from maskgil_jax.conditioning import Conditioner
from maskgil_jax.config import (
    ADALN_PRESETS,
    BERT_PRESETS,
    LLAMA_PRESETS,
    TEXT_RECIPE,
    UVIT_PRESETS,
    CausalConfig,
    DecodeConfig,
    GeneratorConfig,
    choose,
    from_dict,
    require,
    to_dict,
)
from maskgil_jax.config.training import Objective
from maskgil_jax.decoding.generate import generate_tokens
from maskgil_jax.files.images import contact_sheet
from maskgil_jax.files.paths import open_folder
from maskgil_jax.models.condition import GuidedCondition, SizedCondition, select, valid_tokens, without_null
from maskgil_jax.runtime.mesh import batch_sharding, gather_embeddings, place, replicated, to_host
from maskgil_jax.runtime.rng import image_keys
from maskgil_jax.tokenizers.images import to_pixels, to_unit
from maskgil_jax.training.generator_data import open_data
from maskgil_jax.training.identity import text_identity
from maskgil_jax.training.init_from import init_from
from maskgil_jax.training.loop import data_identity, fit, open_mesh
from maskgil_jax.training.lora import open_lora
from maskgil_jax.training.losses import chunked_cross_entropy, corrupt, drop_conditions, masked_cross_entropy
from maskgil_jax.training.optimizer import learning_rate, make_optimizer
from maskgil_jax.training.skip_updates import skip_bad_updates, skip_config, step_metrics
from maskgil_jax.training.state import TrainState, apply_gradients, init_state

PRESETS: dict[str, dict] = {"llama": LLAMA_PRESETS, "bert": BERT_PRESETS, "adaln": ADALN_PRESETS, "uvit": UVIT_PRESETS}


def model_options(model, *, codebook_size: int, grid: tuple[int, int], **fixed: Any) -> GeneratorConfig:
    """The `model` section of a run file -> network options; `fixed`: those that the conditioner decides."""
    options = {name: value for name, value in model.items() if value is not None}
    family, preset = options.pop("family"), options.pop("preset")
    choose("config.model.family", family, PRESETS)
    choose("config.model.preset", preset, PRESETS[family])
    text = fixed.get("condition") == "text"
    require(family == "llama" or not text, f"config.model.family: {family!r} cannot be conditioned on text; choose llama")
    values = to_dict(PRESETS[family][preset]) | (TEXT_RECIPE if text else {}) | options
    fixed |= dict(codebook_size=codebook_size, grid=tuple(grid))
    return from_dict(type(PRESETS[family][preset]), values | fixed, "config.model")


def corrupt_batch(key: jax.Array, codes_bl, condition, cfg: GeneratorConfig, objective: Objective) -> dict:
    """Codes and conditions -> what the loss of each example needs, every array with a leading batch axis.

    drop: which conditions are replaced by the null condition. key: a dropout key per image.
    """
    mask_key, drop_key, dropout_key = jax.random.split(key, 3)
    b = codes_bl.shape[0]
    if cfg.causal:  # every token is a target, and the network shifts the inputs
        inputs_bl, mask_bl = codes_bl, jnp.ones(codes_bl.shape, bool)
    else:
        valid_bl = valid_tokens(condition, codes_bl.shape[1])
        options = objective.schedule, cfg.mask_id, objective.masking
        inputs_bl, mask_bl = corrupt(mask_key, codes_bl, *options, valid_bl=valid_bl)
    return {
        "inputs": inputs_bl,
        "targets": codes_bl,
        "mask": mask_bl,
        "condition": condition,
        "drop": drop_conditions(drop_key, b, objective.class_dropout),
        "key": image_keys(dropout_key, b),
    }


def loss_sum(
    params: dict,
    part: dict,
    cfg: GeneratorConfig,
    objective: Objective,
    grid: tuple[int, int] | None = None,
    base: dict | None = None,
    adapter: Callable | None = None,
):
    """Summed (not averaged) loss of a part of a batch, so that parts add up exactly, and the sums for the metrics.

    adapter: makes the network's parameters of `params` and the frozen ones `base` (`training.lora`).
    """
    model = networks.build(cfg, gather_embeddings(params if adapter is None else adapter(params, base)))
    condition = part["condition"]
    if objective.class_dropout > 0:
        condition = select(part["drop"], *null_and_own(model, condition))
    condition = without_null(condition)
    hidden_bld, logged = model.training_states(part["inputs"], condition, grid=grid, key_b=part["key"])
    options = objective.label_smoothing, objective.unmasked_weight, objective.z_loss
    tokens, valid_bl = (part["targets"], part["mask"]), valid_tokens(condition, part["targets"].shape[1])
    with jax.named_scope("loss"):
        if objective.loss_chunks == 1:
            sums = masked_cross_entropy(model.logits(hidden_bld), *tokens, *options, valid_bl=valid_bl)[1]
        else:
            chunks = objective.loss_chunks
            sums = chunked_cross_entropy(model.logits, hidden_bld, *tokens, chunks, *options, valid_bl=valid_bl)
    return sums["loss_sum"], sums | logged


def null_and_own(model: Any, condition: Any) -> tuple[Any, Any]:
    """(null condition, condition) of a batch; a `GuidedCondition` brings its null along."""
    if isinstance(condition, GuidedCondition):
        return condition.negative, condition.condition
    return model.null_condition(condition), condition


def gradients(
    params: dict, batch: dict, cfg: GeneratorConfig, objective: Objective, grid: tuple[int, int] | None = None, **frozen: Any
):
    """Gradient of the mean loss of the batch, and the metric sums; `objective.accumulate` parts give the same gradient.

    frozen: `base` and `adapter` of `loss_sum`.
    """
    grad = jax.grad(functools.partial(loss_sum, cfg=cfg, objective=objective, grid=grid, **frozen), has_aux=True)
    count = objective.accumulate
    if count == 1:
        total, sums = grad(params, batch)
    else:
        # Row i goes to part i % count, so that every device holds rows of every part.
        parts = jax.tree.map(lambda rows: jnp.moveaxis(rows.reshape(-1, count, *rows.shape[1:]), 1, 0), batch)
        shape = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), parts)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(grad, params, shape))
        (total, sums), _ = jax.lax.scan(
            lambda carry, part: (jax.tree.map(jnp.add, carry, grad(params, part)), None), zeros, parts
        )
    return jax.tree.map(lambda g: g / jnp.maximum(sums["weight_sum"], 1e-8), total), sums


def token_metrics(sums: dict, causal: bool) -> dict[str, Average]:
    """What is logged of the sums of `masked_cross_entropy`.

    Masked and unmasked apart unless every token is a target.
    """
    loss = {"loss": Average(sums["loss_sum"], sums["weight_sum"])}
    if causal:
        return loss | {"accuracy": Average(sums["masked_hits"], sums["masked"])}
    return loss | {
        f"{kind}_{name}": Average(sums[f"{kind}_{total}"], sums[kind])
        for kind in ("masked", "unmasked")
        for name, total in (("loss", "loss"), ("accuracy", "hits"))
    }


def jitted_step(
    cfg: GeneratorConfig,
    objective: Objective,
    tx: optax.GradientTransformation,
    schedule: Callable,
    ema_decay: float,
    layout: Any,
    *,
    conditioner: Conditioner,
    adapter: Callable | None = None,
):
    """The program (state, batch, key, tokenizer, texts) -> (state, metrics); the state is donated.

    batch: "codes" int (b, rows, columns), or "image" uint8 if there is a `tokenizer`, and the conditioner's
    `batch_keys`.
    texts: the conditioner's `frozen` arrays. The grid is that of the codes: another one compiles another program. With
    "rows" and "columns", int (b,), the codes are those of images of several sizes, each at the start of a padded canvas
    (`SizedCondition`): one program for all of them.
    adapter: of `loss_sum`; the program then has a last argument, the frozen parameters.
    """

    # The Pallas kernels read the sharding from the abstract mesh.
    with_mesh = (
        contextlib.nullcontext if layout is None else lambda: jax.sharding.use_abstract_mesh(layout.step.mesh.abstract_mesh)
    )

    @functools.partial(jax.jit, donate_argnames="state", out_shardings=(layout, None))
    def train_step(state: TrainState, batch: dict, key: jax.Array, tokenizer, texts=None, base=None):
        codes = batch["codes"] if tokenizer is None else tokenizer.encode(to_unit(batch["image"]))
        grid, codes_bl = codes.shape[1:], codes.reshape(codes.shape[0], -1).astype(jnp.int32)
        step_key, condition = jax.random.fold_in(key, state.step), conditioner.from_batch(batch, texts)
        if "rows" in batch:
            condition = SizedCondition(condition, batch["rows"], batch["columns"])
        examples = corrupt_batch(step_key, codes_bl, condition, cfg, objective)
        with with_mesh():
            frozen = {} if adapter is None else dict(base=base, adapter=adapter)
            grads, sums = gradients(state.params, examples, cfg, objective, grid, **frozen)
        one = jnp.ones(())
        metrics = {  # averages over tokens, or over steps
            **token_metrics(sums, cfg.causal),
            "learning_rate": Average(jnp.asarray(schedule(state.step), jnp.float32), one),
        }
        if "output_norm" in sums:
            metrics["output_norm"] = Average(sums["output_norm"], sums["outputs"])
        with jax.named_scope("update"):
            new = apply_gradients(state, grads, tx, ema_decay)
            return new, metrics | step_metrics(grads, state.params, new.params, new.opt_state)

    return train_step


def sample_preview(params, tokenizer, condition, key, *, cfg: GeneratorConfig, decode_cfg, grid: tuple[int, int]) -> np.ndarray:
    """A contact sheet of generated images, uint8 (h, w, 3)."""
    generator = networks.build(cfg, params)
    tokens_bl = generate_tokens(generator, condition, jax.random.clone(key), decode_cfg, grid=grid)
    return contact_sheet(to_host(to_pixels(tokenizer, tokens_bl, grid)))


def train(config, workdir, evaluator=None) -> pathlib.Path:
    """Trains the generator that `config` (a run file) describes and returns its pipeline folder, `workdir`/weights.

    evaluator: (tokenizer, generator, conditioner, decoding options, mesh) -> {figure: value}, with `better` and `best`
    (`evaluation.during.SampleEvaluator`), called every `config.evaluate.every` steps; the best weights by its figures
    are kept as a pipeline folder too, `workdir`/best.
    A `workdir` with checkpoints is continued. Raises a `ValueError` for options that do not fit together.
    """
    objective = from_dict(Objective, config.objective.to_dict(), "config.objective")
    mesh = open_mesh(config, objective.accumulate)
    init_key, step_key, sample_key = (place(k, replicated(mesh)) for k in jax.random.split(jax.random.key(config.seed), 3))

    # data
    require(bool(config.tokenizer), "config.tokenizer: is empty; give the weights folder of a tokenizer")
    tokenizer = load_weights(config.tokenizer, "tokenizer")
    batches, conditioner, grid, source = open_data(config, tokenizer, mesh)
    tokenizer_network = place(tokenizer.build(), replicated(mesh))

    # model and optimizer
    sizes = dict(codebook_size=tokenizer.cfg.codebook_size, grid=grid, **conditioner.network_options())
    lora = open_lora(config, sizes, mesh)
    cfg = model_options(config.model.to_dict(), **sizes) if lora is None else lora.cfg
    decode_cfg = from_dict(CausalConfig if cfg.causal else DecodeConfig, config.decode.to_dict(), "config.decode")
    tx = make_optimizer(config.optimizer, config.total_steps, text=cfg.condition == "text")
    schedule = learning_rate(config.optimizer, config.total_steps)
    tx = skip_bad_updates(tx, skip_config(config))

    fixed = conditioner.fixed_parameters(cfg)

    def init_params(key: jax.Array) -> dict:
        return networks.params_of(networks.create(cfg, key)) | fixed if lora is None else lora.init(key)

    whole = (lambda params: params) if lora is None else lora.whole  # the network's parameters of the trained ones

    def start_from(state: TrainState) -> TrainState:
        return init_from(config.init_from, state, tokenizer_hash=tokenizer.hash, keep=fixed)

    # previews: the same conditions at every step, as many as fill the devices
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    previewed = place(conditioner.examples(-(-config.sample_count // shards) * shards), batch_sharding(mesh))
    preview = functools.partial(sample_preview, cfg=cfg, decode_cfg=decode_cfg, grid=grid)

    # weights: tokenizer and generator side by side, ready for `maskgil_jax.load`
    def save(folder: pathlib.Path, averaged: dict, steps: int, **figures) -> None:
        save_weights(folder / "tokenizer", tokenizer.cfg, tokenizer.params, metadata=extra(tokenizer.about))
        metadata = {
            **conditioner.metadata(),
            "tokenizer_hash": tokenizer.hash,
            "image_size": config.data.image_size,
            **({"canvas": list(source.canvas)} if getattr(source, "sized", False) else {}),
            "decode": to_dict(decode_cfg),
            "trained": {"steps": steps, "batch_size": config.batch_size, "data": config.data.path},
            **figures,
        }
        save_weights(folder / "generator", cfg, averaged | fixed, metadata=metadata)

    def evaluate(step: int, state: TrainState) -> dict:
        averaged = networks.build(cfg, whole(state.averaged))
        figures = evaluator(tokenizer_network, averaged, conditioner, decode_cfg, mesh)
        parameters = to_host(whole(state.averaged))  # by all processes together
        if jax.process_index() == 0:
            save_this = functools.partial(save, averaged=parameters, steps=step)
            keep_best(open_folder(workdir) / "best", evaluator, figures, save_this)
        return figures

    state = fit(
        config,
        workdir,
        mesh,
        name="generator",
        primary_metric="loss" if cfg.causal else "masked_loss",
        init=init_state(init_params, tx, ema=config.optimizer.ema_decay > 0),
        init_key=init_key,
        make_step=functools.partial(
            jitted_step,
            cfg,
            objective,
            tx,
            schedule,
            config.optimizer.ema_decay,
            conditioner=conditioner,
            adapter=None if lora is None else lora.merge,
        ),
        frozen=(step_key, None if config.data.codes else tokenizer_network, conditioner.frozen, lora and lora.base),
        batches=batches,
        fingerprint_inputs={
            "model": cfg,
            "tokenizer": tokenizer.hash,
            "data": data_identity(config, source),
            "objective": objective,
            "seed": config.seed,
            "batch_size": config.batch_size,
            **text_identity(conditioner),
            **({} if lora is None else lora.identity),
        },
        sample_fn=lambda state: {"samples": preview(whole(state.averaged), tokenizer_network, previewed, sample_key)},
        eval_fn=evaluate if evaluator else None,
        start_from=start_from if config.get("init_from") and lora is None else None,
    )

    # Arrays come to the host by all processes together, so every one of them calls `to_host`.
    weights, parameters = open_folder(workdir) / "weights", to_host(whole(state.averaged))
    factors = {} if lora is None else to_host(state.averaged)
    if jax.process_index() == 0:
        save(weights, parameters, config.total_steps)
        if lora is not None:
            lora.save(weights / "lora.safetensors", factors)
    return weights


def keep_best(folder: pathlib.Path, evaluator: Any, figures: dict, save: Callable) -> None:
    """Writes `folder` anew if `figures` are better than those recorded in it.

    A continued run compares with them too.
    """
    kept = read_metadata(folder / "generator")["evaluated"] if (folder / "generator").is_dir() else {}
    if evaluator.better(figures, kept.get(evaluator.best)):
        save(folder, evaluated=figures)
