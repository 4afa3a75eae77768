"""The worker: requests wait in a bounded queue, and those that fit one program are drawn in one batch."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maskgil_jax.config import ServeConfig
from maskgil_jax.web.drawing import BatchDrawer, Drawing, Picture

logger = logging.getLogger(__name__)


class QueueFull(Exception):
    """More images wait than the queue holds. retry_after: seconds after which there is probably a place."""

    def __init__(self, retry_after: int):
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class Stopping(Exception):
    """The server is stopping and accepts nothing new."""


class TimedOut(Exception):
    """A request was not drawn within the time limit."""


@dataclasses.dataclass(eq=False)
class Ticket:
    """A request that was accepted. future: its pictures, in order. on_step: called as (index, step, preview_hwc)."""

    drawings: Sequence[Drawing]
    deadline: float
    on_step: Callable[[int, int, np.ndarray], Any] | None = None
    future: concurrent.futures.Future[list[Picture]] = dataclasses.field(default_factory=concurrent.futures.Future)
    accepted: float = dataclasses.field(default_factory=time.perf_counter)
    pictures: dict[int, Picture] = dataclasses.field(default_factory=dict)

    def finish(self, index: int, picture: Picture) -> None:
        """Keeps a picture; the last one completes the request."""
        self.pictures[index] = picture
        if len(self.pictures) == len(self.drawings):
            with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled meanwhile
                self.future.set_result([self.pictures[i] for i in range(len(self.drawings))])

    def fail(self, error: BaseException) -> None:
        """Ends the request with an error, unless it has ended."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            self.future.set_exception(error)


@dataclasses.dataclass(eq=False)
class _Waiting:
    ticket: Ticket
    index: int

    @property
    def drawing(self) -> Drawing:
        return self.ticket.drawings[self.index]


class NoMeasures:
    """Where no metrics are wanted."""

    def batch(self, images: int, seconds: dict[str, float]) -> None:
        pass

    def refused(self, reason: str) -> None:
        pass


class Engine:
    """One thread that draws for everybody. Calls of JAX happen in it alone."""

    def __init__(self, pipeline: Any, cfg: ServeConfig | None = None, measures: Any = None):
        self.cfg = cfg or ServeConfig()
        self.pipeline = pipeline
        self.measures = measures or NoMeasures()
        self.drawer = BatchDrawer(pipeline, self.cfg.batch_sizes)
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._busy = 0
        self._seconds_per_image = 0.1
        self._thread = threading.Thread(target=self._work, name="maskgil-worker", daemon=True)

    # -------------------------------------------------------------------------------------------- for other threads
    def start(self) -> Engine:
        """Starts the worker."""
        self._thread.start()
        return self

    def stop(self, timeout: float | None = None) -> bool:
        """Accepts nothing more, draws what was accepted, ends the worker. False if that took longer than `timeout`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._queue)

    @property
    def healthy(self) -> bool:
        """Whether the worker runs and accepts requests."""
        return self._thread.is_alive() and not self._stopping

    def submit(
        self,
        drawings: Sequence[Drawing],
        on_step: Callable[[int, int, np.ndarray], Any] | None = None,
        time_limit: float | None = None,
    ) -> Ticket:
        """Puts a request into the queue: all of its images or, with `QueueFull` or `Stopping`, none."""
        limit = self.cfg.time_limit if time_limit is None else time_limit
        ticket = Ticket(tuple(drawings), time.perf_counter() + limit, on_step)
        with self._changed:
            if self._stopping:
                self.measures.refused("stopping")
                raise Stopping("the server is stopping")
            if len(self._queue) + len(drawings) > self.cfg.max_queue:
                self.measures.refused("queue_full")
                raise QueueFull(max(1, round((len(self._queue) + self._busy) * self._seconds_per_image)))
            self._queue.extend(_Waiting(ticket, index) for index in range(len(drawings)))
            self._changed.notify_all()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Gives up a request: its places in the queue are free at once. A batch that is being drawn is finished."""
        with self._changed:
            self._drop(ticket)
        ticket.future.cancel()

    # -------------------------------------------------------------------------------------------- the worker
    def _drop(self, ticket: Ticket) -> None:
        self._queue = collections.deque(waiting for waiting in self._queue if waiting.ticket is not ticket)

    def _drop_ended(self) -> None:
        """Takes out requests that have ended (cancelled, failed) or whose time is up."""
        now = time.perf_counter()
        for ticket in {waiting.ticket for waiting in self._queue}:
            if ticket.deadline < now:
                self.measures.refused("time_limit")
                ticket.fail(TimedOut(f"not drawn within {ticket.deadline - ticket.accepted:.0f} s"))
            if ticket.future.done():
                self._drop(ticket)

    def _next_batch(self) -> list[_Waiting]:
        """The first image in the queue and others that fit its program; empty when the worker shall end."""
        with self._changed:
            while True:
                self._drop_ended()
                if self._queue:
                    break
                if self._stopping:
                    return []
                self._changed.wait()
            first = self._queue[0]
            program_of = self.drawer.program
            program, largest = program_of(first.drawing), self.drawer.largest(first.drawing)
            until = first.ticket.accepted + self.cfg.max_wait_ms / 1000
            while not self._stopping:
                fitting = sum(program_of(waiting.drawing) == program for waiting in self._queue)
                left = until - time.perf_counter()
                if fitting >= largest or left <= 0:
                    break
                self._changed.wait(left)
            batch = [waiting for waiting in self._queue if program_of(waiting.drawing) == program][:largest]
            taken = set(map(id, batch))
            self._queue = collections.deque(waiting for waiting in self._queue if id(waiting) not in taken)
            self._busy = len(batch)
            return batch

    def _work(self) -> None:
        while True:
            batch = self._next_batch()
            if not batch:
                if self._stopping and not self._queue:
                    return
                continue  # every request of the batch was given up while it waited
            try:
                self._draw(batch)
            except BaseException as error:  # the worker must live on, whatever a request does
                logger.exception("drawing failed")
                for waiting in batch:
                    waiting.ticket.fail(error)
            finally:
                self._busy = 0

    def _draw(self, batch: list[_Waiting]) -> None:
        start = time.perf_counter()
        watched = [i for i, waiting in enumerate(batch) if waiting.ticket.on_step is not None]

        def on_step(index: int, step: int, preview_hwc: np.ndarray) -> None:
            waiting = batch[index]
            show = waiting.ticket.on_step
            assert show is not None
            try:
                show(waiting.index, step, preview_hwc)
            except Exception:  # a viewer that went away does not end the batch of the others
                logger.debug("a preview was not delivered", exc_info=True)

        pictures = self.drawer.draw([waiting.drawing for waiting in batch], on_step if watched else None, watched)
        seconds = time.perf_counter() - start
        self._seconds_per_image += 0.2 * (seconds / len(batch) - self._seconds_per_image)
        self.measures.batch(len(batch), pictures[0].seconds)
        for waiting, picture in zip(batch, pictures, strict=True):
            times = {"waited": start - waiting.ticket.accepted, **picture.seconds}
            waiting.ticket.finish(waiting.index, dataclasses.replace(picture, seconds=times))
