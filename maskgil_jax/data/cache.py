"""Local copies of code stores in a bucket: made once, checked, and shared by all processes and later runs of a
machine."""

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

THREADS = 8  # shards fetched at once, as one stream from a bucket is slower than the disk
_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder of the copies: $MASKGIL_CACHE_DIR, or ~/.cache/maskgil_jax."""
    return Path(os.environ.get("MASKGIL_CACHE_DIR") or Path.home() / ".cache" / "maskgil_jax")


def local_store(address: str) -> Path:
    """Copies the store at `address` (gs://bucket/folder) to this machine and returns the copy's folder.

    The copy is named by the hash of the manifest, which holds the size and checksum of every shard: a store that was
    encoded again gets another copy, a moved one does not. If several processes call this, one of them copies and the
    others wait. An interrupted copy is completed; the manifest is written last.

    Raises a ValueError if there is no store or a shard differs from its manifest; an OSError if the disk is too small.
    """
    source = open_folder(address)
    if not (source / code_format.MANIFEST).exists():
        raise ValueError(f"{address}: not a finished code store (no {code_format.MANIFEST}); copy one there, manifest last")
    entries = code_format.read_json(source / code_format.MANIFEST)["shards"]
    content = (source / code_format.MANIFEST).read_bytes()
    folder = cache_folder() / "codes" / hashlib.sha256(content).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder / "lock"):
        clear(folder)
        _fetch(source, folder, [entry for entry in entries if not _has_size(folder / entry["name"], entry["bytes"])])
        with writing(folder / code_format.MANIFEST) as part:
            part.write_bytes(content)
    return folder


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _fetch(source, folder: Path, todo: list[dict]) -> None:
    if not todo:
        return
    size, free = sum(entry["bytes"] for entry in todo), free_bytes(folder)
    if size > free:
        needs = f"the codes need {size_text(size)}, {size_text(free)} are free"
        raise OSError(errno.ENOSPC, f"{folder}: {needs}; set MASKGIL_CACHE_DIR to a folder on another disk")
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
def _exclusive(path: Path) -> Iterator[None]:
    """Waits for the lock of a file and holds it; the kernel releases it when the process ends, however it ends."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
