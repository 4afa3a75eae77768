"""The work behind `maskgil convert`, `maskgil inspect` and `maskgil export`: foreign weight files <-> weights folders.

A conversion passes four stations, each once: `read` (readers), `identify` (families), `make_plan` (planner), `write`
(writer).
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.serialization import msgpack_serialize

from maskgil_jax.checkpoints.shards import SHARD_BYTES
from maskgil_jax.checkpoints.weights import load_weights
from maskgil_jax.config import ConfigError, choose, require
from maskgil_jax.files.atomic import writing
from maskgil_jax.networks import flatten, unflatten

from .engine import export_arrays
from .families import FAMILIES, UNSUPPORTED, identify, named
from .planner import Plan, export_problems, make_plan
from .readers.checkpoint import BadWeightFile, Checkpoint, Problem, sanitize
from .readers.detect import read
from .readers.sidecar import read_sidecar_configs
from .readers.vocabulary import tokenizer_file, with_vocabulary
from .writer import source_hash_of, write


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The result of `convert`; `str()` is the summary that the command prints."""

    path: pathlib.Path
    plan: Plan
    container: str
    compared_with: tuple[str, ...] = ()
    stripped: tuple[str, ...] = ()

    def __str__(self) -> str:
        plan = self.plan
        lines = [f"recognised as {plan.name}: {plan.family.title}", *self.stripped]
        lines += [f"{len(plan.needed)} tensors, {plan.parameters:,} parameters from {self.container!r}", _options(plan)]
        lines += _ignored(plan.ignored)
        lines += [f"compared with {name}" for name in self.compared_with]
        lines += [*_fixed(plan), *(f"assumed: {note}" for note in plan.notes)]
        lines += [f"licence of the published weights: {plan.family.licence}", f"{plan.family.kind}: {self.path}"]
        return "\n".join(lines)


def convert(
    path: str | os.PathLike,
    out: str | os.PathLike,
    *,
    family: str | None = None,
    key: str | None = None,
    dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Conversion:
    """Converts a published weight file (or folder of shards) into the weights folder `out`.

    family: None identifies it by the names. key: outer key of the file to take (None: the usual ones, EMA first).
    dtype: of the values written, "float32", "float16" or "bfloat16". options: what no tensor states, e.g. {"heads": 12,
    "grid": (24, 24)}, or what settles a contradiction between tensors and a configuration inside or next to the file.
    shard_bytes: a larger network is written as several files. metadata: further entries of `config.json`. origin:
    further entries of its `source`. Tensors are read and written one by one; memory in use is a few times the largest.
    Raises: BadWeightFile (a ValueError) with all problems of the file; ConfigError for a wrong option, if `out` exists
    and is anything but an earlier conversion of the same file, or if it does not fit on its disk. Nothing is left
    behind then.
    """
    choose("--dtype", dtype, ("float32", "float16", "bfloat16"))
    out = pathlib.Path(out)
    source_hash_of(out)  # refused before a large file is read
    checkpoint = read(path, container=key)
    sidecars = with_vocabulary(read_sidecar_configs(path), path)
    plan = _plan(checkpoint, family, options, sidecars)
    beside = tokenizer_file(path) if getattr(plan.cfg, "condition", "") == "tokens" else None
    write(
        checkpoint, plan, out, dtype, shard_bytes, list(sidecars), [beside] if beside else [], metadata=metadata, origin=origin
    )
    return Conversion(out, plan, checkpoint.container, tuple(sidecars), tuple(_stripped(checkpoint, plan)))


def planned(path: str | os.PathLike, *, options: Mapping[str, Any] | None = None) -> Plan:
    """The plan of `convert` for a file; reads no array. Raises as it does."""
    return _plan(read(path), None, options, with_vocabulary(read_sidecar_configs(path), path))


def family_of_file(path: str | os.PathLike) -> str | None:
    """The family of a file by the names in it; None for a file that holds no known network or is no weight file."""
    try:
        return identify(read(path))[0]
    except (Problem, BadWeightFile, OSError):
        return None


def _found(checkpoint: Checkpoint) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    return {name: (checkpoint.shape(name), checkpoint.dtype(name)) for name in checkpoint}


def _plan(checkpoint: Checkpoint, family: str | None, options: Mapping[str, Any] | None, sidecars: Mapping[str, dict]) -> Plan:
    try:
        plan, problems = make_plan(
            _found(checkpoint), family=family, options=options, extras=checkpoint.extras, sidecars=sidecars
        )
    except Problem as problem:
        raise BadWeightFile(checkpoint.path, [str(problem)]) from None
    if problems:
        raise BadWeightFile(checkpoint.path, [f"as {plan.name}: {problem}" for problem in problems])
    return plan


# ------------------------------------------------------------------------------------------------ inspect
def inspect(path: str | os.PathLike, *, key: str | None = None, family: str | None = None) -> str:
    """A table of a weight file's names, shapes and types, its totals, and the network it would be converted to.

    Reads no array.

    Raises: BadWeightFile if the file cannot be opened; a file of no known family is still shown.
    """
    checkpoint = read(path, container=key)
    found = _found(checkpoint)
    rows = [(sanitize(name), "x".join(map(str, shape)) or "scalar", str(dtype)) for name, (shape, dtype) in found.items()]
    width, depth = (max(len(row[i]) for row in rows) for i in (0, 1))
    lines = [f"{name:<{width}}  {shape:<{depth}}  {dtype}" for name, shape, dtype in rows]
    kinds = Counter(dtype for _, _, dtype in rows)
    numbers = sum(int(np.prod(shape, dtype=object)) for shape, _ in found.values())
    lines += ["", f"{checkpoint.format}, {len(rows)} arrays, {numbers:,} values, {checkpoint.nbytes:,} bytes"]
    lines += ["types: " + ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common())]
    lines += [f"taken from: {sanitize(checkpoint.container)} (there are: {', '.join(map(sanitize, checkpoint.containers))})"]
    if checkpoint.ignored:
        ignored = (f"{sanitize(name)} ({sanitize(what)})" for name, what in checkpoint.ignored.items())
        lines += ["not part of the weights: " + ", ".join(ignored)]
    if checkpoint.extras:
        lines += ["options in the file: " + sanitize(json.dumps(checkpoint.extras, default=str), 500)]
    try:
        sidecars = with_vocabulary(read_sidecar_configs(path), path)
        lines += [f"configuration file: {sanitize(name)}" for name in sidecars]
        plan, problems = make_plan(found, family=family, extras=checkpoint.extras, sidecars=sidecars)
    except (Problem, ConfigError, BadWeightFile) as problem:
        return "\n".join([*lines, *_stripped(checkpoint, None), f"family: {problem}"])
    lines += _stripped(checkpoint, plan)
    lines += [f"family: {plan.name}, {plan.family.title}", _options(plan), *_ignored(plan.ignored), *_fixed(plan)]
    lines += [f"assumed: {note}" for note in plan.notes]
    lines += [f"cannot be converted, {len(problems)} problems:", *problems[:20]] if problems else ["can be converted"]
    return "\n".join(lines)


