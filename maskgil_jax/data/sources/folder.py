"""A folder of images as a data source: one sub-folder per class."""

from __future__ import annotations

import concurrent.futures
import hashlib
import logging
import os
import sys
from pathlib import Path

from maskgil_jax.files.images import check_image, read_image

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
MAX_RUN = 100  # so many unreadable files in a row mean that the folder is gone, not that files are bad

_log = logging.getLogger(__name__)


class ImageFolder:
    """Random access to the images under `path`; `source[i]` is {"image": uint8 (h, w, 3), "label", "id": "class/file.png"}.

    Classes are the sub-folders that hold images, at any depth, sorted by name; hidden files and folders are left out.
    Opening looks at the beginning and end of every file: unreadable ones are left out, counted and named in a log line and in
    `skipped` {id: reason}. A file that only proves unreadable when its turn comes is replaced, image and label, by the next
    readable one in the list (wrapping around), so what training sees stays a function of the folder; it joins `skipped` too.
    """

    def __init__(self, path: str | os.PathLike):
        self._root = Path(path)
        files = _list_images(self._root)
        self.class_names = tuple(sorted({name for name, _ in files}))
        number = {name: i for i, name in enumerate(self.class_names)}
        reasons = _check_all(self._root, [file for _, file in files])
        self.skipped = {file: reason for (_, file), reason in zip(files, reasons, strict=True) if reason}
        self._files = [(file, number[name]) for (name, file), reason in zip(files, reasons, strict=True) if not reason]
        if self.skipped:
            named = "; ".join(list(self.skipped.values())[:5]) + ("; ..." if len(self.skipped) > 5 else "")
            if not self._files:
                raise ValueError(f"{self._root}: none of the {len(files)} images can be read: {named}")
            _log.warning("%s: %d of %d images skipped: %s", self._root, len(self.skipped), len(files), named)
        self.name = f"folder/{self._root.resolve().name}"
        self.fingerprint = hashlib.sha256("\n".join(file for file, _ in self._files).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(i)
        reason = None
        for step in range(min(MAX_RUN, len(self._files))):
            file, label = self._files[(i + step) % len(self._files)]
            try:
                return {"image": read_image(self._root / file), "label": label, "id": file}
            except ValueError as error:
                reason = str(error)
            if file not in self.skipped:
                self.skipped[file] = reason
                _log.warning("image replaced by the next readable one: %s", reason)
        raise ValueError(f"{self._root}: {step + 1} images in a row could not be read; the last: {reason}")


def _list_images(root: Path) -> list[tuple[str, str]]:
    """(class, path relative to the root) of every image file, sorted."""
    if not root.exists():
        raise ValueError(f"{root}: no such folder; give a folder with one sub-folder of images per class")
    if not root.is_dir():
        raise ValueError(f"{root}: is a file; give a folder with one sub-folder of images per class")
    files, loose = [], 0
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            loose += entry.suffix.lower() in EXTENSIONS
            continue
        for folder, inner, names in os.walk(entry):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            for name in sorted(names):
                if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                    files.append((entry.name, (Path(folder) / name).relative_to(root).as_posix()))
    if not files and loose:
        raise ValueError(f"{root}: {loose} images but no class sub-folders; move them to {root / 'CLASS_NAME'}/")
    if not files:
        raise ValueError(f"{root}: no images ({', '.join(EXTENSIONS)}) in any sub-folder")
    return files


def _check_all(root: Path, files: list[str]) -> list[str | None]:
    def check(file: str) -> str | None:
        try:
            check_image(root / file)
        except ValueError as error:
            return str(error)
        return None

    from tqdm import tqdm

    quiet = len(files) < 10_000 or not sys.stderr.isatty()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(tqdm(pool.map(check, files), total=len(files), desc=f"looking through {root}", disable=quiet))
