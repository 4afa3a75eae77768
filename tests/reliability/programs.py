"""Programs to be killed, stopped and frozen: processes forked from one that has imported everything and computed
nothing.

A fork saves the imports, which are most of a short run. The forking process must never compute: the threads of JAX and
of its libraries would be missing in the forked ones.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import faulthandler
import json
import os
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Callable

from maskgil_jax.checkpoints.step_folders import read_record, steps_in
from tests.helpers import toy_run
from tests.helpers.two_processes import free_port

QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"


class Program:
    """A forked process that runs `work`, with its output in `log`."""

    def __init__(self, work: Callable, log: pathlib.Path, *, devices: int, cache: pathlib.Path):
        self.log, self.code = log, None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            faulthandler.register(signal.SIGUSR1, file=2)
            os.environ["XLA_FLAGS"] = f"{QUICK_TO_COMPILE} --xla_force_host_platform_device_count={devices}"
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
            code = work() or 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self, timeout: float = 300.0) -> int:
        """Waits for the exit code; kills the program and raises if that takes too long."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.send(signal.SIGUSR1)  # the stacks of all threads
                time.sleep(1.0)
                self.send(signal.SIGKILL)
                raise AssertionError(f"still running after {timeout:.0f} s:\n{self.text[-6000:]}")
            time.sleep(0.02)
        return self.code

    def send(self, number: int) -> None:
        """Sends a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Sandbox:
    """A folder of runs, and the programs that run in it."""

    def __init__(self, folder: pathlib.Path, cache: pathlib.Path):
        self.folder, self.cache, self.programs = folder, cache, []

    def fork(self, work: Callable, name: str, devices: int = 1) -> Program:
        """Starts a program that calls `work`."""
        log = self.folder / f"{name}.{len(self.programs)}.log"
        self.programs.append(Program(work, log, devices=devices, cache=self.cache))
        return self.programs[-1]

    def ask(self, work: Callable, name: str = "ask", devices: int = 1):
        """Calls `work` in another process and returns its result, passed as JSON."""
        answer = self.folder / f"answer{len(self.programs)}.json"
        self.expect(self.fork(lambda: answer.write_text(json.dumps(work())) and None, name, devices))
        return json.loads(answer.read_text())

    def start(self, work: str, *options, devices: int = 1, main: Callable = toy_run.main) -> Program:
        """Starts the toy run in the work folder of that name."""
        argv = ["--workdir", str(self.folder / work), *map(str, options)]
        return self.fork(lambda: main(argv), work, devices)

    def run(self, work: str, *options, expect: int = 0, devices: int = 1) -> str:
        """Runs the toy run to its end and returns its output."""
        return self.expect(self.start(work, *options, devices=devices), expect)

    def pair(self, works, *options, main: Callable = toy_run.main) -> list[Program]:
        """Starts two processes of 4 devices each of one run."""
        port = free_port()
        return [self.start(work, *options, "--process", f"{i}/2/{port}", devices=4, main=main) for i, work in enumerate(works)]

    def expect(self, program: Program, code: int = 0) -> str:
        """Waits for a program to end with `code` and returns its output."""
        found = program.wait()
        assert found == code, f"exit code {found}, expected {code}:\n{program.text[-3000:]}"
        return program.text

    def until(self, program: Program, true: Callable[[], bool], timeout: float = 120.0) -> None:
        """Waits until `true()` while a program runs."""
        end = time.monotonic() + timeout
        while not true():
            assert program.poll() is None, f"ended with {program.code}:\n{program.text[-3000:]}"
            assert time.monotonic() < end, f"not within {timeout:.0f} s:\n{program.text[-3000:]}"
            time.sleep(0.02)

    def until_printed(self, program: Program, text: str, times: int = 1) -> None:
        """Waits until a program has printed `text` so many times."""
        self.until(program, lambda: program.text.count(text) >= times)

    def checkpoints(self, work: str) -> pathlib.Path:
        """The checkpoints folder of a run."""
        return self.folder / work / "checkpoints"

    def newest(self, work: str) -> int:
        """The newest committed step; 0 if there is none."""
        return (steps_in(self.checkpoints(work)) or [0])[0]

    def lines(self, work: str, file: str = "metrics.jsonl") -> list[dict]:
        """The lines of a run's metrics.jsonl or events.jsonl."""
        path = self.folder / work / file
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def losses(self, work: str) -> dict[int, str]:
        """The exact loss of each step, as hexadecimal text."""
        return {line["step"]: float(line["masked_loss"]).hex() for line in self.lines(work) if "masked_loss" in line}

    def arrays(self, work: str, step: int) -> dict:
        """Fingerprints of the arrays of a step."""
        return read_record(self.checkpoints(work), step)["arrays"]

    def differences(self, a: str, b: str) -> tuple[int, float]:
        """(losses that differ in a bit, largest difference) of two runs of the same steps."""
        left, right = self.losses(a), self.losses(b)
        assert left.keys() == right.keys(), f"{a} has steps {sorted(left)}, {b} has {sorted(right)}"
        apart = [abs(float.fromhex(left[s]) - float.fromhex(right[s])) for s in left]
        return sum(left[s] != right[s] for s in left), max(apart)

    def close(self) -> None:
        """Kills all programs."""
        for program in self.programs:
            program.send(signal.SIGKILL)
            program.wait()


def committed_at(events: list[dict]) -> float:
    """Seconds since the epoch at which the last save was committed."""
    last = [event for event in events if event["event"] == "save_commit"][-1]
    return datetime.datetime.fromisoformat(last["time"]).timestamp()
