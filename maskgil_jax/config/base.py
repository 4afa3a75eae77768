"""Declaring, reading and checking options: every mistake is a `ConfigError` that names the option and what is accepted.

An option is a field of a frozen dataclass. `option` declares it with its help text, its choices and its range;
`check_ranges` in `__post_init__` enforces them. Command lines and run files take the same metadata for their help. A
field without `option` is a size of a network: whole numbers are at least 1 and other numbers at least 0, unless they
are its default.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
import math
import numbers
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

_log = logging.getLogger("maskgil_jax")


class ConfigError(ValueError):
    """An option has an impossible name or value; the message names it and what is accepted."""


def nearest(name: str, names: Iterable[str]) -> str:
    """ "; did you mean 'x'?" with the most similar of `names`, or an empty string if none is similar."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def one_line(text: object, limit: int = 160) -> str:
    """A text of unknown origin for a message: one printable line of at most `limit` characters."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def shown(value: Any, limit: int = 80) -> str:
    """The repr of a value for a message: one line of at most `limit` characters."""
    return one_line(repr(value), limit)


def choose(name: str, value: Any, allowed) -> Any:
    """Returns `value` if it is one of `allowed`, else raises a `ConfigError` that lists them and the nearest."""
    allowed = tuple(allowed)
    if isinstance(value, Hashable) and value in allowed:
        return value
    near = difflib.get_close_matches(str(value)[:80], [str(a) for a in allowed], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{name}: unknown value {shown(value)}; choose from {', '.join(map(str, allowed))}.{hint}")


def require(condition: bool, message: str) -> None:
    """Raises a `ConfigError` with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def _text(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


@dataclasses.dataclass(frozen=True)
class OptionInfo:
    """What is known of an option besides its name, type and default.

    choices: the values it may have. low, high: its range, which includes them unless open_low or open_high. off: a
    value outside the range that switches the feature off. group: heading under which help lists it. rare: listed only
    by `--help-all`.
    """

    help: str = ""
    choices: tuple = ()
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    off: float | None = None
    group: str = ""
    rare: bool = False

    @property
    def range(self) -> str:
        """The range in words: ">= 1", "in (0, 1]"; empty if there is none."""
        if self.low is not None and self.high is not None:
            words = f"in {'(' if self.open_low else '['}{_text(self.low)}, {_text(self.high)}{')' if self.open_high else ']'}"
        elif self.low is not None:
            words = f"{'>' if self.open_low else '>='} {_text(self.low)}"
        elif self.high is not None:
            words = f"{'<' if self.open_high else '<='} {_text(self.high)}"
        else:
            return ""
        return words if self.off is None else f"{words}, or {_text(self.off)}"

    def in_range(self, value: float) -> bool:
        """Whether a number lies in the range."""
        if self.off is not None and value == self.off:
            return True
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        below = self.high is None or (value < self.high if self.open_high else value <= self.high)
        return above and below


def option(default: Any = dataclasses.MISSING, help: str = "", **info) -> Any:
    """A dataclass field with an `OptionInfo`: `steps: int = option(8, "number of steps", low=1)`."""
    if "choices" in info:
        info["choices"] = tuple(info["choices"])
    return dataclasses.field(default=default, metadata={"option": OptionInfo(help, **info)})


def info_of(field: dataclasses.Field) -> OptionInfo:
    """The `OptionInfo` of a field; an empty one if it was declared without."""
    return field.metadata.get("option") or OptionInfo()


def type_of(cls, name: str) -> tuple[type, bool]:
    """(type, whether None is allowed) of an option: `int | None` gives (int, True),
    `tuple[int, ...]` gives (tuple, False)."""
    hint = _hints(cls)[name]
    plain = _plain_hint(cls, name)
    return typing.get_origin(plain) or plain, plain is not hint


@functools.cache
def _hints(cls) -> dict[str, Any]:
    return typing.get_type_hints(cls)


MAX_INT = 2**31 - 1  # of an option without another limit: counts become int32 on devices
MAX_LAYERS = 1000  # a file that claims billions of layers would fill the memory with their names
MAX_FLOAT = 3.4028234663852886e38  # the largest float32

# type of an option -> (what a value must be an instance of, the same in words)
_KINDS: dict[type, tuple[Any, str]] = {
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a finite number"),
    bool: (bool, "True or False"),
    str: (str, "a text"),
}


def check_ranges(cfg) -> None:
    """Raises a `ConfigError` unless every field has its type and one of its choices, or is in its range."""
    for field in dataclasses.fields(cfg):
        check_option(type(cfg), field, getattr(cfg, field.name))


def check_option(cls, field: dataclasses.Field, value: Any, name: str | None = None) -> None:
    """Checks the value of one field of the dataclass `cls`.

    `name` is what the message calls it (default: its own name).
    """
    info, (kind, optional), name = info_of(field), type_of(cls, field.name), name or field.name
    if info.choices:
        choose(name, value, info.choices)
        return
    if optional and value is None:
        return
    sizes = "option" not in field.metadata  # see the head of this module
    or_none = "None or " if optional else ""
    if kind is tuple:
        _check_tuple(name, value, typing.get_args(_plain_hint(cls, field.name)), info, sizes, field.default, or_none)
        return
    if kind not in _KINDS or (sizes and type(value) is kind and value == field.default):
        return
    info = _with_limits(info, kind, sizes)
    require(_is_sound(value, kind, info), f"{name}: must be {or_none}{_in_words(kind, info, value)}, got {shown(value)}")


def _with_limits(info: OptionInfo, kind: type, sizes: bool) -> OptionInfo:
    """`info` with the range of a size, if it is one."""
    low = {int: 1.0, float: 0.0}.get(kind)
    return dataclasses.replace(info, low=low) if sizes and low is not None and info.range == "" else info


def _is_sound(value: Any, kind: type, info: OptionInfo) -> bool:
    if not isinstance(value, _KINDS[kind][0]) or (kind is not bool and isinstance(value, bool)):
        return False
    if kind not in (int, float):
        return True
    limit = MAX_FLOAT if kind is float else MAX_INT if info.high is None else info.high
    return -limit <= value <= limit and math.isfinite(value) and info.in_range(value)


def _in_words(kind: type, info: OptionInfo, value: Any) -> str:
    too_large = kind is int and info.high is None and isinstance(value, int | numbers.Integral) and int(value) > MAX_INT
    return " ".join(part for part in (_KINDS[kind][1], info.range, f"and at most {MAX_INT}" if too_large else "") if part)


def _check_tuple(name: str, value: Any, kinds: tuple, info: OptionInfo, sizes: bool, default: Any, or_none: str) -> None:
    """Checks the length of a `tuple[int, int]`, and the elements of that or of a `tuple[int, ...]`."""
    if isinstance(value, tuple) and value == default:
        return
    fixed = Ellipsis not in kinds
    kind, count = kinds[0], f"{len(kinds)} of " if fixed else ""
    require(
        isinstance(value, tuple) and (not fixed or len(value) == len(kinds)),
        f"{name}: must be {or_none}a tuple of {count}{kind.__name__}, got {shown(value)}",
    )
    info = _with_limits(info, kind, sizes)
    if typing.get_origin(kind) is tuple:
        for element in value:
            _check_tuple(name, element, typing.get_args(kind), info, sizes, default, or_none)
    for element in value if kind in _KINDS else ():
        require(_is_sound(element, kind, info), f"{name}: must be {_in_words(kind, info, element)} each, got {shown(value)}")


def _plain_hint(cls, name: str) -> Any:
    """The type of a field without None."""
    hint = _hints(cls)[name]
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    return parts[0] if type(None) in typing.get_args(hint) else hint


@dataclasses.dataclass(frozen=True)
class Renamed:
    """The new name of an option, and its values that have new names too."""

    name: str
    values: dict[Any, Any] = dataclasses.field(default_factory=dict)


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


def current_names(cls, values: Mapping[str, Any], where: str, *, warn: bool = True) -> dict[str, Any]:
    """`values` with the options of the dataclass `cls` that were renamed under their new names.

    The table is `cls.RENAMED`, old name -> `Renamed`; run files, command lines and stored `config.json` are read
    through it.
    """
    found = dict(values)
    for old, new in getattr(cls, "RENAMED", {}).items():
        if old in found:
            require(new.name not in found, f"{where}: {old} is the old name of {new.name}; give one of them")
            if warn:
                warn_renamed(f"{where}.{old}", new.name)
            value = found.pop(old)
            found[new.name] = new.values.get(value, value)
    return found


def from_dict(cls, values: dict, where: str = "config"):
    """Builds the dataclass `cls` from plain values (JSON lists become tuples); unknown names are refused by name."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = current_names(cls, values, where)
    for name in values:
        if name not in fields:
            raise ConfigError(f"{where}: {cls.__name__} has no option {name!r}{nearest(name, fields)}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
    except ConfigError as error:
        message = str(error)
        if message.startswith(tuple(f"{name}{end}" for name in fields for end in (":", ",", " and"))):
            message = f"{where}{': ' if where.endswith('.json') else '.'}{message}"
        raise ConfigError(message) from None


def to_dict(cfg) -> dict:
    """The dataclass as plain values for `config.json` (inverse of `from_dict`)."""
    return dataclasses.asdict(cfg)
