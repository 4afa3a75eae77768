"""The reliability scorecard: what docs/reliability.md promises, tried and counted, each run a process of its own.

python -m tests.reliability                   about 15 minutes on two cores; --rows kill,damage for some, --quick for a taste
"""

import argparse
import json
import logging
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

from maskgil_jax.checkpoints.step_folders import listing, read_record, steps_in
from tests.damage import MODES, damage, restored_step, save_steps

HERE = pathlib.Path(__file__).resolve().parent


class Toy:
    """Starts `toy_run.py` in work folders of one temporary folder and reads what it leaves there."""

    def __init__(self, room: pathlib.Path):
        self.room = room

    def start(self, work: str, *options, devices: int = 1, **more) -> subprocess.Popen:
        """The program on that many virtual devices, its output in a file."""
        flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_parallel_codegen_split_count=1"
        env = {**os.environ, "XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": str(self.room / "xla")}
        env["PYTHONPATH"] = str(HERE.parent)
        with open(self.room / f"{work}.{len(list(self.room.iterdir()))}.log", "w") as out:
            argv = [sys.executable, str(HERE / "toy_run.py"), "--workdir", str(self.room / more.get("folder", work))]
            process = subprocess.Popen(
                [*argv, *map(str, options)], env=env, cwd=HERE.parent, stdout=out, stderr=subprocess.STDOUT
            )
        process.log = pathlib.Path(out.name)
        return process

    def run(self, work: str, *options, expect: int = 0, **more) -> str:
        """The same, to its end; its output."""
        process = self.start(work, *options, **more)
        code = process.wait(timeout=600)
        text = process.log.read_text()
        if code != expect:
            raise AssertionError(f"exit code {code}, expected {expect}:\n{text[-3000:]}")
        return text

    def checkpoints(self, work: str) -> pathlib.Path:
        return self.room / work / "checkpoints"

    def losses(self, work: str) -> dict[int, str]:
        """The loss of each step as the exact number that was written."""
        file = self.room / work / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return {line["step"]: float(line["masked_loss"]).hex() for line in lines if "masked_loss" in line}

    def arrays(self, work: str, step: int) -> dict:
        """Fingerprints of the arrays of a step."""
        return read_record(self.checkpoints(work), step)["arrays"]

    def wait_for(self, process, work: str, steps: int) -> None:
        """Until so many steps are committed."""
        while len(steps_in(self.checkpoints(work))) < steps:
            if process.poll() is not None:
                raise AssertionError(process.log.read_text()[-3000:])
            time.sleep(0.05)


def differences(toy: Toy, a: str, b: str) -> tuple[int, float]:
    """(losses that differ in a bit, largest difference) of two runs."""
    left, right = toy.losses(a), toy.losses(b)
    if left.keys() != right.keys():
        raise AssertionError(f"{a} has steps {sorted(left)}, {b} has {sorted(right)}")
    apart = [abs(float.fromhex(left[s]) - float.fromhex(right[s])) for s in left]
    return sum(left[s] != right[s] for s in left), max(apart)


def kill(toy: Toy, count: int) -> str:
    """1, 2: kill -9 at random moments; what is left is whole, and the run ends as if nothing had happened."""
    steps, rng = 20 + 8 * count, random.Random(0)
    options = ("--steps", steps, "--every", 2, "--seconds", 0.05)
    toy.run("whole", *options, "--keep", steps)
    whole, kills = 0, 0
    while kills < count:
        process = toy.start("parts", *options)
        toy.wait_for(process, "parts", 1)
        seen = toy.losses("parts")
        while process.poll() is None and len(toy.losses("parts")) <= len(seen):
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 0.8))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        newest = steps_in(toy.checkpoints("parts"))[0]
        rows = [row for row in listing(toy.checkpoints("parts"), read=True) if row.name == str(newest)]
        same = toy.arrays("parts", newest) == toy.arrays("whole", newest)
        whole += same and not rows[0].problem
    toy.run("parts", *options)
    differ, _ = differences(toy, "whole", "parts")
    arrays = toy.arrays("whole", steps) == toy.arrays("parts", steps)
    assert whole == kills and differ == 0 and arrays
    return f"{whole}/{kills} kills left a whole newest step; {differ} of {steps} losses differ; final arrays equal"


def stop(toy: Toy, count: int) -> str:
    """3, 8: SIGTERM saves the step under way, ends with 0 and goes on exactly; with two processes too."""
    options, waits = ("--steps", 30, "--every", 100, "--seconds", 0.2), []
    toy.run("straight", *options)
    for trial in range(count):
        work = f"stopped{trial}"
        process = toy.start(work, *options)
        while len(toy.losses(work)) < 3:
            time.sleep(0.05)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        waits.append(time.monotonic() - asked)
        assert process.returncode == 0, process.log.read_text()[-2000:]
        assert "SIGTERM noted, saving after the current step" in process.log.read_text()
        if trial == 0:
            toy.run(work, *options)
            assert differences(toy, "straight", work)[0] == 0
    return f"{count}/{count} saved, exit code 0, at most {max(waits):.1f} s; continued: 0 of 30 losses differ"


