"""Files and folders that appear whole or not at all: made under a temporary name beside their place, then renamed."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

from maskgil_jax.files.paths import is_remote, open_folder


@contextlib.contextmanager
def writing(path: str | os.PathLike, *, sync: bool = False) -> Iterator[pathlib.Path]:
    """Yields a temporary name. The file or folder that the block makes there takes the place of `path` when the block ends
    well, and is gone when it does not. The folder around it is made. sync: returns when a file is safe from a power cut.

    No other call gets the same name, so several processes may write one path: the last to end wins, and nothing is mixed.
    """
    path = pathlib.Path(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        if sync:
            to_disk(part)
        os.replace(part, path)
        if sync:
            to_disk(path.parent)
    finally:
        _remove(part)


def write_json(path: str | os.PathLike, value) -> None:
    """Writes JSON, locally or in a bucket (where every object appears whole)."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    if is_remote(path):
        open_folder(path).write_text(text)
        return
    with writing(path, sync=True) as part:
        part.write_text(text, encoding="utf-8")


def clear(folder: pathlib.Path, name: str | None = None) -> None:
    """Removes what killed processes left in a folder, of the file `name` or of all. Nobody else may be writing there."""
    for part in folder.glob(f".{glob.escape(name) if name else '*'}.????????.part"):
        _remove(part)


def to_disk(path: str | os.PathLike) -> None:
    """Waits until a file's bytes, or a folder's entries, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(part: pathlib.Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)
