"""The state dict inside the tree that a PyTorch file unpickles to: which outer key holds it,
and what else the file holds."""

from __future__ import annotations

from typing import Any

from .checkpoint import Checkpoint, Entry, Problem, sanitize
from .pickle_reader import Global, Opaque, describe
from .torch_file import Archive, Tensor

# The outer keys of published checkpoints, in order of preference; "bare" means that the names are at the top level.
CONTAINERS = ("ema", "model", "module", "state_dict", "model_state_dict")

_NOT_EXTRAS = ("optimizer", "lr_schedulers", "callbacks", "loops")  # a trainer's own state, of no use for the network
_MAX_NODES = 20_000  # values looked at when describing what is outside the weights
_MAX_CLAIM = 4  # arrays may claim this many times the file's bytes together (tied weights share theirs)


def state_dict_of(archive: Archive, container: str | None) -> tuple[Checkpoint, list[str]]:
    """The state dict inside the unpickled tree; the checkpoint names what was left out. Raises: Problem.

    container: outer key to take, dotted if it lies deeper; None: the first of `CONTAINERS` that holds tensors.
    """
    tree = archive.tree
    if isinstance(tree, Tensor):
        raise Problem("holds one tensor without a name, not a dict of weights")
    if isinstance(tree, Opaque):
        raise Problem(f"holds a whole {describe(tree)} object, which only its own code could rebuild; save its state_dict()")
    if type(tree) is not dict:
        raise Problem(f"holds a {describe(tree)}, not a dict of weights")
    containers = tuple(name for name in CONTAINERS if _holds_tensors(tree.get(name)))
    containers = containers or ("bare",)
    container = containers[0] if container is None else container
    weights: Any = tree
    for part in container.split(".") if container != "bare" else ():
        weights = weights.get(part) if type(weights) is dict else None
    if not _holds_tensors(weights) and not (
        container == "bare" and any(isinstance(v, (Opaque, Global)) for v in tree.values())
    ):
        held = ", ".join(f"{sanitize(key)} ({_summary(value)})" for key, value in list(tree.items())[:12])
        missing = "no tensors at its top" if container == "bare" else f"no tensors under {sanitize(container)!r}"
        raise Problem(f"has {missing}; it holds {held or 'nothing'}; choose one of its keys as the container")

    entries, problems = {}, []
    for name, value in weights.items():
        try:
            if not isinstance(name, str):
                raise Problem("its name is not a text")
            entries[name] = archive.entry(value) if isinstance(value, Tensor) else _refuse(value)
        except Problem as problem:
            problems.append(f"{sanitize(name) if isinstance(name, str) else describe(name)}: {problem}")
    claimed = sum(entry.nbytes for entry in entries.values())
    if claimed > _MAX_CLAIM * archive.file.size:
        problems.append(f"its tensors claim {claimed} bytes together, the file has {archive.file.size}")

    ignored, extras = {}, {}
    outer = container.split(".")[0]
    for key, value in tree.items() if weights is not tree else ():
        if key == outer or not isinstance(key, str):
            continue
        plain = _plain(value, [_MAX_NODES])
        if plain is not _NOTHING and not key.startswith(_NOT_EXTRAS):
            extras[key] = plain
        if isinstance(value, (dict, list, tuple, Tensor, Opaque)):
            ignored[key] = _summary(value)
    file = archive.file
    done = Checkpoint(file.path, archive.format, entries, [file], container, containers, ignored, extras, archive.checksummed)
    return done, problems


def _refuse(value: Any) -> Entry:
    if isinstance(value, (Opaque, Global)):
        raise Problem(f"is a {describe(value)} object, not a tensor. Nothing was run")
    raise Problem(f"is a {describe(value)}, not a tensor")


def _holds_tensors(value: Any) -> bool:
    return type(value) is dict and any(isinstance(v, Tensor) for v in value.values())


def _summary(value: Any) -> str:
    """What a skipped value is, with the number of tensors in it.

    The count is limited, since trees can hold themselves.
    """
    if isinstance(value, Tensor):
        return "tensor"
    if type(value) not in (dict, list, tuple):
        return describe(value)
    tensors, seen, waiting = 0, set(), [value]
    while waiting and len(seen) < _MAX_NODES:
        item = waiting.pop()
        if isinstance(item, Tensor):
            tensors += 1
        elif type(item) in (dict, list, tuple) and id(item) not in seen:
            seen.add(id(item))
            inside = item.values() if type(item) is dict else item
            waiting.extend(v for v in inside if isinstance(v, Tensor) or type(v) in (dict, list, tuple))
    return describe(value) + (f" with {tensors} tensors" if tensors else "")


_NOTHING = object()


def _plain(value: Any, budget: list[int], depth: int = 0) -> Any:
    """Numbers, texts, lists and dicts only; a skipped object gives a dict of its attributes.

    `_NOTHING` if none is left.
    """
    budget[0] -= 1
    if budget[0] < 0 or depth > 12:
        return _NOTHING
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Opaque):
        state = value.state
        if type(state) is dict and len(state) <= _MAX_NODES:  # OmegaConf wraps values in _content (dicts, lists) and _val
            state = state.get("_content", state.get("_val", state))
        return _plain(state, budget, depth + 1) if state is not None else _NOTHING
    if type(value) is dict:
        pairs = [(k, _plain(v, budget, depth + 1)) for k, v in _first(value.items(), budget) if type(k) in (str, int)]
        kept = {k: v for k, v in pairs if v is not _NOTHING}
        return kept if kept or not value else _NOTHING
    if type(value) in (list, tuple):
        items = [v for v in (_plain(v, budget, depth + 1) for v in _first(value, budget)) if v is not _NOTHING]
        return items if items or not value else _NOTHING
    return _NOTHING


def _first(values: Any, budget: list[int]) -> list:
    return [value for value, _ in zip(values, range(max(0, budget[0])), strict=False)]
