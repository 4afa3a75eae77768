"""Checkpoints of a running training: Orbax, asynchronous and atomic, verified when written and when read, for any mesh."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator

import jax

from maskgil_jax import __version__
from maskgil_jax.checkpoints.fingerprints import fingerprints, leaf_name
from maskgil_jax.checkpoints.step_folders import (
    Damaged,
    damaged_in,
    empty_trash,
    first_line,
    items_of,
    open_manager,
    put_aside,
    read_arrays,
    read_record,
    scores_in,
    seal,
    steps_in,
    surplus,
    sync_small_files,
    throw_away,
    verify,
)
from maskgil_jax.config.base import current_names
from maskgil_jax.config.training import Objective
from maskgil_jax.files.paths import free_bytes, is_remote, open_folder, size_text
from maskgil_jax.runtime.distributed import first_difference, from_all

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
        self.manager = open_manager(self.folder)

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
        while self.newest < step:
            self.event("save_begin", step=step)
            try:
                self._require_room(state)
                self.manager.save(step, args=items_of(state, record))
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
        self.manager = open_manager(self.folder)  # forgets the failed step and removes its half-written folder
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
        if self.lead and free < needed:
            raise OSError(f"No space left on device: it needs {size_text(needed)}, {size_text(free)} are free")

    def check_room(self, state) -> None:
        """Raises `CheckpointWriteError` if not even one checkpoint of `state` fits; warns if the ones to be kept will not."""
        try:
            self._require_room(state)
        except OSError as error:
            raise CheckpointWriteError(f"{self.folder}: {error}") from None
        missing = self.policy["keep"] + 1 - len(steps_in(self.folder))
        needed, free = missing * _bytes_of(state), free_bytes(self.folder)
        if self.lead and free < needed:
            _log.warning("%s: %s will be needed, %s are free", self.folder, size_text(needed), size_text(free))

    def restore(self, abstract_state, about: dict, *, allow: tuple[str, ...] = ()):
        """(step, state) of the newest step that all processes see whole, laid out as `abstract_state` (shapes with
        shardings); None if there are no steps at all.

        Newer ones are named: damaged ones, which are put aside, and those that some process does not see, which stay. Raises
        `CheckpointError` if no step is left, or if it was made by another model or on other data, naming the first
        difference; differences under the names in `allow` are logged.
        """
        seen = from_all(steps_in(self.folder))
        damaged: dict[int, str] = {}
        unseen: dict[int, str] = {}
        for step in sorted({step for steps in seen for step in steps}, reverse=True):
            if missing := [str(process) for process, steps in enumerate(seen) if step not in steps]:
                unseen[step] = f"process {', '.join(missing)} of {len(seen)} does not see it"
                continue
            try:
                record, state = self._load(step, abstract_state, about, allow)
            except Damaged as error:
                damaged[step] = str(error)
                continue
            self._pass_over(unseen, damaged, step)
            self.known[step], self.newest = record, step
            self.event("restore", step=step)
            return step, state
        aside = sorted({name for names in from_all(damaged_in(self.folder)) for name in names})
        if not (damaged or unseen or aside):
            return None
        told = "; ".join([*(f"step {step}: {problem}" for step, problem in (damaged | unseen).items()), *aside][:3])
        if unseen:
            raise CheckpointError(
                f"{self.folder}: no checkpoint that all processes see whole ({told}). Nothing was changed. All need the "
                "same --workdir, on a disk or in a bucket that all see"
            )
        raise CheckpointError(
            f"{self.folder}: no usable checkpoint ({len(damaged) + len(aside)} damaged: {told}). Nothing was changed. "
            "Another --workdir starts a new run"
        )

    def _load(self, step: int, abstract_state, about: dict, allow: tuple[str, ...]):
        """(record, state) of a step. Raises `Damaged` in every process unless it is whole for all of them."""
        with _damaged_for_all():
            record = read_record(self.folder, step)
        self._check_origin(step, record, about, abstract_state, allow)
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
        """What of a step made reading it fail with `error`; raises it again if the step is whole."""
        try:
            verify(self.folder, step)
        except Damaged as damage:
            return str(damage)
        if isinstance(error, DAMAGE):
            return f"unreadable ({first_line(error)})"
        raise error

    def _pass_over(self, unseen: dict[int, str], damaged: dict[int, str], good: int) -> None:
        """Tells of the steps that were newer than `good`, and puts the damaged ones aside."""
        for step, problem in unseen.items():
            self.event("unseen", step=step, problem=problem)
            _log.warning("WARNING checkpoint step %d is passed over (%s); using step %d", step, problem, good)
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

    def _check_origin(self, step: int, record: dict, about: dict, abstract_state, allow: tuple[str, ...]) -> None:
        """Raises unless the step was made by this model on this data."""
        found, wanted = _with_new_names(record["about"]), _with_new_names(json.loads(json.dumps(about)))
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

    def close(self) -> None:
        """Waits for the save in flight and says if it failed; never raises, as it is called when something else has."""
        try:
            self._settle()
        except CheckpointWriteError as error:
            _log.warning("%s", error)
        with contextlib.suppress(Exception):
            self.manager.close()


@contextlib.contextmanager
def _damaged_for_all() -> Iterator[None]:
    """What the block finds `Damaged` in one process is so in all of them. To be entered by all together."""
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


def abstract_like(init, key, layout):
    """The restore target: shapes of `init(key)` with the shardings of `layout`."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), jax.eval_shape(init, key), layout
    )


def _with_new_names(about: dict) -> dict:
    """What a checkpoint of an older version was made with, under today's option names."""
    if "objective" not in about:
        return about
    return {**about, "objective": current_names(Objective, about["objective"], "objective", warn=False)}


def _shapes(tree) -> dict[str, tuple[tuple[int, ...], str]]:
    return {leaf_name(path): (leaf.shape, str(leaf.dtype)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _bytes_of(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) + (1 << 20)


def _difference(state, record: dict) -> str:
    """The first restored array that is not the one saved; empty if all are."""
    found = fingerprints(state)[0]
    return next((f"{name} differs from what was saved" for name, row in record["arrays"].items() if row[2] != found[name]), "")
