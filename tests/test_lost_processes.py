"""The processes of a run agree on their options, stop together, and end when one of them is lost."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.two_processes import free_port
from jax.experimental import multihost_utils

from maskgil_jax import cli
from maskgil_jax.checkpoints.step_folders import steps_in
from maskgil_jax.config import ConfigError
from maskgil_jax.runtime import distributed
from maskgil_jax.training.run_events import Goodput, goodput

TOY = pathlib.Path(__file__).parent / "helpers" / "toy_run.py"


@pytest.mark.parametrize(
    ("given", "expected", "warned"),
    [((None, None), 60, 0), ((20.0, None), 20, 0), ((None, 30.0), 30, 1), ((None, 0.0), 100, 1)],
)
def test_peer_timeout_is_accepted_as_heartbeat_timeout(caplog, given, expected, warned):
    assert distributed._heartbeat_seconds(*given) == expected
    assert caplog.text.count("--heartbeat-timeout") == warned
    with pytest.raises(ConfigError, match="--heartbeat-timeout: must be at least 1"):
        distributed._heartbeat_seconds(0.5, None)


def test_errors_of_collectives_are_not_usage_errors():
    lost = ValueError(
        "UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"
    )
    assert distributed.is_communication_error(lost) and cli.exit_code(lost) is None
    assert cli.exit_code(ValueError("x.yaml: no such file")) == 2


@pytest.mark.slow
def test_process_that_fails_ends_without_the_shutdown_barrier(tmp_path):
    """Process 1 of 2 fails alone: it ends at once with its own exit code, and process 0 follows by SIGABRT."""
    script = tmp_path / "fail.py"
    script.write_text(
        "import sys, time\nfrom maskgil_jax.runtime import distributed\n"
        "distributed.initialize(sys.argv[1], 2, int(sys.argv[2]), heartbeat_timeout_seconds=10)\n"
        "if sys.argv[2] == '0':\n    time.sleep(1000)\n"
        "distributed.exit_without_barrier(2)\nsys.exit(2)\n"
    )
    address = f"127.0.0.1:{free_port()}"
    argv = [sys.executable, str(script), address]
    env = {**os.environ, "PYTHONPATH": str(TOY.parents[2])}
    runs = [subprocess.Popen([*argv, str(i)], env=env, stderr=subprocess.PIPE, text=True) for i in range(2)]
    printed = [run.communicate(timeout=100)[1] for run in runs]
    assert [run.returncode for run in runs] == [-signal.SIGABRT, 2], printed
    assert "stopped sending heartbeats" in printed[0]


def test_agree_names_the_options_that_differ(monkeypatch):
    own = {"config": {"seed": 0, "optimizer": {"learning_rate": 0.1}}, "jax": "1"}
    distributed.agree(own)
    other = {"config": {"seed": 0, "optimizer": {"learning_rate": 0.25}}, "jax": "1"}
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    for second in (own, other):
        texts = [np.frombuffer(json.dumps(options).encode(), np.uint8) for options in (own, second)]
        length = max(map(len, texts))
        rows = [np.int32([len(text) for text in texts]), [np.pad(t, (0, length - len(t)), constant_values=32) for t in texts]]
        gathered = iter(rows * 2)
        monkeypatch.setattr(multihost_utils, "process_allgather", lambda _, gathered=gathered: next(gathered))
        assert distributed.from_all(own) == [own, second]
        if second is other:
            message = (
                r"config.optimizer.learning_rate: 0\.1 in process 0, 0\.25 in process 1; start all processes with the same"
            )
            with pytest.raises(ConfigError, match=message):
                distributed.agree(own)
        else:
            distributed.agree(own)


def test_goodput_counts_repeated_steps(tmp_path, capsys):
    assert goodput(tmp_path) is None
    events = [dict(event="start", reached=0), dict(event="skip", step=5), dict(event="save_commit", step=6)]
    events += [dict(event="start", reached=9), dict(event="restore", step=6), dict(event="skip", step=8)]
    events += [dict(event="start", reached=8), dict(event="restore", step=6), dict(event="skip", step=8)]
    lines = [json.dumps(event) for event in events]
    (tmp_path / "events.jsonl").write_text("\n".join([*lines, '{"event": "sta']))  # killed while writing
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (4, 8, 10)))
    found = goodput(tmp_path)
    assert found == Goodput(reached=10, run=9 + 2 + 4, restarts=2, skipped=2)
    assert str(found) == "goodput: 8 of 15 steps run were useful (53%); 2 restarts, 2 skipped"
    (tmp_path / "checkpoints").mkdir()
    for folder in (tmp_path, tmp_path / "checkpoints"):
        cli.main(["checkpoints", str(folder)])
        assert str(found) in capsys.readouterr().out


def lines_of(workdir):
    metrics = workdir / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def pair(workdir, another=None, every=2):
    """Two processes that train together, once they have made three steps.

    `another`: the folder that the second one sees.
    """
    port = free_port()
    before = lines_of(workdir)
    argv = [sys.executable, str(TOY), "--steps", "9999", "--every", str(every), "--seconds", "0.1", "--heartbeat-timeout", "10"]
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"}
    env["PYTHONPATH"] = str(TOY.parents[2])
    runs = [
        subprocess.Popen(
            [*argv, "--workdir", str(seen), "--process", f"{i}/2/{port}"], env=env, stderr=subprocess.PIPE, text=True
        )
        for i, seen in enumerate((workdir, another or workdir))
    ]
    deadline = time.monotonic() + 200
    while lines_of(workdir) < before + 3:
        assert all(run.poll() is None for run in runs) and time.monotonic() < deadline
        time.sleep(0.05)
    return runs


@pytest.mark.slow
def test_two_processes_stop_together_and_end_when_one_is_killed(tmp_path):
    """SIGTERM to one: both save and end with code 0.

    Continued, although the other does not see the last step, and process 0 killed: JAX ends the other by SIGABRT.
    """
    runs = pair(tmp_path / "run")
    runs[1].send_signal(signal.SIGTERM)
    printed = [run.communicate(timeout=100)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], printed
    events = [json.loads(line)["event"] for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert events[-1] == "stop"
    last, common, *_ = steps_in(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "run" / "checkpoints" / str(common), tmp_path / "lagging" / "checkpoints" / str(common))
    runs = pair(tmp_path / "run", tmp_path / "lagging", every=9999)
    runs[0].kill()
    printed = [run.communicate(timeout=100)[1] for run in runs]
    assert runs[1].returncode == -signal.SIGABRT and "leader task was preempted/died" in printed[1], printed
    warning = f"WARNING checkpoint step {last} is passed over (process 1 of 2 does not see it); using step {common}"
    assert all(warning in text and f"continuing from step {common}" in text for text in printed), printed
