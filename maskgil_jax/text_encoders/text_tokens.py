"""Texts -> token ids by a folder's `tokenizer.json`. Older CLIP folders have `vocab.json` and `merges.txt`."""

from __future__ import annotations

import contextlib
import itertools
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.config.base import one_line
from maskgil_jax.text_encoders.folder import read_json

_log = logging.getLogger(__name__)
_SHOWN = 200  # characters of what was cut
_NAMED = 3  # texts of a call


class TextTokenizer:
    """Texts -> (ids, mask) of at most `max_tokens` positions.

    Special tokens are added as the file says; the end is kept.
    """

    def __init__(self, folder: pathlib.Path, max_tokens: int, pad_id: int | None = None):
        self.file, self._tokenizer = _read(folder)
        with _library(self.file):
            specials = self._tokenizer.num_special_tokens_to_add(False)
        require(
            max_tokens > specials,
            f"max_tokens: {max_tokens} leaves no position beside {specials} special tokens of {self.file}; choose more",
        )
        self.max_tokens = max_tokens
        with _library(self.file):
            self.pad_id = _pad_id(self._tokenizer, self.file.parent, pad_id)
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(max_tokens)

    def __call__(self, texts: Sequence[str], *, warn: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """int32 ids and bool mask (b, max_tokens), padded on the right. warn: name the texts that are cut."""
        ids_bt, mask_bt, cut = self.tokens(texts)
        if warn:
            for row, encoding in itertools.islice(cut.items(), _NAMED):
                self._warn(row, texts[row], encoding)
            if len(cut) > _NAMED:
                _log.warning("%d more texts were cut to max_tokens=%d", len(cut) - _NAMED, self.max_tokens)
        return ids_bt, mask_bt

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, dict[int, Any]]:
        """As a call, but without a warning; also {row: encoding} of the texts that were cut."""
        check_texts(texts)
        with _library(self.file):
            encodings = self._tokenizer.encode_batch(list(texts))
            ids_bt = np.full((len(texts), self.max_tokens), self.pad_id, np.int32)
            mask_bt = np.zeros(ids_bt.shape, bool)
            for row, encoding in enumerate(encodings):
                ids_bt[row, : len(encoding.ids)], mask_bt[row, : len(encoding.ids)] = encoding.ids, True
            return ids_bt, mask_bt, {row: encoding for row, encoding in enumerate(encodings) if encoding.overflowing}

    def _warn(self, row: int, text: str, encoding: Any) -> None:
        kept = [end for (_, end), special in zip(encoding.offsets, encoding.special_tokens_mask) if not special]
        cut = text[kept[-1] if kept else 0 :].strip()
        shown = cut if len(cut) <= _SHOWN else f"{cut[:_SHOWN]} ... ({len(cut) - _SHOWN} characters more)"
        _log.warning("text %d is longer than max_tokens=%d and was cut; left out: %r", row, self.max_tokens, shown)


def check_texts(texts: Any) -> None:
    """Raises a `ConfigError` unless `texts` is a sequence of at least one string that UTF-8 can write."""
    require(
        not isinstance(texts, str | bytes), f"texts: expected a list of texts, got one text ({texts!r:.40}); put it in a list"
    )
    require(len(texts) > 0, "texts: expected at least one text, got an empty list")
    for row, text in enumerate(texts):
        require(isinstance(text, str), f"texts: text {row} is a {type(text).__name__}, expected a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"texts: text {row} is not Unicode text ({error.reason} at {error.start}); repair it") from None


@contextlib.contextmanager
def _library(file: pathlib.Path) -> Iterator[None]:
    """Turns what the library raises for a damaged tokenizer into a `ConfigError` that names the file.

    It raises bare Exceptions; a panic of its Rust code is no Exception, and is known by its name alone.
    """
    try:
        yield
    except ConfigError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ConfigError(f"{file}: not a usable tokenizer ({one_line(error)}); fetch it again") from None


def _read(folder: pathlib.Path) -> tuple[pathlib.Path, Any]:
    """(file, tokenizer) of the folder, or of the folder `tokenizer` beside it, where diffusers keeps it."""
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(f"{folder}: reading texts needs tokenizers; pip install tokenizers") from None
    for place in (folder, folder.parent / "tokenizer"):
        file = place / "tokenizer.json"
        if file.exists():
            with _library(file):
                return file, tokenizers.Tokenizer.from_file(str(file))
        file = place / "vocab.json"
        if file.exists() and (place / "merges.txt").exists():
            with _library(file):
                return file, _clip_tokenizer(file, place / "merges.txt")
    raise ConfigError(
        f"{folder / 'tokenizer.json'}: missing; copy it from the model's repository, as texts become tokens by it"
    )


def _clip_tokenizer(vocabulary: pathlib.Path, merges: pathlib.Path) -> Any:
    """CLIP's byte-level BPE from its two files: lower case, one space, </w> at the end of words,
    start and end tokens."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    start, end = "<|startoftext|>", "<|endoftext|>"
    model = models.BPE.from_file(str(vocabulary), str(merges), end_of_word_suffix="</w>", unk_token=end)
    tokenizer = Tokenizer(model)
    start_id, end_id = tokenizer.token_to_id(start), tokenizer.token_to_id(end)
    if start_id is None or end_id is None:
        raise ConfigError(f"{vocabulary}: has no tokens {start} and {end}; expected CLIP's vocabulary")
    tokenizer.add_special_tokens([start, end])
    tokenizer.enable_padding(pad_id=end_id, pad_token=end)  # what its files pad with, unless they say otherwise
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, end_id), (start, start_id), trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


def _pad_id(tokenizer: Any, place: pathlib.Path, fallback: int | None) -> int:
    """The id of the padding token: as the files beside the tokenizer name it, as it pads itself,
    as the network says, or 0."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (place / name).exists():
            token = read_json(place / name).get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and (found := tokenizer.token_to_id(token)) is not None:
                return found
    return tokenizer.padding["pad_id"] if tokenizer.padding else fallback or 0
