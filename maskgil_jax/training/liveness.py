"""A watchdog that ends a program whose steps hang, and stopping on SIGTERM and SIGINT."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

_log = logging.getLogger(__name__)
EXIT_CODE = 5
SIGNALS = (signal.SIGTERM, signal.SIGINT)
OVERSLEPT = 10  # a wait of the watchdog this many times too long means that the whole process was stopped


class Watchdog:
    """Ends the program with exit code 5 if a step does not end in time,
    after writing the stacks of all threads to stderr.

    The limit is `seconds`, or `factor` times the median duration of a step if that is longer. It applies after the end
    of the first step, so that compilation has no limit. Time in which the whole process was stopped (SIGSTOP, a
    suspended machine)
    does not count. seconds=0: no watchdog. event: called with "hang" before the end.
    """

    def __init__(self, seconds: float, factor: float = 10.0, *, event: Callable | None = None):
        self.seconds, self.factor, self.event = seconds, factor, event or (lambda name, **fields: None)
        self.durations: deque[float] = deque(maxlen=101)
        self.step = 0
        self.last: float | None = None  # when the last step ended; None while paused
        self.closed = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def ended(self, step: int) -> None:
        """To be called when a step has ended on the device."""
        now = time.monotonic()
        if self.last is not None:
            self.durations.append(now - self.last)
        self.step, self.last = step, now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Suspends the limit during the block: for sample images, evaluation and saves."""
        was, self.last = self.last, None
        try:
            yield
        finally:
            self.last = None if was is None else time.monotonic()

    @property
    def limit(self) -> float:
        """Seconds after the end of a step within which the next must end."""
        median = statistics.median(list(self.durations)) if self.durations else 0.0
        return max(self.factor * median, self.seconds)

    def _watch(self) -> None:
        pause, woken = min(1.0, self.seconds / 4), 0.0
        before = time.monotonic()
        while not self.closed.wait(pause):
            now, last = time.monotonic(), self.last
            if now - before > OVERSLEPT * pause:  # this thread did not run, so neither did the steps: start counting again
                woken = now
            before = now
            if last is not None and (silence := now - max(last, woken)) > self.limit:
                self._abort(silence)

    def _abort(self, silence: float) -> None:
        median = f"{statistics.median(list(self.durations)):.2g} s" if self.durations else "unknown"
        self.event("hang", step=self.step, seconds=round(silence, 1))
        _log.error(
            "no step ended for %.0f s after step %d (median step: %s): a device or another process hangs. The stacks of all "
            "threads follow; ending with exit code %d. The same command continues from the last checkpoint",
            silence,
            self.step,
            median,
            EXIT_CODE,
        )
        faulthandler.dump_traceback(file=2, all_threads=True)  # the file descriptor, as sys.stderr may be redirected
        os._exit(EXIT_CODE)

    def close(self) -> None:
        """Ends the thread."""
        self.closed.set()


class Interrupted(KeyboardInterrupt):
    """Stopped by Ctrl-C after the last step was saved: exit code 130."""


class Terminated(SystemExit):
    """Stopped by SIGTERM (a preempted machine, a scheduler) after the last step was saved: exit code 0."""

    def __init__(self):
        super().__init__(0)


class StopSignals:
    """A context in which SIGTERM and SIGINT request a stop after the current step.

    A second signal ends the program at once.

    A thread reads the signals from a wake-up socket, so that they are answered during a compilation, when Python's own
    handlers do not run. Several processes stop together, at the step that JAX's preemption service chooses when any of
    them gets a SIGTERM.
    """

    def __init__(self):
        self.received: int | None = None
        self.before: dict = {}

    def __enter__(self) -> StopSignals:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self.reader, self.writer = socket.socketpair()
            self.writer.setblocking(False)
            self.wakeup = signal.set_wakeup_fd(self.writer.fileno())
            self.before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
            threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        if self.before:
            for number, handler in self.before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self.wakeup)
            self.writer.close()  # ends the thread

    def _listen(self) -> None:
        with self.reader:
            while data := self.reader.recv(1):
                if data[0] not in SIGNALS:
                    continue
                name = signal.Signals(data[0]).name
                if self.received is not None:
                    os.write(2, f"second signal ({name}): ending at once\n".encode())
                    os._exit(130)
                self.received = data[0]
                os.write(2, f"{name} received: saving after the current step\n".encode())

    def stop_at(self, step: int) -> bool:
        """Whether to stop after `step`. Several processes must all call this after every step."""
        if jax.process_count() == 1:
            return self.received is not None
        try:
            if multihost_utils.reached_preemption_sync_point(step):
                self.received = signal.SIGTERM
        except RuntimeError as error:  # the service is disabled
            _log.debug("no preemption service: %s", error)
        return self.received is not None

    def leave(self, step: int) -> None:
        """Raises `Interrupted` or `Terminated`. To be called when `step` is saved."""
        _log.info("stopped after step %d, which is saved; the same command continues from there", step)
        raise Interrupted if self.received == signal.SIGINT else Terminated
