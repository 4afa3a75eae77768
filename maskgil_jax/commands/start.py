"""What every command that computes does first."""

from __future__ import annotations

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
    text = "without a sign of life after which a process counts as frozen and all leave with exit code 5 (default 60; 0: never)"
    several.add_argument("--peer-timeout", type=float, default=60.0, metavar="SECONDS", help=text)
