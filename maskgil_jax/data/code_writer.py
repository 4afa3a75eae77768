"""Writes the files of a code store: what an earlier run has finished, shards, progress and the manifest.

One process records its shards in progress.json. Of several, process 0 writes there what earlier runs have finished, and
process k adds its own shards in progress-k.json; a later run, of any number of processes, reads all of them.
"""

from __future__ import annotations

import errno
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskgil_jax.data import code_format
from maskgil_jax.files.atomic import clear, write_json
from maskgil_jax.files.lock import NAME as LOCK_NAME
from maskgil_jax.files.paths import is_remote
from maskgil_jax.runtime.distributed import from_all

POLL = 0.5  # seconds between two looks at the files of other processes
_log = logging.getLogger(__name__)


class StoreWriter:
    """The shards of a store that are to be written by process `process` of `processes`.

    out_dir: a path, local or in a bucket. names: all shards in order. content: {shard: identity of its images now} of
    this process's shards, empty if the source cannot tell. done: {shard: manifest entry} of what all processes can
    keep.
    finished: whether nothing is to do. Raises a ValueError if the folder belongs to something else.
    """

    def __init__(self, out_dir: Any, settings: dict, names: list[str], content: dict[str, str], process: int, processes: int):
        self._out_dir, self._settings, self._names, self._content = out_dir, settings, names, content
        self._process, self._several = process, processes > 1
        self._manifest, self._progress = out_dir / code_format.MANIFEST, out_dir / code_format.PROGRESS
        manifest_there = self._manifest.exists()
        found = self._recorded()
        own = {name: found[name] for name in names[process::processes] if name in found}
        kept = _kept_shards(out_dir, own, content)
        if self._several:
            states = from_all([manifest_there, kept])
            manifest_there = states[0][0]
            kept = {name: entry for _, entries in states for name, entry in entries.items()}
        self.done = kept
        self.finished = manifest_there and len(kept) == len(names)
        if self.finished and process == 0:
            self._remove_progress()

    def write(self, todo: dict[str, range], records: Iterator[tuple[list[bytes], list[int]]]) -> None:
        """Writes the shards to do of this process, and its progress after each; returns when the manifest is there.

        records: of each shard its packed records, and the number of images of each size.
        """
        own: dict[str, dict] = {}
        mine = self._out_dir / f"progress-{self._process}.json" if self._several else self._progress
        try:
            self._begin()
            for name, (packed, counts) in zip(todo, records, strict=True):
                own[name] = _write_shard(self._out_dir, name, packed)
                if name in self._content:
                    own[name]["content"] = self._content[name]
                if "sizes" in self._settings:
                    own[name]["counts"] = counts
                self._save(mine, own if self._several else {**self.done, **own})
                _log.info("%s: %d of %d shards", self._out_dir, len(self.done) + len(own), len(self._names))
            if self._process == 0:
                self._finish({**self.done, **own})
            else:
                while not self._manifest.exists():
                    time.sleep(POLL)
        except OSError as error:
            raise OSError(
                error.errno or errno.EIO,
                f"{self._out_dir}: writing failed ({error.strerror or error}); {len(self.done) + len(own)} of "
                f"{len(self._names)} shards are finished and kept, run the same command again to continue",
            ) from error

    def _begin(self) -> None:
        """Process 0 records what is finished, and makes the store an unfinished one; the others wait for that."""
        if self._process == 0:
            if not is_remote(self._out_dir):
                clear(self._out_dir)
            self._save(self._progress, self.done)
            self._manifest.unlink(missing_ok=True)
            self._remove_progress(keep=code_format.PROGRESS)
        if self._several:
            from_all(None)

    def _finish(self, done: dict[str, dict]) -> None:
        """Waits for the shards of the other processes, writes the manifest and removes the progress files."""
        while self._several and len(done := {**done, **self._recorded()}) < len(self._names):
            time.sleep(POLL)
        entries = [done[name] for name in self._names]
        counts: dict = {}
        if all("counts" in entry for entry in entries):
            counts = {"counts": [sum(column) for column in zip(*(entry["counts"] for entry in entries), strict=True)]}
        write_json(self._manifest, {**self._settings, **counts, "shards": entries})
        self._remove_progress()

    def _save(self, file: Any, done: dict[str, dict]) -> None:
        write_json(file, {**self._settings, "shards": [done[name] for name in self._names if name in done]})

    def _remove_progress(self, keep: str | None = None) -> None:
        for file in [self._progress, *self._out_dir.glob("progress-*.json")]:
            if file.name != keep:
                file.unlink(missing_ok=True)

    def _recorded(self) -> dict[str, dict]:
        """The manifest entries of the shards that earlier or other processes recorded."""
        if self._out_dir.exists() and not self._out_dir.is_dir():
            raise ValueError(f"{self._out_dir}: is a file; give a folder for the codes")
        files = [file for file in (self._manifest, self._progress) if file.exists()]
        if not files or files[0] != self._manifest:
            files += sorted(self._out_dir.glob("progress-*.json"), key=lambda file: file.name)
        else:
            files = files[:1]
        found: dict[str, dict] = {}
        for file in files:
            values = code_format.read_json(file)
            _require_same(self._out_dir, values, self._settings)
            found |= {entry["name"]: entry for entry in values["shards"]}
        if not files and self._out_dir.is_dir():
            ours = (".part", ".array_record", LOCK_NAME)  # left by a process that was killed before it wrote progress.json
            others = [path.name for path in self._out_dir.iterdir() if not path.name.endswith(ours)]
            if others:
                raise ValueError(f"{self._out_dir}: not empty (it has {others[0]}) and not a code store; give another folder")
        return found


