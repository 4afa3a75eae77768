"""Commands run by two processes of this machine that find each other."""

import os
import socket
import subprocess
import sys


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def both(*command: str, devices: int) -> list[tuple[str, str]]:
    """What the two processes of a `maskgil` command, with so many devices each, printed on stdout and stderr."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"  # the last one counts
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    argv = [sys.executable, "-m", "maskgil_jax", *command, "--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2"]
    runs = [
        subprocess.Popen([*argv, "--process-id", str(i)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    try:
        printed = [run.communicate(timeout=300) for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert not any(run.returncode for run in runs), "\n".join(stderr[-3000:] for _, stderr in printed)
    return printed
