"""Checkpoints of a running training: Orbax, asynchronous and atomic, verified when written and when read, for any mesh."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import threading
import time
from collections.abc import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from maskgil_jax import __version__
from maskgil_jax.checkpoints.fingerprints import fingerprints, leaf_name
from maskgil_jax.checkpoints.step_folders import (
    Damaged,
    damaged_in,
    empty_trash,
    first_line,
    free_bytes,
    put_aside,
    read_record,
    scores_in,
    seal,
    steps_in,
    surplus,
    sync_small_files,
    throw_away,
    verify,
)
from maskgil_jax.distributed import first_difference
from maskgil_jax.storage import is_remote, open_folder

_log = logging.getLogger(__name__)
PAUSES = (1.0, 3.0)  # seconds before the second and the third attempt to write a checkpoint
# What Orbax has been seen to raise over damaged files of its own. Not RuntimeError: memory that does not suffice is no damage.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, EOFError)


class CheckpointError(RuntimeError):
    """No checkpoint can be used, or it does not belong to this run; what was on disk before is untouched."""


class CheckpointWriteError(CheckpointError):
    """A checkpoint could not be written, three times in a row: the disk is full or gone. Earlier checkpoints are kept."""


class NotFiniteError(CheckpointError):
    """The state holds a NaN or an infinity, so it was not saved."""


class Checkpoints:
    """The `checkpoints/` folder of a run. Each step folder holds the state and a record: what the state was trained on, the
    run file, the versions, and the fingerprint of each array.

    A step counts once it was read back and found to be what was saved; only then may older ones go. Kept are the newest
    `keep`, the multiples of `keep_every` and the `keep_best` lowest scores. event: called with what happens.
    """

    def __init__(self, workdir, *, keep: int, keep_every: int = 0, keep_best: int = 0, event: Callable | None = None):
        self.folder = (open_folder(workdir) if is_remote(workdir) else open_folder(workdir).resolve()) / "checkpoints"
        self.policy = dict(keep=keep, keep_every=keep_every, keep_best=keep_best)
        self.event = event or (lambda name, **fields: None)
        self.lead = jax.process_index() == 0
        self.known: dict[int, dict] = {}  # records of the steps that were verified in this process
        self.newest = -1
        self.failures = 0
        self._finisher: threading.Thread | None = None
        self._problem: tuple[int, Exception] | None = None
        if self.lead:
            empty_trash(self.folder)
        self.manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.PreserveAll(),  # `surplus` decides, when a step has been verified
            cleanup_tmp_directories=True,  # left over by a kill in the middle of a save
            single_host_load_and_broadcast=True,  # all processes see the steps that process 0 sees
        )
        try:
            return ocp.CheckpointManager(self.folder, options=options)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{error.filename or self.folder}: process 0 sees this step, process {jax.process_index()} does not; all need "
                "the same --workdir, on a disk or in a bucket that all see"
            ) from error

    def save(
        self, step: int, state, about: dict, *, config: dict | None = None, score: float | None = None, wait: bool = False
    ) -> None:
        """Starts writing `state`; returns when it is copied off the device, so its buffers may be donated.

        about: what the state depends on, compared by `restore`. config: the run file, for people. score: lower is better.
        Raises `NotFiniteError`, or `CheckpointWriteError` after the third failure in a row; a save in the background that
        fails is noticed by `check` or the next call, and logged.
        """
        self._settle()
        if step <= self.newest:
            return
        prints, bad = fingerprints(state)
        if bad:
            raise NotFiniteError(f"step {step} was not saved: {', '.join(bad[:3])} hold values that are not finite")
        arrays = {name: [list(shape), dtype, prints[name]] for name, (shape, dtype) in _shapes(state).items()}
        record = seal(
            dict(
                step=step,
                saved_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                version=__version__,
                jax=jax.__version__,
                devices=jax.device_count(),
                about=about,
                config=config or {},
                score=score,
                arrays=arrays,
            )
        )
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        while self.newest < step:
            self.event("save_begin", step=step)
            try:
                self._require_room(state)
                self.manager.save(step, args=items)
            except (OSError, ValueError) as error:
                self._failed(step, error)
                time.sleep(PAUSES[self.failures - 1])
                continue
            self.newest = step
            self._finisher = threading.Thread(target=self._finish, args=(step,), name="checkpoint", daemon=True)
            self._finisher.start()
            if wait and not self._settle():
                time.sleep(PAUSES[self.failures - 1])

    def check(self) -> bool:
        """Whether the last save has not failed; a failed one should be followed by another at once. Does not wait."""
        return True if self._finisher is not None and self._finisher.is_alive() else self._settle()

    def _finish(self, step: int) -> None:
        """Beside the training: waits for the commit, reads the step back, then deletes what is not needed any more."""
        try:
            self.manager.wait_until_finished()
            if not self.lead:
                return
            sync_small_files(self.folder / str(step))
            try:
                self.known[step] = verify(self.folder, step)
            except Damaged:
                put_aside(self.folder, step)
                raise
            self.event("save_commit", step=step)
            scores = scores_in(self.folder) if self.policy["keep_best"] else {}
            throw_away(self.folder, surplus(steps_in(self.folder), self.known, scores, **self.policy))
        except Exception as error:
            self._problem = step, error

    def _settle(self) -> bool:
        """Waits for the save in flight; False if it failed, so that the next may be at any step."""
        if self._finisher is not None:
            self._finisher.join()
            self._finisher = None
            if self._problem is None:
                self.failures = 0
        if self._problem is None:
            return True
        (step, error), self._problem = self._problem, None
        self.newest = step - 1
        self._failed(step, error)
        with contextlib.suppress(Exception):  # it raises what is known already
            self.manager.close()
        self.manager = self._open()  # forgets the failed step and removes its half-written folder
        return False

    def _failed(self, step: int, error: Exception) -> None:
        self.failures += 1
        self.event("save_failed", step=step, error=first_line(error))
        sentence = f"{self.folder}: the checkpoint of step {step} could not be written ({first_line(error)})"
        # Several processes cannot try again one by one: all start again from the last step.
        if self.failures > len(PAUSES) or jax.process_count() > 1:
            raise CheckpointWriteError(f"{sentence}; earlier checkpoints are kept") from error
        _log.warning("%s; trying again", sentence)

    def _require_room(self, state) -> None:
        needed, free = _bytes_of(state), free_bytes(self.folder)
        if self.lead and free is not None and free < needed:
            raise OSError(f"No space left on device: it needs {_gigabytes(needed)}, {_gigabytes(free)} are free")

    def check_room(self, state) -> None:
        """Raises `CheckpointWriteError` if not even one checkpoint of `state` fits; warns if the ones to be kept will not."""
        try:
            self._require_room(state)
        except OSError as error:
            raise CheckpointWriteError(f"{self.folder}: {error}") from None
        missing = self.policy["keep"] + 1 - len(steps_in(self.folder))
        needed, free = missing * _bytes_of(state), free_bytes(self.folder)
        if self.lead and free is not None and free < needed:
            _log.warning("%s: %s will be needed, %s are free", self.folder, _gigabytes(needed), _gigabytes(free))

    def restore(self, abstract_state, about: dict, *, allow: tuple[str, ...] = ()):
        """(step, state) of the newest whole checkpoint, laid out as `abstract_state` (shapes with shardings); None if there is
        none at all.

        Damaged ones are named, put aside and skipped. Raises `CheckpointError` if all are damaged, or if one was made by
        another model or on other data, naming the first difference; differences under the names in `allow` are logged.
        """
        damaged: dict[int, str] = {}
        for step in self._agreed(steps_in(self.folder)):
            record, state, problem = {}, None, ""
            try:
                record = read_record(self.folder, step)
            except Damaged as error:
                problem = str(error)
            if self._everywhere(not problem):
                self._check_origin(step, record, about, abstract_state, allow)
                try:
                    state = self.manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state)))[
                        "state"
                    ]
                    problem = _difference(state, record)
                except Exception as error:
                    problem = self._damage(step, error)
                if self._everywhere(not problem):
                    self._put_aside(damaged, step)
                    self.known[step], self.newest = record, step
                    self.event("restore", step=step)
                    return step, state
            damaged[step] = problem or "another process cannot read it"
        aside = damaged_in(self.folder)
        if not damaged and not aside:
            return None
        told = "; ".join([*(f"step {step}: {problem}" for step, problem in damaged.items()), *aside][:3])
        raise CheckpointError(
            f"{self.folder}: no usable checkpoint ({len(damaged) + len(aside)} damaged: {told}). Nothing was changed. "
            "Another --workdir starts a new run"
        )

    def _damage(self, step: int, error: Exception) -> str:
        """What of a step made reading it fail with `error`; raises it again if the step is whole."""
        try:
            verify(self.folder, step)
        except Damaged as damage:
            return str(damage)
        if isinstance(error, DAMAGE):
            return f"unreadable ({first_line(error)})"
        raise error

    def _put_aside(self, damaged: dict[int, str], good: int) -> None:
        for step, problem in damaged.items():
            name = put_aside(self.folder, step) if self.lead else f"{step}.damaged"
            self.event("damaged", step=step, problem=problem)
            _log.warning(
                "WARNING checkpoint step %d is damaged (%s); using step %d; the damaged folder is kept as %s",
                step,
                problem,
                good,
                name,
            )
        if damaged:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged checkpoints put aside")
            self.manager.reload()  # else it refuses to save the damaged steps again

    def _check_origin(self, step: int, record: dict, about: dict, abstract_state, allow: tuple[str, ...]) -> None:
        """Raises unless the step was made by this model on this data."""
        found, wanted = record["about"], json.loads(json.dumps(about))
        for name in sorted(wanted.keys() | found.keys()):
            if difference := first_difference(name, found.get(name), wanted.get(name)):
                sentence = "{}/{}: made with {} = {!r}, this run has {!r}".format(self.folder, step, *difference)
                if name not in allow:
                    raise CheckpointError(f"{sentence}; use another --workdir, or the options it was made with")
                _log.warning("%s; going on, as allowed", sentence)
        shapes, saved = _shapes(abstract_state), record["arrays"]
        for name in sorted(shapes.keys() | saved.keys()):
            old = f"{saved[name][1]} {tuple(saved[name][0])}" if name in saved else "nothing"
            new = f"{shapes[name][1]} {tuple(shapes[name][0])}" if name in shapes else "nothing"
            if old != new:
                raise CheckpointError(
                    f"{self.folder}/{step}: holds {old} as {name}, this run has {new}; use another --workdir, or the options "
                    "(optimizer, EMA, guard) it was made with"
                )

    def _agreed(self, steps: list[int]) -> list[int]:
        """The newest steps as process 0 sees them: folders on disks that lag behind may show others."""
        if jax.process_count() == 1:
            return steps
        padded = np.full(64, -1, np.int32)
        padded[: len(steps[:64])] = steps[:64]
        return [int(step) for step in multihost_utils.broadcast_one_to_all(padded) if step >= 0]

    def _everywhere(self, good: bool) -> bool:
        """Whether all processes say so."""
        return good if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.asarray(good))))

    def close(self) -> None:
        """Waits for the save in flight and says if it failed; never raises, as it is called when something else has."""
        try:
            self._settle()
        except CheckpointWriteError as error:
            _log.warning("%s", error)
        with contextlib.suppress(Exception):
            self.manager.close()


def abstract_like(init, key, layout):
    """The restore target: shapes of `init(key)` with the shardings of `layout`."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), jax.eval_shape(init, key), layout
    )


def _shapes(tree) -> dict[str, tuple[tuple[int, ...], str]]:
    return {leaf_name(path): (leaf.shape, str(leaf.dtype)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _bytes_of(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) + (1 << 20)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _difference(state, record: dict) -> str:
    """The first restored array that is not the one saved; empty if all are."""
    found = fingerprints(state)[0]
    return next((f"{name} differs from what was saved" for name, row in record["arrays"].items() if row[2] != found[name]), "")
