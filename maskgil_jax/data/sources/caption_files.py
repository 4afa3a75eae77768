"""Image files with captions: in .txt or .json files of the same name, in JSON lines, or in a COCO captions file."""

from __future__ import annotations

import concurrent.futures
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from maskgil_jax.config import CaptionConfig
from maskgil_jax.data.sources.captions import CaptionedImages, Entry, LeftOut, block_digest, caption_values, clean_captions
from maskgil_jax.data.sources.folder import EXTENSIONS
from maskgil_jax.files.images import check_image, read_image
from maskgil_jax.files.json_lines import parse_json_line
from maskgil_jax.files.paths import walk_files

IMAGE_FIELDS = ("image", "path", "file_name", "file", "image_path", "key")  # of a JSON line, the first that is present
LINE = 'each line is an object such as {"image": "cats/1.jpg", "caption": "a cat"}'


class CaptionedFiles(CaptionedImages):
    """Image files under `root`, given as (path relative to the root, captions as read).

    Opening reads the beginning and the end of every image. Images that are missing, unreadable or without a usable
    caption, and captions that are unreadable, empty or too long, are counted and named in one log line and in
    `left_out`.
    """

    def __init__(
        self,
        name: str,
        where: str | os.PathLike,
        root: Path,
        captioned: Iterable[tuple[str, list]],
        options: CaptionConfig,
        left_out: LeftOut,
    ):
        self._root = root
        usable = []
        for file, values in captioned:
            if captions := clean_captions(values, file, options, left_out):
                usable.append((file, captions))
            else:
                left_out.add("images without a usable caption", file)
        entries = []
        for (file, captions), digest in zip(usable, _check_all(root, [file for file, _ in usable]), strict=True):
            if digest is None:
                left_out.add("unreadable images", file)
            else:
                entries.append(Entry(file, captions, digest))
        super().__init__(name, where, entries, left_out)

    def _image(self, i: int) -> np.ndarray:
        return read_image(self._root / self._ids[i])


def _check_all(root: Path, files: list[str]) -> list[bytes | None]:
    """The digest of each file, None for one that is missing or unreadable."""

    def check(file: str) -> bytes | None:
        try:
            check_image(root / file)
            with open(root / file, "rb") as opened:
                return block_digest(opened, 0, os.fstat(opened.fileno()).st_size)
        except (ValueError, OSError):
            return None

    from tqdm import tqdm

    quiet = len(files) < 10_000 or not sys.stderr.isatty()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(tqdm(pool.map(check, files), total=len(files), desc=f"checking {root}", disable=quiet))


def list_images(root: Path) -> list[str]:
    """Paths of all image files under a folder, relative to it and sorted; hidden files and folders are left out."""
    return sorted(p.relative_to(root).as_posix() for p in walk_files(root) if p.suffix.lower() in EXTENSIONS)


# --------------------------------------------------------------------------- files of the same name
def open_caption_folder(path: str | os.PathLike, options: CaptionConfig) -> CaptionedFiles:
    """A folder of images, each with `NAME.txt` (a caption a line) or `NAME.json` (a caption,
    list or object) beside it."""
    root, left_out = Path(path), LeftOut()
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; give a folder of images with .txt or .json files beside them")
    images = list_images(root)
    if not images:
        raise ValueError(f"{root}: no images ({', '.join(EXTENSIONS)})")
    captioned = [(file, _beside(root / file, file, options, left_out)) for file in images]
    if not any(values for _, values in captioned) and not left_out:
        raise ValueError(f"{root}: {len(images)} images, and no .txt or .json file of the same name beside any of them")
    return CaptionedFiles(f"captions/{root.resolve().name}", root, root, captioned, options, left_out)


def _beside(image: Path, name: str, options: CaptionConfig, left_out: LeftOut) -> list:
    """The captions in the .txt and the .json file beside an image."""
    values: list = []
    text, document = image.with_suffix(".txt"), image.with_suffix(".json")
    if text.is_file():
        data = text.read_bytes()
        values += [line for line in data.splitlines() if line.strip()] or [data]
    if document.is_file():
        try:
            values += caption_values(json.loads(document.read_bytes()), options.fields)
        except ValueError:  # also a wrong encoding
            left_out.add("unreadable captions", name)
    return values


