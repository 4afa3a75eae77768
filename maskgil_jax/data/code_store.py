"""Reads code stores: data sets tokenised once by `encode_dataset`. `code_format.py` describes the files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np

from maskgil_jax.config import LoaderConfig, require
from maskgil_jax.data import code_format
from maskgil_jax.data.buckets import pad_codes
from maskgil_jax.data.cache import local_store
from maskgil_jax.data.encode import encode_dataset
from maskgil_jax.data.loader import batches
from maskgil_jax.data.sources.captions import DrawCaption
from maskgil_jax.data.text_store import TEXT_FIELDS, RandomCaption, TextStore
from maskgil_jax.files.paths import is_remote
from maskgil_jax.files.records import RecordFiles

__all__ = ["CodeStore", "code_batches", "encode_dataset"]


class CodeStore:
    """Random access to a finished store: a folder, or gs://bucket/folder,
    which is copied once to this machine (`cache.py`).

    `store[i]` is {"codes": int32 (v, rows, columns), "label": int, "id": str, "variants": [(crop, mirrored), ...]} of
    image i of the encoded source. Opening checks the manifest, and the size and number of records of every shard;
    `verify` reads all bytes. Raises a ValueError that names the file.

    A store of the second format has images of several sizes or captions: `store[i]` also has "captions". size: (height,
    width) of the encoded images, of several sizes the first; grid: its (rows, columns). grids: those of all sizes;
    counts: the number of images of each, empty if the store does not say; sized: whether there are several. canvas:
    (rows, columns) to which batches are padded, of the largest grid. captioned: whether images have captions.
    content_hash: identity of the codes.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = local_store(os.fspath(path)) if is_remote(path) else Path(path)
        manifest_path = self.path / code_format.MANIFEST
        if not manifest_path.is_file():
            if (self.path / code_format.PROGRESS).is_file():
                raise ValueError(f"{self.path}: an unfinished code store; run the same encode command again to finish it")
            raise ValueError(f"{self.path}: not a code store (no {code_format.MANIFEST}); make one with: maskgil encode")
        self.manifest = code_format.read_json(manifest_path)
        shards = [self.path / entry["name"] for entry in self.manifest["shards"]]
        for shard, entry in zip(shards, self.manifest["shards"], strict=True):
            if not shard.is_file():
                raise ValueError(f"{shard}: missing; run the same encode command again to replace it")
            if (size := shard.stat().st_size) != entry["bytes"]:
                raise ValueError(
                    f"{shard}: {size} bytes, expected {entry['bytes']}; run the same encode command again to replace it"
                )
        expected = self.manifest["num_images"]
        listed = sum(entry["records"] for entry in self.manifest["shards"])
        if not shards or listed != expected:
            raise ValueError(f"{manifest_path}: shards hold {listed} images, num_images is {expected}")
        self._records = RecordFiles(shards, self.path)
        if len(self._records) != expected:
            raise ValueError(f"{self.path}: shards hold {len(self._records)} images, the manifest says {expected}")
        self.name = f"codes/{self.manifest['source']}"
        self.class_names: tuple[str, ...] = tuple(self.manifest["class_names"])
        self.grid: tuple[int, int] = tuple(self.manifest["grid"])
        self.codebook_size: int = self.manifest["codebook_size"]
        self.tokenizer_hash: str = self.manifest["tokenizer_hash"]
        self.variants: tuple[tuple[int, int], ...] = tuple(map(tuple, self.manifest["variants"]))
        self.size: tuple[int, int] = tuple(self.manifest["image_size"])
        second = self.manifest["format"] == code_format.FORMAT_2
        self.captioned: bool = second and self.manifest["captioned"]
        factor = self.size[0] // self.grid[0]
        sizes = self.manifest["sizes"] if second else [self.size]
        self.grids: tuple[tuple[int, int], ...] = tuple((height // factor, width // factor) for height, width in sizes)
        self.counts: dict[tuple[int, int], int] = dict(zip(self.grids, self.manifest.get("counts", ()), strict=False))
        self.sized, self.canvas = len(self.grids) > 1, max(self.grids, key=lambda grid: (grid[0] * grid[1], grid))
        checksums = [[entry["records"], entry["bytes"], entry["crc32"]] for entry in self.manifest["shards"]]
        self.content_hash = "codes:" + hashlib.sha256(json.dumps(checksums).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(i)
        try:
            record = self._unpack(self._records[i])
        except ValueError as error:
            reason = " ".join(str(error).split())[:200].removeprefix(f"{self.path}: ")
            raise ValueError(f"{self.path}: image {i} cannot be read ({reason}); check the store with verify()") from None
        codes = record["codes"]
        if not 0 <= record["label"] < max(1, len(self.class_names)):
            raise ValueError(f"{self.path}: image {i} has class {record['label']}, class_names has {len(self.class_names)}")
        if len(codes) != len(self.variants) or codes.min() < 0 or codes.max() >= self.codebook_size:
            raise ValueError(
                f"{self.path}: image {i} has {len(codes)} variants of codes {codes.min()}..{codes.max()}; "
                f"expected {len(self.variants)} of 0..{self.codebook_size - 1}"
            )
        return record

    def _unpack(self, record: bytes) -> dict:
        if self.manifest["format"] == code_format.FORMAT:
            return code_format.unpack(record, self.grid, self.manifest["dtype"])
        found = code_format.unpack_2(record, self.manifest["dtype"])
        if found["codes"].shape[1:] not in self.grids:
            raise ValueError(f"its grid {found['codes'].shape[1:]} is none of {self.grids}")
        return found

    def captions(self, i: int) -> list[str]:
        """The captions of image `i`."""
        return self[i]["captions"] if self.captioned else []

    def check(
        self, *, tokenizer_hash: str | None = None, grid: tuple[int, int] | None = None, codebook_size: int | None = None
    ) -> None:
        """Raises a ValueError that names the first given value which differs from the store's."""
        if grid and tuple(grid) not in self.grids:
            height, width = self.size
            raise ValueError(
                f"{self.path}: grid is {self.grid}, expected {tuple(grid)}; its images were encoded at {width} x {height} "
                "pixels: set config.data.image_size to that, or encode the data set at another --image-size into another folder"
            )
        expected = {"tokenizer_hash": tokenizer_hash, "codebook_size": codebook_size}
        for name, value in expected.items():
            if value is not None and value != (found := getattr(self, name)):
                raise ValueError(
                    f"{self.path}: {name} is {found}, expected {value}; encode the data set with"
                    " this tokenizer into another folder"
                )

    def verify(self) -> None:
        """Reads every shard; raises a ValueError that names the first whose checksum differs from the manifest's."""
        for entry in self.manifest["shards"]:
            found = code_format.sum_file(self.path / entry["name"])
            if found != {"bytes": entry["bytes"], "crc32": entry["crc32"]}:
                raise ValueError(
                    f"{self.path / entry['name']}: damaged (checksum differs); run the same encode command again to replace it"
                )


class _RandomVariant(grain.transforms.RandomMap):
    def random_map(self, element: dict, rng: np.random.Generator) -> dict:
        return {**element, "codes": element["codes"][rng.integers(len(element["codes"]))]}


class _Padded(grain.transforms.Map):
    """Writes the codes of an image, in its own raster order, to the start of a canvas; adds "rows" and "columns"."""

    def __init__(self, canvas: tuple[int, int]):
        self._canvas = canvas

    def map(self, element: dict) -> dict:
        rows, columns = element["codes"].shape
        codes_l = pad_codes(element["codes"], self._canvas[0] * self._canvas[1])
        return {**element, "codes": codes_l.reshape(self._canvas), "rows": rows, "columns": columns}


class _OneVariant(grain.transforms.Map):
    def __init__(self, number: int):
        self._number = number

    def map(self, element: dict) -> dict:
        return {**element, "codes": element["codes"][self._number]}


def code_batches(
    store: CodeStore,
    loader: LoaderConfig,
    *,
    start_step: int = 0,
    variant: int | None = None,
    texts: TextStore | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over {"codes": int32 (b, rows, columns), "label": int32 (b,), "index": int64 (b,)}; as `loader.batches`.

    texts: also gives "text_features" bfloat16 (b, t, d) and "text_mask" bool (b, t) of a caption of each image, which
    is drawn by seed and position in the stream. A store of several sizes gives padded codes (b, *store.canvas), with
    "rows" and "columns" int32 (b,); a captioned one, without `texts`, gives "caption", an array of text (b,).

    variant: index into `store.variants`; None picks one at random for each image each time it is read, by seed and
    position in the stream.
    """
    count, one_caption = len(store.variants), store.captioned and texts is None
    require(variant is None or 0 <= variant < count, f"variant: {variant} is not in 0..{count - 1}")
    return batches(
        store,
        [
            _RandomVariant() if variant is None and count > 1 else _OneVariant(variant or 0),
            *([] if texts is None else [RandomCaption(texts)]),
            *([DrawCaption()] if one_caption else []),
            *([_Padded(store.canvas)] if store.sized else []),
        ],
        {
            **{"codes": np.int32, "label": np.int32, "index": np.int64},
            **({} if texts is None else TEXT_FIELDS),
            **({"caption": np.dtype(object)} if one_caption else {}),
            **({"rows": np.int32, "columns": np.int32} if store.sized else {}),
        },
        loader,
        start_step=start_step,
        threads=1,  # reading codes is Python throughout: four threads contend for the interpreter and halve the rate
    )
