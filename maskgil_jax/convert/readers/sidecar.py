"""Configuration files next to a weight file: a trainer's `model.yaml`, or a `config.json`.

The planner compares them with the shapes in the file, and uses them where no shape states a size.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

from .bounded_text import parse_json, parse_yaml
from .checkpoint import BadWeightFile, Problem

MAX_BYTES = 64 << 10  # of one file; published ones have 1 to 3 KB
MAX_CONFIG = 4 << 20  # of config.json, which may list a vocabulary; Chameleon's has 65,536 entries
_ENDINGS = (".yaml", ".yml", ".json")


def read_sidecar_configs(path: str | os.PathLike) -> dict[str, dict]:
    """{file name: its contents} of the configuration files next to a weight file or inside a folder of shards.

    `FILE.yaml` or `FILE.json` if there is one, for FILE without its ending. Otherwise every YAML file and `config.json`
    of the folder, and of `../configs`, where taming's trainer keeps them. Raises: BadWeightFile that names a file it
    cannot read.
    """
    path = pathlib.Path(path)
    if path.is_dir() or path.name.endswith(".index.json"):
        folders = [path if path.is_dir() else path.parent]
    else:
        own = [path.with_suffix(ending) for ending in _ENDINGS]
        if found := [file for file in own if file.is_file() and file != path]:
            return {file.name: _read(file) for file in found}
        folders = [path.parent, *([path.parent.parent / "configs"] if path.parent.name == "checkpoints" else [])]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())]
    files = [file for file in files if file.suffix in (".yaml", ".yml") or file.name == "config.json"]
    return {file.name: _read(file) for file in files if file.is_file() and file != path}


def _read(file: pathlib.Path) -> dict[str, Any]:
    limit = MAX_CONFIG if file.name == "config.json" else MAX_BYTES
    try:
        with open(file, "rb") as opened:
            raw = opened.read(limit + 1)
        if len(raw) > limit:
            raise Problem(f"has more than {limit >> 10} KB; the options of a network have a few")
        if file.suffix == ".json":
            return parse_json(raw, "it")
        tree = parse_yaml(raw)
        return tree if isinstance(tree, dict) else {}
    except (Problem, OSError) as error:
        text = error.strerror if isinstance(error, OSError) else error
        hint = "it is in the folder of the weights, so it is compared with them: mend it or move it away"
        raise BadWeightFile(file, [f"{text}; {hint}"]) from None
