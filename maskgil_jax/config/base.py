"""Reading and checking options: every mistake is a `ConfigError` that names the option and what is accepted."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any


class ConfigError(ValueError):
    """An option has an impossible name or value; the message names it and what is accepted."""


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


def from_dict(cls, values: dict, where: str = "config"):
    """Builds the dataclass `cls` from plain values (JSON lists become tuples); unknown names are refused by name."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
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
