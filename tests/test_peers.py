"""Processes of a run that die, freeze or fail do not leave the others waiting, and all say why."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers.two_processes import free_port
from jax.experimental import multihost_utils

from maskgil_jax import cli
from maskgil_jax.checkpoints.step_folders import steps_in
from maskgil_jax.config import ConfigError
from maskgil_jax.runtime import distributed
from maskgil_jax.runtime import heartbeat as peers
from maskgil_jax.training.run_events import Goodput, goodput

TOY = pathlib.Path(__file__).parent / "helpers" / "toy_run.py"


class Store:
    """The key-value store of JAX's coordinator, as far as it is used."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, timeout):
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, timeout / 1000)
            return self.values[key]


def cut(process):
    """What the kernel does with the connections of a process that was killed."""
    for connection in process.open:
        with contextlib.suppress(OSError):  # the other end was quicker
            connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def three(monkeypatch):
    """Three processes' ends in one process: what each of them would leave with is in `ends`."""
    ends = {}

    class Harmless(peers.Peers):  # for good: threads of a test outlive it
        frozen = False

        def _end(self, code, sentence):
            if not self.frozen:
                ends.setdefault(self.index, (code, sentence))  # a real one ends here
                cut(self)
            threading.Event().wait()

        def _at_exit(self):
            pass

    monkeypatch.setattr(peers, "GRACE", 0.2)
    store = Store()
    group = [Harmless(store, "127.0.0.1", index, 3, 1.5) for index in range(3)]
    until(lambda: [len(one.open) for one in group] == [2, 1, 1])
    return group, ends


def until(true):
    deadline = time.monotonic() + 20
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()


def test_a_death_is_told_to_all(three):
    group, ends = three
    time.sleep(2.0)  # longer than the silence that is too long: they do give signs of life
    assert not ends
    cut(group[2])
    until(lambda: {0, 1} <= ends.keys())
    assert ends[0] == ends[1] and ends[0][0] == peers.EXIT_CODE
    assert ends[0][1].startswith(f"process 2 of 3 (pid {os.getpid()} on {socket.gethostname()}) ended without a word")


@pytest.mark.parametrize("frozen", [0, 1])
def test_silence_is_told_to_all(three, frozen):
    group, ends = three
    group[frozen].frozen = True
    group[frozen].lock.acquire()  # it sends nothing any more
    others = {0, 1, 2} - {frozen}
    until(lambda: others <= ends.keys())
    for other in others:
        assert (
            ends[other][0] == 5 and f"process {frozen} of 3" in ends[other][1] and "no sign of life for 2 s" in ends[other][1]
        )


def test_silence_is_counted_in_waits_of_ones_own():
    """So that processes that were all stopped, as on a laptop asleep, go on: to each of them that was one wait."""
    came = [*[TimeoutError] * 5, b'{}\n{"by', b'e": 1}\n', *[TimeoutError] * 6, OSError, b"no JSON\n", b"x" * 70_000, b""]

    class Connection:
        def settimeout(self, seconds):
            assert seconds == 60 / peers.WAITS

        def recv(self, _):
            if isinstance(arrived := came.pop(0), bytes):
                return arrived
            raise arrived

    lines = peers.Peers._lines(None, Connection(), 60.0)
    assert [next(lines) for _ in range(7)] == [{}, {"bye": 1}, "silent", None, None, None, None] and not came


@pytest.mark.parametrize("index", [0, 1])
def test_an_error_of_one_ends_all_with_its_exit_code(three, index):
    group, ends = three
    group[index].leave(2, "x.yaml: no such file")
    others = {0, 1, 2} - {index}
    until(lambda: others <= ends.keys())
    time.sleep(0.5)
    assert ends.keys() == others and len(set(ends.values())) == 1
    code, sentence = ends[1 - index]
    assert code == 2 and sentence.startswith(f"process {index} of 3") and sentence.endswith("stopped: x.yaml: no such file")


def test_an_error_that_all_have_is_everybodys_own(three):
    group, ends = three
    for one in group[:2]:
        threading.Thread(target=one.leave, args=(3, "diverged")).start()
    time.sleep(1.0)
    assert not {0, 1} & ends.keys()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_good_end_is_no_death_in_whatever_order(three, order):
    group, ends = three
    for index in order:
        group[index]._send({"bye": True})
        time.sleep(0.2)
    for index in order:
        cut(group[index])
        time.sleep(0.2)
    assert not ends


def test_a_stranger_is_not_listened_to(three):
    group, ends = three
    port = json.loads(group[0].client.values[peers.KEY])["port"]
    for text in (b'{"secret": "guess", "index": 1, "name": "x"}\n{"lost": "all"}\n', b"GET / HTTP/1.1\n\n", b"[]\n"):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(text)
            assert stranger.recv(10) == b""
    assert not ends


def test_one_process_watches_nobody():
    peers.watch(None, "", 0, 2, 0.0)
    peers.tell(2, "nobody hears it")


def test_options_that_differ_are_named(monkeypatch):
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


def test_goodput_counts_what_was_done_again(tmp_path, capsys):
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
    """Two processes that train together, once they have made three steps; `another`: the folder that the second one sees."""
    port = free_port()
    before = lines_of(workdir)
    argv = [sys.executable, str(TOY), "--steps", "9999", "--every", str(every), "--seconds", "0.1"]
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
def test_two_processes_stop_together_and_notice_a_death(tmp_path):
    """SIGTERM to one: both save and leave with 0. Continued, though the other does not see the last step, and process 0 killed:
    the other says so and leaves with 5."""
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
    assert runs[1].returncode == 5 and f"error: process 0 of 2 (pid {runs[0].pid} on" in printed[1], printed
    warning = f"WARNING checkpoint step {last} is passed over (process 1 of 2 does not see it); using step {common}"
    assert all(warning in text and f"continuing from step {common}" in text for text in printed), printed
