"""Rows about a training run of one process: crash loops, stopping and continuing, meshes, bad steps."""

from __future__ import annotations

import logging
import random
import signal
import time

import numpy as np

from maskgil_jax.checkpoints.step_folders import listing
from maskgil_jax.training.run_events import goodput
from tests.helpers import toy_run
from tests.reliability.programs import Sandbox, committed_at


def crash_loop(sandbox: Sandbox, count: int) -> dict:
    """2: kill -9 at random times of a run; its losses and final arrays equal an uninterrupted one."""
    steps, rng = 12 * count + 40, random.Random(0)
    options = ("--steps", steps, "--every", 2)
    sandbox.run("whole", *options, "--keep", steps)
    kills, seen = 0, {}
    replayed = wrong = 0
    whole = sandbox.losses("whole")
    while kills < count:
        program = sandbox.start("parts", *options, "--seconds", 0.05)
        target = sandbox.newest("parts") + rng.randint(3, 12)
        while program.poll() is None and len(sandbox.losses("parts")) < min(target, steps - 1):
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 0.2))
        assert program.poll() is None, program.text[-2000:]
        program.send(signal.SIGKILL)
        program.wait()
        kills += 1
        seen = sandbox.losses("parts")
        replayed += len([step for step in seen if step > sandbox.newest("parts")])
        wrong += sum(whole[step] != loss for step, loss in seen.items())
        if max(seen) > steps - 15:
            break
    sandbox.run("parts", *options)
    differ, _ = sandbox.differences("whole", "parts")
    assert kills == count and wrong == differ == 0, (kills, wrong, differ)
    assert sandbox.arrays("whole", steps) == sandbox.arrays("parts", steps)
    text = f"{steps + replayed} losses of {kills} kills compared, final arrays ({len(sandbox.arrays('whole', steps))}) equal; "
    return dict(result=f"{differ} differ", text=f"{text}{goodput(sandbox.folder / 'parts')}")


def resume(sandbox: Sandbox, count: int) -> dict:
    """3: stopped by SIGTERM with two worker processes, continued with none and with three."""
    steps = 300
    sandbox.run("straight", "--steps", steps, "--every", 9999, "--workers", 0)
    compared = 0
    for trial in range(count):
        for workers in (0, 3):
            work = f"resumed{trial}_{workers}"
            program = sandbox.start(work, "--steps", steps, "--every", 9999, "--workers", 2)
            sandbox.until(program, lambda work=work, trial=trial: len(sandbox.losses(work)) > 2 + 3 * trial)
            program.send(signal.SIGTERM)
            sandbox.expect(program)
            assert 0 < sandbox.newest(work) < steps
            sandbox.run(work, "--steps", steps, "--every", 9999, "--workers", workers)
            assert sandbox.differences("straight", work)[0] == 0
            assert sandbox.arrays("straight", steps) == sandbox.arrays(work, steps)
            compared += steps
    return dict(
        result="bit-exact", text=f"2 -> 0 and 2 -> 3 workers after SIGTERM: 0 of {compared} losses differ, final arrays equal"
    )


def reshard(sandbox: Sandbox, count: int) -> dict:
    """5: 8 -> 4 -> 1 -> 8 devices."""
    sandbox.run("one", "--steps", 16, "--every", 4)
    for stage, devices in enumerate((8, 4, 1, 8), 1):
        text = sandbox.run("meshes", "--steps", 4 * stage, "--every", 4, "--fsdp", max(devices // 2, 1), devices=devices)
        assert stage == 1 or f"continuing from step {4 * stage - 4}" in text, text
    far, arrays = sandbox.differences("one", "meshes")[1], len(sandbox.arrays("meshes", 16))
    assert far < 1e-5, far
    return dict(
        result=f"{3 * arrays}/{3 * arrays}",
        text=f"8 -> 4 -> 1 -> 8 devices, arrays exact at each; losses within {far:.0e} of one device",
    )


def stop(sandbox: Sandbox, count: int) -> dict:
    """8: SIGTERM to one process, or to one or both of two: the current step is saved, exit code 0."""
    options, waits = ("--steps", 100000, "--every", 100000, "--seconds", 0.1), []
    pairs = count // 2
    for trial in range(count):
        work, pair = f"stopped{trial}", trial < pairs
        programs = sandbox.pair([work, work], *options) if pair else [sandbox.start(work, *options)]
        sandbox.until(programs[0], lambda work=work: len(sandbox.losses(work)) > 2)
        asked = time.time()
        for program in [programs[-1]] if trial % 2 else programs:
            program.send(signal.SIGTERM)
        for program in programs:
            sandbox.expect(program)
        steps = [event["step"] for event in sandbox.lines(work, "events.jsonl") if event["event"] == "signal"]
        assert steps == [sandbox.newest(work)] == [max(sandbox.losses(work))], (steps, sandbox.newest(work))
        waits.append((pair, committed_at(sandbox.lines(work, "events.jsonl")) - asked))
    late = [float(np.percentile([wait for pair, wait in waits if pair == which], 95)) for which in (False, True)]
    assert max(late) < 5, waits
    text = f"last step run is the last saved, exit code 0; SIGTERM -> committed p95 {late[0]:.1f} s with one process "
    return dict(
        result=f"{count}/{count}", text=f"{text}({count - pairs}), {late[1]:.1f} s with two ({pairs}; to one of them or both)"
    )


CASES = [("nan", "1"), ("nan", "20"), ("nan", "55"), ("inf", "55"), ("-inf", "58"), ("1e6", "55"), ("nan", "52,54,57")]


def spoil(sandbox: Sandbox, count: int) -> dict:
    """9: bad steps are skipped; ten in a row stop with code 3 and a finite newest step."""

    def trials() -> list:
        logging.disable(logging.WARNING)
        found = []
        for i, (factor, bad) in enumerate(CASES[:count]):
            folder = sandbox.folder / f"bad{i}"
            argv = ["--workdir", str(folder), "--steps", "60", "--every", "20", f"--factor={factor}", "--bad", bad]
            args = toy_run.parser().parse_args(argv)
            if not i:
                toy_run.prepare(args)
            toy_run.train(args)
            found.append([bool(row.problem) for row in listing(folder / "checkpoints", read=True)])
        return found

    found = sandbox.ask(trials, "spoil")
    for i, (_, bad) in enumerate(CASES[:count]):
        skips = [event["step"] for event in sandbox.lines(f"bad{i}", "events.jsonl") if event["event"] == "skip"]
        assert skips == [int(step) for step in bad.split(",")] and found[i] == [False] * 3, (skips, bad, found[i])
    many = ",".join(map(str, range(7, 40)))
    text = sandbox.run("many", "--steps", 60, "--every", 2, "--bad", many, expect=3)
    assert "error: toy: steps 7 to 16 were all skipped" in text, text
    whole = sandbox.ask(lambda: [row.problem for row in listing(sandbox.checkpoints("many"), read=True)])
    assert whole and not any(whole)
    return dict(
        result=f"{len(found)}/{len(found)}",
        text="bad steps skipped alone; 10 in a row: exit code 3; every step kept is whole and finite",
    )
