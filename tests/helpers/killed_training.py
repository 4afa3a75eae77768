"""A training in a process of its own, forked from one that has imported everything and computed nothing."""

import logging
import multiprocessing
import os
import pathlib
import signal
import sys
import time

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["maskgil_jax.cli", "maskgil_jax.training.generator", "maskgil_jax.pipelines.pipeline", "tensorboardX", __name__]
)


def _work(log: str, cache: str, argv: list[str]) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ["XLA_FLAGS"] = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(message)s", force=True)
    import jax

    from maskgil_jax import cli

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_compilation_cache_dir", cache)
    sys.exit(cli.main(argv))


class Training:
    """`maskgil train` with `argv`, running; its output is added to `log`.

    All share the compilation cache beside the log.
    """

    def __init__(self, argv: list[str], log: pathlib.Path):
        self.log = log
        self.process = _FORKS.Process(target=_work, args=(str(log), str(log.parent / "cache"), argv), daemon=True)
        self.process.start()

    def send(self, number: int) -> None:
        """Sends a signal."""
        os.kill(self.process.pid, number)

    def until(self, reached) -> None:
        """Waits until `reached()`; raises if the training ends before."""
        deadline = time.monotonic() + 120
        while not reached():
            assert self.process.is_alive() and time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.002)

    def freeze_while(self, present) -> None:
        """Stops it at a moment at which `present()`. One that is over when the process stands still does not count."""
        while True:
            self.until(present)
            self.send(signal.SIGSTOP)
            time.sleep(0.01)
            if present():
                return
            self.send(signal.SIGCONT)

    def kill(self) -> None:
        """Sends SIGKILL and waits. Raises if it had ended by itself."""
        self.send(signal.SIGKILL)
        self.process.join(30)
        assert self.process.exitcode == -signal.SIGKILL, self.log.read_text()[-3000:]

    def succeed(self) -> None:
        """Waits for the end. Raises unless the exit code is 0."""
        self.process.join(120)
        assert self.process.exitcode == 0, self.log.read_text()[-3000:]
