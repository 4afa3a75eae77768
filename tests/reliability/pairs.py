"""Rows about runs of two processes: equal to one, agreeing, and noticing that the other is gone."""

from __future__ import annotations

import logging
import shutil
import signal
import time

import jax

from maskgil_jax.checkpoints.train_state import CheckpointError
from maskgil_jax.config import ConfigError
from tests.helpers import toy_run
from tests.reliability.programs import Room

OPTIONS = [  # that the two processes are given differently, and what the error names
    ("--rate", ("1e-2", "2e-2"), "config.optimizer.learning_rate: 0.01 in process 0, 0.02 in process 1"),
    ("--every", ("2", "3"), "config.checkpoint.every: 2 in process 0, 3 in process 1"),
    ("--keep", ("3", "4"), "config.checkpoint.keep: 3 in process 0, 4 in process 1"),
    ("--fsdp", ("1", "2"), "config.mesh.fsdp: 1 in process 0, 2 in process 1"),
    ("--steps", ("4", "5"), "config.total_steps: 4 in process 0, 5 in process 1"),
]


def two(room: Room, count: int) -> dict:
    """6: two processes against one, and continued."""
    options = ("--steps", 12, "--every", 4)
    room.run("single", *options, devices=8)
    for work, more in (("double", options), ("resumed", ("--steps", 8, "--every", 4)), ("resumed", options)):
        for program in room.pair([work, work], *more):
            room.expect(program)
    far, (differ, _) = room.differences("single", "double")[1], room.differences("double", "resumed")
    assert far < 1e-5 and differ == 0, (far, differ)
    return dict(
        result=f"{differ} differ",
        text=f"2 x 4 devices within {far:.0e} of 1 x 8; stopped and resumed in 2: {differ} of 12 losses differ",
    )


def disagree(room: Room, count: int) -> dict:
    """7: processes that see other steps go on from the newest that both see, if there is one; other options are refused."""
    half = (count + 1) // 2
    room.run("left", "--steps", 4, "--every", 2, "--keep", 9, devices=8)
    for trial in range(half):
        for side in range(2):
            shutil.copytree(room.folder / "left", room.folder / f"steps{trial}_{side}")
        shutil.rmtree(room.checkpoints(f"steps{trial}_{trial % 2}") / "4")  # newest 2 here, 4 there
    shutil.rmtree(room.checkpoints("steps0_1") / "2")  # nothing in common

    def trials(args) -> None:
        side = jax.process_index()
        logging.disable(logging.INFO)
        for trial in range(count):
            argv = ["--workdir", str(room.folder / f"steps{trial}_{side}"), "--steps", "2"]
            if trial >= half:
                option, values, _ = OPTIONS[(trial - half) % len(OPTIONS)]
                argv = ["--workdir", str(room.folder / "refused"), option, values[side]]
            try:
                toy_run.train(toy_run.parser().parse_args(argv))
            except (ConfigError, CheckpointError) as error:
                print(f"trial {trial}: {error}", flush=True)

    texts = [room.expect(program) for program in room.pair(["a", "b"], main=lambda argv: toy_run.main(argv, trials))]
    told = [
        "trial 0: ",
        "no checkpoint that all processes see whole (step 4: process 0 of 2 does not see it; step 2: process 1 of 2",
    ]
    told += [f"checkpoint step 4 is passed over (process {i % 2} of 2 does not see it); using step 2" for i in range(1, half)]
    assert all(text.count(line) == told.count(line) for text in texts for line in told), texts
    assert all(text.count("done at step 2") == half - 1 for text in texts), texts
    for trial in range(half, count):
        named = OPTIONS[(trial - half) % len(OPTIONS)][2]
        assert all(f"trial {trial}: {named}" in text for text in texts), (named, texts)
    assert not room.checkpoints("refused").exists()
    return dict(
        result=f"{count}/{count}",
        text=f"{half - 1} went on from the newest step both see; refused by name in both: 1 without one, {count - half} with "
        "other options",
    )


def gone(room: Room, count: int) -> dict:
    """11: the other process is killed or frozen, or a step never ends: a sentence and exit code 5."""
    options, waits = ("--steps", 100000, "--every", 100000, "--seconds", 0.1), {}
    cases = [(victim, number) for number in (signal.SIGSTOP, signal.SIGKILL) for victim in (0, 1)]
    cases += cases[2:] * (count - 1)
    pairs, began = [], []
    for trial, (victim, number) in enumerate(cases):  # the frozen ones are waited for side by side
        work = f"gone{trial}"
        pairs.append(room.pair([work, work], *options))
        room.until(pairs[-1][0], lambda work=work: len(room.losses(work)) > 2)
        pairs[-1][victim].send(number)
        began.append(time.monotonic())
        if number == signal.SIGKILL:
            pairs[-1][1 - victim].wait()
            waits.setdefault("killed", []).append(time.monotonic() - began[-1])
    for pair, (victim, _), start in zip(pairs[:2], cases, began):
        pair[1 - victim].wait()
        waits.setdefault("frozen", []).append(time.monotonic() - start)
    for pair, (victim, number) in zip(pairs, cases):
        pair[victim].send(signal.SIGKILL)
        how = "ended without a word" if number == signal.SIGKILL else "has given no sign of life for 60 s"
        text = room.expect(pair[1 - victim], 5)
        assert f"error: process {victim} of 2 (pid {pair[victim].pid} on" in text and how in text, text[-2000:]
    told = [room.pair(["told", "told"], "--steps", 50, "--bad", ",".join(map(str, range(5, 50))))]
    for program in told[0]:  # both find out by themselves
        room.expect(program, 3)
    text = room.run("hang", "--steps", 20, "--hang", 8, "--watchdog", 3, expect=5)
    assert "no step ended for" in text and "helpers/toy_run.py" in text
    killed, frozen = (max(waits[which]) for which in ("killed", "frozen"))
    assert max(killed, frozen) < 90
    text = f"killed: noticed within {killed:.1f} s ({len(waits['killed'])} trials); frozen: {frozen:.0f} s (2); both named; "
    return dict(result=f"{len(cases)}/{len(cases)}", text=f"{text}a step that never ends: stacks and exit code 5")
