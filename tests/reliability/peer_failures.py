"""Measures how a process ends when the other one of its run is killed or frozen.

python -m tests.reliability.peer_failures [--seconds 10]

Prints one row for each case: how which process fails, what the survivor is doing ("collective": it exchanges data all
the time; "alone": it computes by itself, as in a long step or a save), seconds until it ended, its exit code and what
it printed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from tests.helpers.two_processes import free_port

LIMIT = 150.0  # seconds after which a survivor counts as hanging


def worker(index: int, port: int, seconds: float, activity: str) -> None:
    """One of the two processes."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from maskgil_jax.runtime import distributed

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    distributed.initialize(f"127.0.0.1:{port}", 2, index, heartbeat_timeout_seconds=seconds)
    multihost_utils.process_allgather(np.int32(index))
    print("READY", flush=True)
    while True:
        if activity == "collective":
            multihost_utils.process_allgather(np.int32(index))
        time.sleep(0.02)


def measure(victim: int, number: int, seconds: float, activity: str) -> tuple[float, int | None, str]:
    """(seconds until the survivor ended, its exit code or None if it did not end, what it printed)."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        logs = [pathlib.Path(folder, f"{i}.log") for i in range(2)]
        runs = []
        for i in range(2):
            argv = [sys.executable, "-m", "tests.reliability.peer_failures", "--worker", f"{i}/{port}/{seconds}/{activity}"]
            env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
            out = stack.enter_context(logs[i].open("w"))
            runs.append(subprocess.Popen(argv, env=env, stdout=out, stderr=subprocess.STDOUT))
            stack.callback(runs[i].wait)
            stack.callback(runs[i].kill)
        while not all("READY" in log.read_text() for log in logs):
            assert all(run.poll() is None for run in runs), "\n".join(log.read_text()[-2000:] for log in logs)
            time.sleep(0.1)
        time.sleep(1.0)
        begin = time.monotonic()
        runs[victim].send_signal(number)
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = runs[1 - victim].wait(LIMIT)
        return time.monotonic() - begin, code, logs[1 - victim].read_text().split("READY\n", 1)[1]


def main() -> None:
    """Measures the eight cases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10, help="heartbeat timeout")
    parser.add_argument("--worker", default="", help="run as one of the processes: INDEX/PORT/SECONDS/ACTIVITY")
    args = parser.parse_args()
    if args.worker:
        index, port, seconds, activity = args.worker.split("/")
        worker(int(index), int(port), float(seconds), activity)
        return
    for activity, number, victim in itertools.product(("alone", "collective"), (signal.SIGKILL, signal.SIGSTOP), (0, 1)):
        wait, code, text = measure(victim, number, args.seconds, activity)
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith(" ")]
        printed = " // ".join(lines[:3])[:600]
        print(f"{activity:10} | process {victim} {number.name} | {wait:5.1f} s | code {code} | {printed}", flush=True)


if __name__ == "__main__":
    main()
