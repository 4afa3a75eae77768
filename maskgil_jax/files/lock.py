"""Locks of folders that one writer at a time may use.

The kernel releases a lock when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import IO

from maskgil_jax.config import ConfigError
from maskgil_jax.files.paths import is_remote

NAME = ".lock"  # holds the owner's pid, host and start as JSON, for the message of a process that is refused
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike, *, advice: str = "wait for it to end, or give another folder") -> Iterator[None]:
    """Makes `folder` and holds its lock during the block.

    The file is removed at the end; one left by a kill locks nothing.

    Raises a ConfigError that names the owner if another process holds the lock. A bucket, a disk without locks and a
    folder without write permission are not locked.
    """
    if is_remote(folder):
        yield
        return
    path = pathlib.Path(folder).resolve() / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _acquire(path, advice)
    if file is None:
        yield
        return
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _acquire(path: pathlib.Path, advice: str) -> IO[str] | None:
    """The locked file; None where locks are not possible."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    while True:
        try:
            file = path.open("a+")
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(file)
            file.close()
            raise ConfigError(f"{path.parent}: in use by {owner}; {advice}") from None
        except OSError as error:
            _log.warning("%s: this disk has no locks (%s); do not start two writers there", path.parent, error.strerror)
            file.close()
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()  # its owner removed it between the opening and the lock: another process may hold a new file
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}) + "\n")
    file.flush()
    return file


def _owner(file: IO[str]) -> str:
    """Who holds a lock, in words."""
    try:
        file.seek(0)
        owner = json.loads(file.read())
        return f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
    except (ValueError, KeyError, TypeError, OSError):
        return "another process"
