"""Reading and checking options: every mistake is a `ConfigError` that names the option and what is accepted."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
from collections.abc import Callable
from typing import Any


class ConfigError(ValueError):
    """An option has an impossible name or value; the message names it and what is accepted."""


_log = logging.getLogger("maskgil_jax")


@functools.cache
def warn_renamed(old: str, new: str) -> None:
    """Logs once that a name has changed."""
    _log.warning("%s: is now called %s; the old name is accepted in this version only", old, new)


def renamed(**names: str) -> Callable:
    """Decorates a function so that it takes keyword arguments by their old names too: `@renamed(old="new")`."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args, **options):
            for old in names.keys() & options.keys():
                warn_renamed(f"{function.__name__}({old}=)", f"{names[old]}=")
                options[names[old]] = options.pop(old)
            return function(*args, **options)

        return call

    return decorate


def choose(name: str, value: Any, allowed) -> Any:
    """Returns `value` if it is one of `allowed`, else raises a `ConfigError` that lists them and the nearest."""
    allowed = tuple(allowed)
    if value in allowed:
        return value
    near = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{name}: unknown value {value!r}; choose from {', '.join(map(str, allowed))}.{hint}")


def require(condition: bool, message: str) -> None:
    """Raises a `ConfigError` with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def current_names(cls: type, values: dict, where: str) -> dict:
    """`values` with the options of `cls` that were renamed (its table `RENAMED`, old -> new) under their new names."""
    table = getattr(cls, "RENAMED", {})
    for old in table.keys() & values.keys():
        warn_renamed(f"{where}.{old}", f"{where}.{table[old]}")
    return {table.get(name, name): value for name, value in values.items()}


def from_dict(cls, values: dict, where: str = "config"):
    """Builds the dataclass `cls` from plain values (JSON lists become tuples); unknown names are refused by name."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = current_names(cls, values, where)
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{where}: {cls.__name__} has no option {name!r}{hint}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def to_dict(cfg) -> dict:
    """The dataclass as plain values for `config.json` (inverse of `from_dict`)."""
    return dataclasses.asdict(cfg)
