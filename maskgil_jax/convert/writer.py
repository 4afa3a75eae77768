"""Writes a planned conversion as a weights folder, tensor by tensor: memory in use is a few times the largest
tensor."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from maskgil_jax.checkpoints.shards import write_tensors
from maskgil_jax.checkpoints.weights import FORMAT, read_metadata, replace_folder, require_free_space
from maskgil_jax.config import ConfigError, require, to_dict
from maskgil_jax.networks import abstract_params, family_of, flatten

from .engine import sources
from .planner import Plan
from .readers.checkpoint import BadWeightFile, Checkpoint, check_finite

_RELEASE_EVERY = 256 << 20  # bytes read before the mapped pages are freed


def source_hash_of(out: pathlib.Path) -> str | None:
    """Hash of the file that `out` was converted from; None if there is no `out`.

    Raises: ConfigError if it is anything else.
    """
    if not os.path.lexists(out):
        return None
    try:
        return str(read_metadata(out)["source"]["sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        raise ConfigError(f"{out}: exists and is no earlier conversion; remove it or choose another folder") from None


def write(
    checkpoint: Checkpoint,
    plan: Plan,
    out: pathlib.Path,
    dtype: str,
    shard_bytes: int,
    compared_with: list[str],
    beside: Sequence[pathlib.Path] = (),
    *,
    metadata: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Writes the weights folder `out`, with copies of the files `beside`.

    metadata, origin: further entries of `config.json`, and of `source` in it.

    Raises: BadWeightFile with all problems of the values. ConfigError if `out` exists and was not converted from this
    file, or does not fit on its disk. Nothing is left behind in either case.
    """
    earlier = source_hash_of(out)
    require_free_space(out, plan.parameters * np.dtype(dtype).itemsize)
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
        "compared_with": compared_with,
    }
    if stripped := [*checkpoint.wrappers, *([plan.prefix] if plan.prefix else [])]:
        source["stripped_from_names"] = stripped
    source |= origin or {}
    about: dict[str, Any] = {"format": FORMAT, "family": family_of(plan.cfg), "options": to_dict(plan.cfg), "source": source}
    if plan.decode:
        about["decode"] = plan.decode
    about |= metadata or {}
    shapes = {path: tuple(leaf.shape) for path, leaf in sorted(flatten(abstract_params(plan.cfg)).items())}
    with replace_folder(out) as folder:
        write_tensors(folder, shapes, dtype, _pieces(checkpoint, plan, shapes, dtype), shard_bytes)
        for file in beside:
            shutil.copyfile(file, folder / file.name)
        (folder / "config.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def _pieces(checkpoint: Checkpoint, plan: Plan, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Iterator[np.ndarray]:
    """Our arrays in the order of `shapes`, layer by layer. Raises: BadWeightFile, at the end, with all problems."""
    problems = _wrong_repeats(checkpoint, plan)
    tensors_of, since = sources(plan.needed), 0
    total = sum(checkpoint.entries[name].nbytes for name in plan.needed)
    with tqdm(total=total, unit="B", unit_scale=True, desc="convert", disable=None, leave=False) as bar:
        for path in shapes:
            for tensor, part in tensors_of[path]:
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
