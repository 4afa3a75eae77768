"""`Sizes`: the sizes of a network, read from the shapes in its file, and the assumptions where no shape states them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from .readers.checkpoint import Problem

HEAD_WIDTH = 64
NUM_CLASSES = 1000  # ImageNet
# (width of all heads together, depth) -> heads, where they are not 64 wide; depth 0 means any depth.
KNOWN_HEADS = {(3200, 0): 32, (4096, 0): 32, (768, 24): 16, (510, 0): 6, (1152, 28): 16}


class Sizes:
    """Shapes by tensor name, with what is known besides.

    given: options that the user or a configuration states. notes: assumptions made, one sentence each. unstated:
    options that no tensor states; configurations are not compared with these.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, Any] | None = None):
        self.shapes, self.given = shapes, dict(given or {})
        self.notes: list[str] = []
        self.unstated: set[str] = set()

    def of(self, name: str, rank: int) -> tuple[int, ...]:
        """Shape of one tensor. Raises: Problem if it is missing or has another number of axes."""
        shape = self.shapes.get(name)
        if shape is None:
            raise Problem(f"{name}: missing; the sizes of the network are read from it")
        if len(shape) != rank or 0 in shape:
            raise Problem(f"{name}: has shape {tuple(shape)}, expected {rank} axes, none of them empty")
        return tuple(shape)

    def count(self, pattern: str) -> int:
        """How many different numbers the group of `pattern` matches at the start of the names."""
        found = (re.match(pattern, name) for name in self.shapes)
        return len({match[1] for match in found if match})

    def has(self, pattern: str) -> bool:
        """Whether a name begins with `pattern`."""
        return any(re.match(pattern, name) for name in self.shapes)

    def assume(self, option: str, value: Any, why: str = "the file does not say", text: str = "") -> Any:
        """The given value of an option that no tensor states, or `value`, with a note. text:
        how the note writes the value."""
        self.unstated.add(option)
        if option in self.given:
            return self.given[option]
        self.notes.append(f"{option} = {text or value}: {why} (--set {option}=... states another)")
        return value

    def heads(self, width: int, depth: int) -> int:
        """Given, known for a published size, or assumed to be 64 wide.

        Raises: Problem if 64 does not divide the width.
        """
        known = KNOWN_HEADS.get((width, 0)) or KNOWN_HEADS.get((width, depth))
        if not self.given.get("heads") and known is None and width % HEAD_WIDTH:
            raise Problem(
                f"the number of heads is not in the file, and width {width} is no multiple of {HEAD_WIDTH}: --set heads=N"
            )
        heads = known or max(1, width // HEAD_WIDTH)
        return self.assume("heads", heads, f"{width // heads} wide as published, since the file does not say")

    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes, where no tensor depends on them: given, or 16 x 16."""
        return self.assume("grid", (16, 16), text="16x16")

    def grid_of(self, name: str, positions: int) -> tuple[int, int]:
        """Rows and columns of `positions` codes: given, or a square.

        Raises: Problem if they do not multiply to `positions`.
        """
        side = math.isqrt(positions)
        if "grid" not in self.given and (side < 1 or side * side != positions):
            raise Problem(f"{name}: its {positions} positions are not those of a square grid: --set grid=ROWSxCOLUMNS")
        rows, columns = self.assume("grid", (side, side), f"{positions} positions, taken for a square", f"{side}x{side}")
        if rows * columns != positions:
            raise Problem(
                f"{name}: has {positions} positions, a grid of {rows}x{columns} needs {rows * columns}: --set grid=ROWSxCOLUMNS"
            )
        return rows, columns

    def image_size(self, assumed: int) -> int:
        """The side of the training images, which convolutions do not depend on: given, or `assumed`."""
        return self.assume("image_size", assumed, "the training resolution, which the file does not say")

    def joint_table(self, name: str, rows: int, extra: int) -> tuple[int, int]:
        """(codes, classes) of a table of `rows` that holds both and `extra` rows.

        One is given, or 1000 classes are assumed.

        Raises: Problem if the rows cannot hold them.
        """
        codes = self.given.get("codebook_size")
        if "num_classes" not in self.given and codes is not None:
            self.unstated |= {"codebook_size", "num_classes"}
            num_classes = rows - codes - extra
        else:
            num_classes = self.assume("num_classes", NUM_CLASSES)
        if rows - num_classes - extra < 2 or num_classes < 1:
            holds = f"{num_classes} classes and a codebook" if num_classes > 0 else f"{codes} codes and a class"
            raise Problem(f"{name}: its {rows} rows cannot hold {holds}: --set num_classes=N")
        return rows - num_classes - extra, num_classes

    def classes(self, name: str, rows: int) -> tuple[int, bool]:
        """(classes, whether the last row is the null class) of a table of classes whose null row is optional.

        Given classes as many as rows mean that there is none. Otherwise it is assumed, as in the published files.
        """
        if self.given.get("num_classes") == rows:
            self.notes.append(f"null_class = False: {name} has {rows} rows for {rows} classes, so guidance is refused")
            return rows, False
        if "num_classes" not in self.given:
            why = f"the last of the {rows} rows of {name} is taken for the null class of guidance"
            self.notes.append(f"num_classes = {rows - 1}: {why} (--set num_classes={rows} if it is a class)")
        return rows - 1, True
