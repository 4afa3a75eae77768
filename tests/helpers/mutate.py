"""Strategies that change one place of a JSON document, and of bytes."""

import copy
from typing import Any

from hypothesis import strategies as st

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([2**31, 2**63, -(2**63), 1e300, 1.5, -0.5, float("nan"), float("inf")]),
    st.text(max_size=6),
    st.sampled_from(["../../etc/passwd", "/etc/passwd", "a\nb", "\x00", "codes-00000.array_record"]),
    st.lists(st.one_of(st.integers(-1, 300), st.text(max_size=2), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(-1, 3), max_size=2),
)
DELETE = object()


def places(document: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value in a JSON document, itself included."""
    found = [path]
    items = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


@st.composite
def changed(draw, document: Any):
    """(a copy of the document with one value replaced or removed, the path of that value)."""
    path = draw(st.sampled_from(places(document)))
    value = draw(st.one_of(st.just(DELETE), VALUES, VALUES.map(lambda new: [new])))
    return replaced(document, path, value), path


def replaced(document: Any, path: tuple, value: Any) -> Any:
    """A copy with the value at `path` replaced; `DELETE` removes it, or makes the whole document empty."""
    if not path:
        return {} if value is DELETE else value
    document = copy.deepcopy(document)
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    if value is DELETE:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return document


@st.composite
def damaged(draw, raw: bytes, most: int = 8):
    """The bytes with some of them changed, removed, doubled or cut off at the end."""
    raw = bytearray(raw)
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.integers(0, max(0, len(raw) - 1)))
        kind = draw(st.sampled_from(["set", "flip", "insert", "remove", "double", "cut", "number"]))
        if not raw or kind == "insert":
            raw[place:place] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "set":
            raw[place] = draw(st.integers(0, 255))
        elif kind == "flip":
            raw[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "remove":
            del raw[place : place + draw(st.integers(1, 16))]
        elif kind == "double":
            part = raw[place : place + draw(st.integers(1, 64))]
            raw[place:place] = part * draw(st.integers(1, 3))
        elif kind == "cut":
            del raw[place:]
        else:  # a little-endian number at the edge of its type
            number = draw(st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\x00" * 8, b"\xff" * 7 + b"\x7f", b"\x00\x00\x00\x80"]))
            raw[place : place + len(number)] = number
    return bytes(raw)
