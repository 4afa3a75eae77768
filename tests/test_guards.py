"""Skipped updates, loss alarm, watchdog and stop signals of a training run."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from clu.metrics import Average
from helpers.toy_run import NET, run_file, toy_run

from maskgil_jax.conditioning import ClassConditioner
from maskgil_jax.config import ConfigError
from maskgil_jax.networks import create, params_of
from maskgil_jax.training.generator import Objective, jitted_step
from maskgil_jax.training.liveness import Interrupted, StopSignals, Terminated, Watchdog
from maskgil_jax.training.losses import masked_cross_entropy
from maskgil_jax.training.metrics_log import LossAlarm, StepLog, TrainingDiverged
from maskgil_jax.training.optimizer import make_optimizer
from maskgil_jax.training.skip_updates import GuardState, SkipConfig, select_if_applied, skip_bad_updates, skip_config
from maskgil_jax.training.state import apply_gradients, init_state

NAN, INF = float("nan"), float("inf")
OPTIONS = SkipConfig(warmup=5)
CLASSES = ClassConditioner(("a", "b", "c"))


def walk(norms, options=OPTIONS, ema_decay=0.5):
    """State after gradients of these norms, and which of them were skipped."""
    tx = skip_bad_updates(optax.adam(0.1), options)
    state = init_state(lambda key: {"w": jnp.asarray([1.0, -0.0])}, tx, ema=True)(jax.random.key(0))
    step = jax.jit(lambda state, norm: apply_gradients(state, {"w": jnp.asarray([0.6, 0.8]) * norm}, tx, ema_decay))
    skipped = []
    for norm in norms:
        state = step(state, norm)
        skipped.append(bool(state.opt_state.skipped_in_a_row))
    return state, skipped


@pytest.mark.parametrize(
    "bad, at",
    [(NAN, 0), (NAN, 3), (INF, 3), (NAN, 9), (-INF, 9), (50.0, 9), (3e38, 9)],
    ids=["nan first", "nan in warm-up", "inf in warm-up", "nan", "minus inf", "spike", "overflowing norm"],
)
def test_bad_step_changes_nothing_else(bad, at):
    norms = [1.0 + 0.1 * (i % 3) for i in range(12)]
    with_bad, skipped = walk([*norms[:at], bad, *norms[at:]])
    without, none = walk(norms)
    assert skipped == [i == at for i in range(13)] and not any(none)
    assert int(with_bad.step) == 13
    chex.assert_trees_all_equal(
        (with_bad.params, with_bad.ema, with_bad.opt_state), (without.params, without.ema, without.opt_state)
    )


def test_bad_norms_are_never_averaged_nor_accepted():
    state, skipped = walk([1.0] * 6 + [NAN] * 30 + [50.0] * 30 + [1.0, 50.0, NAN, 1.0])
    assert skipped == [False] * 6 + [True] * 60 + [False, True, True, False]
    np.testing.assert_allclose(state.opt_state.norm_mean, 1.0, rtol=1e-6)
    assert int(state.opt_state.accepted) == 8
    assert not any(walk([1.0] * 6 + [50.0], SkipConfig(spike=0.0))[1])
    assert not any(walk([1.0, 50.0, 1.0])[1]), "no spikes are seen in the warm-up"


def test_select_if_applied_without_guard_takes_new_values():
    assert select_if_applied(optax.EmptyState(), 1, 2) == 1


def test_compiled_bad_step_changes_only_the_counter(monkeypatch):
    options = run_file().optimizer
    tx = skip_bad_updates(make_optimizer(options, 10), SkipConfig())
    init = init_state(lambda key: params_of(create(NET, key)), tx, ema=True)
    state = jax.jit(init)(jax.random.key(0))
    old = jax.tree.map(np.asarray, state)
    spoiled = Objective()
    object.__setattr__(spoiled, "label_smoothing", NAN)  # past the check, for a loss that is not finite
    batch = {"codes": jnp.zeros((8, 4, 4), jnp.int32), "label": jnp.zeros(8, jnp.int32)}
    new, metrics = jitted_step(NET, spoiled, tx, lambda count: 1e-2, 0.9, None, conditioner=CLASSES)(
        state, batch, jax.random.key(1), None
    )
    values = {name: float(metric.compute()) for name, metric in metrics.items()}
    assert np.isnan(values["grad_norm"]) and values["skipped_in_a_row"] == 1 and values["update_norm"] == 0
    assert values["param_norm"] > 1 and 0.05 < values["output_norm"] < 1
    new = jax.tree.map(np.asarray, new)
    assert new.step == 1 and new.opt_state.skipped_in_a_row == 1
    counters = dict(skipped_in_a_row=old.opt_state.skipped_in_a_row)
    new = new.replace(step=old.step, opt_state=new.opt_state._replace(**counters))
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        assert a.tobytes() == b.tobytes()


def test_impossible_skip_option_raises():
    assert skip_config({}) == SkipConfig() == skip_config({"guard": None})
    for options, message in [
        ({"spike": 0.5}, r"guard.spike: must be a finite number > 1"),
        ({"stop_after": 0}, r"guard.stop_after: must be a whole number >= 1"),
        ({"watchdog_seconds": -1.0}, r"guard.watchdog_seconds: must be a finite number >= 0"),
        ({"spikes": 1.0}, r"did you mean 'spike'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            skip_config({"guard": options})


class Lines:
    """Takes what a `MetricWriter` would write."""

    enabled = True

    def __init__(self):
        self.values = []

    def write_scalars(self, step, values):
        self.values.append((step, values))


def logged(losses, runs, **options):
    """The lines and events that `StepLog` writes of these losses, with so many skipped in a row."""
    writer, events = Lines(), []
    log = StepLog(
        writer,
        name="toy",
        start=0,
        total=len(losses),
        batch_size=1,
        primary_metric="loss",
        event=lambda name, **fields: events.append((name, fields["step"])),
        **{"every": 3, "guard": SkipConfig(stop_after=4)} | options,
    )
    for step, (loss, run) in enumerate(zip(losses, runs, strict=True), 1):
        values = {"loss": loss, "grad_norm": NAN if run else 1.0, "skipped_in_a_row": float(run)}
        log.step(step, {name: Average(jnp.float32(value), jnp.ones(())) for name, value in values.items()})
    return writer.values, events


def test_skipped_steps_are_counted_and_excluded_from_means(caplog):
    lines, events = logged([1.0, NAN, 3.0, NAN, NAN, NAN], [0, 1, 0, 1, 2, 3])
    assert [(step, values["skipped"], values.get("loss")) for step, values in lines] == [(3, 1.0, 2.0), (6, 3.0, None)]
    assert events == [("skip", 2), ("skip", 4), ("skip", 5), ("skip", 6)]
    assert "toy: step 2 skipped (gradient norm nan)" in caplog.text


def test_many_skipped_steps_in_a_row_raise_diverged():
    with pytest.raises(TrainingDiverged, match=r"steps 2 to 5 were all skipped.*continue from the last checkpoint"):
        logged([1.0] + [NAN] * 5, [0, 1, 2, 3, 4, 5])
    with pytest.raises(TrainingDiverged, match=r"loss is nan at step 2"):
        logged([1.0, NAN, 1.0], [0, 0, 0])


def test_loss_jump_is_logged_once_at_its_step(caplog):
    rng = np.random.default_rng(0)
    losses = list(5.0 + 0.1 * rng.standard_normal(200))
    _, events = logged([*losses[:120], 9.0, *losses[120:]], [0] * 201, every=50)
    assert events == [("alarm", 121)] and "loss jumped to 9.000 at step 121 (it was about 5.0" in caplog.text
    quiet = LossAlarm(0.0)
    assert all(quiet.above(value) is None for value in [1.0] * 60 + [1e9])


def test_z_loss_pulls_the_denominator_to_one():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5)) + 4.0
    targets, mask = jnp.zeros((2, 3), jnp.int32), jnp.asarray([[True, False, True]] * 2)

    def loss(x, z_loss):
        return masked_cross_entropy(x, targets, mask, 0.1, 0.0, z_loss)

    (plain, sums), (more, other) = loss(logits, 0.0), loss(logits, 0.01)
    norms = np.log(np.exp(np.asarray(logits, np.float64)).sum(-1))[np.asarray(mask)]
    np.testing.assert_allclose(more - plain, 0.01 * (norms**2).mean(), rtol=1e-4)
    assert sums["masked_loss"] == other["masked_loss"]
    pull = jax.grad(lambda shift: loss(logits + shift, 0.01)[0])(0.0)
    np.testing.assert_allclose(pull, 0.02 * norms.mean(), rtol=1e-4)
    with pytest.raises(ConfigError, match="z_loss: must be a finite number >= 0"):
        Objective(z_loss=-1.0)


@pytest.mark.slow
def test_watchdog_writes_stacks_and_exits_with_code_5():
    program = """
