"""The loop that every trainable thing here shares: sharded state, restore, steps, log, pictures, checkpoints."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator

import jax
from clu import parameter_overview
from jax.sharding import Mesh

from maskgil_jax import __version__
from maskgil_jax.checkpoints.train_state import Checkpoints, NotFiniteError, abstract_like
from maskgil_jax.config import require
from maskgil_jax.files.paths import open_folder
from maskgil_jax.runtime.distributed import agree
from maskgil_jax.runtime.mesh import global_batch, local_rows, make_mesh
from maskgil_jax.training.liveness import StopSignals, Watchdog
from maskgil_jax.training.metrics_log import MetricWriter, StepLog, TrainingDiverged
from maskgil_jax.training.run_events import RunEvents, goodput, last_step
from maskgil_jax.training.skip_updates import skip_config
from maskgil_jax.training.state import sharded_init

_log = logging.getLogger(__name__)


def open_mesh(config, parts: int = 1) -> Mesh:
    """The mesh of a run file, checked against its batch."""
    mesh = make_mesh(**config.mesh)
    check_batch(config, mesh, parts)
    return mesh


def check_batch(config, mesh: Mesh, parts: int = 1) -> None:
    """Raises unless the batch divides over the data axes of `mesh` (and `parts` of accumulation)."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    require(
        config.batch_size % (shards * parts) == 0,
        f"config.batch_size: {config.batch_size} is not a multiple of {shards} data x fsdp devices times {parts} parts",
    )


def process_rows(config) -> dict:
    """The data-loader options that every stream of batches takes: size, seed, workers and this process's share."""
    return dict(
        batch_size=config.batch_size,
        seed=config.seed,
        num_workers=config.data.num_workers,
        rows=None if jax.process_count() == 1 else local_rows(make_mesh(**config.mesh), config.batch_size),
    )


def with_arrays(batches: Callable[..., Iterator[dict]], names: tuple[str, ...]) -> Callable[..., Iterator[dict]]:
    """The same batches (a function start_step -> batches), holding these arrays alone."""
    return lambda **options: ({name: batch[name] for name in names} for batch in batches(**options))


def data_identity(config) -> dict:
    """The data options a checkpoint depends on: not where the files lie or how many processes read them."""
    return {name: value for name, value in config.data.items() if name not in ("codes", "data_dir", "num_workers")}


