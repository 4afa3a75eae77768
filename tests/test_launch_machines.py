"""launch/worker.sh, gpu.sh, slurm.sbatch and xpk.sh against stub programs that record their calls."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest
from helpers.launch_stubs import LAUNCH, answers, calls, launch

ROOT = pathlib.Path(__file__).parents[1]


# ------------------------------------------------------------------------------------------------ worker.sh
def worker(box, *arguments, script=""):
    fake = box / "train"
    if script:
        fake.write_text(f"#!/usr/bin/env bash\n{script}\n")
        fake.chmod(0o755)
    return launch(box, "worker.sh", *arguments, MASKGIL=str(fake), MASKGIL_RUN_DIR=str(box / "run"))


@pytest.mark.slow
def test_worker_start_trains_in_background_and_follow_returns_its_code(box):
    script = 'echo "[$LIBTPU_INIT_ARGS]"; printf "<%s>" "$JAX_COMPILATION_CACHE_DIR" "$@"; sleep 2; exit 3'
    started = worker(box, "start", "gs://b/w x", "--config", "a b", script=script)
    assert started.returncode == 0 and not (box / "run" / "code").exists(), started.stderr
    pid = (box / "run" / "pid").read_text()
    worker(box, "start", "gs://b/w x", "--config", "a b")  # runs already: nothing happens
    followed = worker(box, "follow")
    assert followed.returncode == 3
    assert "<gs://b/w x/xla_cache><train><--config><a b>" in followed.stdout
    assert "--xla_tpu_enable_async_collective_fusion=true" in followed.stdout
    assert pid == (box / "run" / "pid").read_text()


def test_worker_stop_sends_sigterm_and_waits(box):
    script = "trap 'echo saved; exit 0' TERM; echo up; while true; do sleep 0.1; done"
    worker(box, "start", "gs://b/w", script=script)
    log, deadline = box / "run" / "log", time.monotonic() + 60
    while "up" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert worker(box, "stop").returncode == 0
    followed = worker(box, "follow")
    assert followed.returncode == 0 and "saved" in followed.stdout
    assert worker(box, "stop").returncode == 0  # nothing runs any more


# ----------------------------------------------------------------------------------------- gpu.sh, slurm.sbatch, xpk.sh
def test_gpu_runs_the_command_with_flags(box):
    done = launch(box, "gpu.sh", "--config", "c.py", "--workdir", "runs/a b", "--config.x=1", XLA_FLAGS="--mine")
    assert done.returncode == 0, done.stderr
    assert calls(box) == [["maskgil", "train", "--config", "c.py", "--workdir", "runs/a b", "--config.x=1"]]
    dry = launch(box, "gpu.sh", "--dry-run", "--config", "c.py", "--workdir=runs/a b", XLA_FLAGS="--mine")
    words = shlex.split(dry.stdout)
    assert words[3:] == ["maskgil", "train", "--config", "c.py", "--workdir=runs/a b"] and len(calls(box)) == 1
    assert words[0].startswith("XLA_FLAGS=--xla_gpu") and words[0].endswith(" --mine"), "what the caller sets stands last"
    assert words[2] == "JAX_COMPILATION_CACHE_DIR=runs/a b/xla_cache"


def test_xla_accepts_the_gpu_flags():
    """A process whose XLA has one of them no longer is ended by it, without an exception.

    A jaxlib for CPUs knows them all.
    """
    script = 'source "$0/flags.sh" && gpu_flags && exec "$1" -c "import jax; jax.devices()"'
    done = subprocess.run(["bash", "-c", script, str(LAUNCH), sys.executable], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("code", "attempts"), [(0, 1), (2, 1), (3, 1), (75, 3), (5, 3), (134, 3)])
def test_gpu_restarts_after_temporary_failures(box, code, attempts):
    answers(box, maskgil=[f"{code} "])
    done = launch(box, "gpu.sh", "--restarts", "2", "--config", "c", "--workdir", "w", RETRY_SECONDS="0")
    assert done.returncode == code and len(calls(box)) == attempts


@pytest.mark.slow
def test_gpu_forwards_signals_and_waits_for_the_last_save(box):
    fake = box / "train"
    fake.write_text(
        "#!/usr/bin/env bash\ntrap 'sleep 0.3; echo saved; exit 75' TERM\necho up\nwhile true; do sleep 0.1; done\n"
    )
    fake.chmod(0o755)
    run = subprocess.Popen(
        ["bash", str(LAUNCH / "gpu.sh"), "--config", "c", "--workdir", "w"],
        env={**os.environ, "MASKGIL": str(fake), "RETRY_SECONDS": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.readline() == "up\n"
    run.send_signal(signal.SIGTERM)
    assert run.communicate(timeout=60)[0] == "saved\n"
    assert run.returncode == 75, "after a stop request it does not restart"


def test_gpu_stopped_between_attempts_does_not_restart(box):
    answers(box, maskgil=["75 "])
    env = {**os.environ, "PATH": f"{box / 'bin'}:{os.environ['PATH']}", "RETRY_SECONDS": "60"}
    argv = ["bash", str(LAUNCH / "gpu.sh"), "--config", "c", "--workdir", "w"]
    run = subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True)
    assert "attempt 2 of 4 in 60 s" in run.stderr.readline()
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == 75 and len(calls(box)) == 1


@pytest.mark.parametrize(("code", "queued_again"), [(0, False), (3, False), (75, True), (134, True)])
def test_slurm_requeues_after_temporary_failures(box, code, queued_again):
    answers(box, srun=[f"{code} "])
    done = launch(box, "slurm.sbatch", "--config", "a b", "--workdir", "w", SLURM_SUBMIT_DIR=str(ROOT), SLURM_JOB_ID="7")
    assert done.returncode == code, done.stderr
    first, *rest = calls(box)
    assert first[:1] + first[3:] == ["srun", "bash", "launch/gpu.sh", "--restarts", "0", "--config", "a b", "--workdir", "w"]
    assert rest == ([["scontrol", "requeue", "7"]] if queued_again else [])
    elsewhere = launch(box, "slurm.sbatch", SLURM_SUBMIT_DIR=str(box), SLURM_JOB_ID="7")
    assert elsewhere.returncode == 2 and "call sbatch from the root of the clone" in elsewhere.stderr


@pytest.mark.parametrize("script", ["gpu.sh", "slurm.sbatch"])
def test_signal_between_start_and_wait_is_forwarded(box, script):
    fake, hook = box / "bin" / "srun", box / "hook"
    fake.write_text("#!/usr/bin/env bash\ntrap 'exit 3' TERM\nfor ((i = 0; i < 100; i++)); do sleep 0.1; done\n")
    fake.chmod(0o755)
    # The script sends the signal to itself after it has started the training, before it has noted its number.
    hook.write_text("trap 'if [[ $BASH_COMMAND == child=* && -n ${!:-} ]]; then sleep 0.5; kill -TERM $$; fi' DEBUG\n")
    settings = dict(MASKGIL=str(fake), SLURM_SUBMIT_DIR=str(ROOT), SLURM_JOB_ID="7", BASH_ENV=str(hook))
    done = launch(box, script, "--config", "c", "--workdir", "w", **settings)
    assert done.returncode == 3, done.stderr


@pytest.mark.slow
def test_slurm_requeues_a_job_at_its_time_limit(box):
    (box / "bin" / "srun").write_text(
        "#!/usr/bin/env bash\ntrap 'sleep 0.3; echo saved; exit 0' TERM\necho up\nwhile true; do sleep 0.1; done\n"
    )
    run = subprocess.Popen(
        ["bash", str(LAUNCH / "slurm.sbatch"), "--config", "c", "--workdir", "w"],
        env={**os.environ, "PATH": f"{box / 'bin'}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.readline() == "up\n"
    run.send_signal(signal.SIGTERM)
    assert run.communicate(timeout=60)[0] == "saved\n" and run.returncode == 0
    assert calls(box) == [["scontrol", "requeue", "7"]]


def test_xpk_submits_one_workload(box):
    options = ["--cluster", "c", "--name", "n", "--zone", "z", "--type", "v5litepod-256", "--workdir", "gs://b/w x"]
    options += ["--config", "configs/c2i_b.py", "--slices", "2"]
    dry = launch(box, "xpk.sh", *options, "--dry-run", "--", "--config.x=a b")
    assert dry.returncode == 0 and not calls(box)
    assert launch(box, "xpk.sh", *options, "--", "--config.x=a b").returncode == 0
    (submit,) = calls(box)
    assert shlex.split(dry.stdout) == submit
    assert submit[:3] == ["xpk", "workload", "create"] and submit[submit.index("--num-slices") + 1] == "2"
    words = shlex.split(submit[submit.index("--command") + 1])
    assert words[-6:] == [
        "--config",
        "configs/c2i_b.py",
        "--workdir",
        "gs://b/w x",
        "--config.mesh.dcn_data=2",
        "--config.x=a b",
    ]
    done = launch(box, "xpk.sh", *options[2:])
    assert done.returncode == 2 and "--cluster: missing" in done.stderr
