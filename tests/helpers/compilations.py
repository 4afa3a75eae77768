"""Counts the programs that XLA compiles."""

import contextlib

from jax import monitoring

_EVENT = "/jax/core/compile/backend_compile_duration"
_counts: list[list[str]] = []


def _listen(event: str, duration: float, **_) -> None:
    if event == _EVENT:
        for count in _counts:
            count.append(event)


monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def counted():
    """Yields a list that grows by one for each program compiled, or read from the persistent cache,
    inside the block."""
    count: list[str] = []
    _counts.append(count)
    try:
        yield count
    finally:
        _counts.remove(count)
