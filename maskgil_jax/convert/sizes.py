"""What a network's sizes are, told from the shapes in its file and from what else the file or the user says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from maskgil_jax.config import choose, require

from .checkpoint import Problem, shown

HEAD_WIDTH = 64
# (width of all heads together, depth) -> heads, where they are not 64 wide; depth 0 stands for any.
KNOWN_HEADS = {(3200, 0): 32, (4096, 0): 32, (768, 24): 16, (510, 0): 6, (1152, 28): 16}
# Where trainers keep their options, and how they call what our options hold.
CLAIMING = ("args", "hparams", "hyper_parameters", "config")
CLAIMS = {
    "codebook_size": "codebook_size",
    "n_embed": "codebook_size",
    "vocab_size": "codebook_size",
    "codebook_embed_dim": "codebook_dim",
    "embed_dim": "codebook_dim",
    "num_classes": "num_classes",
    "n_layer": "depth",
    "n_head": "heads",
    "dim": "width",
}


class Sizes:
    """Shapes of a file's tensors by name, what is known besides (`given`), and the assumptions made on the way (`notes`)."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, Any] | None = None):
        self.shapes, self.given, self.notes = shapes, dict(given or {}), []

    def of(self, name: str, rank: int) -> tuple[int, ...]:
        """Shape of one tensor. Raises: Problem if it is missing or has another number of axes."""
        shape = self.shapes.get(name)
        if shape is None:
            raise Problem(f"{name}: missing; the sizes of the network are read from it")
        if len(shape) != rank or 0 in shape:
            raise Problem(f"{name}: has shape {tuple(shape)}, expected {rank} axes, none of them empty")
        return tuple(shape)

    def count(self, pattern: str) -> int:
        """How many different numbers the group of `pattern` takes, matched at the start of the names."""
        found = (re.match(pattern, name) for name in self.shapes)
        return len({match[1] for match in found if match})

    def has(self, pattern: str) -> bool:
        """Whether a name begins with `pattern`."""
        return any(re.match(pattern, name) for name in self.shapes)

    def heads(self, width: int, depth: int) -> int:
        """Given, known for a published size, or assumed to be 64 wide. Raises: Problem if 64 does not divide the width."""
        if heads := self.given.get("heads"):
            return heads
        known = KNOWN_HEADS.get((width, 0)) or KNOWN_HEADS.get((width, depth))
        if known is None and width % HEAD_WIDTH:
            raise Problem(
                f"the number of heads is not in the file, and width {width} is no multiple of {HEAD_WIDTH}: --set heads=N"
            )
        heads = known or width // HEAD_WIDTH
        self.notes.append(f"heads = {heads}, {width // heads} wide: the file does not say, so this is the published width")
        return heads

    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes: given, or 16 x 16."""
        if grid := self.given.get("grid"):
            return grid
        self.notes.append("grid = 16x16: the file does not say")
        return (16, 16)


def given_by(options: Mapping[str, Any], settable: Iterable[str], extras: Mapping[str, Any]) -> dict[str, Any]:
    """What the user (`options`, which win) and the trainer's options inside the file say about sizes that shapes cannot tell.

    Raises: ConfigError for an option that is not settable or no whole number (two of them, or one, for `grid`).
    """
    given: dict[str, Any] = {}
    for args in _claiming(extras):
        for theirs, ours in (("n_head", "heads"), ("image_size", "image_size")):
            if _whole(value := args.get(theirs)):
                given[ours] = value
        factor = args.get("downsample_size")
        if "image_size" in given and _whole(factor):
            given["grid"] = (given["image_size"] // factor,) * 2
    for name, value in options.items():
        choose("--set", name, settable)
        pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
        good = len(pair) == 2 and all(map(_whole, pair)) if name == "grid" else _whole(value)
        require(
            good, f"--set {name}: expected {'one or two whole numbers' if name == 'grid' else 'a whole number'}, got {value!r}"
        )
        given[name] = pair if name == "grid" else value
    return given


def contradictions(cfg: Any, extras: Mapping[str, Any]) -> list[str]:
    """Every size that the trainer's options inside the file state otherwise than `cfg`, one sentence each."""
    problems = []
    for args in _claiming(extras):
        for theirs, ours in CLAIMS.items():
            claim, value = args.get(theirs), getattr(cfg, ours, None)
            if _whole(claim) and value is not None and claim != value:
                problems.append(f"its options say {shown(theirs)} = {claim}, its tensors make it {value}")
    return problems


def _claiming(extras: Mapping[str, Any]) -> list[dict]:
    return [extras[name] for name in CLAIMING if isinstance(extras.get(name), dict)]


def _whole(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 1 << 24
