"""The files of a code store: records, shards and the manifest.

A store is a folder:

    codes-00000.array_record ...   ArrayRecord shards (group size 1, uncompressed: codes do not compress)
    manifest.json                  written last; a folder without it is an unfinished store
    progress.json                  only while unfinished: the settings, and the finished shards
    progress-0.json ...            the same, of each of several processes

One record holds one image with all its variants (crops and mirror images). So record i of the store is image i of the
source, shuffling and epochs are those of the images, and training picks the variant when it reads a record.
Little-endian, without padding:

    int32   label
    uint16  bytes of the image id (n)
    uint16  variants (v)
    uint8   crop number, uint8 mirrored (0 or 1)      v times
    bytes   image id, UTF-8                           n bytes
    codes   uint16, or uint32 above 65,536 codes      v * rows * columns, row by row

Images of several sizes, or with captions, are in the second format, whose records say the grid and the captions of the
image:

    int32   label
    uint16  bytes of the image id (n)
    uint16  variants (v)
    uint16  rows, uint16 columns
    uint32  bytes of the captions (c)
    uint8   crop number, uint8 mirrored (0 or 1)      v times
    bytes   image id, UTF-8                           n bytes
    bytes   captions, a JSON list of texts in UTF-8   c bytes
    codes   as above

The id of caption k is that of its image, "#" and k, as in a text store (`text_store.caption_ids`).

Crop 0 of a plain store is the ADM centre crop; ten-crop stores have 0..3 = corners (top left, top right, bottom left,
bottom right), 4 = middle.

manifest.json: format, tokenizer_hash, grid [rows, columns], codebook_size, dtype, image_size [height, width] (or one
number, which is a square), source, source_fingerprint, num_images, class_names, crops ("center" | "ten_crop" |
"random"), variants [[crop, mirrored], ...], shard_size, and in the second format captioned (whether records hold
captions) and sizes [[height, width], ...], of which each image has the one that keeps most of it; grid and image_size
are those of the first; counts, the number of images of each size, which each shard has too; and shards: one {name,
records, bytes, crc32} each, in order. A shard of a source that can tell also has "content", the identity of its images;
stores of older versions lack it.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskgil_jax.config import height_width, require
from maskgil_jax.config.base import shown
from maskgil_jax.files.manifests import Kind, check_shards, check_texts, check_types, read_object
from maskgil_jax.files.sample_formats import write_records

FORMAT, FORMAT_2 = "maskgil-codes-1", "maskgil-codes-2"
MANIFEST, PROGRESS = "manifest.json", "progress.json"
MANIFEST_TYPES: dict[str, Kind] = {
    "format": str,
    "tokenizer_hash": str,
    "grid": list,
    "codebook_size": int,
    "dtype": str,
    "image_size": (int, list),
    "source": str,
    "source_fingerprint": str,
    "num_images": int,
    "class_names": list,
    "crops": str,
    "variants": list,
    "shard_size": int,
}
_HEAD, _HEAD_2 = struct.Struct("<iHH"), struct.Struct("<iHHHHI")


def codes_dtype(codebook_size: int) -> str:
    """uint16 if every code fits, else uint32."""
    return "uint16" if codebook_size <= 65536 else "uint32"


def pack(codes_vhw: np.ndarray, label: int, image_id: str, variants: list[list[int]], dtype: str) -> bytes:
    """The record of one image."""
    name = image_id.encode("utf-8")
    table = bytes(number for variant in variants for number in variant)
    codes = codes_vhw.astype(np.dtype(dtype).newbyteorder("<"))
    return _HEAD.pack(label, len(name), len(variants)) + table + name + codes.tobytes()


def unpack(record: bytes, grid: tuple[int, int], dtype: str) -> dict:
    """Parses a record: {"codes": int32 (v, rows, columns), "label", "id", "variants": [(crop, mirrored), ...]}.

    Raises a ValueError if its length is wrong.
    """
    if len(record) < _HEAD.size:
        raise ValueError(f"record of {len(record)} bytes is shorter than its header")
    label, name_bytes, count = _HEAD.unpack_from(record)
    item = np.dtype(dtype).newbyteorder("<")
    table, name = _HEAD.size, _HEAD.size + 2 * count
    start = name + name_bytes
    expected = start + count * grid[0] * grid[1] * item.itemsize
    if len(record) != expected:
        raise ValueError(f"record of {len(record)} bytes, expected {expected}")
    codes = np.frombuffer(record, item, offset=start).reshape(count, *grid).astype(np.int32)
    variants = [(record[i], record[i + 1]) for i in range(table, name, 2)]
    return {"codes": codes, "label": label, "id": record[name:start].decode("utf-8"), "variants": variants}


def pack_2(
    codes_vhw: np.ndarray, label: int, image_id: str, variants: list[list[int]], dtype: str, captions: Sequence[str]
) -> bytes:
    """The record of one image in the second format."""
    name, text = image_id.encode("utf-8"), json.dumps(list(captions), ensure_ascii=False).encode("utf-8") if captions else b""
    table = bytes(number for variant in variants for number in variant)
    codes = codes_vhw.astype(np.dtype(dtype).newbyteorder("<"))
    head = _HEAD_2.pack(label, len(name), len(variants), *codes.shape[1:], len(text))
    return head + table + name + text + codes.tobytes()


def unpack_2(record: bytes, dtype: str) -> dict:
    """Parses a record of the second format: as `unpack`, with "captions": [text, ...]. Raises a ValueError."""
    if len(record) < _HEAD_2.size:
        raise ValueError(f"record of {len(record)} bytes is shorter than its header")
    label, name_bytes, count, rows, columns, text_bytes = _HEAD_2.unpack_from(record)
    item = np.dtype(dtype).newbyteorder("<")
    table, name = _HEAD_2.size, _HEAD_2.size + 2 * count
    text = name + name_bytes
    start = text + text_bytes
    expected = start + count * rows * columns * item.itemsize
    if len(record) != expected:
        raise ValueError(f"record of {len(record)} bytes, expected {expected}")
    codes = np.frombuffer(record, item, offset=start).reshape(count, rows, columns).astype(np.int32)
    variants = [(record[i], record[i + 1]) for i in range(table, name, 2)]
    captions = json.loads(record[text:start]) if text_bytes else []
    return {
        "codes": codes,
        "label": label,
        "id": record[name:text].decode("utf-8"),
        "variants": variants,
        "captions": captions,
    }


def shard_name(number: int) -> str:
    return f"codes-{number:05d}.array_record"


def write_shard(path: Path, records: list[bytes]) -> dict:
    """Writes a shard under a temporary name, flushes it, reads it back and renames it; returns its manifest entry.

    Raises an OSError if that fails (disk full, ...), and deletes the temporary file.
    """
    write_records(path, records)
    return {"name": path.name, "records": len(records), **sum_file(path)}


def sum_file(path: Path) -> dict:
    """The size and checksum of a file: {"bytes": int, "crc32": int}."""
    crc, size = 0, 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return {"bytes": size, "crc32": crc}


def read_json(path: Path) -> dict:
    """Reads a manifest or progress file; `image_size` becomes [height, width].

    Raises a ValueError that names the file and the wrong entry.
    """
    values = read_object(path, "encode the data set again into a new folder")
    found = values.get("format")
    known = isinstance(found, str) and found in (FORMAT, FORMAT_2)
    require(known, f"{path}: format is {shown(found)}, expected {FORMAT!r} or {FORMAT_2!r}")
    more: dict[str, Kind] = {"captioned": bool, "sizes": list} if found == FORMAT_2 else {}
    check_types(path, values, {**MANIFEST_TYPES, **more})
    values["image_size"] = list(height_width(values["image_size"], f"{path}: image_size"))
    if more:
        values["sizes"] = [list(height_width(size, f"{path}: sizes")) for size in values["sizes"]]
        require(bool(values["sizes"]), f"{path}: sizes is empty, expected [[height, width], ...]")
    sides = values["grid"]
    sound = len(sides) == 2 and all(type(side) is int and 1 <= side < 2**16 for side in sides)
    require(sound, f"{path}: grid is {shown(sides)}, expected [rows, columns]")
    require(values["codebook_size"] >= 2, f"{path}: codebook_size is {values['codebook_size']}, expected at least 2")
    dtype = codes_dtype(values["codebook_size"])
    require(values["dtype"] == dtype, f"{path}: dtype is {shown(values['dtype'])}, expected {dtype!r}")
    check_texts(path, "class_names", values["class_names"])
    for variant in values["variants"] or [None]:
        sound = isinstance(variant, list) and len(variant) == 2 and all(type(n) is int and 0 <= n < 256 for n in variant)
        require(sound, f"{path}: variants: found {shown(variant)}, expected [crop, mirrored]")
    check_shards(path, values.get("shards"))
    return values
