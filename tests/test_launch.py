"""The launch scripts against stub programs that write down how they were called; the scripts themselves run for real."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]

# Every call is a JSON line. What it answers is the next line of the file answers/KIND, "exit code, output"; the last one stays.
STUB = """#!{python}
import json, os, pathlib, sys
room = pathlib.Path({room!r})
argv = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
with open(room / "calls", "a") as calls:
    calls.write(json.dumps(argv) + "\\n")
kind = argv[0]
if kind == "gcloud":
    kind = argv[4] if argv[4] != "ssh" else next(w for w in {over_ssh!r} if w in argv[-1])
    kind = ("queue_" if argv[3] == "queued-resources" else "") + kind
file = room / "answers" / kind
lines = file.read_text().splitlines() if file.exists() else ["0 "]
if len(lines) > 1:
    file.write_text("\\n".join(lines[1:]) + "\\n")
code, _, text = lines[0].partition(" ")
if text:
    print(text)
sys.exit(int(code))
"""
OVER_SSH = ("worker.sh install", "worker.sh start", "worker.sh follow", "worker.sh stop", "rsync")
TPU = ["--name", "b-run", "--zone", "us-west4-a"]
RUN = ["run", *TPU, "--type", "v5litepod-16", "--workdir", "gs://bucket/b run", "--config", "configs/c2i_b.py", "--poll", "0"]


@pytest.fixture
def room(tmp_path):
    """A folder with the stubs first on PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "answers").mkdir()
    for name in ("gcloud", "ssh", "xpk", "maskgil", "srun", "scontrol"):
        stub = tmp_path / "bin" / name
        stub.write_text(STUB.format(python=sys.executable, room=str(tmp_path), over_ssh=OVER_SSH))
        stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def answers(room, **lines):
    for kind, answer in lines.items():
        kind = f"worker.sh {kind}" if f"worker.sh {kind}" in OVER_SSH else kind
        (room / "answers" / kind).write_text("\n".join(answer) + "\n")


