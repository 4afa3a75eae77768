"""What Orbax is used for: it writes a step beside the training, whole or not at all, and reads its arrays onto any mesh."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

# An array that lies on several devices is written in parts, one by each, unless they are smaller than this: cutting costs a
# compiled program for each shape and device, which for small states is most of a save.
PART_BYTES = 1 << 20


class _Names(ocp.path.step.NameFormat):
    """What the manager knows of step folders: their names. It finds none by itself, so that `Checkpoints` decides which of them
    count, the same in all processes, and no folder that one process cannot read keeps another from opening the run."""

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
    """What steps are saved with. It deletes none that are whole, and what a kill left of one that was being saved."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.PreserveAll(), cleanup_tmp_directories=True, step_name_format=_Names()
    )
    handlers = ocp.handlers.create_default_handler_registry(state=_array_files(), record=ocp.JsonCheckpointHandler())
    return ocp.CheckpointManager(folder, options=options, handler_registry=handlers)


def items_of(state, record: dict) -> ocp.args.Composite:
    """What a step folder holds, as the manager's `save` takes it."""
    return ocp.args.Composite(state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(record))


def read_arrays(folder, abstract_state):
    """The state in a step's folder, laid out as `abstract_state`; raises what Orbax raises.

    Every process reads what its devices hold and, unlike in the manager's `restore`, waits for no other: one that fails can say
    so.
    """
    target = ocp.args.PyTreeRestore(abstract_state, ocp.checkpoint_utils.construct_restore_args(abstract_state))
    with contextlib.closing(_array_files()) as files:
        return files.restore(folder / "state", args=target)
