"""The training loop of all trainers: sharded state, restore, steps, metrics, sample images, checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Iterator

import jax
from clu import parameter_overview
from jax.sharding import Mesh

from maskgil_jax import __version__
from maskgil_jax.checkpoints.origin import plain
from maskgil_jax.checkpoints.train_state import Checkpoints, NotFiniteError, abstract_like
from maskgil_jax.config import ConfigError, LoaderConfig, require
from maskgil_jax.files.atomic import clear
from maskgil_jax.files.lock import folder_lock
from maskgil_jax.files.paths import is_remote, open_folder
from maskgil_jax.runtime.distributed import agree, from_all
from maskgil_jax.runtime.mesh import global_batch, local_rows, make_mesh
from maskgil_jax.training.liveness import StopSignals, Watchdog
from maskgil_jax.training.metrics_log import MetricWriter, StepLog, TrainingDiverged
from maskgil_jax.training.run_events import RunEvents, goodput, last_step
from maskgil_jax.training.skip_updates import skip_config
from maskgil_jax.training.state import sharded_init

LOADER_DEFAULTS = {field.name: field.default for field in dataclasses.fields(LoaderConfig)}
_log = logging.getLogger(__name__)


def open_mesh(config, parts: int = 1) -> Mesh:
    """Makes the mesh of a run file and checks that the batch divides over it."""
    mesh = make_mesh(**config.mesh)
    check_batch(config, mesh, parts)
    return mesh


def check_batch(config, mesh: Mesh, parts: int = 1) -> None:
    """Raises a ConfigError unless the batch divides over the data axes of `mesh` and `parts` of gradient
    accumulation."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    require(
        config.batch_size % (shards * parts) == 0,
        f"config.batch_size: {config.batch_size} is not a multiple of {shards} data x fsdp devices times {parts} parts",
    )


def loader_config(config) -> LoaderConfig:
    """The loader options of a run file: its batch size and seed, this process's rows, and every `config.data` option of
    the name of a `LoaderConfig` field; None means the default.
    """
    names = LOADER_DEFAULTS.keys()
    options = {name: value for name, value in config.data.items() if name in names and value is not None}
    rows = None if jax.process_count() == 1 else local_rows(make_mesh(**config.mesh), config.batch_size)
    return LoaderConfig(**{"batch_size": config.batch_size, "seed": config.seed, "rows": rows, **options})


