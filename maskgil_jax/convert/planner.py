"""Plans a conversion from names and shapes: the network's options, and the tensors of each parameter.

Reads no array.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import numpy as np

from maskgil_jax.config import ConfigError, choose, require
from maskgil_jax.networks import abstract_params, flatten

from .diffusers_options import DIFFUSERS_NAMES, diffusers_options
from .engine import Foreign, Shape, check, foreign_tensors, left_out, repeated, under_prefix
from .families import Family, identify, named
from .readers.checkpoint import Problem, sanitize
from .readers.vocabulary import CHAMELEON_NAMES, chameleon_options, is_chameleon
from .sizes import Sizes

# What trainers call our options.
OPTION_NAMES = {
    "codebook_size": "codebook_size",
    "n_embed": "codebook_size",
    "vocab_size": "codebook_size",
    "codebook_embed_dim": "codebook_dim",
    "embed_dim": "codebook_dim",
    "z_channels": "latent_dim",
    "ch": "channels",
    "ch_mult": "multipliers",
    "encoder_ch_mult": "multipliers",
    "num_res_blocks": "res_blocks",
    "resolution": "image_size",
    "num_classes": "num_classes",
    "nclass": "num_classes",
    "n_layer": "depth",
    "depth": "depth",
    "n_head": "heads",
    "heads": "heads",
    "dim": "width",
    "hidden_dim": "width",
    "mlp_dim": "mlp_width",
    **DIFFUSERS_NAMES,
    **CHAMELEON_NAMES,
}
_SECTIONS = ("args", "hparams", "hyper_parameters", "config", "model", "params", "init_args", "ddconfig")
_DEEPEST = 6
_INSIDE = "its options say"  # who states an option, if the weight file does


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one file becomes one network.

    name, family: what it is. cfg: the network's options. prefix: stripped from the names, "" if none is. needed:
    foreign tensors by name. ignored: name -> why. repeats: ignored tensors that must equal something: an array, or
    another tensor of the file, by name. notes: assumptions, one sentence each. decode: decoding options to store with
    the weights.
    """

    name: str
    family: Family
    cfg: Any
    prefix: str
    needed: dict[str, Foreign]
    ignored: dict[str, str]
    repeats: dict[str, np.ndarray | str]
    notes: tuple[str, ...]
    decode: dict[str, Any]

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
    sidecars: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Plan, list[str]]:
    """The plan for {name: (shape, dtype)}, and everything that prevents the conversion (empty: the file fits).

    family: None identifies it. options: what the user states; it overrides what others state, never a tensor. extras:
    plain values inside the file. sidecars: configurations in other files, by file name. What these two state is used
    where no tensor states it, and compared where one does.
    Raises: Problem if the family or its sizes cannot be determined, ConfigError for a wrong option.
    """
    name, about, prefix = identify(found, family)
    options, stated = options or {}, stated_options(extras or {}, sidecars or {})
    shapes = {key.removeprefix(prefix): tuple(shape) for key, (shape, _) in found.items() if key.startswith(prefix)}
    sizes = Sizes(shapes, resolve_options(options, about, stated))
    try:
        computed = about.sizes(sizes)
        cfg = about.config(computed, sizes.given)
    except Problem as problem:
        raise Problem(f"as {name}: {problem}") from None
    if unused := [option for option in options if option not in computed and option not in about.fixed]:
        raise ConfigError(f"--set {unused[0]}: networks of the family {name} do not have this option")
    try:
        leaves = {path: tuple(leaf.shape) for path, leaf in flatten(abstract_params(cfg)).items()}
    except (TypeError, ValueError) as error:  # impossible sizes, such as 7 channels in 2 groups
        raise Problem(f"its sizes make no {name} network ({sanitize(str(error), 200)})") from None
    if empty := [path for path, shape in leaves.items() if min(shape) < 1]:
        raise Problem(f"its sizes make no {name} network ({empty[0]} would be empty)")
    table = under_prefix(about.table(cfg), prefix) if prefix else about.table(cfg)
    needed = foreign_tensors(table, leaves)
    derived = {option for option in OPTION_NAMES.values() if isinstance(getattr(type(cfg), option, None), property)}
    in_tensors = (computed.keys() | derived) - sizes.unstated
    sizes_stated = {option: value for option, value in options.items() if option not in about.fixed}
    problems = contradictions(cfg, stated, sizes_stated, in_tensors) + check(table, needed, found, sanitize)
    others = [key for key in found if key not in needed]
    decode = dict(about.decode) | ({} if getattr(cfg, "null_class", True) else {"guidance": 1.0})
    notes = tuple(sizes.notes)
    return Plan(name, about, cfg, prefix, needed, left_out(table, others), repeated(table, others), notes, decode), problems


def export_problems(name: str, cfg: Any) -> list[str]:
    """Why a network of these options cannot be written as family `name` (empty: it can)."""
    family = named(name)
    if not isinstance(cfg, family.options):
        return [f"is a network of {type(cfg).__name__}, {name} has {family.options.__name__}"]
    pairs = ((option, value, getattr(cfg, option)) for option, value in family.fixed.items())
    return [f"has {option} = {ours!r}, {name} always has {value!r}" for option, value, ours in pairs if ours != value]


