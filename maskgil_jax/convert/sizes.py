"""What a network's sizes are, told from the shapes in its file and from what else the file or the user says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from maskgil_jax.config import choose, require

from .checkpoint import Problem, shown
from .diffusers_options import diffusers_options

HEAD_WIDTH = 64
# (width of all heads together, depth) -> heads, where they are not 64 wide; depth 0 stands for any.
KNOWN_HEADS = {(3200, 0): 32, (4096, 0): 32, (768, 24): 16, (510, 0): 6, (1152, 28): 16}
# How trainers call what our options hold, and the sub-trees of their options in which a network's own are kept.
CLAIMS = {
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
    # Our own names, for what `diffusers_options` returns.
    **{name: name for name in ("vocabulary", "block_heads", "width", "mlp_width", "latent_dim", "norm_groups")},
}
_INTO = ("args", "hparams", "hyper_parameters", "config", "model", "params", "init_args", "ddconfig")
_DEEPEST = 6


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


def claims(extras: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{who says so: {their option: value}}, of options found inside the file and of those that lie beside it."""
    inside = {name: extras[name] for name in _INTO if name in extras}
    return {"its options say": _stated(inside), **{f"{name} says": _stated(tree) for name, tree in beside.items()}}


def _stated(tree: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """The options among the names of `tree` and of the sub-trees that hold a network's own; the outermost wins."""
    if (stated := diffusers_options(tree)) is not None:
        return stated
    found: dict[str, Any] = {}
    for name in _INTO if depth < _DEEPEST else ():
        if isinstance(inner := tree.get(name), Mapping):
            found = _stated(inner, depth + 1) | found
    wanted = (*CLAIMS, "image_size", "downsample_size")
    return found | {name: tree[name] for name in wanted if name in tree}


def given_by(
    options: Mapping[str, Any], settable: Iterable[str], claimed: Mapping[str, Mapping[str, Any]], sizes: Iterable[str] = ()
) -> dict[str, Any]:
    """What the user (`options`, which win) and the trainer's options (`claims`) say about sizes that shapes cannot tell.

    sizes: options that the shapes tell; the user may state them too, which settles a contradiction (`contradictions`).
    Raises: ConfigError for an unknown option, or one that is no whole number (or several, for `grid` and `multipliers`).
    """
    settable, given = tuple(settable), {}
    for said in claimed.values():
        for theirs, ours in (*CLAIMS.items(), ("image_size", "image_size")):
            if (ours in settable or theirs == "image_size") and _whole(value := said.get(theirs)):
                given.setdefault(ours, value)
        if "image_size" in said and _whole(factor := said.get("downsample_size")) and _whole(side := said["image_size"]):
            given.setdefault("grid", (side // factor,) * 2)
    for name, value in options.items():
        choose("--set", name, (*settable, *(size for size in sizes if size not in settable)))
        several = name in ("grid", "multipliers")
        values = tuple(value) if isinstance(value, list | tuple) else (value,) * (2 if name == "grid" else 1)
        good = all(map(_whole, values)) and (len(values) == 2 if name == "grid" else several or value == values[0])
        expected = "one or two whole numbers" if name == "grid" else "whole numbers" if several else "a whole number"
        require(good, f"--set {name}: expected {expected}, got {value!r}")
        given[name] = values if several else value
    return given


def contradictions(cfg: Any, claimed: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> list[str]:
    """Every size that the trainer's options, or the user's, state otherwise than `cfg`, one sentence each.

    What the user has stated is no longer looked for in the trainer's.
    """
    problems = []
    for name, value in options.items():
        ours = getattr(cfg, name, value)
        if _plain(value) != _plain(ours) and name != "grid":
            problems.append(f"--set {name}={_text(value)}, but the file has {_text(ours)}")
    for who, said in claimed.items():
        for theirs, name in CLAIMS.items():
            claim, ours = _plain(said.get(theirs)), _plain(getattr(cfg, name, None))
            if name in options or claim is None or ours is None or claim == ours:
                continue
            made = "its tensors make it" if who.startswith("its ") else "the file has"
            text = f"{who} {shown(theirs)} = {_text(claim)}, {made} {_text(ours)}"
            problems.append(text + ("" if made.startswith("its") else f" (--set {name}={_text(ours)} if the file is right)"))
    return problems


def _plain(value: Any) -> Any:
    """A whole number, or a tuple of them; None for everything else, which is not compared."""
    if isinstance(value, list | tuple):
        return tuple(value) if value and all(map(_whole, value)) else None
    return value if _whole(value) else None


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _whole(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 1 << 24