def launch(room, script, *arguments, **variables):
    env = {**os.environ, "PATH": f"{room / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(room), **variables}
    return subprocess.run(["bash", str(LAUNCH / script), *arguments], env=env, capture_output=True, text=True, timeout=60)


def calls(room, *, looks=False):
    """What the stubs were called with; looking at the state of things (describe) changes nothing and is left out."""
    file = room / "calls"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [argv for argv in lines if looks or "describe" not in argv]


def verbs(room):
    """The calls in short: create, scp, install, start, follow, ..."""
    return [next((w.split()[-1] for w in OVER_SSH if w in argv[-1]), argv[4]) for argv in calls(room)]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(path):
    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, "--external-sources", str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stop_at_errors_and_run_no_input(path):
    text = path.read_text()
    assert path.name == "flags.sh" or "\nset -euo pipefail\n" in text
    assert not re.search(r"\beval\b", text)


@pytest.mark.parametrize("script", ["tpu.sh", "gpu.sh", "xpk.sh", "worker.sh"])
def test_help(room, script):
    done = launch(room, script, "--help", HOME=str(room))
    assert done.returncode == 0 and done.stdout.startswith(f"usage: launch/{script}") and not done.stderr
    assert not calls(room)


# ------------------------------------------------------------------------------------------------ tpu.sh
def test_create_install_train(room):
    answers(room, describe=["1 ", "0 READY"], follow=["0 step 1"])
    more = ["--spot", "--project", "my-project", "--copy", "gs://bucket/my codes", "codes/my codes", "--", "--config.x=a b", "$(boo)"]
    done = launch(room, "tpu.sh", *RUN, *more)
    assert done.returncode == 0 and "step 1" in done.stdout, done.stderr
    create, scp, install, rsync, start, follow = calls(room)
    where = ["--zone", "us-west4-a", "--project", "my-project"]
    vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    kind = ["--accelerator-type", "v5litepod-16", "--version", "v2-alpha-tpuv5-lite", "--spot"]
    assert create == [*vm, "create", "b-run", *where, *kind]
    assert scp[:5] == [*vm, "scp"] and scp[6:] == ["b-run:maskgil_jax.tar.gz", *where, "--worker=all"]
    assert re.fullmatch(r".*/maskgil_jax-[0-9a-f]{40}\.tar\.gz", scp[5])
    for ssh, worker in ((install, "all"), (rsync, "all"), (start, "all"), (follow, "0")):
        assert ssh[:-1] == [*vm, "ssh", "b-run", *where, f"--worker={worker}", "--command"]
    assert shlex.split(rsync[-1])[5:] == ["&&", *"gcloud storage rsync --recursive".split(), "gs://bucket/my codes", "codes/my codes"]
    words = shlex.split(start[-1])  # as the shell of the worker takes the line apart
    assert words[:6] == ["cd", "maskgil_jax", "&&", "bash", "launch/worker.sh", "start"]
    assert words[6:] == ["gs://bucket/b run", *"--config configs/c2i_b.py --workdir".split(), "gs://bucket/b run", "--config.x=a b", "$(boo)"]


def test_the_archive_is_the_commit(room):
    """What is copied unpacks to the package, the lock and the script that the workers start."""
    stub = room / "bin" / "gcloud"
    stub.write_text(stub.read_text().replace("sys.exit(int", "[os.link(a, room / 'sent') for a in argv if 'gz' in a and '/' in a]\nsys.exit(int"))
    answers(room, describe=["0 READY"])
    assert launch(room, "tpu.sh", *RUN).returncode == 0
    names = subprocess.run(["tar", "-tzf", str(room / "sent")], capture_output=True, text=True, check=True).stdout.split()
    assert {"requirements.lock", "pyproject.toml", "maskgil_jax/cli.py"} <= set(names)


def test_a_tpu_that_is_ready_is_used_again(room):
    answers(room, describe=["0 READY"])
    assert launch(room, "tpu.sh", *RUN).returncode == 0
    assert verbs(room) == ["scp", "install", "start", "follow"]


def test_a_queued_tpu_is_waited_for(room):
    answers(
        room,
        describe=["1 ", "1 ", "0 CREATING", "0 READY"],
        queue_describe=["1 ", "0 WAITING_FOR_RESOURCES", "0 PROVISIONING", "0 ACTIVE"],
    )
    done = launch(room, "tpu.sh", *RUN, "--queued")
    assert done.returncode == 0 and "waiting for b-run: WAITING_FOR_RESOURCES" in done.stderr
    assert verbs(room) == ["create", "scp", "install", "start", "follow"]
    create = calls(room)[0]
    assert create[3] == "queued-resources" and create[create.index("--node-id") + 1] == "b-run"
    assert create[create.index("--runtime-version") + 1] == "v2-alpha-tpuv5-lite"


@pytest.mark.parametrize("queued", [False, True])
def test_preemption_starts_everything_again(room, queued):
    states = ["1 ", "0 READY", "0 PREEMPTED", "0 PREEMPTED", "1 ", "0 READY"]
    answers(room, describe=states, queue_describe=["1 ", "0 ACTIVE", "0 SUSPENDED", "1 ", "0 ACTIVE"], follow=["255 ", "0 done"])
    done = launch(room, "tpu.sh", *RUN, "--spot", *["--queued"] * queued)
    assert done.returncode == 0, done.stderr
    once = ["create", "scp", "install", "start", "follow"]
    assert verbs(room) == [*once, "delete", *once]
    assert "again, from the last checkpoint in gs://bucket/b run" in done.stderr
    delete = next(argv for argv in calls(room) if "delete" in argv)
    assert ("--force" in delete) == queued and "--quiet" in delete
    starts = [argv for argv in calls(room) if "worker.sh start" in argv[-1]]
    assert starts[0] == starts[1], "the same command, so that the run goes on"


@pytest.mark.parametrize("code", [2, 3, 4, 1])
def test_the_code_of_a_failed_training_is_final(room, code):
    answers(room, describe=["0 READY"], follow=[f"{code} "])
    assert launch(room, "tpu.sh", *RUN).returncode == code
    assert verbs(room) == ["scp", "install", "start", "follow"]


@pytest.mark.parametrize("code", [5, 75, 134, 255])
def test_what_may_pass_is_tried_again_but_not_for_ever(room, code):
    answers(room, describe=["0 READY"], follow=[f"{code} "])
    done = launch(room, "tpu.sh", *RUN, "--restarts", "2")
    assert done.returncode == code and "given up after 3 attempts" in done.stderr
    assert verbs(room) == [*["scp", "install", "start", "follow", "stop"] * 2, "scp", "install", "start", "follow"]


@pytest.mark.parametrize(("failing", "code"), [("create", 1), ("scp", 3), ("install", 3), ("start", 3)])
def test_a_failing_step_ends_the_script(room, failing, code):
    answers(room, describe=["1 ", "0 READY"], **{failing: ["3 "]})
    assert launch(room, "tpu.sh", *RUN).returncode == code
    assert verbs(room)[-1] == failing


@pytest.mark.parametrize("queued", [False, True])
def test_a_dry_run_prints_what_would_be_called(room, queued):
    more = ["--spot", *["--queued"] * queued, "--copy", "gs://b/c d", "c d", "--", "--config.x=it's; rm -rf /"]
    done = launch(room, "tpu.sh", *RUN, "--dry-run", *more)
    assert done.returncode == 0 and not calls(room, looks=True)
    answers(room, describe=["1 ", "0 READY"], queue_describe=["1 ", "0 ACTIVE"])
    assert launch(room, "tpu.sh", *RUN, *more).returncode == 0

    def same_folder(argv):
        return [re.sub(r".*/(maskgil_jax-[0-9a-f]+\.tar\.gz)$", r"\1", word) for word in argv]

    printed = [same_folder(shlex.split(line)) for line in done.stdout.splitlines()]
    assert printed == [same_folder(argv) for argv in calls(room)] and len(printed) == 6


@pytest.mark.parametrize("queued", [False, True])
def test_delete_stop_logs(room, queued):
    answers(room, queue_describe=["0 ACTIVE" if queued else "1 "], follow=["3 "])
    assert launch(room, "tpu.sh", "delete", *TPU).returncode == 0
    assert launch(room, "tpu.sh", "stop", *TPU).returncode == 0
    assert launch(room, "tpu.sh", "logs", *TPU).returncode == 3
    delete, stop, logs = calls(room)
    assert delete[3] == ("queued-resources" if queued else "tpu-vm") and delete[4:6] == ["delete", "b-run"]
    assert "--worker=all" in stop and "--worker=0" in logs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs a command"),
        (["walk", *TPU], "unknown command 'walk'"),
        (["run", "--zone", "us-west4-a"], "--name: expected lower-case letters"),
        (["run", "--name", "a; rm -rf /", "--zone", "us-west4-a"], "--name: expected lower-case letters"),
        (["run", "--name", "a", "--zone", "mars"], "--zone: expected something like us-west4-a, got 'mars'"),
        (["run", *TPU], "--type: missing"),
        (["run", *TPU, "--type", "v5p-8", "--config", "c", "--workdir", "runs/x"], "--workdir: expected gs://"),
        (["run", *TPU, "--type", "v9-8", "--config", "c", "--workdir", "gs://b/x"], "--runtime: missing; not known for type 'v9-8'"),
        ([*RUN, "--config.seed=1"], "unknown option '--config.seed=1'"),
        ([*RUN, "--restarts", "many"], "--restarts: expected a number, got 'many'"),
        ([*RUN, "--copy", "gs://a"], "--copy: needs SRC and DST"),
    ],
)
def test_wrong_usage_is_named(room, arguments, message):
    done = launch(room, "tpu.sh", *arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not calls(room, looks=True)


# ------------------------------------------------------------------------------------------------ worker.sh
def worker(room, *arguments, script="exit 0"):
    fake = room / "train"
    fake.write_text(f"#!/usr/bin/env bash\n{script}\n")
    fake.chmod(0o755)
    return launch(room, "worker.sh", *arguments, MASKGIL=str(fake), MASKGIL_RUN_DIR=str(room / "run"))


def test_a_worker_trains_in_the_background_and_tells_the_code(room):
    script = 'echo "[$LIBTPU_INIT_ARGS]"; printf "<%s>" "$JAX_COMPILATION_CACHE_DIR" "$@"; sleep 1; exit 3'
    began = time.monotonic()
    started = worker(room, "start", "gs://b/w x", "--config", "a b", script=script)
    assert started.returncode == 0 and time.monotonic() - began < 1, started.stderr
    pid = (room / "run" / "pid").read_text() if (room / "run" / "pid").exists() else None
    worker(room, "start", "gs://b/w x", "--config", "a b", script=script)  # runs already: nothing happens
    followed = worker(room, "follow")
    assert followed.returncode == 3
    assert "<gs://b/w x/xla_cache><train><--config><a b>" in followed.stdout
    assert "--xla_tpu_enable_async_collective_fusion=true" in followed.stdout
    assert pid in (None, (room / "run" / "pid").read_text())


def test_a_worker_is_stopped_gently(room):
    script = "trap 'echo saved; exit 0' TERM; echo up; while true; do sleep 0.1; done"
    worker(room, "start", "gs://b/w", script=script)
    log, deadline = room / "run" / "log", time.monotonic() + 20
    while "up" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert worker(room, "stop", script=script).returncode == 0
    followed = worker(room, "follow")
    assert followed.returncode == 0 and "saved" in followed.stdout
    assert worker(room, "stop").returncode == 0  # nothing runs any more


# ------------------------------------------------------------------------------------------------ gpu.sh, slurm.sbatch, xpk.sh
def test_gpu_runs_the_command_with_flags(room):
    done = launch(room, "gpu.sh", "--config", "c.py", "--workdir", "runs/a b", "--config.x=1", XLA_FLAGS="--mine")
    assert done.returncode == 0, done.stderr
    assert calls(room) == [["maskgil", "train", "--config", "c.py", "--workdir", "runs/a b", "--config.x=1"]]
    dry = launch(room, "gpu.sh", "--dry-run", "--config", "c.py", "--workdir=runs/a b", XLA_FLAGS="--mine")
    words = shlex.split(dry.stdout)
    assert words[3:] == ["maskgil", "train", "--config", "c.py", "--workdir=runs/a b"] and len(calls(room)) == 1
    assert words[0].startswith("XLA_FLAGS=--xla_gpu") and words[0].endswith(" --mine"), "what the caller sets stands last"
    assert words[2] == "JAX_COMPILATION_CACHE_DIR=runs/a b/xla_cache"


@pytest.mark.parametrize(("code", "attempts"), [(0, 1), (2, 1), (3, 1), (75, 3), (5, 3), (134, 3)])
def test_gpu_tries_again_what_may_pass(room, code, attempts):
    answers(room, maskgil=[f"{code} "])
    done = launch(room, "gpu.sh", "--restarts", "2", "--config", "c", "--workdir", "w", RETRY_SECONDS="0")
    assert done.returncode == code and len(calls(room)) == attempts


def test_gpu_hands_signals_on_and_waits_for_the_last_save(room):
    fake = room / "train"
    fake.write_text("#!/usr/bin/env bash\ntrap 'sleep 0.3; echo saved; exit 75' TERM\necho up\nwhile true; do sleep 0.1; done\n")
    fake.chmod(0o755)
    run = subprocess.Popen(
        ["bash", str(LAUNCH / "gpu.sh"), "--config", "c", "--workdir", "w"],
        env={**os.environ, "MASKGIL": str(fake), "RETRY_SECONDS": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.readline() == "up\n"
    run.send_signal(signal.SIGTERM)
    assert run.communicate(timeout=20)[0] == "saved\n"
    assert run.returncode == 75, "asked to stop, it does not try again"


@pytest.mark.parametrize(("code", "queued_again"), [(0, False), (3, False), (75, True), (134, True)])
def test_slurm_puts_the_job_back(room, code, queued_again):
    answers(room, srun=[f"{code} "])
    done = launch(room, "slurm.sbatch", "--config", "a b", "--workdir", "w", SLURM_SUBMIT_DIR=str(ROOT), SLURM_JOB_ID="7")
    assert done.returncode == code, done.stderr
    first, *rest = calls(room)
    assert first[:1] + first[3:] == ["srun", "bash", "launch/gpu.sh", "--restarts", "0", "--config", "a b", "--workdir", "w"]
    assert rest == ([["scontrol", "requeue", "7"]] if queued_again else [])
    elsewhere = launch(room, "slurm.sbatch", SLURM_SUBMIT_DIR=str(room), SLURM_JOB_ID="7")
    assert elsewhere.returncode == 2 and "call sbatch from the root of the clone" in elsewhere.stderr


def test_xpk_submits_one_workload(room):
    options = ["--cluster", "c", "--name", "n", "--zone", "z", "--type", "v5litepod-256", "--workdir", "gs://b/w x"]
    options += ["--config", "configs/c2i_b.py", "--slices", "2"]
    dry = launch(room, "xpk.sh", *options, "--dry-run", "--", "--config.x=a b")
    assert dry.returncode == 0 and not calls(room)
    assert launch(room, "xpk.sh", *options, "--", "--config.x=a b").returncode == 0
    (submit,) = calls(room)
    assert shlex.split(dry.stdout) == submit
    assert submit[:3] == ["xpk", "workload", "create"] and submit[submit.index("--num-slices") + 1] == "2"
    words = shlex.split(submit[submit.index("--command") + 1])
    assert words[-6:] == ["--config", "configs/c2i_b.py", "--workdir", "gs://b/w x", "--config.mesh.dcn_data=2", "--config.x=a b"]
    done = launch(room, "xpk.sh", *options[2:])
    assert done.returncode == 2 and "--cluster: missing" in done.stderr