import logging, time
from maskgil_jax.training.liveness import Watchdog
logging.basicConfig(format="%(message)s")
dog = Watchdog(0.4, event=lambda name, **fields: print(name, fields["step"], flush=True))
def work():
    for step in range(1, 4):
        dog.ended(step)
        time.sleep(0.05)
    with dog.paused():
        time.sleep(1.0)
    dog.ended(4)
    a_step_that_never_ends()
def a_step_that_never_ends():
    time.sleep(60)
work()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert done.returncode == 5 and done.stdout == "hang 4\n", done.stderr
    assert "after step 4 (median step:" in done.stderr and "in a_step_that_never_ends" in done.stderr


def test_watchdog_ignores_time_while_process_is_stopped(monkeypatch):
    """The clock advances only in the waits of the watchdog; in one of them the machine is suspended for an hour."""
    dog, clock, barks = Watchdog(0.0, factor=0.0), [100.0], []
    dog.seconds, dog._abort = 300.0, barks.append
    monkeypatch.setattr("maskgil_jax.training.liveness.time.monotonic", lambda: clock[0])

    def watch(*pauses):
        dog.ended(1)
        pauses = iter(pauses)

        def wait(asked):
            pause = next(pauses, None)
            clock[0] += pause or 0.0
            return pause is None

        dog.closed.wait = wait
        dog._watch()
        found, barks[:] = barks.copy(), []
        return found

    assert watch(*[1.0] * 299) == [] and watch(*[1.0] * 299, 2.0, 3.0) == [301.0, 304.0]
    assert watch(*[1.0] * 299, 3600.0, *[1.0] * 300) == []
    assert watch(*[1.0] * 299, 3600.0, *[1.0] * 301) == [301.0]