def _write_shard(out_dir: Any, name: str, records: list[bytes]) -> dict:
    """Writes a shard, in a bucket by way of a temporary file on the local disk; returns its manifest entry."""
    if not is_remote(out_dir):
        return code_format.write_shard(out_dir / name, records)
    with tempfile.TemporaryDirectory(prefix="maskgil_jax_") as folder:
        local = Path(folder) / name
        entry = code_format.write_shard(local, records)
        with local.open("rb") as file, (out_dir / name).open("wb") as remote:
            shutil.copyfileobj(file, remote, 8 << 20)
    return entry


def _is_whole(shard: Any, entry: dict) -> bool:
    """Whether a shard is what its entry says.

    In a bucket, which keeps checksums of its own, only its size is compared.
    """
    if not shard.exists():
        return False
    if is_remote(shard):
        return shard.stat().length == entry["bytes"]
    return {**entry, **code_format.sum_file(shard)} == entry


def _require_same(out_dir: Any, found: dict, settings: dict) -> None:
    for key, value in settings.items():
        if found.get(key) != value:
            kind = "a store made by another tokenizer" if key == "tokenizer_hash" else "a store with other settings"
            if key in ("source_fingerprint", "num_images", "class_names"):
                kind = "a store of other images (files were added, removed or renamed)"
            raise ValueError(
                f"{out_dir}: holds {kind}: {key} is {_short(found.get(key))} there, {_short(value)} now; give another folder"
            )


def _kept_shards(out_dir: Any, entries: dict[str, dict], content: dict[str, str]) -> dict[str, dict]:
    """Those of the recorded shards that are whole and whose images have not changed."""
    kept, changed, unknown = {}, 0, 0
    for name, entry in entries.items():
        if not _is_whole(out_dir / name, entry):
            _log.warning("%s: missing or damaged; encoding it again", out_dir / name)
            continue
        now, then = content.get(name), entry.get("content")
        if now and then and now != then:
            changed += 1
            continue
        unknown += bool(now) and not then
        kept[name] = entry
    if changed:
        _log.warning("%s: images of %d of %d shards have changed; encoding these again", out_dir, changed, len(entries))
    if unknown:
        _log.warning(
            "%s: made by an older version, which recorded only the names of the images: whether images have changed since "
            "is not known; encode into another folder if they have",
            out_dir,
        )
    return kept


def _short(value) -> str:
    return text if len(text := repr(value)) <= 80 else text[:77] + "..."
