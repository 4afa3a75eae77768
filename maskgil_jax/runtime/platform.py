"""The platform that a program is compiled for; every choice "by platform" asks here."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

_log = logging.getLogger(__name__)

# With fewer codes per image, the caches of a CPU hold several images.
MIN_SEQUENTIAL_CODES = 256

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target_platform", default=None)


def set_compile_cache(folder: str | None = None) -> None:
    """Keeps compiled programs in `folder`, so that a second process does not compile the same program again.

    Default: `~/.cache/maskgil_jax/xla`. A cache that is set already, by JAX_COMPILATION_CACHE_DIR or `jax.config`, is
    left as it is. Programs that took less than a second to compile are not kept, unless JAX's own options say
    otherwise.
    """
    if getattr(jax.config, "jax_compilation_cache_dir") is not None:  # noqa: B009  (types do not know the option)
        return
    path = pathlib.Path(folder) if folder is not None else pathlib.Path.home() / ".cache" / "maskgil_jax" / "xla"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _log.warning("%s: compiled programs are not kept: %s", path, error.strerror)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    # A program compiled before has already made JAX decide that there is no cache.
    compilation_cache.reset_cache()


def platform() -> str:
    """ "cpu", "gpu" or "tpu": JAX's default backend, or that of `target_platform`."""
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def target_platform(name: str) -> Iterator[None]:
    """Programs traced in this context make the choices of platform `name`,
    as a plan for a TPU does on a machine without one.

    A function that was traced before keeps its choices.
    """
    token = _target.set(name)
    try:
        yield
    finally:
        _target.reset(token)


def prefer_sequential(batch: Any, codes: int) -> bool:
    """Whether a program runs faster on the images of a batch one after the other than on all of them at once.

    On a CPU it does if an image has enough tokens (`codes`) to keep the cores busy, because the activations of a whole
    batch exceed the caches. Not where the batch is split over several devices, which would wait for each other.
    """
    leaves = jax.tree.leaves(batch)
    split = any(jax.typeof(leaf).sharding.mesh.size > 1 for leaf in leaves)
    return platform() == "cpu" and codes >= MIN_SEQUENTIAL_CODES and len(leaves[0]) > 1 and not split


def map_batch(call: Callable, *batch: Any) -> Any:
    """`call(*batch)` by `lax.map` over the images, with batches of 1.

    All leaves, in and out, have a leading batch axis.
    """

    def alone(image):
        return jax.tree.map(lambda leaf: leaf[0], call(*jax.tree.map(lambda leaf: leaf[None], image)))

    return jax.lax.map(alone, batch)
