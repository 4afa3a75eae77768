"""Reads the pickles inside PyTorch files without Python's pickle module: nothing is ever imported, built or called.

A pickle is a program for a small stack machine. The instructions that `torch.save` writes are interpreted here; a name
such as `os.system` becomes an inert `Global`, and what would be an object becomes an `Opaque` that only remembers its
class and its state. Work and memory are bounded by the number of instructions, of which a checkpoint needs about 35 per
tensor.
Source: the opcode list in the documentation of Python's `pickletools`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from .checkpoint import Problem, sanitize

MAX_BYTES = 64 << 20  # of one pickle; real ones are below 2 MB
MAX_INSTRUCTIONS = 1_000_000  # about 28 000 tensors
MAX_MARKS = 256  # open brackets; real ones have fewer than ten
MAX_TEXT = 1 << 20  # bytes of one string that is decoded
MAX_ALL_TEXT = 16 << 20  # bytes of all strings together
MAX_NAME = 256  # bytes of a module or class name

_RECONSTRUCTORS = ("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__")


class Global:
    """A dotted name in the file, such as "torch.FloatStorage" or "os.system". Never imported."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class Opaque:
    """Something that is not built: `what` names it, `state` holds the plain values it would have been given, if any."""

    __slots__ = ("what", "state")

    def __init__(self, what: str, state: dict | None = None):
        self.what = what
        self.state = state


def interpret(
    data: memoryview,
    calls: dict[str, Callable[[tuple], Any]],
    persistent_load: Callable[[Any], Any],
    start: int = 0,
) -> tuple[Any, int]:
    """Interprets the pickle that begins at byte `start` of `data`.

    calls: dotted name -> our own function of the argument tuple, for the few names that are understood; calling any
    other name gives an `Opaque`. persistent_load: called with each persistent id (a storage, in PyTorch files).
    Returns the value and the position behind the pickle. Raises: Problem if it is broken, too large or not torch's.
    """
    return _Machine(data, calls, persistent_load, start).run()


