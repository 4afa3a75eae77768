"""JSON and YAML from files of unknown origin: size, nesting and references are limited,
and only plain values are built."""

from __future__ import annotations

import json
from typing import Any

import yaml

from .checkpoint import Problem, sanitize

MAX_JSON = 10 << 20  # bytes of a safetensors header or an index; enough for about 60 000 arrays
MAX_BRACKETS = 200_000  # lists and dicts in it, each costs memory
MAX_REFERENCES = 16  # of YAML's `*name`: merged into one another, a few dozen could fill any memory
MAX_DEPTH = 32  # of YAML's lists and dicts inside one another


def parse_json(raw: bytes, what: str) -> dict:
    """A JSON object of limited size and depth, without doubled keys. Raises: Problem that begins with `what`."""
    if len(raw) > MAX_JSON:
        raise Problem(f"{what} has {len(raw)} bytes; at most {MAX_JSON >> 20} MB are accepted")
    if raw.count(b"[") + raw.count(b"{") > MAX_BRACKETS:
        raise Problem(f"{what} has more than {MAX_BRACKETS} lists")

    def without_doubles(pairs: list[tuple[str, Any]]) -> dict:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            double = next(name for name in names if names.count(name) > 1)
            raise Problem(f"{what} has the key {sanitize(double)} twice")
        return result

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=without_doubles)
    except RecursionError:
        raise Problem(f"{what} is nested too deep") from None
    except ValueError as error:
        raise Problem(f"{what} is not valid JSON ({sanitize(str(error))})") from None
    if not isinstance(value, dict):
        raise Problem(f"{what} is not a JSON object")
    return value


class _LimitedLoader(yaml.SafeLoader):
    """The loader of `yaml.safe_load`, with limits on references and depth, checked before a value is built."""

    references = depth = 0

    def compose_node(self, parent, index):
        self.references += self.check_event(yaml.AliasEvent)
        if self.references > MAX_REFERENCES:
            raise Problem(f"refers to other parts of itself more than {MAX_REFERENCES} times")
        if self.depth > MAX_DEPTH:
            raise Problem(f"is nested more than {MAX_DEPTH} deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse_yaml(raw: bytes) -> Any:
    """The value of a YAML document. Raises: Problem."""
    try:
        loader = _LimitedLoader(raw)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise Problem(f"is not valid YAML ({line}{sanitize(error.problem or 'damaged', 200)})") from None
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
        raise Problem(f"is not valid YAML ({sanitize(' '.join(str(error).split()), 200)})") from None
