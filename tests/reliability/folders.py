"""Rows about checkpoint folders: kills during saves, damaged files, disks that are full or fail."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import math
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np

from maskgil_jax.checkpoints import train_state as training
from maskgil_jax.checkpoints.train_state import Checkpoints, CheckpointWriteError
from tests.helpers.damage import MODES, damage, made_up_state, restored_step, save_steps
from tests.reliability.programs import Sandbox

LARGE = {f"block{i}": (256, 1024) for i in range(8)}  # 8 MB, so that a save takes a while
MIDDLE = {"block": (256, 512)}  # 0.5 MB: several fit onto a small disk
FAULTS = [
    "fsync:error=EIO:when=1",
    "fsync:error=EIO:when=3",
    "fsync:error=EIO",
    "rename:error=EIO",
    "fdatasync,fsync:error=EIO:when=2+2",
]


def saver(folder: pathlib.Path) -> None:
    """Restores the newest step, prints whether it is right, and saves steps until it is killed."""
    step = 0
    if any(name.name.isdecimal() for name in (folder / "checkpoints").glob("*")):
        step, wrong = restored_step(folder, (1, 2), LARGE)
        print(f"restored {step} wrong {wrong}", flush=True)
    checkpoints = Checkpoints(folder, keep=2)
    while True:
        step += 1
        checkpoints.save(step, made_up_state(step, LARGE), {"seed": 0})
        print(f"saving {step}", flush=True)  # so the one before is committed


def kills(sandbox: Sandbox, count: int) -> dict:
    """1: kill -9 at random times of saves; the newest step is undamaged, and at most the current save is lost."""
    rng, folder = random.Random(0), sandbox.folder / "saver"
    begun, good, under_way = None, 0, 0
    for trial in range(count + 1):
        program = sandbox.fork(lambda: saver(folder), "saver")
        sandbox.until_printed(program, "saving", 2 if trial < count else 1)
        time.sleep(rng.uniform(0.0, 0.6))
        program.send(signal.SIGKILL)
        program.wait()
        if begun is not None:
            found = re.search(r"restored (\d+) wrong (\d+)", program.text)
            assert found, program.text
            good += found[2] == "0" and int(found[1]) >= begun - 1
        begun = int(re.findall(r"saving (\d+)", program.text)[-1])
        under_way += trial < count and any("tmp" in path.name for path in (folder / "checkpoints").iterdir())
    assert good == count, f"{good} of {count}"
    return dict(
        result=f"{good}/{count}", text=f"newest step exact, at most one save lost; {under_way} kills in the middle of a save"
    )


def harm(sandbox: Sandbox, count: int) -> dict:
    """4: a file of the newest of three steps with a flipped bit, truncated, deleted or zeroed."""

    def trials() -> list:
        logging.disable(logging.CRITICAL)
        save_steps(sandbox.folder / "harmed", (10, 20, 30))
        found = []
        for trial in range(6 * count):
            work = sandbox.folder / "trial"
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(sandbox.folder / "harmed", work)
            mode = MODES[trial % len(MODES)] if trial < count else "flip"
            damage(work / "checkpoints" / "30", mode, np.random.default_rng(trial))
            found.append(restored_step(work, (10, 20, 30)))
        return found

    found = sandbox.ask(trials, "damage")
    right = [one for one in found if one and one[1] == 0]
    assert len(right) == len(found), [one for one in found if one not in right]
    first, flips = found[:count], found[count:]
    back = [sum(step == 20 for step, _ in part) for part in (first, flips)]
    text = f"no wrong weights: {back[0]} fell back to the step before, the others were harmless; of single flipped bits "
    return dict(result=f"{count}/{count}", text=f"{text}{back[1]} of {len(flips)} mattered and were noticed, none came through")


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: int):
    """Mounts a disk of `size` bytes at `folder`, if this user may; yields whether it is mounted."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True)
    try:
        yield made.returncode == 0
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: pathlib.Path, ballast: int, mounted: bool) -> dict:
    """Saves until the disk is full, frees space and continues; returns what was found."""
    logging.disable(logging.CRITICAL)
    training.PAUSES = (0.05, 0.05)
    free, training.free_bytes = training.free_bytes, lambda _: math.inf  # or it would stop before the disk is full
    (folder / "ballast").write_bytes(bytes(ballast))
    checkpoints, step, problem = Checkpoints(folder, keep=99), 0, ""
    while not problem:
        step += 1
        if step == 4 and not mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (ballast // 4, resource.RLIM_INFINITY))
        try:
            checkpoints.save(step, made_up_state(step, MIDDLE), {"seed": 0}, wait=True)
        except CheckpointWriteError as error:
            problem = str(error)
    checkpoints.close()
    before = restored_step(folder, (1,), MIDDLE)
    training.free_bytes = free
    (folder / "ballast").unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return dict(problem=problem, failed=step, before=before, **after(folder, step))


def after(folder: pathlib.Path, step: int) -> dict:
    """The state of the folder when the disk works again, and whether the next save succeeds."""
    checkpoints = Checkpoints(folder, keep=99)
    checkpoints.save(step, made_up_state(step, MIDDLE), {"seed": 0}, wait=True)
    checkpoints.close()
    left = [p.name for p in (folder / "checkpoints").iterdir() if p.is_dir() and not p.name.isdecimal()]
    return dict(left=left, again=restored_step(folder, (1,), MIDDLE))


def fail(folder: pathlib.Path, pretended: int) -> dict:
    """Saves a step, another while the disk fails (or is made to fail `pretended` times), and again when it works."""
    logging.disable(logging.CRITICAL)
    training.PAUSES = (0.05, 0.05)
    checkpoints, problem = Checkpoints(folder, keep=99), ""
    checkpoints.save(1, made_up_state(1, MIDDLE), {"seed": 0}, wait=True)
    sync, times = training.sync_small_files, iter(range(pretended))

    def failing_sync(path) -> None:
        if next(times, None) is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        sync(path)

    training.sync_small_files = failing_sync
    wait_for(folder, "failing")
    try:
        checkpoints.save(2, made_up_state(2, MIDDLE), {"seed": 0}, wait=True)
    except CheckpointWriteError as error:
        problem = str(error)
    failures = checkpoints.failures
    checkpoints.close()
    wait_for(folder, "working")
    before = restored_step(folder, (1,), MIDDLE)
    return dict(problem=problem, failures=failures, before=before, **after(folder, 3))


def wait_for(folder: pathlib.Path, name: str) -> None:
    """Prints that this process waits, until the other one creates the file `name`."""
    print(f"waiting for {name}", flush=True)
    while not (folder / name).exists():
        time.sleep(0.02)


def with_faults(sandbox: Sandbox, trial: int, fault: str) -> dict:
    """`fail` in a process whose system calls strace makes fail; without strace, a Python function raises instead."""
    folder = sandbox.folder / f"faulty{trial}"
    folder.mkdir()
    pretended = 0 if shutil.which("strace") else 1 + 2 * (trial % 2)
    if pretended:
        for name in ("failing", "working"):
            (folder / name).touch()
    program = sandbox.fork(lambda: print("answer", json.dumps(fail(folder, pretended)), flush=True), "faulty")
    if pretended:
        return json.loads(sandbox.expect(program).split("answer ")[1].splitlines()[0])
    sandbox.until_printed(program, "waiting for failing")
    calls = fault.split(":")[0]
    argv = [
        "strace",
        "-f",
        "-qq",
        "-p",
        str(program.pid),
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={fault}",
        "-o",
        str(folder / "log"),
    ]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as tracer:
        sandbox.until(program, lambda: "TracerPid:\t0" not in pathlib.Path(f"/proc/{program.pid}/status").read_text())
        time.sleep(0.2)  # all threads
        (folder / "failing").touch()
        sandbox.until_printed(program, "waiting for working")
        tracer.send_signal(signal.SIGINT)
    injected = (folder / "log").read_text().count("INJECTED")
    (folder / "working").touch()
    answer = sandbox.expect(program).split("answer ")[1].splitlines()[0]
    return dict(json.loads(answer), injected=injected)


def full(sandbox: Sandbox, count: int) -> dict:
    """10: a full disk and a failing one: earlier steps are kept, nothing is left over, and an error of one line."""
    half, kinds, notes = (count + 1) // 2, set(), []
    for trial in range(half):
        folder = sandbox.folder / f"disk{trial}"
        with small_disk(folder, 4 << 20) as mounted:
            found = sandbox.ask(functools.partial(fill, folder, (2 << 20) + 70_000 * trial, mounted), "full")
        kinds.add("tmpfs" if mounted else "file size limit")
        assert re.search(
            r"the checkpoint of step \d+ could not be written \(.*\); earlier checkpoints are kept", found["problem"]
        )
        assert re.search("No space left|RESOURCE_EXHAUSTED|File too large", found["problem"]), found
        check(found, kept=found["failed"] - 1, last=found["failed"])
    for trial in range(count - half):
        fault = FAULTS[trial % len(FAULTS)]
        found = with_faults(sandbox, trial, fault)
        assert found.get("injected", True), found
        if found["problem"]:
            assert "earlier checkpoints are kept" in found["problem"] and "error" in found["problem"], found
        check(found, kept=1 if found["problem"] else 2, last=3)
        notes.append("stopped" if found["problem"] else "retried")
    tool = "strace" if shutil.which("strace") else "made up"
    text = (
        f"{half} full ({', '.join(kinds)}), {count - half} with EIO ({tool}): {notes.count('retried')} saved at the second or "
    )
    return dict(
        result=f"{count}/{count}",
        text=f"{text}third try, {notes.count('stopped')} stopped; the newest good step exact, nothing left over",
    )


def check(found: dict, *, kept: int, last: int) -> None:
    """The step before the fault is there and exact, and so is the one saved after it."""
    assert list(found["before"]) == [kept, 0] and list(found["again"]) == [last, 0] and found["left"] == [], found


def blocking(sandbox: Sandbox, count: int) -> dict:
    """The time a save blocks the training, and the time of an import."""
    shapes = {f"block{i}": (1024, 1024) for i in range(16)}

    def saves() -> list:
        checkpoints, state, times = Checkpoints(sandbox.folder / "blocking", keep=2), made_up_state(0, shapes), []
        for step in range(1, count + 2):
            began = time.perf_counter()
            checkpoints.save(step, state, {})
            times.append(time.perf_counter() - began)
            checkpoints._finisher.join()
        checkpoints.close()
        return times[1:]

    imports = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import maskgil_jax"], check=True)
        imports.append(time.perf_counter() - began)
    median = float(np.median(sandbox.ask(saves, "blocking")))
    return dict(
        result=f"{1000 * median:.0f} ms",
        text=f"a save of 64 MB holds up the training (median of {count}); import maskgil_jax takes {min(imports):.2f} s",
    )
