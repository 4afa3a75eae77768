"""Parses the HLO text of a compiled program: trip counts, bytes moved by collectives, the compiler's cycle estimates.

XLA's summary figures are wrong for real programs (`flops` counts a loop body once, `optimal_seconds` is negative), so
the text is followed from its entry, and every loop body counted as often as it runs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8} | {
    f"{kind}{n}": max(n // 8, 1) for kind in "su" for n in (4, 8, 16, 32, 64)
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Operations that move no data: aliases of other values, or wrappers whose bodies are counted.
FREE = {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "opt-barrier",
}

_SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\](@?)")
_LAYOUT = re.compile(r"(?<=\])\{[^{}]*\}")  # of which only is kept, as @, that a value lies elsewhere than in main memory
_COMMENT = re.compile(r"/\*.*?\*/")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(r"(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_PART = re.compile(r"\b(attention|mlp|loss|update)\b")  # the named scopes of models/llama.py and training/generator.py
_COST = re.compile(r'"cost_estimate": ?\{"flops": ?"?(\d+)"?.*?"bytes_accessed": ?"?(\d+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `kind` is its operation, `type` its result's type as text, `operands` the names it reads.

    A part of the type that ends in @ lies outside the main memory: on the chip, or in the host's memory.
    """

    name: str
    kind: str
    type: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> int:
        return type_bytes(self.type)

    @property
    def results(self) -> list[tuple[str, str, str]]:
        """Parts of the type that are results: (kind, sizes, place).

        A started operation's names operands and handles too.
        """
        text = self.type
        if self.kind.endswith("-start") and text.startswith("(("):  # ((operands), results, handles)
            text = text[text.index(")") + 1 :]
        leaves = _SHAPE.findall(text)
        if self.kind == "copy-start":  # the copy, the original, a handle
            return leaves[:1]
        if self.kind in ("all-gather-start", "collective-permute-start") and text is self.type:  # operand, result, handles
            return leaves[1:2]
        return leaves

    @property
    def cycles(self) -> int:
        """The compiler's estimate, 0 where it gives none."""
        found = _CYCLES.search(self.attributes)
        return int(found[1]) if found else 0

    @property
    def part(self) -> str:
        """Which part of the program it belongs to and in which pass, by the scope names in its metadata:
        "mlp, backward"."""
        found = _SOURCE.search(self.attributes)
        origin = found[1] if found else ""
        part = _PART.search(origin)
        times = "again" if "rematted_computation" in origin else "backward" if "transpose(" in origin else "forward"
        name = part[1] if part else "elsewhere"
        return f"{name}, {times}" if name != "update" else name


def type_bytes(text: str) -> int:
    """Bytes of a type such as `f32[2,3]` or `(bf16[4], s32[])`, without padding."""
    return sum(_leaf_bytes(*leaf) for leaf in _SHAPE.findall(text))


def _leaf_bytes(kind: str, dims: str, _place: str) -> int:
    return BYTES.get(kind, 4) * math.prod(map(int, filter(None, dims.split(","))))


