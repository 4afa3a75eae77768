"""The platform that a program is made for: what a choice "by platform" asks, here once."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax

# Images of fewer codes are little work each, and a CPU's caches hold several of them.
MIN_SEQUENTIAL_CODES = 256

_made_for: contextvars.ContextVar[str | None] = contextvars.ContextVar("made_for", default=None)


def platform() -> str:
    """ "cpu", "gpu" or "tpu": JAX's default backend, unless the program is made for another (`target_platform`)."""
    return _made_for.get() or jax.default_backend()


@contextlib.contextmanager
def target_platform(name: str) -> Iterator[None]:
    """Programs traced meanwhile make the choices of this platform, as a plan for a TPU does on a machine without one.

    A function that was jitted and traced before keeps the choices it made then.
    """
    token = _made_for.set(name)
    try:
        yield
    finally:
        _made_for.reset(token)


def prefer_sequential(batch: Any, codes: int) -> bool:
    """Whether a program does better to work on the images of a batch one after the other than on all together.

    A CPU does, if an image is large enough to keep it busy (`codes`: tokens of one): what a whole batch needs between two
    layers does not fit its caches. Not where the batch is split over several devices, which would wait for each other.
    """
    leaves = jax.tree.leaves(batch)
    split = any(jax.typeof(leaf).sharding.mesh.size > 1 for leaf in leaves)
    return platform() == "cpu" and codes >= MIN_SEQUENTIAL_CODES and len(leaves[0]) > 1 and not split


def map_batch(call: Callable, *batch: Any) -> Any:
    """`call(*batch)`, given one image after the other in a loop of the program. All leaves, in and out, lead with the batch."""

    def alone(image):
        return jax.tree.map(lambda leaf: leaf[0], call(*jax.tree.map(lambda leaf: leaf[None], image)))

    return jax.lax.map(alone, batch)