# --------------------------------------------------------------------------------------------- options stated elsewhere
def stated_options(extras: Mapping[str, Any], sidecars: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{who states it: {their option: value}}, of options inside the file and of those in its sidecar files."""
    inside = {name: extras[name] for name in _SECTIONS if name in extras}
    return {_INSIDE: _stated(inside), **{f"{name} says": _stated(tree) for name, tree in sidecars.items()}}


def _stated(tree: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """The options among the names of `tree` and of the sections that hold a network's own; the outermost wins."""
    if (found_here := diffusers_options(tree)) is not None:
        return found_here
    if is_chameleon(tree):
        return chameleon_options(tree)
    found: dict[str, Any] = {}
    for name in _SECTIONS if depth < _DEEPEST else ():
        if isinstance(inner := tree.get(name), Mapping):
            found = _stated(inner, depth + 1) | found
    names = (*OPTION_NAMES, "image_size", "downsample_size")
    return found | {name: tree[name] for name in names if name in tree}


def resolve_options(options: Mapping[str, Any], family: Family, stated: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The options that no tensor states, as the user (`options`, who overrides) or a configuration (`stated`)
    states them.

    The user may also state options that tensors state, which settles a contradiction between these and a configuration,
    and the options that all networks of the family share. Raises: ConfigError for an unknown option or one of a wrong
    type.
    """
    given: dict[str, Any] = {}
    for said in stated.values():
        for theirs, ours in (*OPTION_NAMES.items(), ("image_size", "image_size")):
            value = said.get(theirs)
            whole = _whole(value) or (ours == "image_ids" and isinstance(value, tuple))
            used = whole and (ours in family.settable or theirs == "image_size")
            if used or (ours in family.fixed and type(value) is type(family.fixed[ours])):
                given.setdefault(ours, value)
        if "image_size" in said and _whole(factor := said.get("downsample_size")) and _whole(side := said["image_size"]):
            given.setdefault("grid", (side // factor,) * 2)
    in_tensors = [field.name for field in dataclasses.fields(family.options) if field.name in OPTION_NAMES.values()]
    fixed = {name: value for name, value in family.fixed.items() if type(value) in (bool, int, float, str)}
    for name, value in options.items():
        choose("--set", name, dict.fromkeys((*family.settable, *in_tensors, *fixed)))
        given[name] = _same_type(name, value, fixed[name]) if name in fixed else _whole_numbers(name, value)
    return given


def _whole_numbers(name: str, value: Any) -> Any:
    """A whole number; for `grid` two of them, for `multipliers` a tuple. Raises: ConfigError."""
    several = name in ("grid", "multipliers", "image_ids")
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * (2 if name == "grid" else 1)
    good = all(map(_whole, values)) and (len(values) == 2 if name == "grid" else several or value == values[0])
    expected = "one or two whole numbers" if name == "grid" else "whole numbers" if several else "a whole number"
    require(not isinstance(value, str), f"--set {name}: expected NAME=N with {expected}, got {value!r}")
    require(good, f"--set {name}: expected {expected}, got {value!r}")
    return values if several else value


def _same_type(name: str, value: Any, usual: Any) -> Any:
    """A value for an option whose usual value is `usual`, of the same type. Raises: ConfigError."""
    value = float(value) if isinstance(usual, float) and type(value) is int else value
    require(type(value) is type(usual), f"--set {name}: expected {type(usual).__name__} as in {usual!r}, got {value!r}")
    return value


def contradictions(
    cfg: Any, stated: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any], in_tensors: Iterable[str]
) -> list[str]:
    """Every size that configurations or the user state otherwise than the tensors do, one sentence each.

    in_tensors: the options that tensors state; no other is compared. What the user states is not compared again with
    configurations.
    """
    problems, in_tensors = [], set(in_tensors)
    for name, value in options.items():
        ours = getattr(cfg, name, value)
        if _comparable(value) != _comparable(ours) and name != "grid":
            problems.append(f"--set {name}={_text(value)}, but the file has {_text(ours)}")
    for who, said in stated.items():
        for theirs, name in OPTION_NAMES.items():
            claim, ours = _comparable(said.get(theirs)), _comparable(getattr(cfg, name, None))
            if name in options or name not in in_tensors or claim is None or claim == ours:
                continue
            made = "its tensors make it" if who == _INSIDE else "the file has"
            hint = "" if who == _INSIDE else f" (--set {name}={_text(ours)} if the file is right)"
            problems.append(f"{who} {sanitize(theirs)} = {_text(claim)}, {made} {_text(ours)}{hint}")
    return problems


def _comparable(value: Any) -> Any:
    """A whole number, or a tuple of them; None for everything else, which is not compared."""
    if isinstance(value, list | tuple):
        return tuple(value) if value and all(map(_whole, value)) else None
    return value if _whole(value) else None


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _whole(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 1 << 24