class Program:
    """A compiled program's text, parsed. Raises a `ValueError` if it has no entry."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        entry, current = "", None
        for line in text.splitlines():
            if current is None:
                if head := _HEAD.match(line):
                    current = self.computations.setdefault(head[2], {})
                    entry = head[2] if head[1] else entry
            elif line.startswith("}"):
                current = None
            elif (instruction := _parse(line)) is not None:
                current[instruction.name] = instruction
        if not entry:
            raise ValueError("HLO text: found no ENTRY computation")
        self.entry = entry

    def executed(self, computation: str | None = None, times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """Every executed instruction and how often: loop bodies times their trip counts,
        a fusion as one instruction."""
        for instruction in self.computations[computation or self.entry].values():
            yield instruction, times
            called = dict(_CALLED.findall(instruction.attributes))
            if instruction.kind == "while":
                yield from self.executed(called["body"], times * self.trips(instruction, called["condition"]))
            elif instruction.kind in ("call", "async-start") and (inner := called.get("to_apply") or called.get("calls")):
                yield from self.executed(inner, times)
            elif instruction.kind == "conditional":  # every branch counts: the longest cannot be known without times
                branches = _BRANCHES.search(instruction.attributes)
                names = branches[1].split(",") if branches else [called["true_computation"], called["false_computation"]]
                for name in names:
                    yield from self.executed(name.strip().lstrip("%"), times)

    def trips(self, loop: Instruction, condition: str) -> int:
        """Trip count of a loop: stated by the compiler, or the constant its counter is compared with; else 1."""
        if said := _TRIPS.search(loop.attributes):
            return int(said[1])
        inside = self.computations[condition]
        limits = [int(c.operands[0]) for c in inside.values() if c.kind == "constant" and c.type.startswith("s32[]")]
        return limits[0] if len(limits) == 1 else 1

    def collectives(self) -> dict[str, tuple[int, int]]:
        """{kind: (how many run, bytes of their results on one device)}."""
        count: Counter[str] = Counter()
        moved: Counter[str] = Counter()
        for instruction, times in self.executed():
            kind = instruction.kind.removesuffix("-start")
            if kind in COLLECTIVES:
                count[kind] += times
                moved[kind] += times * sum(_leaf_bytes(*leaf) for leaf in instruction.results)
        return {kind: (count[kind], moved[kind]) for kind in COLLECTIVES if count[kind]}

    def cycles(self) -> dict[str, int]:
        """The compiler's estimated cycles by kind of instruction, with matrix products told apart from other
        fusions."""
        total: Counter[str] = Counter()
        for instruction, times in self.executed():
            if instruction.cycles:
                total[self.sort_of(instruction)] += times * instruction.cycles
        return dict(total.most_common())

    def most_expensive(self) -> list[tuple[int, int, Instruction]]:
        """(estimated cycles of all its runs, runs, instruction), the most expensive first."""
        found = [(times * i.cycles, times, i) for i, times in self.executed() if i.cycles]
        return sorted(found, key=lambda entry: -entry[0])

    def kernels(self) -> dict[str, tuple[int, int, int]]:
        """{kernel: (runs, FLOPs, bytes) of all runs}, from their cost estimates:
        the compiler counts no cycles for them."""
        total: dict[str, tuple[int, int, int]] = {}
        for instruction, times in self.executed():
            if instruction.kind == "custom-call" and (said := _COST.search(instruction.attributes)):
                name = re.sub(r"\.\d+$", "", instruction.name)
                runs, flops, moved = total.get(name, (0, 0, 0))
                total[name] = (runs + times, flops + times * int(said[1]), moved + times * int(said[2]))
        return total

    def sort_of(self, instruction: Instruction) -> str:
        if instruction.kind != "fusion":
            return "matrix products" if instruction.kind in ("convolution", "dot") else instruction.kind
        inside = self.computations.get(dict(_CALLED.findall(instruction.attributes)).get("calls", ""), {})
        return "matrix products" if any(i.kind in ("convolution", "dot") for i in inside.values()) else "element-wise"

    def written_bytes(self) -> int:
        """Bytes that instructions write to main memory on one device.

        An update in place counts only what it changes.
        """
        return sum(
            times * self._written(instruction)
            for instruction, times in self.executed()
            if instruction.kind not in FREE and not instruction.kind.endswith("-done")
        )

    def _written(self, instruction: Instruction) -> int:
        if 'custom_call_target="AllocateBuffer"' in instruction.attributes:
            return 0
        leaves = instruction.results
        written = [_leaf_bytes(*leaf) for leaf in leaves]
        inside = self.computations.get(dict(_CALLED.findall(instruction.attributes)).get("calls", ""))
        if instruction.kind == "dynamic-update-slice":
            written = [self._update(instruction, None)]
        elif instruction.kind == "fusion" and inside:
            root = next(i for i in inside.values() if i.is_root)
            results = [inside[name] for name in root.operands if name in inside] if root.kind == "tuple" else [root]
            written = [self._update(r, inside) for r in results]
        if len(written) != len(leaves):  # a tuple in a tuple
            return sum(written)
        return sum(count for count, (_, _, place) in zip(written, leaves, strict=True) if not place)

    @staticmethod
    def _update(instruction: Instruction, inside: dict[str, Instruction] | None) -> int:
        if inside:
            while instruction.kind == "bitcast" and instruction.operands[0] in inside:
                instruction = inside[instruction.operands[0]]
            if instruction.kind == "dynamic-update-slice" and instruction.operands[1] in inside:
                return inside[instruction.operands[1]].bytes
        return instruction.bytes


def _parse(line: str) -> Instruction | None:
    head = _LINE.match(line)
    if head is None:
        return None
    rest = _LAYOUT.sub(lambda layout: "@" if "S(" in layout[0] else "", _COMMENT.sub("", line[head.end() :]))
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    result, rest = rest[:end], rest[end:].lstrip()
    opened = rest.find("(")
    if opened < 0:
        return None
    closed = opened + _closing(rest[opened:])
    operands = tuple(o.split()[-1].lstrip("%") for o in rest[opened + 1 : closed].split(",") if o.strip())
    return Instruction(head[2], rest[:opened], result, operands, rest[closed + 1 :], bool(head[1]))


def _closing(text: str) -> int:
    """Where the parenthesis that opens `text` closes."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place
    return len(text) - 1
