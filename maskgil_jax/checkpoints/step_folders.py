"""The step folders of a run on disk: listing, verification, retention and deletion. Independent of networks.

    checkpoints/120/          a step: `state/` (arrays) and `record/` (their shapes, types and fingerprints, and more)
    checkpoints/100.damaged/  a quarantined step: unreadable, or its arrays differ from those that were saved
    checkpoints/.trash-80/    a step whose deletion was interrupted

Paths may be local or "gs://bucket/folder".
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from maskgil_jax.checkpoints.fingerprints import CHUNK, host_fingerprint
from maskgil_jax.files.atomic import to_disk
from maskgil_jax.files.paths import is_remote

SMALL_FILE = 1 << 20  # bytes; larger files are array data, which tensorstore syncs by itself


class Damaged(Exception):
    """A step folder differs from what was saved; the message says how."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One row of a listing. problem: why the step cannot be used; empty if no reason is known."""

    name: str
    size: int
    record: dict
    problem: str


def steps_in(folder) -> list[int]:
    """The committed steps, newest first."""
    folder = epath.Path(folder)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    steps = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
    # A local folder is committed by renaming it. Buckets cannot rename: there a file is written last.
    return [s for s in steps if not is_remote(folder) or (folder / str(s) / "commit_success.txt").exists()]


def damaged_in(folder) -> list[str]:
    """The names of the quarantined folders."""
    folder = epath.Path(folder)
    return sorted(path.name for path in folder.iterdir() if ".damaged" in path.name) if folder.is_dir() else []


def with_checksum(record: dict) -> dict:
    """A record and its checksum, as JSON values."""
    text = json.dumps(record, sort_keys=True)
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "record": json.loads(text)}


def read_record(folder, step: int) -> dict:
    """Reads and checks the record of a step. Raises `Damaged`."""
    file = epath.Path(folder) / str(step) / "record" / "metadata"
    try:
        stored = json.loads(file.read_text())
        record = stored["record"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"record: unreadable ({type(error).__name__})") from error
    if with_checksum(record) != stored or record.get("step") != step:
        raise Damaged("record: differs from what was written")
    return record


def verify(folder, step: int) -> dict:
    """Reads every array of a step on the host and compares its fingerprint; returns the record.

    Raises `Damaged`, which names the first array that differs.
    """
    record = read_record(folder, step)
    for name, (_, _, expected) in record["arrays"].items():
        try:
            found = host_fingerprint(_pieces(epath.Path(folder) / str(step) / "state", name))
        except (OSError, ValueError) as error:
            raise Damaged(f"{name}: unreadable ({first_line(error)})") from error
        if found != expected:
            raise Damaged(f"{name}: differs from what was saved")
    return record


