"""The built-in data set: 5,160 emoji drawings, 64x64 on white, in three styles, with names in five languages.

Origin and licences: `data/emoji/ATTRIBUTION.md`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json

import numpy as np

from maskgil_jax.config import choose, height_width, require

TILE = 64
HELD_OUT = 0.1  # fraction of the emoji in the test split


def _folder():
    return importlib.resources.files("maskgil_jax.data") / "emoji"


@functools.cache
def _index() -> tuple[dict, ...]:
    return tuple(json.loads((_folder() / "index.json").read_text(encoding="utf-8"))["images"])


@functools.cache
def _tiles(style: str) -> np.ndarray:
    """All drawings of a style, uint8 (n, 64, 64, 3); decoded once per process."""
    from PIL import Image

    with (_folder() / f"{style}.webp").open("rb") as file:
        sheet = np.asarray(Image.open(file).convert("RGB"))
    rows, columns = sheet.shape[0] // TILE, sheet.shape[1] // TILE
    tiles = sheet.reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles.reshape(rows * columns, TILE, TILE, 3))


def family(code: str) -> str:
    """The code points without gender and direction: "woman running", "man running" and "running" are one family.

    Their drawings are nearly the same, so a family lies wholly in one split.
    """
    parts = [p for p in code.split("-") if p != "FE0F"]
    kept: list[str] = []
    for part in parts:
        if part in ("2640", "2642", "27A1") and kept and kept[-1] == "200D":
            kept.pop()
        else:
            kept.append("1F9D1" if part in ("1F468", "1F469") else part)
    return "-".join(kept)


@functools.cache
def _test_codes() -> frozenset[str]:
    """The held-out codes: the families whose hash is in the lowest tenth.

    Every subgroup keeps one family for training.
    """

    def unit_hash(name: str) -> float:
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") / 2**64

    families: dict[str, set[str]] = {}
    for record in _index():
        families.setdefault(record["subgroup"], set()).add(family(record["code"]))
    kept = {max(names, key=unit_hash) for names in families.values()}
    return frozenset(r["code"] for r in _index() if unit_hash(f := family(r["code"])) < HELD_OUT and f not in kept)


class EmojiSource:
    """Random access to the drawings of one split; `source[i]` is {"image", "label", "id"}. Made by `emoji`."""

    def __init__(self, split: str, label: str, size: tuple[int, int]):
        height, width = size
        self.name = f"emoji/{split}/{label}/{height if height == width else f'{height}x{width}'}"
        self.class_names = tuple(sorted({record[label] for record in _index()}))
        self._label, self._size = label, size
        held_out = _test_codes()
        self._records = [r for r in _index() if split == "all" or (r["code"] in held_out) == (split == "test")]
        self._classes = {name: number for number, name in enumerate(self.class_names)}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict:
        record = self._records[i]
        image = _tiles(record["style"])[record["tile"]]
        if self._size != (TILE, TILE):
            from PIL import Image

            height, width = self._size
            side = max(height, width)
            image = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
            image = image[(side - height) // 2 :, (side - width) // 2 :][:height, :width]
        return {
            "image": image.copy(),
            "label": self._classes[record[self._label]],
            "id": f"{record['style']}/{record['code']}",
        }

    def record(self, i: int) -> dict:
        """The annotations of drawing `i`: style, code, group, subgroup, names {en, es, fr, pt, zh}, tags (English)."""
        return json.loads(json.dumps(self._records[i]))  # a copy, as all sources share the table


def emoji(split: str = "train", label: str = "subgroup", size: int | tuple[int, int] = TILE) -> EmojiSource:
    """The built-in drawings as a source of uint8 (height, width, 3) images; a size that is no square cuts their edges.

    split: "train", "test" (about a tenth; whole emoji with all their styles and gender variants are held out, chosen by
      a hash of the code, so the split never changes) or "all".
    label: what the class is: "subgroup" (98), "group" (9) or "style" (3); the numbering is the same in every split.
    """
    choose("split", split, ("train", "test", "all"))
    choose("label", label, ("subgroup", "group", "style"))
    sides = height_width(size)
    require(max(sides) <= 4096, f"size: must be in 1..4096, got {size!r}")
    return EmojiSource(split, label, sides)
