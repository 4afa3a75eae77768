"""The conversion engine: a table of (our path <-> foreign name, layout), strict in both directions and used in both.

Every leaf of the network has a first matching rule, which names the foreign tensor that holds it. The table and the
network's shapes together therefore determine which tensors a file must hold, and of which shape.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of a foreign array.

    axes: its axes in our order (None: the same). leading: it has an extra first axis of 1. split: (axis, parts); this
    axis of ours is two axes there, of length `parts` (attention heads) and the rest. halves: along our last axis, every
    so many entries (a head) are two halves there, of which entry j of both is a rotary pair; here pairs are neighbours.
    """

    axes: tuple[int, ...] | None = None
    leading: bool = False
    split: tuple[int, int] | None = None
    halves: int = 0

    def ours(self, array: np.ndarray) -> np.ndarray:
        """Foreign -> ours, as a view unless entries move."""
        if self.split:
            axis = self.split[0]
            return array.reshape(*array.shape[:axis], math.prod(array.shape[axis : axis + 2]), *array.shape[axis + 2 :])
        array = array[0] if self.leading else array
        array = array if self.axes is None else array.transpose(self.axes)
        return _swapped(array, (2, self.halves // 2)) if self.halves else array

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """Ours -> foreign, as a view unless entries move."""
        if self.split:
            return array.reshape(self.their_shape(array.shape))
        array = _swapped(array, (self.halves // 2, 2)) if self.halves else array
        array = array if self.axes is None else array.transpose(np.argsort(self.axes))
        return array[None] if self.leading else array

    def their_shape(self, shape: Shape) -> Shape:
        """Foreign shape of an array whose shape here is `shape`."""
        if self.split:
            axis, parts = self.split
            return (*shape[:axis], parts, shape[axis] // parts, *shape[axis + 1 :])
        shape = shape if self.axes is None else tuple(shape[i] for i in np.argsort(self.axes))
        return (1, *shape) if self.leading else shape


def _swapped(array: np.ndarray, parts: tuple[int, int]) -> np.ndarray:
    """The last axis as blocks of `parts` entries, with the two axes of every block swapped."""
    return array.reshape(*array.shape[:-1], -1, *parts).swapaxes(-1, -2).reshape(array.shape)


SAME = Layout()
LINEAR = Layout((1, 0))  # (out, in) -> (in, out)
CONV = Layout((2, 3, 1, 0))  # (out, in, h, w) -> (h, w, in, out)
BATCH_OF_ONE = Layout(leading=True)


@dataclasses.dataclass(frozen=True)
class Rule:
    """The foreign tensor that holds one or several of our leaves.

    paths: our path; several if the foreign tensor is their concatenation along its first axis. In paths and name, `{i}`
    is a number, and `{side:encoder|decoder}` what this expression matches. `{layer}`, only in `name`, is the index
    along the first axis of our leaf, where layers are stacked. zero_rows: last rows of our leaf that the foreign one
    lacks; zeros.
    """

    paths: tuple[str, ...]
    name: str
    layout: Layout = SAME
    zero_rows: int = 0


@dataclasses.dataclass(frozen=True)
class Ignored:
    """Foreign tensors that inference does not need. name: regular expression of the whole name. why:
    the reason, printed.

    written: what the original code needs under this name, written on export: an array, or the name of the tensor that
    it repeats. exact: a file that holds anything else there is refused, since the network would differ.
    """

    name: str
    why: str
    written: np.ndarray | str | None = None
    exact: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """The rules of one family, of which the first match counts, and the tensors that are left out."""

    rules: tuple[Rule, ...]
    ignored: tuple[Ignored, ...] = ()


def rule(path: str, name: str, layout: Layout = SAME) -> Rule:
    """A rule for one leaf."""
    return Rule((path,), name, layout)


def under_prefix(table: Table, prefix: str) -> Table:
    """The table of a file whose names of this network begin with `prefix`; tensors under other names are left out."""
    rules = tuple(dataclasses.replace(rule, name=prefix + rule.name) for rule in table.rules)
    escaped = re.escape(prefix)
    ignored = tuple(
        dataclasses.replace(i, name=escaped + i.name, written=prefix + i.written if isinstance(i.written, str) else i.written)
        for i in table.ignored
    )
    return Table(rules, (*ignored, Ignored(rf"(?!{escaped}).*", f"not under {prefix}")))


def linear(path: str, name: str, bias: bool = True) -> tuple[Rule, ...]:
    """`torch.nn.Linear`: weight and bias."""
    both = (rule(f"{path}/kernel", f"{name}.weight", LINEAR), rule(f"{path}/bias", f"{name}.bias"))
    return both if bias else both[:1]


def conv(path: str, name: str) -> tuple[Rule, ...]:
    """`torch.nn.Conv2d`: weight and bias."""
    return rule(f"{path}/kernel", f"{name}.weight", CONV), rule(f"{path}/bias", f"{name}.bias")


def norm(path: str, name: str) -> tuple[Rule, ...]:
    """GroupNorm or LayerNorm: weight and bias."""
    return rule(f"{path}/scale", f"{name}.weight"), rule(f"{path}/bias", f"{name}.bias")


# ------------------------------------------------------------------------------------------------ matching
@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """The regular expression of a template: literal text, numbers without leading zeros, alternatives."""
    pieces = re.split(r"\{(\w+)(?::([^}]*))?\}", template)
    text = re.escape(pieces[0])
    for name, words, literal in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        text += f"(?P<{name}>{words or '0|[1-9][0-9]*'})" + re.escape(literal)
    return re.compile(text)


def _fill(template: str, values: Mapping[str, str | int]) -> str:
    return re.sub(r"\{(\w+)(?::[^}]*)?\}", lambda match: str(values[match[1]]), template)


@dataclasses.dataclass(frozen=True)
class Part:
    """One of our leaves, or one layer of it, inside a foreign tensor: rows `start` to `stop` of its first axis."""

    path: str
    layer: int | None
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Foreign:
    """One tensor that a file of this family must hold."""

    name: str
    shape: Shape
    rule: Rule
    parts: tuple[Part, ...]

    def ours(self, part: Part, array: np.ndarray) -> np.ndarray:
        """The part in our layout, a slice of the foreign array."""
        rows = array[part.start : part.stop] if len(self.parts) > 1 else array
        rows = self.rule.layout.ours(rows)
        if not self.rule.zero_rows:
            return rows
        return np.concatenate([rows, np.zeros((self.rule.zero_rows, *rows.shape[1:]), rows.dtype)])

    def theirs(self, leaf: Callable[[str], np.ndarray]) -> np.ndarray:
        """The foreign array, concatenated from our leaves; `zero_rows` are dropped."""
        arrays = []
        for part in self.parts:
            array = leaf(part.path) if part.layer is None else leaf(part.path)[part.layer]
            arrays.append(self.rule.layout.theirs(array[: len(array) - self.rule.zero_rows]))
        return np.ascontiguousarray(np.concatenate(arrays) if len(arrays) > 1 else arrays[0])


def foreign_tensors(table: Table, expected: Mapping[str, Shape]) -> dict[str, Foreign]:
    """{foreign name: tensor} for a network of these leaves ({path: shape}).

    Every leaf is part of exactly one tensor or stack.

    Raises: LookupError if the table does not fit the network: a leaf has no rule, or the leaves of a rule differ in
    shape.
    """
    found: dict[str, tuple[Rule, dict[int, tuple[str, int | None, Shape]]]] = {}
    for path, shape in expected.items():
        rule, index, values = _rule_for(table, path)
        layers = range(shape[0]) if "{layer}" in rule.name else (None,)
        shape = shape if layers == (None,) else shape[1:]
        shape = (shape[0] - rule.zero_rows, *shape[1:]) if rule.zero_rows else shape
        for layer in layers:
            name = _fill(rule.name, values if layer is None else {**values, "layer": layer})
            same, parts = found.setdefault(name, (rule, {}))
            if same is not rule or index in parts:
                raise LookupError(f"{name} would hold {path} twice")
            parts[index] = (path, layer, shape)
    return {name: _assemble(name, rule, parts) for name, (rule, parts) in found.items()}


def _rule_for(table: Table, path: str) -> tuple[Rule, int, dict[str, str]]:
    for rule in table.rules:
        for index, template in enumerate(rule.paths):
            if match := _pattern(template).fullmatch(path):
                return rule, index, match.groupdict()
    raise LookupError(f"no rule for {path}")


def _assemble(name: str, rule: Rule, found: dict[int, tuple[str, int | None, Shape]]) -> Foreign:
    if set(found) != set(range(len(rule.paths))):
        raise LookupError(f"{name} holds {', '.join(rule.paths)}, of which only some exist")
    parts, rest, start = [], set(), 0
    for index in range(len(rule.paths)):
        path, layer, shape = found[index]
        theirs = rule.layout.their_shape(shape)
        parts.append(Part(path, layer, start, start + theirs[0]))
        rest.add(theirs[1:])
        start += theirs[0]
    if len(rest) > 1:
        raise LookupError(f"{name} holds {', '.join(rule.paths)}, whose rows differ in shape")
    return Foreign(name, (start, *rest.pop()), rule, tuple(parts))


# ------------------------------------------------------------------------------------------------ checking a file
def left_out(table: Table, names: Iterable[str]) -> dict[str, str]:
    """{name: why} for the names that the table ignores."""
    return {name: ignored.why for name, ignored in _ignored(table, names).items()}


def repeated(table: Table, names: Iterable[str]) -> dict[str, np.ndarray | str]:
    """{name: what it must hold} for the names whose `Ignored` is exact: an array,
    or the name of a tensor of the file."""
    return {name: i.written for name, i in _ignored(table, names).items() if i.exact and i.written is not None}


def _ignored(table: Table, names: Iterable[str]) -> dict[str, Ignored]:
    matches = ((name, next((i for i in table.ignored if re.fullmatch(i.name, name)), None)) for name in names)
    return {name: ignored for name, ignored in matches if ignored is not None}


def check(
    table: Table,
    needed: Mapping[str, Foreign],
    found: Mapping[str, tuple[Shape, np.dtype]],
    sanitize: Callable[[Any], str] = str,
) -> list[str]:
    """Every difference between the tensors needed and those found, one sentence each that names the tensor.

    sanitize: makes a name from a file printable.
    """
    problems = [f"{name}: missing; this family needs it, of shape {needed[name].shape}" for name in needed if name not in found]
    ignored = left_out(table, [name for name in found if name not in needed])
    for name, (shape, dtype) in found.items():
        if name in ignored:
            continue
        if name not in needed:
            problems.append(f"{sanitize(name)}: unknown, no network of this family and size has it (shape {shape})")
        elif tuple(shape) != needed[name].shape:
            problems.append(f"{name}: has shape {tuple(shape)}, expected {needed[name].shape}")
        elif not np.issubdtype(dtype, np.floating) and dtype.name != "bfloat16":
            problems.append(f"{name}: has type {dtype}, expected floating point")
    return problems


def sources(needed: Mapping[str, Foreign]) -> dict[str, list[tuple[Foreign, Part]]]:
    """{our path: the tensors it is read from}, one entry, or one per layer in order."""
    result: dict[str, list[tuple[Foreign, Part]]] = {}
    for tensor in needed.values():
        for part in tensor.parts:
            result.setdefault(part.path, []).append((tensor, part))
    return {path: sorted(parts, key=lambda found: found[1].layer or 0) for path, parts in result.items()}


def import_arrays(needed: Mapping[str, Foreign], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Foreign arrays, already checked against `needed`, as our leaves ({path: array}). Holds everything in memory."""
    result = {}
    for path, found in sources(needed).items():
        parts = [tensor.ours(part, arrays[tensor.name]) for tensor, part in found]
        result[path] = parts[0] if found[0][1].layer is None else np.stack(parts)
    return result


def export_arrays(table: Table, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our leaves ({path: array}) under foreign names and in foreign layout, with the additions of `Ignored.written`.

    Raises: LookupError as `foreign_tensors`.
    """
    needed = foreign_tensors(table, {path: tuple(leaf.shape) for path, leaf in params.items()})
    result = {name: tensor.theirs(params.__getitem__) for name, tensor in needed.items()}
    written = {i.name.replace("\\", ""): i.written for i in table.ignored if i.written is not None}
    return result | {name: result[what].copy() if isinstance(what, str) else what for name, what in written.items()}
