"""Rows about runs of two processes: equal to one process, agreement on options, loss of a process."""

from __future__ import annotations

import logging
import shutil
import signal
import time

import jax

from maskgil_jax.checkpoints.train_state import CheckpointError
from maskgil_jax.config import ConfigError
from tests.helpers import toy_run
from tests.reliability.programs import Sandbox

OPTIONS = [  # that the two processes are given differently, and what the error names
    ("--rate", ("1e-2", "2e-2"), "config.optimizer.learning_rate: 0.01 in process 0, 0.02 in process 1"),
    ("--every", ("2", "3"), "config.checkpoint.every: 2 in process 0, 3 in process 1"),
    ("--keep", ("3", "4"), "config.checkpoint.keep: 3 in process 0, 4 in process 1"),
    ("--fsdp", ("1", "2"), "config.mesh.fsdp: 1 in process 0, 2 in process 1"),
    ("--steps", ("4", "5"), "config.total_steps: 4 in process 0, 5 in process 1"),
]


def two(sandbox: Sandbox, count: int) -> dict:
    """6: two processes compared with one, and continued."""
    options = ("--steps", 12, "--every", 4)
    sandbox.run("single", *options, devices=8)
    for work, more in (("double", options), ("resumed", ("--steps", 8, "--every", 4)), ("resumed", options)):
        for program in sandbox.pair([work, work], *more):
            sandbox.expect(program)
    far, (differ, _) = sandbox.differences("single", "double")[1], sandbox.differences("double", "resumed")
    assert far < 1e-5 and differ == 0, (far, differ)
    return dict(
        result=f"{differ} differ",
        text=f"2 x 4 devices within {far:.0e} of 1 x 8; stopped and resumed in 2: {differ} of 12 losses differ",
    )


def disagree(sandbox: Sandbox, count: int) -> dict:
    """7: processes that see different steps continue from the newest that both see; different options raise."""
    half = (count + 1) // 2
    sandbox.run("left", "--steps", 4, "--every", 2, "--keep", 9, devices=8)
    for trial in range(half):
        for side in range(2):
            shutil.copytree(sandbox.folder / "left", sandbox.folder / f"steps{trial}_{side}")
        shutil.rmtree(sandbox.checkpoints(f"steps{trial}_{trial % 2}") / "4")  # newest 2 here, 4 there
    shutil.rmtree(sandbox.checkpoints("steps0_1") / "2")  # nothing in common

    def trials(args) -> None:
        side = jax.process_index()
        logging.disable(logging.INFO)
        for trial in range(count):
            argv = ["--workdir", str(sandbox.folder / f"steps{trial}_{side}"), "--steps", "2"]
            if trial >= half:
                option, values, _ = OPTIONS[(trial - half) % len(OPTIONS)]
                argv = ["--workdir", str(sandbox.folder / "refused"), option, values[side]]
            try:
                toy_run.train(toy_run.parser().parse_args(argv))
            except (ConfigError, CheckpointError) as error:
                print(f"trial {trial}: {error}", flush=True)

    texts = [sandbox.expect(program) for program in sandbox.pair(["a", "b"], main=lambda argv: toy_run.main(argv, trials))]
    expected = [
        "trial 0: ",
        "no checkpoint that all processes see undamaged (step 4: process 0 of 2 does not see it; step 2: process 1 of 2",
    ]
    expected += [
        f"checkpoint step 4 is passed over (process {i % 2} of 2 does not see it); using step 2" for i in range(1, half)
    ]
    assert all(text.count(line) == expected.count(line) for text in texts for line in expected), texts
    assert all(text.count("done at step 2") == half - 1 for text in texts), texts
    for trial in range(half, count):
        named = OPTIONS[(trial - half) % len(OPTIONS)][2]
        assert all(f"trial {trial}: {named}" in text for text in texts), (named, texts)
    assert not sandbox.checkpoints("refused").exists()
    return dict(
        result=f"{count}/{count}",
        text=f"{half - 1} continued from the newest step that both see; refused in both: 1 without one, {count - half} with "
        "different options",
    )


def gone(sandbox: Sandbox, count: int) -> dict:
    """11: the other process is killed or frozen: SIGABRT by JAX's heartbeat; a step never ends: exit code 5."""
    options, waits = ("--steps", 100000, "--every", 100000, "--seconds", 0.1, "--heartbeat-timeout", 10), {}
    cases = [(victim, number) for number in (signal.SIGSTOP, signal.SIGKILL) for victim in (0, 1)]
    cases += cases[2:] * (count - 1)
    pairs, began = [], []
    for trial, (victim, number) in enumerate(cases):  # frozen ones are waited for concurrently
        work = f"gone{trial}"
        pairs.append(sandbox.pair([work, work], *options))
        sandbox.until(pairs[-1][0], lambda work=work: len(sandbox.losses(work)) > 2)
        pairs[-1][victim].send(number)
        began.append(time.monotonic())
        if number == signal.SIGKILL:
            pairs[-1][1 - victim].wait()
            waits.setdefault("killed", []).append(time.monotonic() - began[-1])
    for pair, (victim, _), start in zip(pairs[:2], cases, began):
        pair[1 - victim].wait()
        waits.setdefault("frozen", []).append(time.monotonic() - start)
    for pair, (victim, _) in zip(pairs, cases):
        pair[victim].send(signal.SIGKILL)
        text = sandbox.expect(pair[1 - victim], -signal.SIGABRT)
        assert "JAX distributed service detected fatal errors" in text, text[-2000:]
        assert not victim or "stopped sending heartbeats" in text, text[-2000:]
    diverging = sandbox.pair(["diverging", "diverging"], "--steps", 50, "--bad", ",".join(map(str, range(5, 50))))
    for program in diverging:  # an error of all ends each with its own code
        sandbox.expect(program, 3)
    text = sandbox.run("hang", "--steps", 20, "--hang", 8, "--watchdog", 3, expect=5)
    assert "no step ended for" in text and "helpers/toy_run.py" in text
    killed, frozen = (max(waits[which]) for which in ("killed", "frozen"))
    assert killed < 30 and frozen < 90, waits  # frozen: includes the other trials
    trials = len(waits["killed"])
    text = f"killed: the other ended within {killed:.1f} s ({trials} trials); frozen: {frozen:.0f} s (2); named by JAX; "
    return dict(result=f"{len(cases)}/{len(cases)}", text=f"{text}a step that never ends: stacks and exit code 5")
