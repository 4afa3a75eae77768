"""Reading manifests: JSON files that say what a folder holds.

Every wrong entry is a `ConfigError` naming file and entry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskgil_jax.config import ConfigError, require
from maskgil_jax.config.base import MAX_INT, one_line, shown

Kind = type | tuple[type, ...]
SHARD: Mapping[str, Kind] = {"name": str, "records": int, "bytes": int, "crc32": int}
_FILE_NAME = re.compile(r"[\w-][\w. -]*")
_WORDS: dict[type, str] = {bool: "true or false", str: "a text", int: "a whole number", list: "a list", dict: "an object"}


def read_object(path: Path, advice: str) -> dict:
    """The JSON object in a file. advice: what to do about one that is none."""
    try:
        values = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a JSON file ({one_line(error, 120)}); {advice}") from None
    require(isinstance(values, dict), f"{path}: format: expected a JSON object, found a {type(values).__name__}; {advice}")
    return values


def check_types(path: Path, values: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Raises unless every entry of `kinds` is there and has its type. Whole numbers are at least 0 and fit 32 bits."""
    for name, kind in kinds.items():
        value = values.get(name)
        words = " or ".join(_WORDS[part] for part in (kind if isinstance(kind, tuple) else (kind,)))
        require(_has_type(value, kind), f"{path}: {name} is {shown(value)}, expected {words}")


def check_shards(path: Path, entries: Any) -> None:
    """Raises unless `entries` is a list of {name, records, bytes, crc32} with plain, different file names."""
    names = set()
    entry: Any
    for entry in entries if isinstance(entries, list) else [None]:
        sound = isinstance(entry, dict) and all(_has_type(entry.get(name), kind, 2**63) for name, kind in SHARD.items())
        expected = "expected a list of {name, records, bytes, crc32}"
        require(sound, f"{path}: shards: found {shown(entry)}, {expected}")
        name = entry["name"]
        require(_FILE_NAME.fullmatch(name) is not None, f"{path}: shards: name is {shown(name)}, expected a plain file name")
        require(name not in names, f"{path}: shards: name {name} is there twice")
        names.add(name)


def check_texts(path: Path, name: str, value: Any) -> None:
    """Raises unless `value` is a list of texts."""
    wrong = next((text for text in value if not isinstance(text, str)), None) if isinstance(value, list) else value
    require(isinstance(value, list) and all(isinstance(t, str) for t in value), f"{path}: {name}: found {shown(wrong)}")


def _has_type(value: Any, kind: Kind, limit: int = MAX_INT + 1) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    return not isinstance(value, int) or 0 <= value < limit
