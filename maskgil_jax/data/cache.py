"""Code stores in a bucket: copied once to this machine, checked, and shared by all its processes and later runs."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from maskgil_jax.data import code_format
from maskgil_jax.files.atomic import clear, writing
from maskgil_jax.files.paths import free_bytes, open_folder, size_text

THREADS = 8  # shards fetched at once; one stream from a bucket is slower than the disk
_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where the copies lie: MASKGIL_CACHE_DIR, or ~/.cache/maskgil_jax."""
    return Path(os.environ.get("MASKGIL_CACHE_DIR") or Path.home() / ".cache" / "maskgil_jax")


def local_store(address: str) -> Path:
    """The store at `address` (gs://bucket/folder) as a folder of this machine.

    The copy is named by its manifest's hash. The manifest holds the size and checksum of every shard, so a store that was
    encoded anew is another copy, and one that was only moved is the same. Processes that ask at the same time wait for one of
    them to copy; what an interrupted copy left is completed; the manifest is written last.

    Raises a ValueError if there is no store, or if a shard is not what the manifest says; an OSError if there is no room.
    """
    source = open_folder(address)
    if not (source / code_format.MANIFEST).exists():
        raise ValueError(f"{address}: not a finished code store (no {code_format.MANIFEST}); copy one there, manifest last")
    entries = code_format.read_json(source / code_format.MANIFEST)["shards"]
    content = (source / code_format.MANIFEST).read_bytes()
    folder = cache_folder() / "codes" / hashlib.sha256(content).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "lock"):
        clear(folder)
        _fetch(source, folder, [entry for entry in entries if not _is_there(folder / entry["name"], entry["bytes"])])
        with writing(folder / code_format.MANIFEST) as part:
            part.write_bytes(content)
    return folder


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _fetch(source, folder: Path, todo: list[dict]) -> None:
    if not todo:
        return
    size, free = sum(entry["bytes"] for entry in todo), free_bytes(folder)
    if size > free:
        needs = f"the codes need {size_text(size)}, {size_text(free)} are free"
        raise OSError(errno.ENOSPC, f"{folder}: {needs}; MASKGIL_CACHE_DIR names another disk")
    _log.info("codes: copying %s to %s (%s, once)", source, folder, size_text(size))

    def fetch(entry: dict) -> None:
        with writing(folder / entry["name"]) as part:
            with (source / entry["name"]).open("rb") as remote, part.open("wb") as local:
                shutil.copyfileobj(remote, local, 8 << 20)
            if code_format.sum_file(part) != {"bytes": entry["bytes"], "crc32": entry["crc32"]}:
                raise ValueError(
                    f"{source / entry['name']}: damaged (checksum differs from the manifest's); copy the store there again"
                )

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fetch, todo):
            pass


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds a lock file; it is freed when the process dies, whatever the reason."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
