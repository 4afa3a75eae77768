"""The identity of a text encoder: a hash of its weights, by a sample of each tensor, and of its tokenizer's files."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np

_VALUES = 1024  # of each tensor, evenly spaced: other training changes all of them
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")


def sample_digest(value: np.ndarray) -> str:
    """Hash of a tensor's shape and a sample of its values as bfloat16,
    so that copies in another precision have the same."""
    places = np.linspace(0, value.size - 1, min(value.size, _VALUES)).astype(np.int64)
    sample = np.asarray(value.reshape(-1)[places]).astype(ml_dtypes.bfloat16)
    return hashlib.sha256(f"{value.shape}".encode() + sample.tobytes()).hexdigest()


def encoder_hash(digests: Mapping[str, str], folder: pathlib.Path) -> str:
    """16 characters for the tensors' digests by parameter, and the files of the tokenizer in the folder or beside
    it."""
    whole = hashlib.sha256()
    for name, digest in sorted(digests.items()):
        whole.update(f"{name}={digest}\n".encode())
    for place in (folder, folder.parent / "tokenizer"):
        files = [place / name for name in _TOKENIZER_FILES if (place / name).is_file()]
        for file in files:
            whole.update(hashlib.sha256(file.read_bytes()).digest())
        if files:
            break
    return whole.hexdigest()[:16]
