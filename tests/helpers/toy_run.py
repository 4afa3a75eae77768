"""A run of the training loop on a tiny network and random codes, as a program that tests kill and continue.

python tests/helpers/toy_run.py --workdir DIR --steps 20 --every 2

Its exit codes are those of the command.
"""

import argparse
import functools
import itertools
import logging
import os
import pathlib
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from maskgil_jax import cli
from maskgil_jax.conditioning import conditioner_of
from maskgil_jax.config import LlamaConfig, LoaderConfig
from maskgil_jax.data import loader
from maskgil_jax.networks import create, params_of
from maskgil_jax.runtime import distributed
from maskgil_jax.runtime.mesh import replicated
from maskgil_jax.training import generator
from maskgil_jax.training.loop import fit, open_mesh, with_arrays
from maskgil_jax.training.optimizer import make_optimizer
from maskgil_jax.training.skip_updates import skip_bad_updates, skip_config
from maskgil_jax.training.state import init_state

NET = LlamaConfig(codebook_size=16, num_classes=3, grid=(4, 4), width=32, depth=2, heads=2, mlp_width=48)
BATCH = 8


def run_file(**changes) -> ConfigDict:
    """The part of a run file that `fit` reads."""
    adam = dict(learning_rate=1e-2, beta1=0.9, beta2=0.96, weight_decay=1e-5, decay_on="matrices", clip_norm=1.0)
    return ConfigDict(
        dict(
            seed=0,
            batch_size=BATCH,
            total_steps=20,
            mesh=dict(data=-1, fsdp=1, tensor=1),
            optimizer=dict(adam, warmup_steps=0, decay="constant", ema_decay=0.9),
            checkpoint=dict(every=2, keep=3, keep_every=0, keep_best=0, allow_data_change=False),
            guard=dict(watchdog_seconds=0.0),
            log_every=1,
            sample_every=0,
        )
        | changes
    )


def poisoned(gradients, factor: float):
    """`gradients` multiplied by `factor` on batches of code 0 alone, which are the bad ones."""

    def of(params, batch, cfg, objective, grid):
        grads, sums = gradients(params, batch, cfg, objective, grid)
        scale = jnp.where((batch["targets"] == 0).all(), factor, 1.0)
        return jax.tree.map(lambda g: g * scale, grads), sums

    return of


def batches(start_step: int, *, bad=(), seconds: float = 0.0, hang: int = 0):
    """This process's rows of batch i, a function of i; all zeros at the bad steps; step `hang` never gets a batch."""
    for step in itertools.count(start_step + 1):
        time.sleep(1e6 if step == hang else seconds)
        codes = np.random.default_rng(step).integers(0, 16, (BATCH, 4, 4), np.int32)
        codes = np.zeros_like(codes) if step in bad else codes
        share = BATCH // jax.process_count()
        rows = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        yield {"codes": codes[rows], "label": np.arange(BATCH, dtype=np.int32)[rows] % 3}


class Codes:
    """Random access to random codes, for the data loader."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, i: int) -> dict:
        return {"codes": np.random.default_rng(i).integers(0, 16, (4, 4), np.int32), "label": i % 3}


def loaded(start_step: int, workers: int):
    """Shuffled batches of the data loader, with so many worker processes."""
    first = BATCH // 2 * jax.process_index()
    rows = None if jax.process_count() == 1 else tuple(range(first, first + BATCH // 2))
    types = {"codes": np.int32, "label": np.int32}
    return loader.batches(Codes(), [], types, LoaderConfig(BATCH, num_workers=workers, rows=rows), start_step=start_step)


def toy_run(workdir, config: ConfigDict, stream=batches, **stream_options):
    """Trains and returns the final state."""
    mesh = open_mesh(config)
    tx = skip_bad_updates(make_optimizer(config.optimizer, config.total_steps), skip_config(config))
    ema = config.optimizer.ema_decay
    keys = jax.jit(lambda: tuple(jax.random.split(jax.random.key(config.seed))), out_shardings=replicated(mesh))()
    return fit(
        config,
        workdir,
        mesh,
        name="toy",
        primary_metric="masked_loss",
        init=init_state(lambda key: params_of(create(NET, key)), tx, ema=ema > 0),
        init_key=keys[0],
        make_step=functools.partial(
            generator.jitted_step, NET, generator.Objective(), tx, lambda step: 1e-2, ema, conditioner=conditioner_of(NET, {})
        ),
        frozen=(keys[1], None),
        batches=with_arrays(functools.partial(stream, **stream_options), ("codes", "label")),
        fingerprint_inputs={"model": {"width": NET.width}, "data": {"path": "made up"}, "seed": config.seed},
    )


def parser() -> argparse.ArgumentParser:
    """The options of the program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--keep", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.0, help="pause before each step")
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-2, help="learning rate")
    parser.add_argument("--bad", default="", help="steps whose gradients are not a number, e.g. 3,4")
    parser.add_argument("--factor", type=float, default=float("nan"))
    parser.add_argument("--hang", type=int, default=0, help="step whose batch never comes")
    parser.add_argument("--watchdog", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=-1, help="use the data loader, with so many worker processes")
    parser.add_argument("--process", default="", help="INDEX/COUNT/PORT of one of several")
    parser.add_argument("--heartbeat-timeout", type=float, default=60.0)
    return parser


def prepare(args) -> None:
    """Logging, the compilation cache, and the other processes."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    if args.process:
        index, count, port = map(int, args.process.split("/"))
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        distributed.initialize(f"127.0.0.1:{port}", count, index, heartbeat_timeout_seconds=args.heartbeat_timeout)


def train(args) -> None:
    """Runs the training with the command-line options."""
    gradients, generator.gradients = generator.gradients, poisoned(generator.gradients, args.factor)
    config = run_file(total_steps=args.steps)
    config.checkpoint.update(every=args.every, keep=args.keep)
    config.mesh.fsdp, config.optimizer.learning_rate = args.fsdp, args.rate
    config.guard.update(watchdog_seconds=args.watchdog, watchdog_factor=2.0)
    bad = {int(step) for step in args.bad.split(",") if step}
    options = dict(bad=bad, seconds=args.seconds, hang=args.hang)
    if args.workers >= 0:
        options = dict(stream=loaded, workers=args.workers)
    try:
        state = toy_run(pathlib.Path(args.workdir), config, **options)
    finally:
        generator.gradients = gradients
    print(f"done at step {int(jax.device_get(state.step))}", flush=True)


def main(argv: list[str] | None = None, work=train) -> int:
    """See the module's docstring."""
    args = parser().parse_args(argv)
    prepare(args)
    try:
        work(args)
    except Exception as error:
        code = cli.exit_code(error)
        if code is None:
            raise
        cli.exit_without_barrier(code)
        print(f"error: {error}", file=sys.stderr)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