class _Machine:
    def __init__(self, data: memoryview, calls, persistent_load, start: int):
        self.data = data
        self.end = min(len(data), start + MAX_BYTES)
        self.position = start
        self.calls = calls
        self.persistent_load = persistent_load
        self.stack: list = []
        self.outer: list[list] = []  # the stacks below each open mark
        self.memo: dict[int, Any] = {}
        self.globals: dict[str, Global] = {}
        self.instructions = 0
        self.text = 0

    def run(self) -> tuple[Any, int]:
        data, end = self.data, self.end
        while self.position < end:
            self.instructions += 1
            if self.instructions > MAX_INSTRUCTIONS:
                raise Problem(f"its pickle has more than {MAX_INSTRUCTIONS} instructions; no checkpoint needs that many")
            opcode = data[self.position]
            self.position += 1
            if opcode == 0x2E:  # STOP
                return self.pop(), self.position
            handler = _HANDLERS.get(opcode)
            if handler is None:
                raise Problem(
                    f"pickle instruction {bytes([opcode])!r} at byte {self.position - 1} is not one torch.save writes"
                )
            handler(self)
        raise Problem("its pickle ends too early" if end == len(data) else f"its pickle is larger than {MAX_BYTES >> 20} MB")

    # ------------------------------------------------------------------------------------------------ input and stack
    def take(self, size: int) -> memoryview:
        start = self.position
        if size > self.end - start:
            raise Problem("its pickle ends too early")
        self.position = start + size
        return self.data[start : start + size]

    def number(self, layout: str, size: int) -> Any:
        return struct.unpack(layout, self.take(size))[0]

    def line(self) -> str:
        window = bytes(self.data[self.position : min(self.end, self.position + MAX_NAME)])
        length = window.find(b"\n")
        if length < 0:
            raise Problem("a name in its pickle is too long or cut off")
        self.position += length + 1
        return window[:length].decode("utf-8", "replace")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise Problem("its pickle takes a value where there is none")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise Problem("its pickle takes a value where there is none")
        return self.stack[-1]

    def mark(self) -> None:
        if len(self.outer) >= MAX_MARKS:
            raise Problem(f"its pickle is nested more than {MAX_MARKS} deep")
        self.outer.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list:
        if not self.outer:
            raise Problem("its pickle closes a bracket that was not opened")
        items, self.stack = self.stack, self.outer.pop()
        return items

    def pop_tuple(self, size: int) -> None:
        items = tuple(reversed([self.pop() for _ in range(size)]))
        self.push(items)

    # ------------------------------------------------------------------------------------------------ values
    def string(self, size: int) -> None:
        raw = self.take(size)
        if size > MAX_TEXT:
            self.push(Opaque(f"text of {size} bytes"))
            return
        self.text += size
        if self.text > MAX_ALL_TEXT:
            raise Problem(f"its pickle holds more than {MAX_ALL_TEXT >> 20} MB of text")
        self.push(str(raw, "utf-8", "replace"))

    def whole_number(self, size: int) -> None:
        if not 0 <= size <= 255:
            raise Problem(f"its pickle holds a whole number of {size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def put(self, index: int) -> None:
        if index > MAX_INSTRUCTIONS:
            raise Problem(f"its pickle numbers a value {index}; that many values cannot be in it")
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise Problem(f"its pickle refers to value {index}, which does not exist")
        self.push(self.memo[index])

    def named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > 2 * MAX_NAME:
            raise Problem("its pickle names a class by something that is not a name")
        dotted = f"{module}.{name}"
        self.push(self.globals.setdefault(dotted, Global(dotted)))

    def stack_global(self) -> None:
        name = self.pop()
        self.named(self.pop(), name)

    # ------------------------------------------------------------------------------------------------ containers
    def set_items(self, items: list) -> None:
        target = self.top()
        if len(items) % 2:
            raise Problem("its pickle gives a dict a key without a value")
        if isinstance(target, Opaque):
            target.state = {} if target.state is None else target.state
            target = target.state
        if type(target) is not dict:
            raise Problem(f"its pickle sets items of {describe(target)}")
        target.update((usable_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def new_dict(self) -> None:
        items = self.pop_mark()
        self.push({})
        self.set_items(items)

    def set_item(self) -> None:
        value = self.pop()
        self.set_items([self.pop(), value])

    def append(self, items: list) -> None:
        target = self.top()
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise Problem(f"its pickle appends to {describe(target)}")

    # ---------------------------------------------------------------------------------------------- what would be calls
    def reduce(self) -> None:
        arguments = self.pop()
        self.push(self.call(self.pop(), arguments))

    def new_object_with_keywords(self) -> None:
        self.pop()
        self.reduce()

    def call(self, function: Any, arguments: Any) -> Any:
        if type(arguments) is not tuple:
            raise Problem(f"its pickle calls something with {describe(arguments)} for arguments")
        if not isinstance(function, Global):
            return Opaque(f"result of calling {describe(function)}")
        if function.name in _RECONSTRUCTORS and arguments and isinstance(arguments[0], Global):
            return Opaque(arguments[0].name)
        if function.name in ("collections.OrderedDict", "builtins.dict", "__builtin__.dict", "collections.defaultdict"):
            return self.dict_of(arguments)
        if function.name in ("builtins.set", "__builtin__.set", "builtins.frozenset", "__builtin__.frozenset", "torch.Size"):
            return arguments[0] if len(arguments) == 1 and type(arguments[0]) in (list, tuple) else ()
        rule = self.calls.get(function.name)
        return rule(arguments) if rule else Opaque(function.name)

    def dict_of(self, arguments: tuple) -> dict:
        pairs = arguments[0] if arguments and type(arguments[0]) in (list, tuple) else ()
        self.instructions += 3 * len(pairs)  # one instruction may copy a long list: count what it costs
        if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
            raise Problem("its pickle makes a dict of something that is not pairs")
        return {usable_key(key): value for key, value in pairs}

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, Opaque):
            # An object with __slots__ has a pair of dicts for its state. Attributes of dicts (_metadata) are of no use
            # here.
            parts = state if type(state) is tuple else (state,)
            found = next((part for part in parts if type(part) is dict), None)
            if found is not None:
                target.state = found


def usable_key(key: Any) -> Any:
    """A dict key that is cheap and safe to hash.

    Long numbers and tuples could be chosen to make hashing take forever.
    """
    if type(key) is str or key is None or type(key) is bool or (type(key) is int and abs(key) < 1 << 31):
        return key
    return Opaque(describe(key))  # hashed by identity, so it never meets another


def describe(value: Any) -> str:
    """What a value read from a file is, in a few words."""
    if isinstance(value, Opaque):
        return sanitize(value.what)
    if isinstance(value, Global):
        return sanitize(value.name)
    if isinstance(value, memoryview):
        return f"byte string of {len(value)} bytes"
    if type(value) in (dict, list, tuple):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


_HANDLERS: dict[int, Callable[[_Machine], Any]] = {
    ord("("): _Machine.mark,
    ord("0"): _Machine.pop,
    ord("1"): _Machine.pop_mark,
    ord("2"): lambda m: m.push(m.top()),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.number("<B", 1)),
    ord("M"): lambda m: m.push(m.number("<H", 2)),
    ord("J"): lambda m: m.push(m.number("<i", 4)),
    ord("G"): lambda m: m.push(m.number(">d", 8)),
    0x8A: lambda m: m.whole_number(m.number("<B", 1)),
    0x8B: lambda m: m.whole_number(m.number("<i", 4)),
    ord("U"): lambda m: m.string(m.number("<B", 1)),
    ord("T"): lambda m: m.string(m.number("<I", 4)),
    ord("X"): lambda m: m.string(m.number("<I", 4)),
    0x8C: lambda m: m.string(m.number("<B", 1)),
    0x8D: lambda m: m.string(m.number("<Q", 8)),
    ord("C"): lambda m: m.push(m.take(m.number("<B", 1))),
    ord("B"): lambda m: m.push(m.take(m.number("<I", 4))),
    0x8E: lambda m: m.push(m.take(m.number("<Q", 8))),
    0x96: lambda m: m.push(m.take(m.number("<Q", 8))),
    ord("}"): lambda m: m.push({}),
    ord("]"): lambda m: m.push([]),
    ord(")"): lambda m: m.push(()),
    0x8F: lambda m: m.push([]),  # a set; only its items matter
    ord("d"): _Machine.new_dict,
    ord("l"): lambda m: m.push(m.pop_mark()),
    ord("t"): lambda m: m.push(tuple(m.pop_mark())),
    0x91: lambda m: m.push(tuple(m.pop_mark())),
    0x85: lambda m: m.pop_tuple(1),
    0x86: lambda m: m.pop_tuple(2),
    0x87: lambda m: m.pop_tuple(3),
    ord("s"): _Machine.set_item,
    ord("u"): lambda m: m.set_items(m.pop_mark()),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.pop_mark()),
    0x90: lambda m: m.append(m.pop_mark()),
    ord("q"): lambda m: m.put(m.number("<B", 1)),
    ord("r"): lambda m: m.put(m.number("<I", 4)),
    0x94: lambda m: m.put(len(m.memo)),
    ord("h"): lambda m: m.get(m.number("<B", 1)),
    ord("j"): lambda m: m.get(m.number("<I", 4)),
    ord("c"): lambda m: m.named(m.line(), m.line()),
    0x93: _Machine.stack_global,
    ord("Q"): lambda m: m.push(m.persistent_load(m.pop())),
    ord("R"): _Machine.reduce,
    0x81: _Machine.reduce,
    0x92: _Machine.new_object_with_keywords,
    ord("b"): _Machine.build,
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME
}
