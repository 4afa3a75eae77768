"""The platform that a program is made for: what a choice "by platform" asks, here once."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_made_for: contextvars.ContextVar[str | None] = contextvars.ContextVar("made_for", default=None)


def platform() -> str:
    """ "cpu", "gpu" or "tpu": JAX's default backend, unless the program is made for another (`made_for`)."""
    return _made_for.get() or jax.default_backend()


@contextlib.contextmanager
def made_for(name: str) -> Iterator[None]:
    """Programs traced meanwhile make the choices of this platform, as a plan for a TPU does on a machine without one.

    A function that was jitted and traced before keeps the choices it made then.
    """
    token = _made_for.set(name)
    try:
        yield
    finally:
        _made_for.reset(token)
