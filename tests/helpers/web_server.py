"""`maskgil serve` as a process of its own, on a free port."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from helpers.tiny_pipeline import save_pipeline

ROOT = pathlib.Path(__file__).parents[2]


class Served:
    """A running server."""

    def __init__(self, process, log):
        self.process, self.log, self.url = process, log, ""

    def wait_until_ready(self, seconds=180):
        """Waits for the line with the address."""
        until = time.monotonic() + seconds
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text())):
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)
        self.url = found[0]
        return self

    @property
    def port(self):
        return int(self.url.rpartition(":")[2])

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def memory(self):
        """Resident memory in bytes."""
        pages = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def serving(folder, *options, weights=None, env=None):
    """Serves a pipeline of tiny networks, or `weights`."""
    if weights is None:
        weights = folder / "tiny"
        if not weights.exists():
            save_pipeline(weights)
    log = folder / f"serve-{time.monotonic_ns()}.log"
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", **(env or {})}
    environment["XLA_FLAGS"] = environment.get("XLA_FLAGS", "").replace(
        "host_platform_device_count=8", "host_platform_device_count=1"
    )
    command = [sys.executable, "-m", "maskgil_jax", "serve", "--weights", str(weights), "--port", "0", *map(str, options)]
    with open(log, "w") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process:
        try:
            yield Served(process, log).wait_until_ready()
        finally:
            process.kill()
