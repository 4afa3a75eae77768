"""Sections of run files, made from the dataclasses of the options: every field can be set by
`--config.section.name=value`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from ml_collections import ConfigDict, config_dict

from .base import type_of


def section(cls, *, skip: Collection[str] = (), **values) -> ConfigDict:
    """The fields of the dataclass `cls` but for those in `skip`, with their defaults or `values`."""
    names = [field.name for field in dataclasses.fields(cls) if field.name not in skip]
    if unknown := values.keys() - set(names):
        raise TypeError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}")
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    made = ConfigDict()
    for name in names:
        kind, optional = type_of(cls, name)
        if optional:
            made[name] = config_dict.placeholder(kind)
            if (value := values.get(name, defaults[name])) is not None:
                made[name] = value
        else:
            made[name] = values.get(name, defaults[name])
    return made


def changes(*kinds, skip: Collection[str] = (), **values) -> ConfigDict:
    """`values`, then every field of the dataclasses `kinds` without a value: what may be changed against a preset."""
    made = ConfigDict(values)
    for kind in kinds:
        for field in dataclasses.fields(kind):
            if field.name not in skip and field.name not in made:
                made[field.name] = config_dict.placeholder(type_of(kind, field.name)[0])
    return made
