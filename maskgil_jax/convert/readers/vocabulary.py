"""The vocabulary of a Chameleon folder: which token stands for which code, and which tokens frame an image.

Sources: Chameleon's vocabulary file; Lumina-mGPT's names for its tokens.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from .bounded_text import MAX_JSON, parse_json
from .checkpoint import BadWeightFile, Problem

TOKENIZER = "tokenizer.json"
_CODE = re.compile(r"IMGIMG([A-J]+)Z")  # the letters A to J are the digits of the code
_TOKENS = {
    "end_image": "<eoss>",
    "begin_image": "<racm3:break>",
    "end_turn": "<reserved08706>",
    "newline": "<reserved08799>",
    "size_zero": "<reserved08800>",
}
# Names in config.json -> options.
_STATED = {"rms_norm_eps": "norm_eps", "rope_theta": "rope_base", "swin_norm": "swin_norm"}
CHAMELEON_NAMES = {f"Chameleon.{name}": name for name in ("image_ids", *_TOKENS, *_STATED.values())}


def is_chameleon(tree: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of a Chameleon network."""
    return tree.get("model_type") == "chameleon"


def chameleon_options(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"Chameleon.option": value} that a `config.json` states.

    Raises: Problem for a vocabulary without image tokens.
    """
    found = {f"Chameleon.{ours}": tree[theirs] for theirs, ours in _STATED.items() if theirs in tree}
    names = tree.get("vocabulary_map")
    return found | ({f"Chameleon.{name}": value for name, value in tokens_of(names).items()} if names else {})


def tokens_of(names: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens of codes ("image_ids", in the order of the codes) and of frames.

    Raises: Problem for names that lack one.
    """
    codes = {}
    for name, token in names.items():
        if match := _CODE.fullmatch(str(name)):
            codes[int("".join(str(ord(letter) - ord("A")) for letter in match[1]))] = token
    if not codes or set(codes) != set(range(len(codes))):
        raise Problem(f"its vocabulary names {len(codes)} codes (IMGIMG...Z), not all codes from 0 on")
    found: dict[str, Any] = {"image_ids": tuple(codes[code] for code in range(len(codes)))}
    for option, name in _TOKENS.items():
        if name not in names:
            raise Problem(f"its vocabulary has no {name}, the token {option}")
        found[option] = names[name]
    for option, value in found.items():
        if not all(type(token) is int and 0 <= token < 1 << 24 for token in (value if option == "image_ids" else [value])):
            raise Problem(f"its vocabulary has no whole number for {option}")
    return found


def with_vocabulary(sidecars: dict[str, dict], path: str | os.PathLike) -> dict[str, dict]:
    """The configurations beside a weight file, with the vocabulary of `tokenizer.json` where a Chameleon's states
    none."""
    file = tokenizer_file(path)
    result = {}
    for name, tree in sidecars.items():
        if is_chameleon(tree) and not tree.get("vocabulary_map") and file is not None:
            tree = {**tree, "vocabulary_map": _names_in(file)}
        result[name] = tree
    return result


def tokenizer_file(path: str | os.PathLike) -> pathlib.Path | None:
    """`tokenizer.json` in the folder of a weight file, if there is one."""
    path = pathlib.Path(path)
    file = (path if path.is_dir() else path.parent) / TOKENIZER
    return file if file.is_file() else None


def _names_in(file: pathlib.Path) -> dict[str, Any]:
    """{token: id} of a `tokenizer.json`."""
    try:
        with open(file, "rb") as opened:
            tree = parse_json(opened.read(MAX_JSON + 1), "it")
    except (Problem, OSError) as error:
        raise BadWeightFile(file, [str(error)]) from None
    model, added = tree.get("model"), tree.get("added_tokens")
    names = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(names, dict):
        raise BadWeightFile(file, ["has no model.vocab, the ids of its tokens"])
    extra = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return {**names, **{token.get("content"): token.get("id") for token in extra}}
