"""A thread that ends the program when no step ends any more, so that whoever started it can start it again."""

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
OVERSLEPT = 10  # pauses of the watching thread in one that tell that the process was stopped


class Watchdog:
    """Waits for the end of each step for `seconds`, or for `factor` usual steps if that is longer; then the stacks of all
    threads go to stderr and the program ends with exit code 5. Nothing is watched before the first step has ended: compiling
    takes as long as it takes; time in which the whole process was stopped (SIGSTOP, a machine asleep) does not count.
    seconds=0: nothing is watched at all. event: called with "hang" before the end.
    """

    def __init__(self, seconds: float, factor: float = 10.0, *, event: Callable | None = None):
        self.seconds, self.factor, self.event = seconds, factor, event or (lambda name, **fields: None)
        self.durations: deque[float] = deque(maxlen=101)
        self.step = 0
        self.last: float | None = None  # the end of the last step; None while nothing is watched
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
        """For work between steps that may take long: pictures, figures, waiting for a disk."""
        was, self.last = self.last, None
        try:
            yield
        finally:
            self.last = None if was is None else time.monotonic()

    @property
    def limit(self) -> float:
        """Seconds without the end of a step that are too many."""
        usual = statistics.median(list(self.durations)) if self.durations else 0.0
        return max(self.factor * usual, self.seconds)

    def _watch(self) -> None:
        pause, woken = min(1.0, self.seconds / 4), 0.0
        before = time.monotonic()
        while not self.closed.wait(pause):
            now, last = time.monotonic(), self.last
            if now - before > OVERSLEPT * pause:  # this thread did not run, so neither did the steps: count anew
                woken = now
            before = now
            if last is not None and (silence := now - max(last, woken)) > self.limit:
                self._bark(silence)

    def _bark(self, silence: float) -> None:
        usual = f"{statistics.median(list(self.durations)):.2g} s" if self.durations else "unknown"
        self.event("hang", step=self.step, seconds=round(silence, 1))
        _log.error(
            "no step ended for %.0f s after step %d (a usual step: %s): a device or another process hangs. The stacks of all "
            "threads follow; leaving with exit code %d, the same command goes on from the last checkpoint",
            silence,
            self.step,
            usual,
            EXIT_CODE,
        )
        faulthandler.dump_traceback(file=2, all_threads=True)  # the file descriptor: sys.stderr may be captured
        os._exit(EXIT_CODE)

    def close(self) -> None:
        """Ends the thread."""
        self.closed.set()


_log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """Stopped by Ctrl-C after the last step was saved: exit code 130."""


class Terminated(SystemExit):
    """Stopped by SIGTERM (a preempted machine, a scheduler) after the last step was saved: exit code 0."""

    def __init__(self):
        super().__init__(0)


class StopSignals:
    """A context in which SIGTERM and SIGINT ask for a stop. The answer to the first, and leaving at the second, come at once,
    also while a program is being compiled: Python's own handlers would wait for that.

    Several processes stop together, at a step that JAX's preemption service agrees on when any of them gets a SIGTERM.
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
                    os.write(2, f"second signal ({name}): leaving at once\n".encode())
                    os._exit(130)
                self.received = data[0]
                os.write(2, f"{name} noted, saving after the current step\n".encode())

    def stop_at(self, step: int) -> bool:
        """Whether `step` is the last. With several processes, to be asked by all of them after every step."""
        if jax.process_count() == 1:
            return self.received is not None
        try:
            if multihost_utils.reached_preemption_sync_point(step):
                self.received = signal.SIGTERM
        except RuntimeError as error:  # the service is switched off
            _log.debug("no preemption service: %s", error)
        return self.received is not None

    def leave(self, step: int) -> None:
        """Raises what ends the program, once `step` has been saved."""
        _log.info("stopped after step %d, which is saved; the same command goes on from there", step)
        raise Interrupted if self.received == signal.SIGINT else Terminated
