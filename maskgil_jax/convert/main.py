"""The work behind `maskgil convert`, `maskgil inspect` and `maskgil export`: foreign weight files <-> weights folders."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax.serialization import msgpack_serialize
from tqdm import tqdm

from maskgil_jax.checkpoints.shards import SHARD_BYTES, write_tensors
from maskgil_jax.checkpoints.weights import FORMAT, load_weights, read_metadata, replace_folder, require_room
from maskgil_jax.config import ConfigError, choose, require, to_dict
from maskgil_jax.files.atomic import writing
from maskgil_jax.networks import abstract_params, family_of, flatten, unflatten

from .beside import read_beside
from .checkpoint import BadWeightFile, Checkpoint, Problem, check_finite, shown
from .families import FAMILIES, UNSUPPORTED, named
from .plan import Plan, export_problems, make_plan
from .rules import export_arrays, sources
from .torch_files import read

_RELEASE_EVERY = 256 << 20  # bytes read before the mapped pages are given back


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What `convert` did; `str()` is the summary that the command prints."""

    path: pathlib.Path
    plan: Plan
    container: str
    beside: tuple[str, ...] = ()

    def __str__(self) -> str:
        plan = self.plan
        lines = [f"recognised as {plan.name}: {plan.family.title}"]
        lines += [f"{len(plan.needed)} tensors, {plan.parameters:,} parameters from {self.container!r}", _options(plan)]
        lines += _ignored(plan.ignored)
        lines += [f"compared with {name}" for name in self.beside]
        lines += [f"assumed: {note}" for note in plan.notes]
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
) -> Conversion:
    """Converts a published weight file (or folder of shards) into the weights folder `out`.

    family: None tells it from the names. key: outer key of the file to take (None: the usual ones, EMA first). dtype: of the
    values written, "float32" or "float16". options: sizes that the file does not tell, e.g. {"heads": 12, "grid": (24, 24)}, or
    that settle what the options inside or beside it (model.yaml, config.json) say otherwise. shard_bytes: a larger network is
    written as several files. Tensors are read and written one by one; memory in use is a few times the largest tensor.
    Raises: BadWeightFile (a ValueError) with all problems of the file; ConfigError for a wrong option, if `out` exists and is
    anything but an earlier conversion of the same file, or if it does not fit on its disk. Nothing is left behind then.
    """
    choose("--dtype", dtype, ("float32", "float16"))
    out = pathlib.Path(out)
    earlier = _earlier(out)
    checkpoint = read(path, container=key)
    beside = read_beside(path)
    plan = _plan(checkpoint, family, options, beside)
    require_room(out, plan.parameters * np.dtype(dtype).itemsize)
    digest = _sha256(checkpoint)
    require(earlier in (None, digest), f"{out}: exists and was converted from another file; remove it or choose another folder")
    source = {
        "file": os.path.basename(os.path.abspath(checkpoint.path)),
        "sha256": digest,
        "format": checkpoint.format,
        "container": checkpoint.container,
        "family": plan.name,
        "published": plan.family.title,
        "licence": plan.family.licence,
        "assumed": list(plan.notes),
        "compared_with": list(beside),
    }
    about = {"format": FORMAT, "family": family_of(plan.cfg), "options": to_dict(plan.cfg), "source": source}
    if plan.family.decode:
        about["decode"] = dict(plan.family.decode)
    shapes = _shapes(plan)
    with replace_folder(out) as folder:
        write_tensors(folder, shapes, dtype, _pieces(checkpoint, plan, shapes, dtype), shard_bytes)
        (folder / "config.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return Conversion(out, plan, checkpoint.container, tuple(beside))


def _earlier(out: pathlib.Path) -> str | None:
    """Hash of the file that `out` was made from; None if there is no `out`. Raises: ConfigError if it is something else."""
    if not os.path.lexists(out):
        return None
    try:
        return str(read_metadata(out)["source"]["sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        raise ConfigError(f"{out}: exists and is no earlier conversion; remove it or choose another folder") from None


def _found(checkpoint: Checkpoint) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    return {name: (checkpoint.shape(name), checkpoint.dtype(name)) for name in checkpoint}


def _plan(checkpoint: Checkpoint, family: str | None, options: Mapping[str, Any] | None, beside: Mapping[str, dict]) -> Plan:
    try:
        plan, problems = make_plan(_found(checkpoint), family=family, options=options, extras=checkpoint.extras, beside=beside)
    except Problem as problem:
        raise BadWeightFile(checkpoint.path, [str(problem)]) from None
    if problems:
        raise BadWeightFile(checkpoint.path, [f"as {plan.name}: {problem}" for problem in problems])
    return plan


def _shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """{our path: shape}, in the order in which a weights folder is written."""
    return {path: tuple(leaf.shape) for path, leaf in sorted(flatten(abstract_params(plan.cfg)).items())}


def _pieces(checkpoint: Checkpoint, plan: Plan, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Iterator[np.ndarray]:
    """Our arrays in the order of `shapes`, layer by layer. Raises: BadWeightFile, at the end, with all that is wrong."""
    problems = _wrong_repeats(checkpoint, plan)
    places, since = sources(plan.needed), 0
    total = sum(checkpoint.entries[name].nbytes for name in plan.needed)
    with tqdm(total=total, unit="B", unit_scale=True, desc="convert", disable=None, leave=False) as bar:
        for path in shapes:
            for tensor, part in places[path]:
                try:
                    array = tensor.ours(part, checkpoint[tensor.name])
                except BadWeightFile as bad:
                    problems += bad.problems
                    continue
                if wrong := check_finite(tensor.name, array):
                    problems.append(wrong)
                    continue
                with np.errstate(over="ignore"):
                    cast = array.astype(dtype)
                if not np.isfinite(cast).all():
                    problems.append(f"{tensor.name} holds values too large for {dtype}")
                    continue
                yield cast
                since += array.nbytes
                bar.update(array.nbytes)
                if since > _RELEASE_EVERY:
                    checkpoint.release()
                    since = 0
    if problems:
        raise BadWeightFile(checkpoint.path, dict.fromkeys(problems))


def _wrong_repeats(checkpoint: Checkpoint, plan: Plan) -> list[str]:
    """A sentence for each tensor that should repeat another one, or a constant of the network, and does not."""
    problems: list[str] = []
    for name, what in plan.repeats.items():
        try:
            found = checkpoint[name]
            expected = checkpoint[what] if isinstance(what, str) else what
        except BadWeightFile as bad:
            problems += bad.problems
            continue
        if not np.array_equal(found, expected.astype(found.dtype)):
            equal = f"equal {what}" if isinstance(what, str) else f"be {np.array2string(expected.ravel(), precision=4)}"
            problems.append(f"{name}: should {equal} and does not, so this is another network")
    return problems


def _sha256(checkpoint: Checkpoint) -> str:
    """Hash of the file; of several shards, of the list of their names and hashes."""
    hashes = {}
    for mapped in checkpoint.files:
        with open(mapped.path, "rb") as file:
            hashes[os.path.basename(mapped.path)] = hashlib.file_digest(file, "sha256").hexdigest()
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256("".join(f"{name} {value}\n" for name, value in sorted(hashes.items())).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ looking without converting
def inspect(path: str | os.PathLike, *, key: str | None = None, family: str | None = None) -> str:
    """A table of a weight file's names, shapes and types, its totals, and what it would be converted to. Reads no array.

    Raises: BadWeightFile if the file cannot be opened; a file of no known family is still shown.
    """
    checkpoint = read(path, container=key)
    found = _found(checkpoint)
    rows = [(shown(name), "x".join(map(str, shape)) or "scalar", str(dtype)) for name, (shape, dtype) in found.items()]
    width, depth = (max(len(row[i]) for row in rows) for i in (0, 1))
    lines = [f"{name:<{width}}  {shape:<{depth}}  {dtype}" for name, shape, dtype in rows]
    kinds = Counter(dtype for _, _, dtype in rows)
    numbers = sum(int(np.prod(shape, dtype=object)) for shape, _ in found.values())
    lines += ["", f"{checkpoint.format}, {len(rows)} arrays, {numbers:,} values, {checkpoint.nbytes:,} bytes"]
    lines += ["types: " + ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common())]
    lines += [f"taken from: {shown(checkpoint.container)} (there are: {', '.join(map(shown, checkpoint.containers))})"]
    if checkpoint.ignored:
        lines += ["beside them: " + ", ".join(f"{shown(name)} ({shown(what)})" for name, what in checkpoint.ignored.items())]
    if checkpoint.extras:
        lines += ["options in the file: " + shown(json.dumps(checkpoint.extras, default=str), 500)]
    try:
        beside = read_beside(path)
        lines += [f"options beside it: {shown(name)}" for name in beside]
        plan, problems = make_plan(found, family=family, extras=checkpoint.extras, beside=beside)
    except (Problem, ConfigError, BadWeightFile) as problem:
        return "\n".join([*lines, f"family: {problem}"])
    lines += [f"family: {plan.name}, {plan.family.title}", _options(plan), *_ignored(plan.ignored)]
    lines += [f"assumed: {note}" for note in plan.notes]
    lines += [f"cannot be converted, {len(problems)} problems:", *problems[:20]] if problems else ["can be converted"]
    return "\n".join(lines)


def list_families() -> str:
    """The families, one a line, with what they are; those without a network here at the end."""
    lines = [f"{name:<21}  {family.kind:<9}  {family.title}" for name, family in FAMILIES.items()]
    lines += ["", "recognised, not supported yet:"]
    return "\n".join(lines + [f"{name:<21}  {title}" for name, (title, _) in UNSUPPORTED.items()])


def _options(plan: Plan) -> str:
    differing = {
        field.name: getattr(plan.cfg, field.name)
        for field in dataclasses.fields(plan.cfg)
        if getattr(plan.cfg, field.name) != field.default
    }
    return f"options: {type(plan.cfg).__name__}({', '.join(f'{name}={value!r}' for name, value in differing.items())})"


def _ignored(ignored: Mapping[str, str]) -> list[str]:
    return [f"left out: {count} tensors, {why}" for why, count in Counter(ignored.values()).items()]


# ------------------------------------------------------------------------------------------------ back again
def export(weights: str | os.PathLike, family: str) -> dict[str, np.ndarray]:
    """The tensors of a weights folder under the names and in the layout of `family`, float32.

    Raises: ValueError if the folder holds another kind of network, or one that the family's code cannot express.
    """
    try:
        about = named(family)
        loaded = load_weights(weights, about.kind)
        problems = export_problems(family, loaded.cfg)
    except Problem as problem:
        raise ConfigError(f"--to {family}: {problem}") from None
    if problems:
        raise ValueError(f"{loaded.path}: cannot be written as {family}: it {'; it '.join(problems)}")
    return export_arrays(about.table(loaded.cfg), flatten(loaded.params))


def export_file(weights: str | os.PathLike, out: str | os.PathLike, family: str) -> pathlib.Path:
    """Writes `export` as a .safetensors file, or as the .pt that the original code loads (needs torch); families of flax
    files as .msgpack, which their original code loads. Returns its path.

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
