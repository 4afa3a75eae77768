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
