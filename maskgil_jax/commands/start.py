"""What every command that computes does first."""

from __future__ import annotations

import argparse
import pathlib


def prepare_jax() -> None:
    """A persistent compilation cache: the second run of the same program starts at once."""
    import os

    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(pathlib.Path.home() / ".cache" / "maskgil_jax" / "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def add_process_options(sub) -> None:
    """The options of `maskgil_jax.runtime.distributed.initialize`."""
    several = sub.add_argument_group("several processes", "found by themselves on TPU slices and under SLURM")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 runs; the same for all")
    several.add_argument("--num-processes", type=int, metavar="N", help="1: this machine alone, whatever it is part of")
    several.add_argument("--process-id", type=int, metavar="I", help="0..N-1")
    text = "seconds without a heartbeat of a process after which the others end, by SIGABRT (default 60)"
    several.add_argument("--heartbeat-timeout", type=float, metavar="SECONDS", help=text)
    several.add_argument("--peer-timeout", type=float, help=argparse.SUPPRESS)  # old name


def join_processes(args) -> None:
    """Joins the other processes as the options of `add_process_options` say."""
    from maskgil_jax.runtime.distributed import initialize

    initialize(
        args.coordinator,
        args.num_processes,
        args.process_id,
        heartbeat_timeout_seconds=args.heartbeat_timeout,
        peer_timeout=args.peer_timeout,
    )
