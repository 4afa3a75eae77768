"""Checkpoints of a training run: asynchronous and atomic (Orbax), verified after writing and when read,
for any mesh."""

from __future__ import annotations

import contextlib
import datetime
import logging
import threading
import time
from collections.abc import Callable, Iterator

import jax

from maskgil_jax import __version__
from maskgil_jax.checkpoints.fingerprints import fingerprints, leaf_name
from maskgil_jax.checkpoints.origin import CheckpointError, plain, require_same_origin
from maskgil_jax.checkpoints.step_folders import (
    Damaged,
    damaged_in,
    delete,
    empty_trash,
    expired,
    first_line,
    items_of,
    open_manager,
    quarantine,
    read_arrays,
    read_record,
    scores_in,
    steps_in,
    sync_small_files,
    verify,
    with_checksum,
)
from maskgil_jax.files.paths import free_bytes, is_remote, open_folder, size_text
from maskgil_jax.runtime.distributed import from_all

_log = logging.getLogger(__name__)
PAUSES = (1.0, 3.0)  # seconds before the second and the third attempt to write a checkpoint
# Errors that Orbax raises for damaged files. Not RuntimeError, which also means that memory is exhausted.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, EOFError)


class CheckpointWriteError(CheckpointError):
    """A checkpoint could not be written three times in a row: the disk is full or fails.

    Earlier checkpoints are kept.
    """


class NotFiniteError(CheckpointError):
    """The state contains a NaN or an infinity and was not saved."""