def run_options(config) -> dict:
    """What all processes of a run must agree on: every option but where the data lie and who reads them, and the versions."""
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
    headline: str,
    init: Callable,
    init_key: jax.Array,
    make_step: Callable,
    stream: Callable[..., Iterator[dict]],
    about: dict,
    constants: tuple = (),
    picture: Callable | None = None,
    score: Callable | None = None,
):
    """Trains to `config.total_steps` and returns the final state; a `workdir` with checkpoints is continued.

    init: key -> state. make_step: shardings of the state -> jitted (state, batch, *constants) -> (state, {name: clu
      Average}), which donates the state. constants: what every step gets besides (a key, a frozen network), on the mesh.
    stream: start_step -> batches of this process's NumPy rows, holding what the step takes.
    about: what the state depends on; a checkpoint made with anything else is refused. headline: the metric on the progress
      bar. picture: state -> {name: uint8 (h, w, 3)}, every `config.sample_every` steps, by all processes together.
    score: (step, state) -> {figure: value}, every `config.evaluate.every` steps, on every process.
    workdir: a folder that all processes see, or "gs://bucket/folder". All of them save checkpoints; process 0 writes the rest.

    Raises a ConfigError if the processes have different options, `TrainingDiverged`, `CheckpointError`, or on a signal, once
    the step is saved, what ends the program; docs/reliability.md says what is promised. `make_step` should update by a
    `skip_bad_updates` optimizer.
    """
    workdir, lead = open_folder(workdir), jax.process_index() == 0
    agree({**run_options(config), "made with": about})
    state, layout = sharded_init(init, init_key, mesh)
    workdir.mkdir(parents=True, exist_ok=True)
    if lead:
        overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
        (workdir / "parameters.txt").write_text(overview + "\n")
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    _log.info("%s: %.2fM parameters on %d %s device(s)", name, count / 1e6, mesh.size, jax.default_backend())

    guard, events = skip_config(config), RunEvents(workdir, enabled=lead)
    reached = last_step(workdir) if lead else 0  # before the writer drops what will be run again
    events("start", task=name, devices=mesh.size, processes=jax.process_count(), reached=reached)
    checkpoints, start = open_checkpoints(config, workdir, events), 0
    with contextlib.closing(checkpoints):
        allow = ("data",) if config.checkpoint.get("allow_data_change", False) else ()
        found = checkpoints.restore(abstract_like(init, init_key, layout), about, allow=allow)
        if found:
            start, state = found
            _log.info("%s: continuing from step %d of %s", name, start, checkpoints.folder)
        if start >= config.total_steps:
            return state
        checkpoints.check_room(state)

        writer = MetricWriter(workdir, resume_step=start, enabled=lead)
        watchdog = Watchdog(guard.watchdog_seconds, guard.watchdog_factor, event=events)
        log = StepLog(
            writer,
            name=name,
            start=start,
            total=config.total_steps,
            batch_size=config.batch_size,
            every=config.log_every,
            headline=headline,
            guard=guard,
            watchdog=watchdog,
            event=events,
        )
        train_step = make_step(layout)
        rows = stream(start_step=start)
        closing = contextlib.closing
        with closing(writer), closing(watchdog), StopSignals() as signals, jax.transfer_guard("disallow"):
            batch = next_batch(rows, mesh)
            for step in range(start + 1, config.total_steps + 1):
                state, metrics = train_step(state, batch, *constants)
                last = step == config.total_steps
                if not last:
                    batch = next_batch(rows, mesh)  # moves to the device while the step runs
                log.step(step, metrics)
                if step == start + 1:
                    events("first_step", step=step)
                if picture and config.sample_every and (last or step % config.sample_every == 0):
                    with jax.transfer_guard("allow"), watchdog.paused():
                        writer.write_images(step, picture(state))
                if score and (last or step % config.evaluate.every == 0):
                    with jax.transfer_guard("allow"), watchdog.paused():
                        writer.write_scalars(step, score(step, state))
                stopped = signals.stop_at(step) and not last
                if stopped:
                    events("signal", step=step)
                    log.write()
                if last or stopped or step % config.checkpoint.every == 0 or not checkpoints.check():
                    with watchdog.paused():
                        save(checkpoints, step, state, about, config, log.score, wait=last or stopped)
                if stopped:
                    events("stop", step=step, reason="signal")
                    signals.leave(step)
    events("stop", step=config.total_steps, reason="done")
    if lead:
        _log.info("%s: %s", name, goodput(workdir))
    return state


def open_checkpoints(config, workdir, events: RunEvents) -> Checkpoints:
    """The checkpoints of a run, kept as its run file says."""
    options = config.checkpoint
    return Checkpoints(
        workdir,
        keep=options.keep,
        keep_every=options.get("keep_every", 0),
        keep_best=options.get("keep_best", 0),
        event=events,
    )


def save(checkpoints: Checkpoints, step: int, state, about: dict, config, score: float | None, *, wait: bool) -> None:
    """Saves `state`, unless it has gone bad in a way that no guard saw: then the run ends and the last checkpoint stays."""
    try:
        checkpoints.save(step, state, about, config=json.loads(config.to_json_best_effort()), score=score, wait=wait)
    except NotFiniteError as error:
        raise TrainingDiverged(f"{error}; go on from the last checkpoint, with a lower learning rate") from error


def next_batch(rows: Iterator[dict], mesh: Mesh) -> dict:
    """The next rows of this process as part of a global, sharded batch."""
    return global_batch(next(rows), mesh)
