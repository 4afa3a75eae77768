"""Files of JSON lines: one value a line, with errors that name the file and the line."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from maskgil_jax.config import ConfigError


def read_json_lines(path: str | os.PathLike, hint: str) -> list[tuple[int, Any]]:
    """(number of the line, its value) of every line that is not empty.

    hint: what to give instead, the end of every message. Raises a `ConfigError` of one line, for an empty file too.
    """
    try:
        data = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error}); {hint}") from None
    found = []
    for number, line in enumerate(data.split(b"\n"), 1):  # `splitlines` would cut texts at U+2028
        if line.strip():
            found.append((number, parse_json_line(line, path, number, hint)))
    if not found:
        raise ConfigError(f"{path}: is empty; {hint}")
    return found


def read_json_objects(path: str | os.PathLike, fields: Collection[str], hint: str) -> list[tuple[int, dict]]:
    """As `read_json_lines`, for lines that are objects with all of `fields`."""
    found = read_json_lines(path, hint)
    for number, record in found:
        if not isinstance(record, dict):
            raise ConfigError(f"{path}: line {number} is a {type(record).__name__}, expected an object; {hint}")
        missing = sorted(name for name in fields if name not in record)
        if missing:
            raise ConfigError(f"{path}: line {number} lacks {', '.join(missing)}; {hint}")
    return found


def parse_json_line(line: bytes, path: str | os.PathLike, number: int, hint: str) -> Any:
    """The value of one line of a file."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        reason = error.msg
    except RecursionError:
        reason = "nested too deeply"
    except ValueError:
        reason = "not UTF-8"
    raise ConfigError(f"{path}: line {number} is not JSON ({reason}); {hint}")