class Checkpoints:
    """The `checkpoints/` folder of a run.

    Each step folder holds the state and a record: the fingerprint inputs, the run file, the versions, and the
    fingerprint of each array.

    A step is verified by reading it back; only then older ones are deleted. Kept are the newest `keep`, the multiples
    of `keep_every` and the `keep_best` lowest scores. event: called as event(name, **fields) for the run's event log.
    """

    def __init__(self, workdir, *, keep: int, keep_every: int = 0, keep_best: int = 0, event: Callable | None = None):
        self.folder = (open_folder(workdir) if is_remote(workdir) else open_folder(workdir).resolve()) / "checkpoints"
        self.policy = dict(keep=keep, keep_every=keep_every, keep_best=keep_best)
        self.event = event or (lambda name, **fields: None)
        self.lead = jax.process_index() == 0
        self.verified: dict[int, dict] = {}  # records of the steps that were verified in this process
        self.newest = -1
        self.failures = 0
        self._finisher: threading.Thread | None = None
        self._problem: tuple[int, Exception] | None = None
        if self.lead:
            empty_trash(self.folder)
        self.manager = open_manager(self.folder)

    def save(
        self,
        step: int,
        state,
        fingerprint_inputs: dict,
        *,
        config: dict | None = None,
        score: float | None = None,
        wait: bool = False,
    ) -> None:
        """Starts writing `state`; returns when it is copied off the device, so its buffers may be donated.

        fingerprint_inputs: what the state depends on, compared by `restore`. config: the run file, stored for
        information.
        score: lower is better. Raises `NotFiniteError`, or `CheckpointWriteError` after the third failure in a row. The
        failure of a save in the background is found and logged by `check` or the next call.
        """
        self._finalize()
        if step <= self.newest:
            return
        prints, bad = fingerprints(state)
        if bad:
            raise NotFiniteError(f"step {step} was not saved: {', '.join(bad[:3])} contain values that are not finite")
        arrays = {name: [list(shape), dtype, prints[name]] for name, (shape, dtype) in _shapes(state).items()}
        record = with_checksum(
            dict(
                step=step,
                saved_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                version=__version__,
                jax=jax.__version__,
                devices=jax.device_count(),
                about=plain(fingerprint_inputs),
                config=config or {},
                score=score,
                arrays=arrays,
            )
        )
        while self.newest < step:
            self.event("save_begin", step=step)
            try:
                self._require_free_space(state)
                self.manager.save(step, args=items_of(state, record))
            except (OSError, ValueError) as error:
                self._failed(step, error)
                time.sleep(PAUSES[self.failures - 1])
                continue
            self.newest = step
            self._finisher = threading.Thread(target=self._finish, args=(step,), name="checkpoint", daemon=True)
            self._finisher.start()
            if wait and not self._finalize():
                time.sleep(PAUSES[self.failures - 1])

    def check(self) -> bool:
        """False if the last save has failed; another should follow at once. Does not wait."""
        return True if self._finisher is not None and self._finisher.is_alive() else self._finalize()

    def _finish(self, step: int) -> None:
        """In a thread: waits for the commit, verifies the step, then deletes expired ones."""
        try:
            self.manager.wait_until_finished()
            if not self.lead:
                return
            sync_small_files(self.folder / str(step))
            try:
                self.verified[step] = verify(self.folder, step)
            except Damaged:
                quarantine(self.folder, step)
                raise
            self.event("save_commit", step=step)
            scores = scores_in(self.folder) if self.policy["keep_best"] else {}
            delete(self.folder, expired(steps_in(self.folder), self.verified, scores, **self.policy))
        except Exception as error:
            self._problem = step, error

    def _finalize(self) -> bool:
        """Waits for the save in flight; False if it failed, which allows the next save at any step."""
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
        with contextlib.suppress(Exception):  # raises the same error again
            self.manager.close()
        self.manager = open_manager(self.folder)  # without the failed step, whose incomplete folder it removes
        return False

    def _failed(self, step: int, error: Exception) -> None:
        self.failures += 1
        self.event("save_failed", step=step, error=first_line(error))
        message = f"{self.folder}: the checkpoint of step {step} could not be written ({first_line(error)})"
        # One of several processes cannot try again alone: all restart from the last step.
        if self.failures > len(PAUSES) or jax.process_count() > 1:
            raise CheckpointWriteError(f"{message}; earlier checkpoints are kept") from error
        _log.warning("%s; trying again", message)

    def _require_free_space(self, state) -> None:
        needed, free = _bytes_of(state), free_bytes(self.folder)
        if self.lead and free < needed:
            raise OSError(f"No space left on device: it needs {size_text(needed)}, {size_text(free)} are free")

    def check_free_space(self, state) -> None:
        """Raises `CheckpointWriteError` if a checkpoint of `state` does not fit; warns if those to be kept will not."""
        try:
            self._require_free_space(state)
        except OSError as error:
            raise CheckpointWriteError(f"{self.folder}: {error}") from None
        missing = self.policy["keep"] + 1 - len(steps_in(self.folder))
        needed, free = missing * _bytes_of(state), free_bytes(self.folder)
        if self.lead and free < needed:
            _log.warning("%s: %s will be needed, %s are free", self.folder, size_text(needed), size_text(free))

    def restore(self, abstract_state, fingerprint_inputs: dict, *, allow: tuple[str, ...] = ()):
        """Restores the newest step that is undamaged for all processes: (step, state), or None if there are no steps.

        abstract_state: shapes with the shardings of the result. Newer steps are logged: damaged ones, which are
        quarantined, and those that some process does not see, which stay. Raises `CheckpointError` if no step is left,
        or if it was made by another model or on other data, naming the first difference; differences under the names in
        `allow` are logged.
        """
        seen = from_all(steps_in(self.folder))
        damaged: dict[int, str] = {}
        unseen: dict[int, str] = {}
        for step in sorted({step for steps in seen for step in steps}, reverse=True):
            if missing := [str(process) for process, steps in enumerate(seen) if step not in steps]:
                unseen[step] = f"process {', '.join(missing)} of {len(seen)} does not see it"
                continue
            try:
                record, state = self._load(step, abstract_state, fingerprint_inputs, allow)
            except Damaged as error:
                damaged[step] = str(error)
                continue
            self._report_skipped(unseen, damaged, step)
            self.verified[step], self.newest = record, step
            self.event("restore", step=step)
            return step, state
        quarantined = sorted({name for names in from_all(damaged_in(self.folder)) for name in names})
        if not (damaged or unseen or quarantined):
            return None
        problems = (f"step {step}: {problem}" for step, problem in (damaged | unseen).items())
        named = "; ".join([*problems, *quarantined][:3])
        if unseen:
            raise CheckpointError(
                f"{self.folder}: no checkpoint that all processes see undamaged ({named}). Nothing was changed. All need the "
                "same --workdir, on a disk or in a bucket that all see"
            )
        raise CheckpointError(
            f"{self.folder}: no usable checkpoint ({len(damaged) + len(quarantined)} damaged: {named}). Nothing was changed. "
            "Another --workdir starts a new run"
        )

    def _load(self, step: int, abstract_state, fingerprint_inputs: dict, allow: tuple[str, ...]):
        """(record, state) of a step. Raises `Damaged` in every process if it is damaged for one of them."""
        with _damaged_for_all():
            record = read_record(self.folder, step)
        require_same_origin(f"{self.folder}/{step}", record, fingerprint_inputs, _shapes(abstract_state), allow)
        with _damaged_for_all():
            try:
                state = read_arrays(self.folder / str(step), abstract_state)
            except Exception as error:
                raise Damaged(self._damage(step, error)) from error
        with _damaged_for_all():
            if difference := _difference(state, record):
                raise Damaged(difference)
        return record, state

    def _damage(self, step: int, error: Exception) -> str:
        """Describes the damage that made reading a step fail with `error`; raises `error` if there is none."""
        try:
            verify(self.folder, step)
        except Damaged as damage:
            return str(damage)
        if isinstance(error, DAMAGE):
            return f"unreadable ({first_line(error)})"
        raise error

    def _report_skipped(self, unseen: dict[int, str], damaged: dict[int, str], good: int) -> None:
        """Logs the steps that are newer than `good`, and quarantines the damaged ones."""
        for step, problem in unseen.items():
            self.event("unseen", step=step, problem=problem)
            _log.warning("WARNING checkpoint step %d is passed over (%s); using step %d", step, problem, good)
        for step, problem in damaged.items():
            name = quarantine(self.folder, step) if self.lead else f"{step}.damaged"
            self.event("damaged", step=step, problem=problem)
            _log.warning(
                "WARNING checkpoint step %d is damaged (%s); using step %d; the damaged folder is kept as %s",
                step,
                problem,
                good,
                name,
            )

    def close(self) -> None:
        """Waits for the save in flight and logs its failure.

        Never raises, as it also runs while an error is handled.
        """
        try:
            self._finalize()
        except CheckpointWriteError as error:
            _log.warning("%s", error)
        with contextlib.suppress(Exception):
            self.manager.close()


@contextlib.contextmanager
def _damaged_for_all() -> Iterator[None]:
    """Raises `Damaged` in all processes if the block raises it in one. To be entered by all together."""
    problem = ""
    try:
        yield
    except Damaged as error:
        problem = str(error)
    problems = from_all(problem)
    if len(set(problems)) == 1:
        problems = problems[:1]
    else:
        problems = [f"process {process}: {problem}" for process, problem in enumerate(problems) if problem]
    if any(problems):
        raise Damaged("; ".join(problems))


def abstract_like(init, key, state_sharding):
    """The restore target: shapes of `init(key)` with shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(init, key),
        state_sharding,
    )


def _shapes(tree) -> dict[str, tuple[tuple[int, ...], str]]:
    return {leaf_name(path): (leaf.shape, str(leaf.dtype)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _bytes_of(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) + (1 << 20)


def _difference(state, record: dict) -> str:
    """Names the first restored array that differs from the saved one; empty if none does."""
    found = fingerprints(state)[0]
    return next((f"{name} differs from what was saved" for name, row in record["arrays"].items() if row[2] != found[name]), "")