def harm(toy: Toy, count: int) -> str:
    """4: a file of the newest of three steps flipped, cut, deleted or zeroed; never wrong weights."""
    save_steps(toy.room / "harmed", (10, 20, 30))
    fell_back, harmless = 0, 0
    for trial in range(count):
        work = toy.room / "trial"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(toy.room / "harmed", work)
        damage(work / "checkpoints" / "30", MODES[trial % len(MODES)], np.random.default_rng(trial))
        found = restored_step(work, (10, 20, 30))
        assert found is not None and found[1] == 0, (trial, found)
        fell_back, harmless = fell_back + (found[0] == 20), harmless + (found[0] == 30)
    assert fell_back + harmless == count
    return f"{count}/{count} right: {fell_back} fell back to the step before, {harmless} were harmless"


def reshard(toy: Toy, count: int) -> str:
    """5: 8 -> 4 -> 1 -> 8 devices; arrays exact (each restore compares fingerprints), losses within 1e-5."""
    toy.run("one", "--steps", 16, "--every", 4)
    for stage, devices in enumerate((8, 4, 1, 8), 1):
        text = toy.run("meshes", "--steps", 4 * stage, "--every", 4, "--fsdp", max(devices // 2, 1), devices=devices)
        assert stage == 1 or f"continuing from step {4 * stage - 4}" in text
    far = differences(toy, "one", "meshes")[1]
    assert far < 1e-5
    return f"3/3 restores exact, {len(toy.arrays('meshes', 16))} arrays each; losses within {far:.0e} of one device"


def pair(toy: Toy, work: str, *options, folders=None) -> list:
    """Two processes of 4 devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        toy.start(f"{work}_{i}", *options, "--process", f"{i}/2/{port}", devices=4, folder=(folders or [work, work])[i])
        for i in range(2)
    ]


def finish(processes, expect=(0,)) -> list[str]:
    """Their outputs, once all have ended as expected."""
    for process in processes:
        assert process.wait(timeout=300) in expect, process.log.read_text()[-3000:]
    return [process.log.read_text() for process in processes]


def two(toy: Toy, count: int) -> str:
    """6: two processes against one, and continued."""
    options = ("--steps", 12, "--every", 4)
    toy.run("single", *options, devices=8)
    finish(pair(toy, "double", *options))
    finish(pair(toy, "resumed", "--steps", 8, "--every", 4))
    finish(pair(toy, "resumed", *options))
    far, (differ, _) = differences(toy, "single", "double")[1], differences(toy, "double", "resumed")
    assert far < 1e-5 and differ == 0
    return f"2 x 4 devices within {far:.0e} of 1 x 8; resumed in 2: {differ} of 12 losses differ"


def disagree(toy: Toy, count: int) -> str:
    """7: the processes see different newest steps; all take that of process 0."""
    toy.run("left", "--steps", 4, "--every", 2, "--keep", 9, devices=8)
    for trial in range(count):
        folders = [f"left{trial}", f"right{trial}"]
        for folder in folders:
            shutil.copytree(toy.room / "left", toy.room / folder)
        shutil.rmtree(toy.checkpoints(folders[0]) / "4")
        texts = finish(pair(toy, f"disagree{trial}", "--steps", 2, folders=folders))
        assert all("continuing from step 2" in text for text in texts), texts
    return f"{count}/{count}: both took process 0's step"


def spoil(toy: Toy, count: int) -> str:
    """9: bad steps cost themselves; ten in a row stop with code 3 and a finite newest step."""
    cases = 0
    for factor in ("nan", "inf", "1e6"):
        work = f"bad_{factor}"
        text = toy.run(work, "--steps", 60, "--every", 60, "--bad", "55", "--factor", factor)
        assert text.count("skipped (gradient norm") == 1 and "step 55 skipped" in text
        assert all(not row.problem for row in listing(toy.checkpoints(work), read=True))
        cases += 1
    many = ",".join(map(str, range(7, 40)))
    text = toy.run("many", "--steps", 60, "--every", 2, "--bad", many, expect=1)  # the command turns it into code 3
    assert "TrainingDiverged: toy: steps 7 to 16 were all skipped" in text
    assert all(not row.problem for row in listing(toy.checkpoints("many"), read=True))
    return f"{cases}/{cases} bad steps skipped alone; 10 in a row stopped the run, all steps kept are whole"


def hang(toy: Toy, count: int) -> str:
    """11: a step that never ends: a sentence, the stacks and exit code 5."""
    began = time.monotonic()
    text = toy.run("hang", "--steps", 20, "--hang", 8, "--watchdog", 3, expect=5)
    assert "no step ended for" in text and "toy_run.py" in text
    return f"exit code 5 with all stacks (start included {time.monotonic() - began:.0f} s)"


ROWS = {  # name: (row, trials, trials with --quick)
    "kill": (kill, 20, 2),
    "stop": (stop, 5, 1),
    "damage": (harm, 60, 8),
    "reshard": (reshard, 1, 1),
    "two": (two, 1, 1),
    "disagree": (disagree, 3, 1),
    "spoil": (spoil, 1, 1),
    "hang": (hang, 1, 1),
}


def main() -> int:
    """Prints one line a row; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="few trials of each")
    args = parser.parse_args()
    for noisy in ("maskgil_jax", "asyncio"):  # damage is meant here
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    broken = 0
    for name in args.rows.split(","):
        row, many, few = ROWS[name]
        with tempfile.TemporaryDirectory() as room:
            began = time.monotonic()
            try:
                verdict = f"ok      {row(Toy(pathlib.Path(room)), few if args.quick else many)}"
            except (AssertionError, subprocess.TimeoutExpired) as error:
                broken, verdict = broken + 1, f"BROKEN  {error}"
        print(f"{name:<9} {verdict}  [{time.monotonic() - began:.0f} s]", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
