"""A folder of images as a data source: one sub-folder per class."""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import logging
import os
import sys
from pathlib import Path

from maskgil_jax.files.images import check_image, read_image
from maskgil_jax.files.paths import walk_files

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
MAX_UNREADABLE = 100  # unreadable files in a row that mean that the folder is gone, not that single files are damaged
DIGEST_BYTES = 16
BLOCK = 8192  # bytes hashed at the beginning, in the middle and at the end of a file

_log = logging.getLogger(__name__)


class ImageFolder:
    """Random access to the images under `path`.

    `source[i]` is {"image": uint8 (h, w, 3), "label", "id": "class/file.png"}.

    Classes are the sub-folders that hold images, at any depth, sorted by name. Links to files and folders are followed;
    hidden ones are left out. Other files, and sub-folders without images, are counted and named in one log line and in
    `left_out`.

    Opening reads the beginning and the end of every file. Unreadable ones are counted and named in one log line and in
    `skipped` {id: reason}. If decoding a file fails later, the next readable one in the list replaces it, image and
    label (wrapping around), so that the training data stay a function of the folder; the file is added to `skipped`.

    fingerprint: identity of the file names. content_hash: identity of the images and their labels, from the size,
    beginning, middle and end of each file; copies of a folder have the same.
    """

    def __init__(self, path: str | os.PathLike):
        self._root = Path(path)
        files, self.left_out = _list_images(self._root)
        if self.left_out:
            _log.warning("%s: left out: %s", self._root, "; ".join(self.left_out))
        self.class_names = tuple(sorted({name for name, _ in files}))
        number = {name: i for i, name in enumerate(self.class_names)}
        checked = _check_all(self._root, [file for _, file in files])
        self.skipped = {file: found for (_, file), found in zip(files, checked, strict=True) if isinstance(found, str)}
        readable = [(row, found) for row, found in zip(files, checked, strict=True) if isinstance(found, bytes)]
        self._files = [(file, number[name]) for (name, file), _ in readable]
        self._digests = b"".join(digest for _, digest in readable)
        if self.skipped:
            named = "; ".join(list(self.skipped.values())[:5]) + ("; ..." if len(self.skipped) > 5 else "")
            if not self._files:
                raise ValueError(f"{self._root}: none of the {len(files)} images can be read: {named}")
            _log.warning("%s: %d of %d images skipped: %s", self._root, len(self.skipped), len(files), named)
            if empty := [name for name in self.class_names if number[name] not in {label for _, label in self._files}]:
                _log.warning("%s: classes without a readable image: %s", self._root, _some(empty))
        self.name = f"folder/{self._root.resolve().name}"
        self.fingerprint = hashlib.sha256("\n".join(file for file, _ in self._files).encode()).hexdigest()[:16]
        labels = b"".join(label.to_bytes(4, "little") for _, label in self._files)
        self.content_hash = "images:" + hashlib.sha256(self._digests + labels).hexdigest()[:16]

    def content(self, start: int, stop: int) -> str:
        """Identity of the images `start` to `stop` (exclusive): changes when one of their files does."""
        return hashlib.sha256(self._digests[DIGEST_BYTES * start : DIGEST_BYTES * stop]).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(i)
        reason = None
        for step in range(min(MAX_UNREADABLE, len(self._files))):
            file, label = self._files[(i + step) % len(self._files)]
            try:
                return {"image": read_image(self._root / file), "label": label, "id": file}
            except ValueError as error:
                reason = str(error)
            if file not in self.skipped:
                self.skipped[file] = reason
                _log.warning("unreadable image replaced by the next readable one: %s", reason)
        raise ValueError(f"{self._root}: {step + 1} images in a row could not be read; the last: {reason}")


def _list_images(root: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """([(class, path relative to the root)] of every image file, sorted; what is left out, in words)."""
    if not root.exists():
        raise ValueError(f"{root}: no such folder; give a folder with one sub-folder of images per class")
    if not root.is_dir():
        raise ValueError(f"{root}: is a file; give a folder with one sub-folder of images per class")
    files, loose, empty = [], 0, []
    endings: collections.Counter[str] = collections.Counter()
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            loose += entry.suffix.lower() in EXTENSIONS
            continue
        before = len(files)
        for file in _sorted_as_walked(entry):
            if file.suffix.lower() in EXTENSIONS:
                files.append((entry.name, file.relative_to(root).as_posix()))
            else:
                endings[file.suffix.lower() or "without an ending"] += 1
        if len(files) == before:
            empty.append(entry.name)
    if not files and loose:
        raise ValueError(f"{root}: {loose} images but no class sub-folders; move them to {root / 'CLASS_NAME'}/")
    if not files:
        found = f"; found {_counts(endings)}" if endings else ""
        raise ValueError(f"{root}: no images ({', '.join(EXTENSIONS)}) in any sub-folder{found}")
    left_out = []
    if endings:
        left_out.append(f"files that are not {', '.join(EXTENSIONS)}: {_counts(endings)}")
    if loose:
        left_out.append(f"{loose} image{'s' if loose > 1 else ''} outside of the class sub-folders")
    if empty:
        left_out.append(f"sub-folders without images, which are no classes: {_some(empty)}")
    return files, left_out


def _sorted_as_walked(folder: Path) -> list[Path]:
    """The files under a folder, those of each folder before those of its sub-folders:
    the order that code stores have."""
    return sorted(walk_files(folder), key=lambda file: _walk_key(file.relative_to(folder)))


def _walk_key(file: Path) -> tuple:
    *folders, name = file.parts
    return (*((1, part) for part in folders), (0, name))


def _counts(endings: collections.Counter[str]) -> str:
    return ", ".join(f"{count} {ending}" for ending, count in endings.most_common(8))


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _check_all(root: Path, files: list[str]) -> list[bytes | str]:
    """Of each file: a digest, or why it cannot be read."""

    def check(file: str) -> bytes | str:
        try:
            check_image(root / file)
            return _digest(root / file)
        except (ValueError, OSError) as error:
            return str(error)

    from tqdm import tqdm

    quiet = len(files) < 10_000 or not sys.stderr.isatty()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(tqdm(pool.map(check, files), total=len(files), desc=f"checking {root}", disable=quiet))


def _digest(path: Path) -> bytes:
    """A hash of a file's size and of three blocks of it.

    An uncompressed file is hashed whole, as blocks may miss a change.
    """
    hashed = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        hashed.update(size.to_bytes(8, "little"))
        if size <= 3 * BLOCK or path.suffix.lower() == ".bmp":
            hashed.update(file.read())
        else:
            for start in (0, (size - BLOCK) // 2, size - BLOCK):
                file.seek(start)
                hashed.update(file.read(BLOCK))
    return hashed.digest()