def list_families() -> str:
    """The families, one a line, with their titles; those without a network here at the end."""
    lines = [f"{name:<21}  {family.kind:<15}  {family.title}" for name, family in FAMILIES.items()]
    lines += ["", "recognised, not supported yet:"]
    return "\n".join(lines + [f"{name:<21}  {title}" for name, (title, _) in UNSUPPORTED.items()])


def _options(plan: Plan) -> str:
    differing = {
        field.name: getattr(plan.cfg, field.name)
        for field in dataclasses.fields(plan.cfg)
        if getattr(plan.cfg, field.name) != field.default
    }
    return f"options: {type(plan.cfg).__name__}({', '.join(f'{name}={value!r}' for name, value in differing.items())})"


def _fixed(plan: Plan) -> list[str]:
    values = ", ".join(f"{name}={getattr(plan.cfg, name)!r}" for name in plan.family.fixed)
    return [f"as every {plan.name} network, not stated by any tensor (--set overrides): {values}"] if values else []


def _stripped(checkpoint: Checkpoint, plan: Plan | None) -> list[str]:
    """The lines that name what was stripped from tensor names."""
    lines = [f"stripped {wrapper!r} from {count} of {len(checkpoint)} names" for wrapper, count in checkpoint.wrappers.items()]
    if plan and plan.prefix:
        count = sum(name.startswith(plan.prefix) for name in checkpoint)
        lines.append(f"stripped {plan.prefix!r} from {count} of {len(checkpoint)} names")
    return lines


def _ignored(ignored: Mapping[str, str]) -> list[str]:
    return [f"left out: {count} tensors, {why}" for why, count in Counter(ignored.values()).items()]


# ------------------------------------------------------------------------------------------------ export
def export(weights: str | os.PathLike, family: str) -> dict[str, np.ndarray]:
    """The tensors of a weights folder under the names and in the layout of `family`, float32.

    Raises: ValueError if the folder holds another kind of network, or one that the family's code cannot express.
    """
    try:
        described = named(family)
        loaded = load_weights(weights, described.kind)
        problems = export_problems(family, loaded.cfg)
    except Problem as problem:
        raise ConfigError(f"--to {family}: {problem}") from None
    if problems:
        raise ValueError(f"{loaded.path}: cannot be written as {family}: it {'; it '.join(problems)}")
    return export_arrays(described.table(loaded.cfg), flatten(loaded.params))


def export_file(weights: str | os.PathLike, out: str | os.PathLike, family: str) -> pathlib.Path:
    """Writes `export` as a .safetensors file, or as the .pt that the original code loads (needs torch).

    Families of flax files are written as .msgpack, which their original code loads. Returns its path.

    Raises: ValueError as `export`, or if `out` exists or ends otherwise.
    """
    out = pathlib.Path(out)
    flax_file = family in FAMILIES and FAMILIES[family].flax
    suffixes = (".msgpack",) if flax_file else (".safetensors", ".pt", ".pth", ".ckpt")
    require(out.suffix in suffixes, f"{out}: expected a name that ends in {' or '.join(suffixes[:2])}")
    require(not os.path.lexists(out), f"{out}: exists; remove it or choose another name")
    if out.suffix not in (".safetensors", ".msgpack"):
        try:
            import torch
        except ImportError:
            raise ConfigError(
                f"{out}: writing {out.suffix} needs torch; install maskgil-jax[torch] or write .safetensors"
            ) from None
    arrays = export(weights, family)
    with writing(out) as part:
        if out.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file(arrays, part, metadata={"format": "pt", "family": family})
        elif flax_file:
            part.write_bytes(msgpack_serialize({FAMILIES[family].container: unflatten(arrays)}))
        else:
            tensors, container = {name: torch.from_numpy(array) for name, array in arrays.items()}, FAMILIES[family].container
            torch.save(tensors if container == "bare" else {container: tensors}, part)
    return out
