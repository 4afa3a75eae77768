"""The running commentary of a training loop: metrics averaged over a window, a progress bar, one line in a while elsewhere."""

from __future__ import annotations

import functools
import logging
import math
import sys
import time

import jax
from tqdm import tqdm

from maskgil_jax.training.writers import MetricWriter

_log = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """The loss is not a number; the last checkpoint was written before that."""


class StepLog:
    """Collects each step's metrics ({name: `clu.metrics.Average`}, on the device) and writes their means every `every` steps.

    Metrics are fetched one step late: the next step is already dispatched, so the device never waits for the host.
    """

    def __init__(self, writer: MetricWriter, *, name: str, start: int, total: int, batch_size: int, every: int, headline: str):
        self.writer, self.name, self.every, self.batch_size, self.headline = writer, name, max(every, 1), batch_size, headline
        self.total = total
        self.pending: list = []
        self.held = start
        self.clock, self.clock_step = time.perf_counter(), start
        shown = writer.enabled and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=start, desc=name, unit="step", disable=not shown, smoothing=0.05)

    def step(self, step: int, metrics) -> None:
        """Takes the metrics of `step`, just dispatched; writes the window that ended one step earlier, if one did."""
        if self.pending and self.held % self.every == 0:
            self._write()
        self.pending.append(metrics)
        self.held = step
        self.bar.update(1)
        if step == self.total:
            self._write()
            self.bar.close()

    def _write(self) -> None:
        steps = jax.device_get(self.pending)
        windows = {name: functools.reduce(lambda a, b: a.merge(b), [step[name] for step in steps]) for name in steps[0]}
        values = {name: float(window.compute()) for name, window in windows.items()}
        now = time.perf_counter()
        rate = (self.held - self.clock_step) * self.batch_size / max(now - self.clock, 1e-9)
        self.pending, self.clock, self.clock_step = [], now, self.held
        self.writer.write_scalars(self.held, {**values, "images_per_second": rate})
        if not math.isfinite(values[self.headline]):
            raise TrainingDiverged(
                f"{self.name}: {self.headline} is {values[self.headline]} at step {self.held}; "
                "lower the learning rate, or go on from the last checkpoint"
            )
        left = (self.total - self.held) * self.batch_size / max(rate, 1e-9)
        text = f"{self.headline} {values[self.headline]:.3f}"
        self.bar.set_postfix_str(f"{text}, {rate:.0f} images/s")
        if self.writer.enabled and self.bar.disable:
            minutes, seconds = divmod(int(left), 60)
            _log.info(
                "%s: step %d/%d, %s, %.0f images/s, %d:%02d left",
                self.name,
                self.held,
                self.total,
                text,
                rate,
                minutes,
                seconds,
            )
