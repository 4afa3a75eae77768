"""launch/tpu.sh, and what all launch scripts have in common, against stub programs that record their calls."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from helpers.launch_stubs import LAUNCH, OVER_SSH, answers, calls, launch

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]
TPU = ["--name", "b-run", "--zone", "us-west4-a"]
RUN = ["run", *TPU, "--type", "v5litepod-16", "--workdir", "gs://bucket/b run", "--config", "configs/c2i_b.py", "--poll", "0"]


def verbs(box):
    """The calls in short: create, scp, install, start, follow, ..."""
    return [next((w.split()[-1] for w in OVER_SSH if w in argv[-1]), argv[4]) for argv in calls(box)]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path):
    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, "--external-sources", str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stop_at_errors_and_run_no_input(path):
    text = path.read_text()
    assert path.name in ("flags.sh", "options.sh") or "\nset -euo pipefail\n" in text
    assert not re.search(r"\beval\b", text)


@pytest.mark.parametrize("script", ["tpu.sh", "gpu.sh", "xpk.sh", "worker.sh"])
def test_help_prints_usage_and_calls_nothing(box, script):
    done = launch(box, script, "--help", HOME=str(box))
    assert done.returncode == 0 and done.stdout.startswith(f"usage: launch/{script}") and not done.stderr
    assert not calls(box)


# ------------------------------------------------------------------------------------------------ tpu.sh
def test_tpu_run_creates_installs_and_trains(box):
    answers(box, describe=["1 ", "0 READY"], follow=["0 step 1"])
    more = [
        "--spot",
        "--project",
        "my-project",
        "--copy",
        "gs://bucket/my codes",
        "codes/my codes",
        "--",
        "--config.x=a b",
        "$(boo)",
    ]
    done = launch(box, "tpu.sh", *RUN, *more)
    assert done.returncode == 0 and "step 1" in done.stdout, done.stderr
    create, scp, install, rsync, start, follow = calls(box)
    where = ["--zone", "us-west4-a", "--project", "my-project"]
    vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    kind = ["--accelerator-type", "v5litepod-16", "--version", "v2-alpha-tpuv5-lite", "--spot"]
    assert create == [*vm, "create", "b-run", *where, *kind]
    assert scp[:5] == [*vm, "scp"] and scp[6:] == ["b-run:maskgil_jax.tar.gz", *where, "--worker=all"]
    assert re.fullmatch(r".*/maskgil_jax-[0-9a-f]{40}\.tar\.gz", scp[5])
    for ssh, worker in ((install, "all"), (rsync, "all"), (start, "all"), (follow, "0")):
        assert ssh[:-1] == [*vm, "ssh", "b-run", *where, f"--worker={worker}", "--command"]
    assert shlex.split(rsync[-1])[6:] == [
        "&&",
        *"gcloud storage rsync --recursive".split(),
        "gs://bucket/my codes",
        "codes/my codes",
    ]
    words = shlex.split(start[-1])  # as the shell of the worker takes the line apart
    assert words[:6] == ["cd", "maskgil_jax", "&&", "bash", "launch/worker.sh", "start"]
    assert words[6:] == [
        "gs://bucket/b run",
        *"--config configs/c2i_b.py --workdir".split(),
        "gs://bucket/b run",
        "--config.x=a b",
        "$(boo)",
    ]


@pytest.mark.slow
def test_tpu_run_installs_the_current_commit(box):
    """What is copied unpacks to the package, the lock and the script that the workers start."""
    stub = box / "bin" / "gcloud"
    stub.write_text(
        stub.read_text().replace(
            "sys.exit(int",
            "[os.link(a, box / 'sent') for a in argv if a.endswith('.tar.gz') and a.startswith('/')]\nsys.exit(int",
        )
    )
    answers(box, describe=["0 READY"])
    assert launch(box, "tpu.sh", *RUN, GIT_CONFIG_COUNT="0").returncode == 0
    names = subprocess.run(["tar", "-tzf", str(box / "sent")], capture_output=True, text=True, check=True).stdout.split()
    assert {"requirements.lock", "pyproject.toml", "maskgil_jax/cli.py"} <= set(names)


def test_tpu_run_reuses_a_ready_tpu(box):
    answers(box, describe=["0 READY"])
    assert launch(box, "tpu.sh", *RUN).returncode == 0
    assert verbs(box) == ["scp", "install", "start", "follow"]


def test_tpu_run_waits_for_a_queued_resource(box):
    answers(
        box,
        describe=["1 ", "1 ", "0 CREATING", "0 READY"],
        queue_describe=["1 ", "0 WAITING_FOR_RESOURCES", "0 PROVISIONING", "0 ACTIVE"],
    )
    done = launch(box, "tpu.sh", *RUN, "--queued")
    assert done.returncode == 0 and "waiting for b-run: WAITING_FOR_RESOURCES" in done.stderr
    assert verbs(box) == ["create", "scp", "install", "start", "follow"]
    create = calls(box)[0]
    assert create[3] == "queued-resources" and create[create.index("--node-id") + 1] == "b-run"
    assert create[create.index("--runtime-version") + 1] == "v2-alpha-tpuv5-lite"


@pytest.mark.parametrize("queued", [False, True])
def test_tpu_run_recreates_and_resumes_after_preemption(box, queued):
    states = ["1 ", "0 READY", "0 PREEMPTED", "0 PREEMPTED", "1 ", "0 READY"]
    answers(box, describe=states, queue_describe=["1 ", "0 ACTIVE", "0 SUSPENDED", "1 ", "0 ACTIVE"], follow=["255 ", "0 done"])
    done = launch(box, "tpu.sh", *RUN, "--spot", *["--queued"] * queued)
    assert done.returncode == 0, done.stderr
    once = ["create", "scp", "install", "start", "follow"]
    assert verbs(box) == [*once, "delete", *once]
    assert "restarting from the last checkpoint in gs://bucket/b run" in done.stderr
    delete = next(argv for argv in calls(box) if "delete" in argv)
    assert ("--force" in delete) == queued and "--quiet" in delete
    starts = [argv for argv in calls(box) if "worker.sh start" in argv[-1]]
    assert starts[0] == starts[1], "the same command, so that the run goes on"


@pytest.mark.parametrize("code", [2, 3, 4, 1])
def test_tpu_run_exits_with_the_code_of_a_failed_training(box, code):
    answers(box, describe=["0 READY"], follow=[f"{code} "])
    assert launch(box, "tpu.sh", *RUN).returncode == code
    assert verbs(box) == ["scp", "install", "start", "follow"]


@pytest.mark.parametrize("code", [5, 75, 134, 255])
def test_tpu_run_restarts_after_temporary_failures_up_to_the_limit(box, code):
    answers(box, describe=["0 READY"], follow=[f"{code} "])
    done = launch(box, "tpu.sh", *RUN, "--restarts", "2")
    assert done.returncode == code and "giving up after 3 attempts" in done.stderr
    assert verbs(box) == [*["scp", "install", "start", "follow", "stop"] * 2, "scp", "install", "start", "follow"]


@pytest.mark.parametrize(("failing", "code"), [("create", 1), ("scp", 3), ("install", 3), ("start", 3)])
def test_tpu_run_exits_when_a_gcloud_command_fails(box, failing, code):
    answers(box, describe=["1 ", "0 READY"], **{failing: ["3 "]})
    assert launch(box, "tpu.sh", *RUN).returncode == code
    assert verbs(box)[-1] == failing


@pytest.mark.parametrize("queued", [False, True])
def test_dry_run_prints_the_commands_and_calls_none(box, queued):
    more = ["--spot", *["--queued"] * queued, "--copy", "gs://b/c d", "c d", "--", "--config.x=it's; rm -rf /"]
    done = launch(box, "tpu.sh", *RUN, "--dry-run", *more)
    assert done.returncode == 0 and not calls(box, looks=True)
    answers(box, describe=["1 ", "0 READY"], queue_describe=["1 ", "0 ACTIVE"])
    assert launch(box, "tpu.sh", *RUN, *more).returncode == 0

    def same_folder(argv):
        return [re.sub(r".*/(maskgil_jax-[0-9a-f]+\.tar\.gz)$", r"\1", word) for word in argv]

    printed = [same_folder(shlex.split(line)) for line in done.stdout.splitlines()]
    assert printed == [same_folder(argv) for argv in calls(box)] and len(printed) == 6


@pytest.mark.parametrize("queued", [False, True])
def test_tpu_delete_stop_and_logs_call_gcloud(box, queued):
    answers(box, queue_describe=["0 ACTIVE" if queued else "1 "], follow=["3 "])
    assert launch(box, "tpu.sh", "delete", *TPU).returncode == 0
    assert launch(box, "tpu.sh", "stop", *TPU).returncode == 0
    assert launch(box, "tpu.sh", "logs", *TPU).returncode == 3
    delete, stop, logs = calls(box)
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
        (
            ["run", *TPU, "--type", "v9-8", "--config", "c", "--workdir", "gs://b/x"],
            "--runtime: missing; no default is known for type 'v9-8'",
        ),
        ([*RUN, "--config.seed=1"], "unknown option '--config.seed=1'"),
        ([*RUN, "--restarts", "many"], "--restarts: expected a number, got 'many'"),
        ([*RUN, "--copy", "gs://a"], "--copy: needs SRC and DST"),
    ],
)
def test_wrong_usage_is_one_line_with_code_2(box, arguments, message):
    done = launch(box, "tpu.sh", *arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not calls(box, looks=True)
