"""Checkpoints of a running training: Orbax, asynchronous and atomic, the newest `keep` of them, restored onto any mesh."""

from __future__ import annotations

import json

import jax
import orbax.checkpoint as ocp

from maskgil_jax.storage import is_remote, open_folder


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or does not belong to this run; what was on disk before is untouched."""


class Checkpoints:
    """The `checkpoints/` folder of a run. Each step folder holds the state and `about`: what the state was trained on."""

    def __init__(self, workdir, *, keep: int):
        self.folder = (open_folder(workdir) if is_remote(workdir) else open_folder(workdir).resolve()) / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,  # left over by a kill in the middle of a save
            single_host_load_and_broadcast=True,  # all processes take the step that process 0 sees
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state, about: dict, *, wait: bool = False) -> None:
        """Starts writing `state`; returns when it is copied off the device, so its buffers may be donated."""
        try:
            if step not in self.manager.all_steps():
                self.manager.save(
                    step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
                )
            if wait:
                self.manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder}: the checkpoint of step {step} could not be written ({_first_line(error)}); "
                "earlier checkpoints are kept"
            ) from error

    def restore(self, abstract_state, about: dict):
        """(step, state) of the newest checkpoint, laid out as `abstract_state` (shapes with shardings); None if there is none.

        Raises `CheckpointError` if it was made by another model or on other data, naming the first difference.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        try:
            found = self.manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.folder}/{step}: unreadable checkpoint ({_first_line(error)})") from error
        wanted = json.loads(json.dumps(about))
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise CheckpointError(
                    f"{self.folder}/{step}: made with {name} = {found.get(name)!r}, this run has {wanted.get(name)!r}; "
                    "use another --workdir, or the options it was made with"
                )
        try:
            restored = self.manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state)))
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.folder}/{step}: unreadable checkpoint ({_first_line(error)})") from error
        return step, restored["state"]

    def close(self) -> None:
        """Waits for the save in flight."""
        self.manager.wait_until_finished()
        self.manager.close()


def abstract_like(init, key, layout):
    """The restore target: shapes of `init(key)` with the shardings of `layout`."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), jax.eval_shape(init, key), layout
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
