"""Prompts -> `TokenCondition`: Lumina-mGPT's request for an image as tokens of the generator's own vocabulary.

Source of the template: Lumina-mGPT's code.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskgil_jax.conditioning.base import checked_prompts
from maskgil_jax.config import ChameleonConfig, ConfigError
from maskgil_jax.models.condition import GuidedCondition, TokenCondition
from maskgil_jax.text_encoders.text_tokens import TextTokenizer

TEMPLATE = "Generate an image of {width}x{height} according to the following prompt:\n{prompt}"
_CODE = 16  # pixels along a side of a code
_BUCKET = 32  # prompts are padded to a multiple of so many tokens, so that few lengths are compiled


@dataclasses.dataclass(frozen=True)
class TokenConditioner:
    """Conditions on a prompt in the words of the generator's training, which name the size of the image in pixels.

    folder: of `tokenizer.json`, read at the first prompt. tokens: the longest prompt, with template. end: the token
    that closes it. size: height and width in pixels (`for_grid`).
    """

    folder: pathlib.Path | None
    tokens: int
    end: int
    size: tuple[int, int]
    batch_keys = ("prompt_ids", "prompt_mask")
    frozen = None

    def for_grid(self, grid: tuple[int, int]) -> TokenConditioner:
        """The same for images of so many rows and columns of codes."""
        return dataclasses.replace(self, size=(grid[0] * _CODE, grid[1] * _CODE))

    def encode(self, requests: Any) -> Any:
        """Prompts -> their `TokenCondition`. A condition is returned as it is. Prompts that are too long are cut."""
        if isinstance(requests, TokenCondition | GuidedCondition):
            return requests
        height, width = self.size
        prompts = checked_prompts(requests)
        return self._condition([TEMPLATE.format(width=width, height=height, prompt=prompt) for prompt in prompts])

    def _condition(self, texts: Sequence[str]) -> TokenCondition:
        ids_bt, mask_bt = _tokenizer(self.folder, self.tokens - 1)(texts)
        rows = [ids[mask] for ids, mask in zip(ids_bt, mask_bt, strict=True)]
        rows = [row if len(row) and row[-1] == self.end else np.append(row, self.end) for row in rows]
        longest = max(map(len, rows))
        length = min(-(-longest // _BUCKET) * _BUCKET, self.tokens)
        ids_bt, mask_bt = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
        for i, row in enumerate(rows):
            ids_bt[i, length - len(row) :], mask_bt[i, length - len(row) :] = row, True
        return TokenCondition(ids_bt, mask_bt)

    def from_batch(self, batch: dict, frozen: Any = None) -> TokenCondition:
        return TokenCondition(batch["prompt_ids"], batch["prompt_mask"])

    def examples(self, count: int) -> TokenCondition:
        """Prompts of padding alone, of a usual length: for planning."""
        length = min(3 * _BUCKET, self.tokens)
        return TokenCondition(np.zeros((count, length), np.int32), np.ones((count, length), bool))

    def fixed_parameters(self, cfg: Any) -> dict[str, Any]:
        return {}

    def network_options(self) -> dict[str, Any]:
        return {"text_tokens": self.tokens}

    def metadata(self) -> dict[str, Any]:
        return {}


def token_conditioner(cfg: ChameleonConfig, folder: Any) -> TokenConditioner:
    """The conditioner of a Chameleon whose weights, or whose tokenizer, lie in `folder`."""
    size = (cfg.grid[0] * _CODE, cfg.grid[1] * _CODE)
    return TokenConditioner(None if folder is None else pathlib.Path(folder), cfg.text_tokens, cfg.end_turn, size)


@functools.lru_cache(maxsize=4)
def _tokenizer(folder: pathlib.Path | None, max_tokens: int) -> TextTokenizer:
    if folder is None:
        raise ConfigError("prompts: no tokenizer.json lies beside this generator; give load(..., text_encoder=FOLDER)")
    return TextTokenizer(folder, max_tokens)
