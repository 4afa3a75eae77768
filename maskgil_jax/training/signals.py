"""Stopping when asked: the step under way is finished and saved, then the program ends; asked twice, it ends at once."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading

import jax
from jax.experimental import multihost_utils

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
