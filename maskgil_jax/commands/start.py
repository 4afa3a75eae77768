"""What commands that compute have in common: the compilation cache and the options of several processes."""

from __future__ import annotations

import argparse

from maskgil_jax.commands.parser import at_least


def prepare_jax() -> None:
    """Sets the persistent compilation cache, so that a second process does not compile the same program again."""
    from maskgil_jax.runtime.platform import set_compile_cache

    set_compile_cache()


def add_process_options(sub) -> None:
    """The options of `maskgil_jax.runtime.distributed.initialize`."""
    several = sub.add_argument_group("several processes", "detected on TPU slices and under SLURM")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0; the same for all")
    several.add_argument("--num-processes", type=at_least(1), metavar="N", help="number of processes; 1: only this one")
    several.add_argument("--process-id", type=at_least(0), metavar="I", help="number of this process, 0..N-1")
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