def test_watchdog_limit_is_ten_median_steps():
    dog = Watchdog(0.0, factor=10.0)
    dog.seconds = 5.0
    assert dog.limit == 5.0
    dog.durations.extend([1.0, 2.0, 30.0])
    assert dog.limit == 20.0


@pytest.mark.parametrize("number, error", [(signal.SIGTERM, Terminated), (signal.SIGINT, Interrupted)])
def test_signal_requests_a_stop(number, error, capfd):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert not signals.stop_at(1)
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 10
        while not signals.stop_at(2) and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(error):
            signals.leave(2)
    assert signal.getsignal(number) is before
    assert f"{number.name} received: saving after the current step" in capfd.readouterr().err


def test_second_signal_ends_at_once():
    program = """
import os, signal, time
from maskgil_jax.training.liveness import StopSignals
with StopSignals():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert done.returncode == 130 and "ending at once" in done.stderr


@pytest.mark.slow
def test_fit_is_deterministic_and_stops_on_signal(tmp_path, monkeypatch, caplog):
    """Same seed, same losses, bit for bit; stopped by SIGTERM at step 3 and continued, the same again."""
    caplog.set_level(logging.INFO)

    def lines(run):
        return {
            x["step"]: x["masked_loss"] for x in map(json.loads, (tmp_path / run / "metrics.jsonl").read_text().splitlines())
        }

    def events(run):
        return [json.loads(x)["event"] for x in (tmp_path / run / "events.jsonl").read_text().splitlines()]

    config = run_file(total_steps=6)
    final = toy_run(tmp_path / "whole", config)
    step = StepLog.step

    def terminate_at_three(self, number, metrics):
        step(self, number, metrics)
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)  # until the listening thread has seen it

    monkeypatch.setattr(StepLog, "step", terminate_at_three)
    with pytest.raises(SystemExit) as stop:
        toy_run(tmp_path / "parts", config)
    assert stop.value.code == 0 and "stopped after step 3, which is saved" in caplog.text
    monkeypatch.undo()
    continued = toy_run(tmp_path / "parts", config)
    assert lines("whole") == lines("parts") and len(lines("whole")) == 6
    chex.assert_trees_all_equal(jax.device_get(final), jax.device_get(continued))
    assert isinstance(final.opt_state, GuardState)
    saves = ["save_begin", "save_commit"]
    assert sorted(events("whole")) == sorted(["start", "first_step", *saves * 3, "stop"])
    assert events("parts").count("restore") == events("parts").count("signal") == 1
