"""Progress of long loops: a bar on a terminal, log lines elsewhere. Estimates leave out the time of compiling."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

_log = logging.getLogger(__name__)
SECONDS = 30.0  # between two log lines


def minutes_left(seconds: float) -> str:
    """Seconds as minutes and seconds: "2:05"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def restart_bar(bar, done: int) -> None:
    """Makes a tqdm bar estimate from now on, with `done` items behind it."""
    bar.n = bar.initial = bar.last_print_n = done
    bar.start_t = bar.last_print_t = time.time()
    bar.refresh()


class Progress:
    """A context in which `update(count)` tells of finished items.

    The first update ends the compiling: it is announced by a line at the start, and neither its time nor its items
    enter the estimates. done: items finished by an earlier run. clock: seconds, for tests.
    """

    def __init__(
        self,
        name: str,
        total: int,
        *,
        done: int = 0,
        unit: str = "image",
        log: logging.Logger = _log,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name, self.total, self.done, self.unit, self.log, self.clock = name, total, done, unit, log, clock
        self.bar: Any = None  # of tqdm, inside the context
        self.began: float | None = None  # when compiling had ended
        self.began_at, self.logged = done, 0.0

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        visible = sys.stderr.isatty()
        self.bar = tqdm(total=self.total, initial=self.done, desc=self.name, unit=self.unit, disable=not visible)
        if visible:
            self.bar.set_postfix_str("compiling")
        elif self.done < self.total:
            self.log.info("%s: compiling; %d %ss to do", self.name, self.total - self.done, self.unit)
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def update(self, count: int) -> None:
        """Adds `count` finished items; logs a line every half minute where there is no terminal."""
        self.done += count
        now = self.clock()
        if self.began is None:
            self.began, self.began_at, self.logged = now, self.done, now
            if not self.bar.disable:
                self.bar.set_postfix_str("", refresh=False)
                restart_bar(self.bar, self.done)
            return
        self.bar.update(count)
        if self.bar.disable and now - self.logged > SECONDS:
            self.logged, rate = now, (self.done - self.began_at) / (now - self.began)
            left = minutes_left((self.total - self.done) / rate)
            self.log.info("%s: %d/%d %ss, %.2f a second, %s left", self.name, self.done, self.total, self.unit, rate, left)


class StepClock:
    """Measures the time of a step, and estimates the time that is left for `total` of them.

    `started` is to be called when the first step has ended, so that compiling does not count. `paused` is a context
    around what is not a step (pictures, checkpoints): its time is counted apart, by kind.
    """

    def __init__(self, start: int, total: int, clock: Callable[[], float] = time.perf_counter):
        self.total, self.clock = total, clock
        self.last, self.step = clock(), start
        self.seconds: float | None = None  # a step, the newer windows counting more
        self.pauses: dict[str, tuple[int, float]] = {}  # kind -> (steps between two, seconds of the shortest)

    def started(self, step: int) -> None:
        """Begins the first window behind `step`."""
        self.last, self.step = self.clock(), step

    @contextlib.contextmanager
    def paused(self, kind: str, every: int) -> Iterator[None]:
        """Excludes the block from the window. every: steps between two blocks of this kind.

        The last step has one too.
        """
        began = self.clock()
        try:
            yield
        finally:
            seconds = self.clock() - began
            self.last += seconds
            self.pauses[kind] = every, min(seconds, self.pauses.get(kind, (every, seconds))[1])

    def window(self, step: int) -> float:
        """Ends a window with `step`; returns its seconds a step. A window without a step returns the last value."""
        now, steps = self.clock(), step - self.step
        if steps > 0:
            seconds = max(now - self.last, 1e-9) / steps
            self.seconds = seconds if self.seconds is None else (self.seconds + seconds) / 2
            self.last, self.step = now, step
            return seconds
        return self.seconds or max(now - self.last, 1e-9)

    def left(self) -> float:
        """Estimated seconds until the end of the last step."""
        if self.step >= self.total or self.seconds is None:
            return 0.0
        pauses = 0.0
        for every, seconds in self.pauses.values():
            count = self.total // every - self.step // every + (self.total % every > 0) if every else 1
            pauses += count * seconds
        return (self.total - self.step) * self.seconds + pauses
