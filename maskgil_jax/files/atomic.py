"""Atomic writes: files and folders are made under a temporary name in the target's folder, then renamed."""

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
    """Yields a temporary path. What the block makes there replaces `path`, or is deleted if the block raises.

    The parent folder is made. sync: also flushes a file and its folder's entry to disk. Every call gets its own
    temporary name, so several processes may write one path: the last to end wins.
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
    """Writes JSON atomically, locally or in a bucket."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    if is_remote(path):
        open_folder(path).write_text(text)
        return
    with writing(path, sync=True) as part:
        part.write_text(text, encoding="utf-8")


def clear(folder: pathlib.Path, name: str | None = None) -> None:
    """Removes temporary files, and folders being replaced, that killed processes left in a folder:
    those of `name`, or all.

    No other process may be writing there.
    """
    for suffix in ("part", "old"):
        for part in folder.glob(f".{glob.escape(name) if name else '*'}.????????.{suffix}"):
            _remove(part)


def to_disk(path: str | os.PathLike) -> None:
    """Flushes a file's bytes, or a folder's entries, to disk."""
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