def with_arrays(
    batches: Callable[..., Iterator[dict]], names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Callable[..., Iterator[dict]]:
    """The same batches (a function start_step -> batches) with these arrays alone: what a step takes, as all are copied
    to the devices. optional: arrays that only some batches have.
    """

    def of(batch: dict) -> dict:
        return {name: batch[name] for name in (*names, *(name for name in optional if name in batch))}

    return lambda **options: (of(batch) for batch in batches(**options))


def data_identity(config, source=None) -> dict:
    """The data options that a checkpoint depends on, and the identity of the contents of `source`, if it has one.

    Paths of codes and prepared data sets, the number of workers and loader options at their defaults are left out.
    source: an image source or code store.
    """
    ignored = ("codes", "texts", "images", "buckets", "data_dir", "num_workers", "rows")
    defaults = [(name, value) for name, default in LOADER_DEFAULTS.items() for value in (default, None)]
    options = {name: value for name, value in config.data.items() if name not in ignored and (name, value) not in defaults}
    content = getattr(source, "content_hash", "")
    return {**options, "content": content} if content else options


def run_options(config) -> dict:
    """What must be equal in all processes of a run: every option but data paths and workers, and the versions."""
    options = json.loads(config.to_json_best_effort())
    if "data" in options:
        options["data"] = {name: value for name, value in options["data"].items() if name in data_identity(config)}
    return {"config": options, "maskgil_jax": __version__, "jax": jax.__version__}


def fit(
    config,
    workdir,
    mesh: Mesh,
    *,
    name: str,
    primary_metric: str,
    init: Callable,
    init_key: jax.Array,
    make_step: Callable,
    batches: Callable[..., Iterator[dict]],
    fingerprint_inputs: dict,
    frozen: tuple = (),
    sample_fn: Callable | None = None,
    eval_fn: Callable | None = None,
    start_from: Callable | None = None,
):
    """Trains to `config.total_steps` and returns the final state; a `workdir` with checkpoints is continued.

    init: key -> state. make_step: shardings of the state -> jitted (state, batch, *frozen) -> (state, {name: clu
      Average}), which donates the state and should update by a `skip_bad_updates` optimizer.
    batches: start_step -> iterator over dicts of this process's NumPy rows, which hold exactly what the step takes.
    frozen: further arguments of every step (a key, a frozen network), on the mesh.
    fingerprint_inputs: what the state depends on, options as dataclasses; a checkpoint made with other values is
    refused.
    primary_metric: shown in the progress bar, and watched for jumps.
    sample_fn: state -> {name: uint8 (h, w, 3)}, called by all processes every `config.sample_every` steps.
    eval_fn: (step, state) -> {metric: value}, called by all processes every `config.evaluate.every` steps.
    start_from: state -> state, called on the initial state of a run without checkpoints.
    workdir: a folder that all processes see, or "gs://bucket/folder". All of them save checkpoints; process 0 writes
    the rest.

    Raises a ConfigError if the processes have different options or another run uses `workdir`, `TrainingDiverged`,
    `CheckpointError`, and `Interrupted` or `Terminated` on a signal, once the step is saved. docs/reliability.md has
    details.
    """
    workdir, lead = open_folder(workdir), jax.process_index() == 0
    agree({**run_options(config), "made with": plain(fingerprint_inputs)})
    with contextlib.ExitStack() as stack:
        own_workdir(workdir, stack)
        _log.info("%s: compiling; the first step takes longest, and times below are without it", name)
        state, state_sharding = sharded_init(init, init_key, mesh)
        workdir.mkdir(parents=True, exist_ok=True)
        if lead:
            overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
            (workdir / "parameters.txt").write_text(overview + "\n")
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        _log.info("%s: %.2fM parameters on %d %s device(s)", name, count / 1e6, mesh.size, jax.default_backend())

        guard, events = skip_config(config), RunEvents(workdir, enabled=lead)
        reached = last_step(workdir) if lead else 0  # before the writer drops the lines of steps that will be repeated
        events("start", task=name, devices=mesh.size, processes=jax.process_count(), reached=reached)
        checkpoints, start = stack.enter_context(contextlib.closing(open_checkpoints(config, workdir, events))), 0
        allow = ("data",) if config.checkpoint.get("allow_data_change", False) else ()
        found = checkpoints.restore(abstract_like(init, init_key, state_sharding), fingerprint_inputs, allow=allow)
        if found:
            start, state = found
            _log.info("%s: continuing from step %d of %s", name, start, checkpoints.folder)
        elif start_from:
            state = start_from(state)
        if start >= config.total_steps:
            return state
        checkpoints.check_free_space(state)

        writer = stack.enter_context(contextlib.closing(MetricWriter(workdir, resume_step=start, enabled=lead)))
        watchdog = Watchdog(guard.watchdog_seconds, guard.watchdog_factor, event=events)
        stack.enter_context(contextlib.closing(watchdog))
        log = StepLog(
            writer,
            name=name,
            start=start,
            total=config.total_steps,
            batch_size=config.batch_size,
            every=config.log_every,
            primary_metric=primary_metric,
            guard=guard,
            watchdog=watchdog,
            event=events,
        )
        train_step = make_step(state_sharding)
        rows = batches(start_step=start)
        signals = stack.enter_context(StopSignals())
        with jax.transfer_guard("disallow"):
            batch = next_batch(rows, mesh)
            for step in range(start + 1, config.total_steps + 1):
                state, metrics = train_step(state, batch, *frozen)
                last = step == config.total_steps
                if not last:
                    batch = next_batch(rows, mesh)  # is copied to the device while the step runs
                log.step(step, metrics)
                if step == start + 1:
                    events("first_step", step=step)

                if sample_fn and config.sample_every and (last or step % config.sample_every == 0):
                    with jax.transfer_guard("allow"), watchdog.paused(), log.clock.paused("pictures", config.sample_every):
                        writer.write_images(step, sample_fn(state))
                if eval_fn and (last or step % config.evaluate.every == 0):
                    with jax.transfer_guard("allow"), watchdog.paused(), log.clock.paused("figures", config.evaluate.every):
                        writer.write_scalars(step, eval_fn(step, state))

                stopped = signals.stop_at(step) and not last
                if stopped:
                    events("signal", step=step)
                    log.write()
                if last or stopped or step % config.checkpoint.every == 0 or not checkpoints.check():
                    with watchdog.paused(), log.clock.paused("checkpoint", config.checkpoint.every):
                        save(checkpoints, step, state, fingerprint_inputs, config, log.score, wait=last or stopped)
                if stopped:
                    events("stop", step=step, reason="signal")
                    signals.leave(step)
        events("stop", step=config.total_steps, reason="done")
    if lead:
        _log.info("%s: %s", name, goodput(workdir))
    return state


def own_workdir(workdir, stack: contextlib.ExitStack) -> None:
    """Locks `workdir` for this run until `stack` is closed, and removes what a killed process had not finished writing
    there.

    Process 0 holds the lock; all raise if another run has it.
    """
    problem = ""
    if jax.process_index() == 0:
        try:
            stack.enter_context(folder_lock(workdir, advice="stop that run, or use another --workdir"))
        except ConfigError as error:
            problem = str(error)
    if problem := from_all(problem)[0]:
        raise ConfigError(problem)
    if jax.process_index() == 0 and not is_remote(workdir):
        for folder in ("", "weights", "best"):
            clear(pathlib.Path(workdir, folder))


def open_checkpoints(config, workdir, events: RunEvents) -> Checkpoints:
    """Opens the checkpoints of a run with the retention options of its run file."""
    options = config.checkpoint
    return Checkpoints(
        workdir,
        keep=options.keep,
        keep_every=options.get("keep_every", 0),
        keep_best=options.get("keep_best", 0),
        event=events,
    )


def save(
    checkpoints: Checkpoints, step: int, state, fingerprint_inputs: dict, config, score: float | None, *, wait: bool
) -> None:
    """Saves `state`. Raises `TrainingDiverged` if it contains values that are not finite; the last checkpoint stays."""
    try:
        run_file = json.loads(config.to_json_best_effort())
        checkpoints.save(step, state, fingerprint_inputs, config=run_file, score=score, wait=wait)
    except NotFiniteError as error:
        raise TrainingDiverged(f"{error}; continue from the last checkpoint with a lower learning rate") from error


def next_batch(rows: Iterator[dict], mesh: Mesh) -> dict:
    """The next rows of this process as part of a global, sharded batch."""
    return global_batch(next(rows), mesh)
