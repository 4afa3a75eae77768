"""Damages checkpoints, and checks what is restored from them."""

import pathlib

import jax
import numpy as np

from maskgil_jax.checkpoints.train_state import CheckpointError, Checkpoints

MODES = ("flip", "truncate", "delete", "zero")
SHAPES = {"kernel": (64, 96), "bias": (96,), "table": (300, 17)}


def made_up_state(step: int, shapes=SHAPES) -> dict:
    """The state of a step, a function of the step."""
    rng = np.random.default_rng(step)
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return {"params": jax.tree.map(jax.numpy.asarray, arrays), "step": jax.numpy.asarray(step, jax.numpy.int32)}


def save_steps(workdir, steps, **options) -> None:
    """Saves these steps in a new run."""
    checkpoints = Checkpoints(workdir, **{"keep": len(steps)} | options)
    for step in steps:
        checkpoints.save(step, made_up_state(step), {"seed": 0}, wait=True)
    checkpoints.close()


def abstract_state(shapes=SHAPES):
    """The restore target of `made_up_state`."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), made_up_state(0, shapes))


def damage(folder: pathlib.Path, mode: str, rng: np.random.Generator) -> pathlib.Path:
    """Damages one file of a step, chosen with probability by size (uniformly for "delete")."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    sizes = np.array([p.stat().st_size for p in files], float)
    file = files[rng.choice(len(files), p=None if mode == "delete" else sizes / sizes.sum())]
    data = bytearray(file.read_bytes())
    position = int(rng.integers(len(data)))
    if mode == "delete":
        file.unlink()
        return file
    if mode == "flip":
        data[position] ^= 1 << int(rng.integers(8))
    elif mode == "truncate":
        del data[position:]
    else:
        data[position : position + 4096] = bytes(len(data[position : position + 4096]))
    file.write_bytes(bytes(data))
    return file


def restored_step(workdir, steps, shapes=SHAPES) -> tuple[int, int] | None:
    """(step, number of wrong elements) of what is restored; None if no step is usable."""
    checkpoints = Checkpoints(workdir, keep=len(steps))
    try:
        step, state = checkpoints.restore(abstract_state(shapes), {"seed": 0})
    except CheckpointError:
        return None
    finally:
        checkpoints.close()
    right = made_up_state(step, shapes)
    wrong = jax.tree.map(lambda a, b: int((np.asarray(a).view(np.uint32) != np.asarray(b).view(np.uint32)).sum()), state, right)
    return step, sum(jax.tree.leaves(wrong))
