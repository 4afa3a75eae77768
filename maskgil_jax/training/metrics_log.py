"""Metrics of a training run: window averages, progress bar or log lines, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import functools
import json
import logging
import math
import sys
from collections import deque
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from maskgil_jax.files.atomic import writing
from maskgil_jax.files.paths import LineFile, is_remote, open_folder
from maskgil_jax.runtime.progress import StepClock, minutes_left, restart_bar
from maskgil_jax.training.liveness import Watchdog
from maskgil_jax.training.skip_updates import SkipConfig

_log = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """The loss is not finite, or too many steps in a row were skipped; the last checkpoint is from before that."""


class StepLog:
    """Collects each step's metrics ({name: `clu.metrics.Average`}, on the device)
    and writes their means every `every` steps.

    Metrics are fetched after the next step is dispatched, so the device does not wait for the host. The host runs at
    most two steps ahead, so that batches do not accumulate on the device and `watchdog` is told of every step. Skipped
    steps (metric `skipped_in_a_row` above 0) are logged and counted, but excluded from the means. score: the last mean
    of `primary_metric`.
    event: called with "skip" and "alarm". clock: its `paused` goes around what is not a step, so that rates are those
    of steps.
    """

    def __init__(
        self,
        writer: MetricWriter,
        *,
        name: str,
        start: int,
        total: int,
        batch_size: int,
        every: int,
        primary_metric: str,
        guard: SkipConfig | None = None,
        watchdog: Watchdog | None = None,
        event: Callable | None = None,
    ):
        self.writer, self.name, self.every, self.batch_size, self.primary_metric = (
            writer,
            name,
            max(every, 1),
            batch_size,
            primary_metric,
        )
        self.guard, self.watchdog, self.event = guard or SkipConfig(), watchdog, event or (lambda name, **fields: None)
        self.total = total
        self.pending: list = []
        self.running: deque = deque(maxlen=2)
        self.held = start
        self.score: float | None = None
        self.alarm = LossAlarm(self.guard.loss_alarm)
        self.start, self.clock = start, StepClock(start, total)
        visible = writer.enabled and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=start, desc=name, unit="step", disable=not visible, smoothing=0.05)
        if visible:
            self.bar.set_postfix_str("compiling")

    def step(self, step: int, metrics) -> None:
        """Adds the metrics of `step`, which was just dispatched.

        Writes the window that ended one step earlier, if any.
        """
        if len(self.running) == 2:
            ended, result = self.running[0]
            jax.block_until_ready(result)
            if ended == self.start + 1:
                self.clock.started(ended)
                if not self.bar.disable:
                    restart_bar(self.bar, ended)
            if self.watchdog:
                self.watchdog.ended(ended)
        if self.pending and self.held % self.every == 0:
            self.write()
        self.running.append((step, metrics))
        self.pending.append(metrics)
        self.held = step
        self.bar.update(1)
        if step == self.total:
            self.write()
            self.bar.close()

    def write(self) -> None:
        """Waits for the pending steps, writes their means and reports bad ones. Raises `TrainingDiverged`."""
        if not self.pending:
            return
        steps = jax.device_get(self.pending)
        first, self.pending = self.held - len(steps) + 1, []
        runs = [int(step.pop("skipped_in_a_row").compute()) if "skipped_in_a_row" in step else 0 for step in steps]
        good = [step for step, run in zip(steps, runs) if run == 0]
        values: dict[str, float] = {}
        if good:
            windows = {name: functools.reduce(lambda a, b: a.merge(b), [step[name] for step in good]) for name in good[0]}
            values = {name: float(window.compute()) for name, window in windows.items()}
        values["skipped"] = float(len(steps) - len(good))
        rate = self.batch_size / self.clock.window(self.held)
        self.writer.write_scalars(self.held, {**values, "images_per_second": rate})
        for step, (metrics, run) in enumerate(zip(steps, runs), first):
            self._check_step(step, metrics, run)
        self._report(values, rate)

    def _check_step(self, step: int, metrics, run: int) -> None:
        """Reports a skipped step, or one whose loss jumped. Raises `TrainingDiverged` after too many skipped ones."""
        loss = float(metrics[self.primary_metric].compute())
        if run:
            norm = float(metrics["grad_norm"].compute())
            self.event("skip", step=step, grad_norm=str(norm), in_a_row=run)
            _log.warning("%s: step %d skipped (gradient norm %.4g)", self.name, step, norm)
            if run >= self.guard.stop_after:
                raise TrainingDiverged(
                    f"{self.name}: steps {step - run + 1} to {step} were all skipped, the last with gradient norm {norm:.4g}; "
                    "lower the learning rate or inspect these batches, and continue from the last checkpoint, which is good"
                )
        elif not math.isfinite(loss):
            raise TrainingDiverged(
                f"{self.name}: {self.primary_metric} is {loss} at step {step}; "
                "lower the learning rate, or continue from the last checkpoint"
            )
        elif mean := self.alarm.above(loss):
            self.event("alarm", step=step, loss=loss, usual=mean)
            _log.warning(
                "%s: %s jumped to %.3f at step %d (it was about %.3f)", self.name, self.primary_metric, loss, step, mean
            )

    def _report(self, values: dict[str, float], rate: float) -> None:
        text = "all skipped"
        if self.primary_metric in values:
            self.score = values[self.primary_metric]
            text = f"{self.primary_metric} {self.score:.3f}"
        self.bar.set_postfix_str(f"{text}, {rate:.0f} images/s")
        if self.writer.enabled and self.bar.disable:
            _log.info(
                "%s: step %d/%d, %s, %.0f images/s, %s left",
                self.name,
                self.held,
                self.total,
                text,
                rate,
                minutes_left(self.clock.left()),
            )


class LossAlarm:
    """Detects a loss more than `deviations` standard deviations above its running mean; 0: never.

    Values must be finite.
    """

    def __init__(self, deviations: float, warmup: int = 50):
        self.deviations, self.warmup = deviations, warmup
        self.seen, self.mean, self.variance = 0, 0.0, 0.0

    def above(self, loss: float) -> float | None:
        """The running mean if `loss` is an outlier, else None; updates the mean with `loss`."""
        mean, weight = self.mean, max(0.02, 1.0 / (self.seen + 1))
        far = loss - mean > self.deviations * math.sqrt(self.variance)
        outlier = self.deviations and self.seen >= self.warmup and far
        self.variance = (1.0 - weight) * (self.variance + weight * (loss - mean) ** 2)
        self.mean += weight * (loss - mean)
        self.seen += 1
        return mean if outlier else None


class MetricWriter:
    """Writes scalars to `metrics.jsonl` and TensorBoard, images to `images/` as PNG and to TensorBoard.

    In process 0 only.
    """

    def __init__(self, workdir, *, resume_step: int = 0, enabled: bool = True):
        self.enabled = enabled
        if not enabled:
            return
        from tensorboardX import SummaryWriter

        self.workdir = open_folder(workdir)
        _drop_after(self.workdir / "metrics.jsonl", resume_step)
        self.lines = LineFile(self.workdir / "metrics.jsonl")
        # purge_step hides what was logged after the last checkpoint of an interrupted run
        self.events = SummaryWriter(str(self.workdir / "tensorboard"), purge_step=resume_step + 1 if resume_step else None)

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Appends one line and flushes it, so that a kill loses none."""
        if not self.enabled:
            return
        values = {name: float(value) for name, value in scalars.items()}
        self.lines.append(json.dumps({"step": step, **values}))
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Writes uint8 (h, w, 3) images by name."""
        if not self.enabled:
            return
        from PIL import Image

        folder = self.workdir / "images"
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in images.items():
            with (folder / f"{name}_{step:07d}.png").open("wb") as file:
                Image.fromarray(image).save(file, "PNG")
            self.events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes the event file."""
        if self.enabled:
            self.events.close()


def _drop_after(file: epath.Path, step: int) -> None:
    """Deletes the lines after `step`: a continued run repeats these steps."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):  # an incomplete line, left by a kill
            continue
    if is_remote(file):
        file.write_text("".join(kept))
    else:
        with writing(file) as part:
            part.write_text("".join(kept))
