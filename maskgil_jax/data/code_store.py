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
from maskgil_jax.data.cache import local_store
from maskgil_jax.data.encode import encode_dataset
from maskgil_jax.data.loader import batches
from maskgil_jax.data.text_store import TEXT_FIELDS, RandomCaption, TextStore
from maskgil_jax.files.paths import is_remote
from maskgil_jax.files.records import RecordFiles

__all__ = ["CodeStore", "code_batches", "encode_dataset"]


class CodeStore:
    """Random access to a finished store: a folder, or gs://bucket/folder, which is copied once to this machine (`cache.py`).

    `store[i]` is {"codes": int32 (v, rows, columns), "label": int, "id": str, "variants": [(crop, mirrored), ...]} of image i
    of the encoded source. Opening checks the manifest, and the size and number of records of every shard; `verify` reads all
    bytes. Raises a ValueError that names the file.

    size: (height, width) of the encoded images. content_hash: identity of the codes.
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
        checksums = [[entry["records"], entry["bytes"], entry["crc32"]] for entry in self.manifest["shards"]]
        self.content_hash = "codes:" + hashlib.sha256(json.dumps(checksums).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(i)
        try:
            record = code_format.unpack(self._records[i], self.grid, self.manifest["dtype"])
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

    def check(
        self, *, tokenizer_hash: str | None = None, grid: tuple[int, int] | None = None, codebook_size: int | None = None
    ) -> None:
        """Raises a ValueError that names the first given value which differs from the store's."""
        if grid and tuple(grid) != self.grid:
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

    texts: also gives "text_features" bfloat16 (b, t, d) and "text_mask" bool (b, t) of a caption of each image, which is
    drawn by seed and position in the stream.

    variant: index into `store.variants`; None picks one at random for each image each time it is read, by seed and position
    in the stream.
    """
    count = len(store.variants)
    require(variant is None or 0 <= variant < count, f"variant: {variant} is not in 0..{count - 1}")
    return batches(
        store,
        [
            _RandomVariant() if variant is None and count > 1 else _OneVariant(variant or 0),
            *([] if texts is None else [RandomCaption(texts)]),
        ],
        {"codes": np.int32, "label": np.int32, "index": np.int64, **({} if texts is None else TEXT_FIELDS)},
        loader,
        start_step=start_step,
        threads=1,  # reading codes is Python throughout: four threads contend for the interpreter and halve the rate
    )
