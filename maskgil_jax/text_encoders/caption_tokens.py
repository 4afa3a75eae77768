"""Captions -> token ids in the data loader, for encoders that compute in the train step."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import grain
import numpy as np

from maskgil_jax.text_encoders.text_tokens import TextTokenizer

TOKEN_FIELDS = {"text_ids": np.dtype(np.int32), "text_mask": np.dtype(bool)}
_log = logging.getLogger(__name__)


class TokenizeCaption(grain.transforms.Map):
    """Replaces record["caption"] by "text_ids", int32 (t,), and "text_mask", bool (t,), padded on the right.

    Worker processes get a copy of the tokenizer alone, without the encoder's parameters. The first caption that is too
    long and cut is named in a warning; the others of this process are cut silently.
    """

    def __init__(self, tokenizer: TextTokenizer, template: str = ""):
        self._tokenizer, self._template, self._warned = tokenizer, template, False

    def map(self, element: dict) -> dict:
        rest: dict[str, Any] = {name: value for name, value in element.items() if name != "caption"}
        return {**rest, **{name: rows[0] for name, rows in self.batch([element["caption"]]).items()}}

    def batch(self, captions: Iterable[Any]) -> dict[str, np.ndarray]:
        """ "text_ids" (b, t) and "text_mask" (b, t) of the captions of a batch."""
        texts = [self._template + str(caption) for caption in captions]
        ids_bt, mask_bt, cut = self._tokenizer.tokens(texts)
        if cut and not self._warned:
            self._warned = True
            most = self._tokenizer.max_tokens
            _log.warning("captions of more than %d tokens are cut; the first of them: %.200s", most, texts[min(cut)])
        return {"text_ids": ids_bt, "text_mask": mask_bt}