def _pieces(folder: epath.Path, name: str) -> Iterator[np.ndarray]:
    """Reads an array of a step in row-major order, a few rows at a time."""
    base = os.fspath(folder) if is_remote(folder) else f"file://{os.path.abspath(folder)}"
    array = ts.open(
        {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}, open=True, read=True
    ).result()
    if not array.shape:
        yield array.read().result()
        return
    rows = max(1, CHUNK // max(1, int(np.prod(array.shape[1:]))))
    for low in range(0, array.shape[0], rows):
        yield array[low : min(low + rows, array.shape[0])].read().result()


def listing(folder, *, read: bool) -> Iterator[Step]:
    """The steps, oldest first, then the quarantined folders. read: read and compare every array."""
    folder = epath.Path(folder)
    for step in reversed(steps_in(folder)):
        record, problem = {}, ""
        try:
            record = (verify if read else read_record)(folder, step)
        except Damaged as error:
            problem = str(error)
        yield Step(str(step), size_of(folder / str(step)), record, problem)
    for name in damaged_in(folder):
        yield Step(name, size_of(folder / name), {}, "quarantined")


def size_of(folder: epath.Path) -> int:
    """Bytes of all files below a folder."""
    return sum(size_of(p) if p.is_dir() else p.stat().length for p in folder.iterdir())


def expired(steps: list[int], verified, scores: dict, *, keep: int, keep_every: int = 0, keep_best: int = 0) -> list[int]:
    """The steps to delete: older than the newest `keep` verified ones, no multiple of `keep_every`, and not among the
    `keep_best` with the lowest scores. None while fewer than `keep` steps are verified."""
    newest = sorted(verified, reverse=True)[: max(keep, 1)]
    if len(newest) < max(keep, 1):
        return []
    best = sorted((s for s in steps if scores.get(s) is not None), key=lambda s: (scores[s], -s))[:keep_best]
    return sorted(s for s in steps if s < newest[-1] and s not in best and not (keep_every and s % keep_every == 0))


def scores_in(folder) -> dict[int, float | None]:
    """The score of each step whose record can be read."""
    scores = {}
    for step in steps_in(folder):
        with contextlib.suppress(Damaged):
            scores[step] = read_record(folder, step)["score"]
    return scores


def quarantine(folder, step: int) -> str:
    """Renames a damaged step so that it is no longer listed as a step; returns its new name."""
    folder, name, count = epath.Path(folder), f"{step}.damaged", 1
    while (folder / name).exists():
        count += 1
        name = f"{step}.damaged-{count}"
    (folder / str(step)).rename(folder / name)
    return name


def delete(folder, steps: Collection[int]) -> None:
    """Deletes steps. Each is renamed first, so that an interrupted deletion leaves no incomplete step."""
    for step in steps:
        path, trash = epath.Path(folder) / str(step), epath.Path(folder) / f".trash-{step}"
        if is_remote(folder):  # buckets cannot rename: the file that commits the step is deleted first
            (path / "commit_success.txt").unlink(missing_ok=True)
            path.rmtree(missing_ok=True)
            continue
        trash.rmtree(missing_ok=True)
        path.rename(trash)
        trash.rmtree(missing_ok=True)


def empty_trash(folder) -> None:
    """Finishes interrupted deletions."""
    folder = epath.Path(folder)
    for path in list(folder.glob(".trash-*")) if folder.is_dir() else []:
        path.rmtree(missing_ok=True)


def sync_small_files(folder: epath.Path) -> None:
    """Flushes the small files and folder entries below a local folder to disk; Orbax flushes array data only."""
    if is_remote(folder):
        return
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = os.path.join(root, name)
            if os.path.getsize(file) <= SMALL_FILE:
                to_disk(file)
        to_disk(root)
    to_disk(os.path.dirname(os.fspath(folder)))


def first_line(error: BaseException) -> str:
    """The first line of an error's message; of a long one, its beginning, and its end or the system's error text."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    if len(text) <= 240:
        return text
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return f"{text[:100]} ... {os.strerror(int(code[1])) if code else text[-130:]}"


# A replicated array is written in slices, one by each device, unless they are smaller than this: slicing compiles a
# program for each shape and device, which for small states is most of the time of a save.
PART_BYTES = 1 << 20


class _Names(ocp.path.step.NameFormat):
    """Step names for the manager, without finding steps.

    `Checkpoints` decides which steps count, equally in all processes. So a folder that one process cannot read does not
    keep another from opening the run.
    """

    def build_name(self, step: int) -> str:
        return str(step)

    def find_all(self, base_path) -> Iterator:
        return iter(())

    def find_step(self, base_path, step: int):
        raise NotImplementedError("steps are read by `read_arrays`")


def _array_files() -> ocp.PyTreeCheckpointHandler:
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=PART_BYTES)
    return ocp.PyTreeCheckpointHandler(
        type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, handler))
    )


def open_manager(folder) -> ocp.CheckpointManager:
    """Opens the Orbax manager that saves steps. It deletes no committed step, only the remains of interrupted saves."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.PreserveAll(), cleanup_tmp_directories=True, step_name_format=_Names()
    )
    handlers = ocp.handlers.create_default_handler_registry(state=_array_files(), record=ocp.JsonCheckpointHandler())
    return ocp.CheckpointManager(folder, options=options, handler_registry=handlers)


def items_of(state, record: dict) -> ocp.args.Composite:
    """The items of a step folder, as arguments of the manager's `save`."""
    return ocp.args.Composite(state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(record))


def read_arrays(folder, abstract_state):
    """Reads the state of a step's folder with the shardings of `abstract_state`. Raises Orbax's errors.

    Every process reads what its devices hold without a barrier, unlike the manager's `restore`, so that one that fails
    can report it to the others.
    """
    target = ocp.args.PyTreeRestore(abstract_state, ocp.checkpoint_utils.construct_restore_args(abstract_state))
    with contextlib.closing(_array_files()) as files:
        return files.restore(folder / "state", args=target)
