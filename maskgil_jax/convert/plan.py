"""Names and shapes of a file -> which family it is, the network's options, and where each parameter lies. Reads no array."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskgil_jax.networks import abstract_params, flatten

from .checkpoint import Problem, shown
from .families import Family, detect, named
from .rules import Foreign, Shape, check, foreign_tensors, inside, left_out, repeated
from .sizes import CLAIMS, Sizes, claims, contradictions, given_by


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one file becomes one network.

    name, family: what it is. cfg: the network's options. needed: foreign tensors by name. ignored: name -> why.
    repeats: ignored tensors that must equal something: an array, or another tensor of the file, by name.
    notes: what had to be assumed, one sentence each.
    """

    name: str
    family: Family
    cfg: Any
    needed: dict[str, Foreign]
    ignored: dict[str, str]
    repeats: dict[str, np.ndarray | str]
    notes: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Numbers in all tensors needed."""
        return sum(int(np.prod(tensor.shape, dtype=object)) for tensor in self.needed.values())


def make_plan(
    found: Mapping[str, tuple[Shape, np.dtype]],
    *,
    family: str | None = None,
    options: Mapping[str, Any] | None = None,
    extras: Mapping[str, Any] | None = None,
    beside: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Plan, list[str]]:
    """The plan for {name: (shape, dtype)}, and everything that keeps the file from being used (empty: it fits).

    family: None detects it. options: sizes that the file does not tell (`Family.settable`), or that settle what others say of
    it. extras: plain values inside the file; beside: options in other files, by file name. Both are taken where shapes say
    nothing and checked where they do.
    Raises: Problem if the family or its sizes cannot be told, ConfigError for a wrong option.
    """
    name = family or detect(found)
    about, options, claimed = named(name), options or {}, claims(extras or {}, beside or {})
    prefix = about.inside if about.inside and any(key.startswith(about.inside) for key in found) else ""
    shapes = {key.removeprefix(prefix): tuple(shape) for key, (shape, _) in found.items() if key.startswith(prefix)}
    told = [field.name for field in dataclasses.fields(about.options) if field.name in CLAIMS.values()]
    given = given_by(options, about.settable, claimed, told)
    sizes = Sizes(shapes, given)
    try:
        cfg = about.config(sizes)
    except Problem as problem:
        raise Problem(f"as {name}: {problem}") from None
    try:
        leaves = {path: tuple(leaf.shape) for path, leaf in flatten(abstract_params(cfg)).items()}
    except (TypeError, ValueError) as error:  # sizes that make no network, such as 7 channels in 2 groups
        raise Problem(f"its sizes make no {name} network ({shown(str(error), 200)})") from None
    if empty := [path for path, shape in leaves.items() if min(shape) < 1]:
        raise Problem(f"its sizes make no {name} network ({empty[0]} would be empty)")
    table = inside(about.table(cfg), prefix) if prefix else about.table(cfg)
    needed = foreign_tensors(table, leaves)
    problems = contradictions(cfg, claimed, options) + check(table, needed, found, shown)
    others = [key for key in found if key not in needed]
    return Plan(name, about, cfg, needed, left_out(table, others), repeated(table, others), tuple(sizes.notes)), problems


def export_problems(name: str, cfg: Any) -> list[str]:
    """Why a network of these options cannot be written as family `name` (empty: it can)."""
    family = named(name)
    if not isinstance(cfg, family.options):
        return [f"is a network of {type(cfg).__name__}, {name} has {family.options.__name__}"]
    pairs = ((option, value, getattr(cfg, option)) for option, value in family.fixed.items())
    return [f"has {option} = {ours!r}, {name} always has {value!r}" for option, value, ours in pairs if ours != value]
