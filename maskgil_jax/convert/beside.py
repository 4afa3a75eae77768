"""What the options lying beside a weight file say about its sizes: a trainer's `model.yaml`, or a `config.json`.

They are only compared with what the shapes in the file tell, or used where shapes tell nothing. YAML is read by
`yaml.safe_load`, which builds plain values only; size, references and depth are bounded first.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import yaml

from .checkpoint import BadWeightFile, Problem, shown
from .weight_files import parse_json

MAX_BYTES = 64 << 10  # of one file; published ones have 1 to 3 KB
MAX_REFERENCES = 16  # of YAML's `*name`: merged into one another, a few dozen could fill any memory
MAX_DEPTH = 32  # of lists and dicts inside one another; the YAML reader slows down with the square of it
_OPENING = (yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken, yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken)
_CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
_ENDINGS = (".yaml", ".yml", ".json")


def read_beside(path: str | os.PathLike) -> dict[str, dict]:
    """{file name: its contents} of the options beside a weight file or inside a folder of shards.

    `FILE.yaml` or `FILE.json` if there is one, for FILE without its ending; else every YAML file and `config.json` of the
    folder, and of `../configs`, where taming's trainer keeps them. Raises: BadWeightFile that names a file it cannot read.
    """
    path = pathlib.Path(path)
    if path.is_dir() or path.name.endswith(".index.json"):
        places = [path if path.is_dir() else path.parent]
    else:
        own = [path.with_suffix(ending) for ending in _ENDINGS]
        if found := [file for file in own if file.is_file() and file != path]:
            return {file.name: _read(file) for file in found}
        places = [path.parent, *([path.parent.parent / "configs"] if path.parent.name == "checkpoints" else [])]
    files = [file for place in places if place.is_dir() for file in sorted(place.iterdir())]
    files = [file for file in files if file.suffix in (".yaml", ".yml") or file.name == "config.json"]
    return {file.name: _read(file) for file in files if file.is_file() and file != path}


def _read(file: pathlib.Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise Problem(f"has more than {MAX_BYTES >> 10} KB; the options of a network have a few")
        if file.suffix == ".json":
            return parse_json(raw, "it")
        tree = _parse_yaml(raw)
        return tree if isinstance(tree, dict) else {}
    except (Problem, OSError) as error:
        text = error.strerror if isinstance(error, OSError) else error
        hint = "it lies beside the weights, so it is compared with them: mend it or move it away"
        raise BadWeightFile(file, [f"{text}; {hint}"]) from None


def _parse_yaml(raw: bytes) -> Any:
    try:
        references = depth = 0
        for token in yaml.scan(raw):
            references += isinstance(token, yaml.AliasToken)
            depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
            if references > MAX_REFERENCES:
                raise Problem(f"refers to other parts of itself more than {MAX_REFERENCES} times")
            if depth > MAX_DEPTH:
                raise Problem(f"is nested more than {MAX_DEPTH} deep")
        return yaml.safe_load(raw)
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        line = f"line {place.line + 1}: " if place else ""
        raise Problem(f"is not valid YAML ({line}{shown(error.problem or 'damaged', 200)})") from None
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
        raise Problem(f"is not valid YAML ({shown(' '.join(str(error).split()), 200)})") from None
