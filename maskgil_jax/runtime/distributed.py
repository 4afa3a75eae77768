"""Runs of several processes: joining, agreeing on options, and ending.

The processes of a run are given, in this order, by flags or the environment (`MASKGIL_COORDINATOR`,
`MASKGIL_NUM_PROCESSES`, `MASKGIL_PROCESS_ID`), by SLURM, or by the TPU's metadata. Without any of these the process is
alone, and nothing happens.

If a process dies, freezes or is cut off, JAX's coordination service ends the others by SIGABRT (exit code 134 in a
shell) within `heartbeat_timeout_seconds`; its message names the lost process. docs/reliability.md has measurements.
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import json
import logging
import os
import re
import socket
import sys
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from maskgil_jax.config import ConfigError, require

_log = logging.getLogger(__name__)
GRACE = 2.0  # seconds
FLAGS = {"coordinator": "--coordinator", "num_processes": "--num-processes", "process_id": "--process-id"}


class CoordinatorTimeout(TimeoutError):
    """The coordinator (process 0) did not answer in time; trying again later may help."""


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 300,
    heartbeat_timeout_seconds: float | None = None,
    peer_timeout: float | None = None,
) -> None:
    """Joins this process to its run. To be called before any device is used. A single process is left alone.

    coordinator: "HOST:PORT" on the machine of process 0, the same for all. num_processes=1 turns all detection off.
    timeout: seconds to wait for the other processes. heartbeat_timeout_seconds: seconds without a heartbeat of a
    process after which JAX ends the others; default 60. peer_timeout: old name of heartbeat_timeout_seconds, accepted
    for one version.

    Raises a ConfigError for flags that do not fit together, `CoordinatorTimeout` if the coordinator does not answer. If
    other processes do not join in time, the program ends with a message and exit code 75.
    """
    heartbeat = _heartbeat_seconds(heartbeat_timeout_seconds, peer_timeout)
    given = _given(coordinator, num_processes, process_id)
    if given is None and (given := slurm(os.environ)) is None:
        if _on_tpu():
            _initialize_tpu(timeout, heartbeat)
        return
    coordinator, num_processes, process_id, devices = given
    if num_processes == 1:
        return
    if process_id:
        _wait_for(coordinator, timeout)
    message = f"{coordinator}: not all of {num_processes} processes joined within {timeout} s; start all of them, with"
    with _or_exit(f"{message} the same --coordinator and --num-processes", timeout):
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            local_device_ids=devices,
            cluster_detection_method="deactivate",
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=heartbeat,
        )
    atexit.register(_exit_on_error)  # runs before JAX's own handler, which is registered earlier
    _log.info("process %d of %d, coordinator %s", process_id, num_processes, coordinator)


def _heartbeat_seconds(seconds: float | None, peer_timeout: float | None) -> int:
    if peer_timeout is not None:
        _log.warning("--peer-timeout (peer_timeout) is now called --heartbeat-timeout (heartbeat_timeout_seconds)")
        seconds = peer_timeout or 100.0 if seconds is None else seconds  # 0 left the processes to JAX's default
    seconds = 60.0 if seconds is None else seconds
    require(seconds >= 1, f"--heartbeat-timeout: must be at least 1 second, got {seconds:g}")
    return round(seconds)


_exit_code: int | None = None


def exit_without_barrier(code: int) -> None:
    """Makes the program end with `code` at its exit, without JAX's shutdown barrier, if it is one of several processes.

    To be called for an error of this process. The barrier would wait for processes that wait for this one in a
    collective; without it they notice the missing heartbeats.
    """
    global _exit_code
    _exit_code = code


def _exit_on_error() -> None:
    if _exit_code is None:
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    time.sleep(GRACE)  # JAX aborts the others when process 0 is gone; an error that all have should end each by itself
    os._exit(_exit_code)


def is_communication_error(error: BaseException) -> bool:
    """Whether an error says that a collective with other processes failed, most likely because one of them is gone.

    XLA raises them as RuntimeError or ValueError, with the name of an absl status in front.
    """
    return re.match(r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ", str(error)) is not None


def _given(coordinator, num_processes, process_id) -> tuple[str, int, int, list[int] | None] | None:
    """The checked values of flags and environment; None if there are none."""
    values = dict(coordinator=coordinator, num_processes=num_processes, process_id=process_id)
    for name, value in values.items():
        variable = f"MASKGIL_{name.upper()}"
        if value is None and (text := os.environ.get(variable)):
            require(name == "coordinator" or text.isdecimal(), f"{variable}: must be a whole number, got {text!r}")
            values[name] = text if name == "coordinator" else int(text)
    if values["num_processes"] == 1:
        return "", 1, 0, None
    missing = [FLAGS[name] for name, value in values.items() if value is None]
    if len(missing) == len(values):
        return None
    require(not missing, f"{', '.join(missing)}: missing; several processes need all of {', '.join(FLAGS.values())}")
    address, count, number = values["coordinator"], values["num_processes"], values["process_id"]
    host, _, port = address.rpartition(":")
    require(bool(host) and port.isdecimal(), f"--coordinator: expected HOST:PORT, got {address!r}")
    require(count >= 1, f"--num-processes: must be at least 1, got {count}")
    require(0 <= number < count, f"--process-id: must be in 0..{count - 1}, got {number}")
    return address, count, number, None


def slurm(env) -> tuple[str, int, int, list[int] | None] | None:
    """(coordinator, processes, process id, local devices) of a SLURM job step with several tasks; None elsewhere.

    A task that is alone on its node has all devices of the node; otherwise local task i has device i.
    """
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES")
    if not all(name in env for name in names):
        return None
    job, nodes, tasks, number, local, node_count = (env[name] for name in names)
    if int(tasks) == 1:
        return None
    # "node[001-004,7],other" -> "node001"
    first = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodes)
    if first is None:
        raise ConfigError(f"SLURM_STEP_NODELIST: expected a list of nodes, got {nodes!r}")
    host = first[1] + (first[2] or "") + first[3]
    port = 61440 + int(job) % 4096  # equal for all tasks of a job, and rarely equal for two jobs on a node
    return f"{host}:{port}", int(tasks), int(number), None if tasks == node_count else [int(local)]


def _on_tpu() -> bool:
    """Whether this machine has TPU chips that JAX may use; looks at device files only."""
    platforms = os.environ.get("JAX_PLATFORMS") or "tpu"
    return "tpu" in platforms and bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def _initialize_tpu(timeout: int, heartbeat: int) -> None:
    """Joins by the TPU's metadata, which JAX reads: worker 0 is the coordinator.

    Slices are numbered one after another.
    """
    message = f"TPU: not all workers of the slice joined within {timeout} s; start the same command on every worker (or give"
    with _or_exit(f"{message} --num-processes 1 for this machine alone)", timeout):
        try:
            jax.distributed.initialize(initialization_timeout=timeout + 60, heartbeat_timeout_seconds=heartbeat)
        except ValueError:  # TPU chips without metadata of a slice
            _log.info("one TPU machine, no slice found")
            return
    atexit.register(_exit_on_error)


def agree(options: dict) -> None:
    """Raises a ConfigError in every process, naming the first differences, unless all of them pass the same options.

    options: nested dicts of JSON values. A collective operation.
    """
    first, *others = from_all(options)
    differences = []
    for process, other in enumerate(others, 1):
        if difference := first_difference("", first, other):
            name, theirs, ours = difference
            differences.append(f"{name.lstrip('.')}: {theirs!r} in process 0, {ours!r} in process {process}")
    require(not differences, f"{'; '.join(differences[:2])}; start all processes with the same options and the same version")


def from_all(value) -> list:
    """Gathers a JSON value from each process: the same list in all, in the order of the processes.

    A collective operation.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(np.max(multihost_utils.process_allgather(np.int32(len(text)))))
    rows = multihost_utils.process_allgather(np.pad(text, (0, length - len(text)), constant_values=ord(" ")))
    return [json.loads(bytes(row)) for row in rows]


def first_difference(name: str, found, expected) -> tuple | None:
    """(path, value found, value expected) of the first difference; descends into dicts."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            if inner := first_difference(f"{name}.{key}", found.get(key), expected.get(key)):
                return inner
        return None
    return None if found == expected else (name, found, expected)


@contextlib.contextmanager
def _or_exit(message: str, timeout: float):
    """Ends the program with a message and exit code 75 unless the block ends in time: before JAX does, by SIGABRT."""

    def leave():
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(75)

    timer = threading.Timer(timeout, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _wait_for(coordinator: str, timeout: float) -> None:
    """Waits until something listens at HOST:PORT. Raises `CoordinatorTimeout`; JAX would end the process by SIGABRT."""
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > end:
            raise CoordinatorTimeout(
                f"{coordinator}: the coordinator did not answer within {timeout:g} s ({reason}); is process 0 running, and is "
                "the port open between the machines?"
            )
        time.sleep(0.2)