# --------------------------------------------------------------------------- JSON lines
def open_caption_lines(path: str | os.PathLike, images: str | os.PathLike | None, options: CaptionConfig) -> CaptionedFiles:
    """A file of JSON lines, each with an image and its caption or captions. Lines of the same image are joined.

    An image is given by its path or its key, the path without its ending, relative to `images` (None: the file's
    folder). Raises a ValueError that names the file and the line if a line is not such an object.
    """
    path = Path(path)
    root = _images_folder(path, images)
    by_key: dict[str, str] | None = None
    captioned: dict[str, list] = {}
    for number, line in enumerate(_read(path).split(b"\n"), 1):
        if not line.strip():
            continue
        record = parse_json_line(line, path, number, LINE)
        field = next((f for f in IMAGE_FIELDS if f in record), None) if isinstance(record, dict) else None
        if field is None or not isinstance(record[field], str) or not record[field]:
            raise ValueError(f"{path}: line {number} names no image ({', '.join(IMAGE_FIELDS)}); {LINE}")
        if not any(f in record for f in options.fields):
            raise ValueError(f"{path}: line {number} has no caption ({', '.join(options.fields)}); {LINE}")
        file = record[field]
        if not file.lower().endswith(EXTENSIONS):
            if by_key is None:
                by_key = {name.rpartition(".")[0]: name for name in reversed(list_images(root))}
            file = by_key.get(file, file)
        captioned.setdefault(file, []).extend(caption_values(record, options.fields))
    return _of_file(path, root, captioned, options)


# --------------------------------------------------------------------------- COCO
def open_coco_captions(path: str | os.PathLike, images: str | os.PathLike | None, options: CaptionConfig) -> CaptionedFiles:
    """A COCO captions file: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.

    images: the folder of the images; None: that of the file.
    """
    path = Path(path)
    what = "a captions file of COCO has lists images (id, file_name) and annotations (image_id, caption)"
    root = _images_folder(path, images)
    try:
        document = json.loads(_read(path))
    except ValueError as error:
        at = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "not UTF-8"
        raise ValueError(f"{path}: is not JSON ({at}); {what}") from None
    if not isinstance(document, dict) or not all(isinstance(document.get(k), list) for k in ("images", "annotations")):
        raise ValueError(f"{path}: lacks a list images or annotations; {what}")
    files: dict[object, str] = {}
    for number, image in enumerate(document["images"]):
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or "id" not in image:
            raise ValueError(f"{path}: images[{number}] lacks id or file_name; {what}")
        files[image["id"]] = image["file_name"]
    captioned: dict[str, list] = {file: [] for file in files.values()}
    for number, note in enumerate(document["annotations"]):
        if not isinstance(note, dict) or note.get("image_id") not in files or "caption" not in note:
            raise ValueError(f"{path}: annotations[{number}] has no caption or no image of the list; {what}")
        captioned[files[note["image_id"]]].append(note["caption"])
    return _of_file(path, root, captioned, options)


def _images_folder(path: Path, images: str | os.PathLike | None) -> Path:
    if not path.is_file():
        raise ValueError(f"{path}: no such file of captions")
    root = path.parent if images is None else Path(images)
    if not root.is_dir():
        raise ValueError(f"images: {root}: no such folder; give the folder that the names in {path.name} are relative to")
    return root


def _read(path: Path) -> bytes:
    return path.read_bytes().removeprefix(b"\xef\xbb\xbf")


def _of_file(path: Path, root: Path, captioned: dict[str, list], options: CaptionConfig) -> CaptionedFiles:
    if captioned and not any((root / file).is_file() for file in captioned):
        some = next(iter(captioned))
        raise ValueError(f"{path}: none of its {len(captioned)} images is in {root} ({some}, ...); give images=FOLDER")
    return CaptionedFiles(f"captions/{path.resolve().stem}", path, root, captioned.items(), options, LeftOut())
