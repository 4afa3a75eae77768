"""Lines of progress: compiling is announced and not counted, and estimates include pauses."""

import logging

import pytest

from maskgil_jax.runtime.progress import Progress, StepClock, minutes_left


class Clock:
    """A clock that advances by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_minutes_left_is_rounded_to_seconds():
    assert [minutes_left(s) for s in (0.2, 59.6, 125.0, 3600.0)] == ["0:00", "1:00", "2:05", "60:00"]


def test_progress_announces_compiling_and_leaves_it_out(caplog):
    caplog.set_level(logging.INFO)
    clock = Clock()
    with Progress("sampling", 100, done=10, clock=clock) as progress:
        clock.now += 200.0  # compiling
        progress.update(10)
        for _ in range(4):
            clock.now += 20.0
            progress.update(10)
    assert [record.message for record in caplog.records] == [
        "sampling: compiling; 90 images to do",
        "sampling: 40/100 images, 0.50 a second, 2:00 left",
        "sampling: 60/100 images, 0.50 a second, 1:20 left",
    ]


def test_progress_says_nothing_when_nothing_is_to_do(caplog):
    caplog.set_level(logging.INFO)
    with Progress("sampling", 10, done=10):
        pass
    assert not caplog.records


def test_step_clock_leaves_compiling_out_of_rate_and_estimate():
    clock = Clock()
    steps = StepClock(0, 100, clock)
    clock.now += 300.0  # compiling and the first step
    steps.started(1)
    clock.now += 19 * 2.0
    assert steps.window(20) == pytest.approx(2.0)
    assert steps.left() == pytest.approx(160.0)


def test_step_clock_counts_pauses_apart_and_in_estimate():
    clock = Clock()
    steps = StepClock(0, 100, clock)
    steps.started(0)
    for step in (10, 20, 30):
        clock.now += 10.0
        assert steps.window(step) == pytest.approx(1.0)
        with steps.paused("pictures", 10):
            clock.now += 50.0 if step == 10 else 4.0  # the first compiles
    assert steps.left() == pytest.approx(70 * 1.0 + 7 * 4.0)
    clock.now += 70.0
    steps.window(100)
    assert steps.left() == 0.0


def test_step_clock_continues_from_a_later_step():
    clock = Clock()
    steps = StepClock(50, 100, clock)
    clock.now += 30.0
    steps.started(51)
    clock.now += 9.0
    steps.window(60)
    assert steps.left() == pytest.approx(40.0)
    assert steps.window(60) == pytest.approx(1.0), "a window without a step keeps the last value"
