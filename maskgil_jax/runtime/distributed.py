"""One program on many machines: the processes of a run find each other before any of them touches a device.

Who takes part is told, in this order, by flags or the environment (`MASKGIL_COORDINATOR`, `MASKGIL_NUM_PROCESSES`,
`MASKGIL_PROCESS_ID`), by SLURM, or by the TPU's own metadata; anything else is a single process, and nothing happens.
"""

from __future__ import annotations

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
from maskgil_jax.runtime import heartbeat as peers

_log = logging.getLogger(__name__)
FLAGS = {"coordinator": "--coordinator", "num_processes": "--num-processes", "process_id": "--process-id"}


class CoordinatorTimeout(TimeoutError):
    """The process that all others report to did not answer in time; trying again later may help."""


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 300,
    peer_timeout: float = 60.0,
) -> None:
    """Joins this process to its run; to be called before any device is used. A single process is left alone.

    coordinator: "HOST:PORT" on the machine of process 0, the same for all. num_processes=1 turns all detection off.
    timeout: seconds to wait for the others. peer_timeout: seconds without a sign of life after which a process counts as frozen
    and the others leave (see `runtime.heartbeat`); 0: they are not watched. Raises a ConfigError for flags that do not fit
    together, `CoordinatorTimeout` if the coordinator does not answer; if the others do not come, the program ends with a
    sentence and exit code 75.
    """
    given = _given(coordinator, num_processes, process_id)
    if given is None and (given := slurm(os.environ)) is None:
        if _on_tpu():
            _initialize_tpu(timeout, peer_timeout)
        return
    coordinator, num_processes, process_id, devices = given
    if num_processes == 1:
        return
    if process_id:
        _wait_for(coordinator, timeout)
    sentence = f"{coordinator}: not all of {num_processes} processes joined within {timeout} s; were all of them started, with"
    with _or_exit(f"{sentence} the same --coordinator and --num-processes?", timeout):
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            local_device_ids=devices,
            cluster_detection_method="deactivate",
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=_heartbeat(peer_timeout),
        )
    _watch_peers(peer_timeout)
    _log.info("process %d of %d, coordinator %s", process_id, num_processes, coordinator)


def _heartbeat(peer_timeout: float) -> int:
    """Seconds that JAX's own heartbeat waits: longer than ours, which has a sentence to say."""
    return max(100, round(2 * peer_timeout))


def _watch_peers(timeout: float) -> None:
    from jax._src.distributed import global_state as job  # the key-value store has no public name

    if job.num_processes > 1 and job.coordinator_address:
        peers.watch(job.client, job.coordinator_address, job.process_id, job.num_processes, timeout)


def _given(coordinator, num_processes, process_id) -> tuple[str, int, int, list[int] | None] | None:
    """What flags or the environment say, checked; None if they say nothing."""
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

    With one task on a node it has all devices of the node; with several, task i has device i.
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
    port = 61440 + int(job) % 4096  # the same for all tasks of a job, and hardly the same for two jobs on a node
    return f"{host}:{port}", int(tasks), int(number), None if tasks == node_count else [int(local)]


def _on_tpu() -> bool:
    """Whether this machine has TPU chips that JAX may use; asks no device."""
    platforms = os.environ.get("JAX_PLATFORMS") or "tpu"
    return "tpu" in platforms and bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def _initialize_tpu(timeout: int, peer_timeout: float) -> None:
    """JAX reads the TPU's metadata: worker 0 coordinates, slices follow one another."""
    sentence = f"TPU: not all workers of the slice joined within {timeout} s; start the same command on every worker (or give"
    with _or_exit(f"{sentence} --num-processes 1 for this machine alone)", timeout):
        try:
            jax.distributed.initialize(initialization_timeout=timeout + 60, heartbeat_timeout_seconds=_heartbeat(peer_timeout))
        except ValueError:  # chips, but nothing says that they are part of a slice
            _log.info("one TPU machine, no slice found")
            return
    _watch_peers(peer_timeout)


def agree(options: dict) -> None:
    """Raises a ConfigError in every process, naming the first difference, unless all of them call this with the same options.

    options: nested dicts of what JSON can hold. Uses the devices.
    """
    first, *others = from_all(options)
    told = []
    for process, other in enumerate(others, 1):
        if difference := first_difference("", first, other):
            name, theirs, ours = difference
            told.append(f"{name.lstrip('.')}: {theirs!r} in process 0, {ours!r} in process {process}")
    require(not told, f"{'; '.join(told[:2])}; start all processes with the same options and the same version")


def from_all(value) -> list:
    """What each process calls this with, in their order, the same list for all. value: what JSON can hold. Uses the devices."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(np.max(multihost_utils.process_allgather(np.int32(len(text)))))
    rows = multihost_utils.process_allgather(np.pad(text, (0, length - len(text)), constant_values=ord(" ")))
    return [json.loads(bytes(row)) for row in rows]


def first_difference(name: str, found, wanted) -> tuple | None:
    """(path, value found, value wanted) of the first difference, looking into dicts."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            if inner := first_difference(f"{name}.{key}", found.get(key), wanted.get(key)):
                return inner
        return None
    return None if found == wanted else (name, found, wanted)


@contextlib.contextmanager
def _or_exit(sentence: str, timeout: float):
    """Ends the program unless the block is done in time. JAX would end it too, by SIGABRT and with a native stack: it cannot be
    caught, only forestalled."""

    def leave():
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        os._exit(75)

    timer = threading.Timer(timeout, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _wait_for(coordinator: str, timeout: float) -> None:
    """Waits until something listens at HOST:PORT: JAX itself would end the process without a sentence."""
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
