"""Every option of every dataclass in `config`: each value is accepted or refused by a `ConfigError` that names the
option.

The dataclasses and their fields are found, not listed, so a new option is tested as soon as it is declared.
"""

import dataclasses
import importlib
import math
import pkgutil
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maskgil_jax import config
from maskgil_jax.config.base import MAX_INT, ConfigError, OptionInfo, from_dict, info_of, to_dict, type_of

REQUIRED = {"LoaderConfig": {"batch_size": 8}}
NOT_OPTIONS = ("OptionInfo", "Renamed", "Order", "Schedule")  # what declares options, and rows of tables


def option_classes() -> dict[str, type]:
    """Name -> dataclass of options, from all modules of `config`."""
    found = {}
    for module in pkgutil.iter_modules(config.__path__):
        for name, value in vars(importlib.import_module(f"maskgil_jax.config.{module.name}")).items():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and name not in NOT_OPTIONS:
                found[name] = value
    return found


CLASSES = option_classes()
FIELDS = [(name, field) for name, cls in CLASSES.items() for field in dataclasses.fields(cls) if field.init]
NUMBERS = [(name, f) for name, f in FIELDS if type_of(CLASSES[name], f.name)[0] in (int, float) and not info_of(f).choices]


def ids(rows):
    return [f"{name}.{field.name}" for name, field in rows]


def row_of(name: str, option: str) -> tuple[str, dataclasses.Field]:
    return next(row for row in FIELDS if (row[0], row[1].name) == (name, option))


def built(name: str, /, **options):
    return CLASSES[name](**{**REQUIRED.get(name, {}), **options})


def names_option(error: ConfigError, name: str) -> bool:
    """Whether the message is one line that names the option or one that it depends on."""
    line = str(error)
    return "\n" not in line and line.isprintable() and any(f.name in line for f in dataclasses.fields(CLASSES[name]))


def accepted_or_refused(name: str, field: dataclasses.Field, value) -> ConfigError | None:
    """The refusal of a value, or None; any other exception fails the test."""
    try:
        cfg = built(name, **{field.name: value})
    except ConfigError as error:
        assert names_option(error, name), str(error)
        return error
    hash(cfg)  # static under jit
    assert from_dict(CLASSES[name], to_dict(cfg)) == cfg
    return None


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.lists(st.one_of(st.integers(-3, 300), st.floats(), st.text(max_size=3), st.none()), max_size=4),
    st.lists(st.one_of(st.integers(-3, 300), st.floats(), st.text(max_size=3), st.none()), max_size=4).map(tuple),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def test_every_dataclass_of_options_is_tested():
    assert {"DecodeConfig", "LlamaConfig", "VQConfig", "OptimizerConfig", "LoaderConfig", "GemmaConfig"} <= CLASSES.keys()
    for name in CLASSES:
        built(name)


@given(row=st.sampled_from(FIELDS), value=ANYTHING)
@example(row=row_of("LlamaConfig", "width"), value="x")
@example(row=row_of("LlamaConfig", "heads"), value=0)
@example(row=row_of("GemmaConfig", "kv_heads"), value=0)
@example(row=row_of("LlamaConfig", "depth"), value=-1)
@example(row=row_of("LlamaConfig", "depth"), value=2**31 - 1)
@example(row=row_of("CLIPTextConfig", "eps"), value=math.nan)
@example(row=row_of("VQConfig", "multipliers"), value=(1.5, 1))
@example(row=row_of("VQConfig", "multipliers"), value=())
@example(row=row_of("LlamaConfig", "grid"), value=(16,))
@example(row=row_of("LlamaConfig", "mlp_width"), value=-8)
@example(row=row_of("DecodeConfig", "steps"), value=2**70)
def test_any_value_is_accepted_or_refused_by_name(row, value):
    accepted_or_refused(*row, value)


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=ids(FIELDS))
def test_values_of_another_type_are_refused(name, field):
    kind, optional = type_of(CLASSES[name], field.name)
    wrong = {
        int: ["8", 1.5, True, [8], math.nan],
        float: ["0.5", True, [0.5], math.nan, math.inf, -math.inf],
        str: [3, ("a",), b"a"],
        bool: ["yes", 2, 0],
        tuple: ["16", 16, (1.5, 2.5), ("a", "b") if field.name != "fields" else (1,), (True, "x")],
    }.get(kind, [])
    for value in [*wrong, *([] if optional else [None] if kind in (int, float, str, bool, tuple) else [])]:
        if value in info_of(field).choices:
            continue
        error = accepted_or_refused(name, field, value)
        assert error is not None, f"{value!r} was accepted"
        assert field.name in str(error), str(error)


@pytest.mark.parametrize(("name", "field"), NUMBERS, ids=ids(NUMBERS))
def test_edges_of_a_declared_range_are_kept(name, field):
    """At an edge and just inside it a value is refused for another reason at most.

    Just outside it is refused by name.
    """
    info, kind = info_of(field), type_of(CLASSES[name], field.name)[0]
    if "option" not in field.metadata:
        info = OptionInfo(low=1 if kind is int else 0)
    inner, outer = edges(info, kind)
    for value in inner:
        error = accepted_or_refused(name, field, value)
        about_range = re.match(rf"{field.name}: must be (None or )?a (whole|finite) number", str(error))
        assert error is None or not about_range, (value, str(error))
    for value in outer:
        if value in (info.off, field.default):
            continue
        error = accepted_or_refused(name, field, value)
        assert error is not None, f"{value!r} is outside of {info.range} and was accepted"
        assert str(error).startswith(f"{field.name}:"), (value, str(error))


def edges(info: OptionInfo, kind: type) -> tuple[list, list]:
    """(values in the range, values outside of it), as near to its ends as the type allows."""
    inner, outer = [], []
    for end, is_open, outward in ((info.low, info.open_low, -1), (info.high, info.open_high, 1)):
        if end is None:
            if kind is int and outward == 1:
                outer.append(MAX_INT + 1)
            continue
        if kind is int:
            end = int(end)
            inside, outside = (end - outward, end) if is_open else (end, end + outward)
        else:
            beyond = math.nextafter(end, outward * math.inf)
            inside, outside = (math.nextafter(end, -outward * math.inf), end) if is_open else (float(end), beyond)
        inner.append(inside)
        outer.append(outside)
    if info.off is not None:
        inner.append(kind(info.off))
    return inner, outer
