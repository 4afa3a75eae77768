"""The tensors of a weights folder: `model.safetensors`, or shards of it with an index (the Hugging Face layout).

They are written in pieces, so that a network need not fit into memory, and read one by one on access. A tensor may be
stored as int8 with NAME.scales beside it, float16: its values are the products, with the scales broadcast along the
axis where they have length 1.
Sources: the format description of safetensors; the sharded checkpoints in the documentation of Hugging Face's
transformers.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from maskgil_jax.files.hub import INDEX, SHARD_NAME, WHOLE, is_tensor_file

SHARD_BYTES = 5 * 10**9  # bytes of tensors in one file; a larger tensor gets its own file
_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
SCALES = ".scales"


def write_tensors(
    folder: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str | Mapping[str, str],
    pieces: Iterable,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes arrays of `shapes` into `folder`: one file, or shards of at most `shard_bytes` each.

    dtype: of all arrays, or of each by name. pieces: the values, in the order of `shapes`; an array may be given in
    several pieces along its first axis. Raises a ValueError if their sizes do not add up.
    """
    dtypes = dict.fromkeys(shapes, dtype) if isinstance(dtype, str) else dtype
    sizes = {name: math.prod(shape) * np.dtype(dtypes[name]).itemsize for name, shape in shapes.items()}
    groups: list[list[str]] = [[]]
    for name, size in sizes.items():
        if groups[-1] and sum(sizes[other] for other in groups[-1]) + size > shard_bytes:
            groups.append([])
        groups[-1].append(name)
    count = len(groups)
    files = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)] if count > 1 else [WHOLE]
    pieces, wrong = iter(pieces), []
    for file, group in zip(files, groups):
        expected = sum(sizes[name] for name in group)
        written = _write_file(folder / file, {name: tuple(shapes[name]) for name in group}, dtypes, pieces)
        if written != expected:
            wrong.append(f"{folder / file}: {written} bytes of arrays, expected {expected}")
    # Read the source to its end: an error that it raises there says more than the sum.
    if rest := sum(piece.nbytes for piece in pieces):
        wrong.append(f"{folder}: {rest} bytes of arrays too many")
    if wrong:
        raise ValueError(wrong[0])
    if count > 1:
        names = {name: file for file, group in zip(files, groups) for name in group}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": names}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def _write_file(path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str], pieces: Iterator) -> int:
    """Writes one safetensors file from as many pieces as fill it. Returns the bytes of arrays written."""
    header, ends, end = {}, {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * np.dtype(dtypes[name]).itemsize
        header[name] = {"dtype": _NAMES[dtypes[name]], "shape": list(shape), "data_offsets": [start, end]}
        ends[name] = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data begin at a multiple of 8, for readers that map the file
    written = 0
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, end in ends.items():
            kind = np.dtype(dtypes[name]).newbyteorder("<")
            while written < end and (piece := next(pieces, None)) is not None:
                array = np.ascontiguousarray(piece, kind)
                file.write(array.reshape(-1).view(np.uint8).data)  # as bytes, since buffers know no bfloat16
                written += piece.nbytes
        file.flush()
        os.fsync(file.fileno())
    return written


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a weights folder by name. Headers are read and compared when it is opened, values when indexed.

    file: the tensor file or the index, which error messages name. shapes: name -> shape.
    Raises a ValueError for a file, shard or tensor that is missing, duplicated, or not part of these weights.
    """

    def __init__(self, folder: pathlib.Path):
        names = {path.name for path in folder.iterdir() if is_tensor_file(path.name)}
        self.file = folder / (INDEX if names - {WHOLE} else WHOLE)
        if not names:
            raise ValueError(f"{self.file}: missing; a weights folder holds config.json and model.safetensors")
        if WHOLE in names and len(names) > 1:
            other = min(names - {WHOLE})
            raise ValueError(
                f"{folder}: holds {WHOLE} and {other}, which are the same weights twice or two networks; remove one"
            )
        shard_of = self._read_index() if self.file.name == INDEX else None
        shards = sorted(set(shard_of.values())) if shard_of is not None else [WHOLE]
        if missing := [shard for shard in shards if shard not in names]:
            raise ValueError(f"{self.file}: its shard {missing[0]} is missing; fetch or copy it again")
        if extra := sorted(names - {INDEX, *shards}):
            raise ValueError(f"{self.file}: does not list {extra[0]}, which is in its folder; remove that shard")
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._open = {shard: self._headers(folder / shard) for shard in shards}
        self._shard_of: dict[str, str] = {}
        for shard, opened in self._open.items():
            for name in opened.keys():  # noqa: SIM118 (an open file, not a dict)
                if name in self._shard_of:
                    raise ValueError(f"{self.file}: {name} is in {self._shard_of[name]} and again in {shard}")
                if shard_of is not None and name not in shard_of:
                    raise ValueError(f"{self.file}: does not list {name}, which is in {shard}")
                self._shard_of[name] = shard
                self.shapes[name] = tuple(opened.get_slice(name).get_shape())
        for name, shard in (shard_of or {}).items():
            if self._shard_of.get(name) != shard:
                raise ValueError(f"{self.file}: {name} is not in {shard}, as the index says")
        self._scaled = {name for name in self.shapes if self._dtype(name) == "I8"}
        for name in self._scaled:
            shape, scales = self.shapes[name], self.shapes.pop(name + SCALES, None)
            fits = scales is not None and len(scales) == len(shape) and all(s in (1, n) for s, n in zip(scales, shape))
            if not fits:
                raise ValueError(f"{self.file}: {name} is int8 {shape}, expected {name + SCALES} to fit it, found {scales}")

    def _dtype(self, name: str) -> str:
        return self._open[self._shard_of[name]].get_slice(name).get_dtype()

    def _read(self, name: str) -> np.ndarray:
        return self._open[self._shard_of[name]].get_tensor(name)

    def _read_index(self) -> dict[str, str]:
        """The index: name -> shard."""

        def once(pairs: list[tuple]) -> dict:
            names = [name for name, _ in pairs]
            if len(set(names)) < len(names):
                raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is duplicated")
            return dict(pairs)

        try:
            shard_of = json.loads(self.file.read_text(), object_pairs_hook=once)["weight_map"]
            bad = [shard for shard in shard_of.values() if not (isinstance(shard, str) and SHARD_NAME.fullmatch(shard))]
        except FileNotFoundError:
            raise ValueError(f"{self.file}: missing, although its folder has shards") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{self.file}: not an index of shards ({error})") from None
        if bad:
            raise ValueError(f"{self.file}: {bad[0]!r} is not the name of a shard, such as model-00001-of-00002.safetensors")
        return shard_of

    @staticmethod
    def _headers(path: pathlib.Path):
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(path, "numpy")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error})") from None

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._scaled:
            return self._read(name).astype(np.float32) * self._read(name + SCALES).astype(np.float32)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def quantized(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 array, float16 scales) of a float array of two or more axes: symmetric, the largest value becomes 127.

    There is a scale for each row along the last axis or for each along the one before it, whichever has the smaller
    error.
    """
    values, best = np.asarray(array, np.float32), None
    for axis in (-1, -2):
        scales = (np.abs(values).max(axis, keepdims=True) / 127).astype(np.float16)
        divisor = np.where(scales == 0, 1, scales).astype(np.float32)
        codes = np.clip(np.round(values / divisor), -127, 127).astype(np.int8)
        error = float(np.square(codes * scales.astype(np.float32) - values).sum())
        if best is None or error < best[0]:
            best = error, codes, scales
    assert best is not None
    return best[1], best[2]
