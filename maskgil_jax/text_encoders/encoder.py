"""A frozen encoder read from a folder: token ids -> hidden states, texts -> features with a mask."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import require
from maskgil_jax.config.encoders import TextEncoderOptions
from maskgil_jax.models.condition import TextCondition
from maskgil_jax.runtime.batch_sizes import batch_size_of
from maskgil_jax.runtime.mesh import to_host
from maskgil_jax.text_encoders.folder import Table, match
from maskgil_jax.text_encoders.identity import encoder_hash
from maskgil_jax.text_encoders.text_tokens import TextTokenizer

STEP = 32  # lengths that are compiled are multiples of it
PART = 1024  # texts that are tokenized at a time when they are only counted


@dataclasses.dataclass(frozen=True)
class Network:
    """One architecture: how its files are read and what it computes."""

    read_config: Callable[[dict, str], Any]
    table: Callable[[Any], Table]
    apply: Callable[[dict, jax.Array, jax.Array, Any], jax.Array]
    prefixes: tuple[str, ...]
    ignored: str
    norm_is_last: bool = False  # whether the last of `hidden_states` is after the final norm
    aliases: tuple[tuple[str, str], ...] = ()

    def names_in_file(self, where: Any, cfg: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        """Parameter -> name in the file; refuses files that do not fit `cfg`."""
        return match(where, shapes, self.table(cfg), prefixes=self.prefixes, ignored=self.ignored, aliases=dict(self.aliases))


@functools.partial(jax.jit, static_argnames=("network", "cfg"))
def _states(params: dict, ids_bt: jax.Array, mask_bt: jax.Array, *, network: Network, cfg: Any) -> jax.Array:
    return network.apply(params, ids_bt, mask_bt, cfg).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("length", "left"))
def _padded(features_bsd: jax.Array, mask_bs: jax.Array, *, length: int, left: bool) -> tuple[jax.Array, jax.Array]:
    """Zeroes padding, pads to `length` positions, and shifts each row so that its padding is on the asked side."""
    more = length - mask_bs.shape[1]
    features = jnp.pad(jnp.where(mask_bs[..., None], features_bsd, 0.0), ((0, 0), (0, more), (0, 0)))
    mask = jnp.pad(mask_bs, ((0, 0), (0, more)))
    if left:
        count_b = jnp.sum(mask, axis=1)
        from_bt = (jnp.arange(length)[None, :] + count_b[:, None]) % length
        features = jnp.take_along_axis(features, from_bt[..., None], axis=1)
        mask = jnp.take_along_axis(mask, from_bt, axis=1)
    return features, mask


class FrozenTextEncoder:
    """A text encoder that is never trained.

    name: kind and sizes. width: size of a feature vector. max_tokens: number of positions. cfg: sizes of the network.
    params: nested dicts of arrays, to be handed to `apply` where it is called inside another jitted function.
    """

    def __init__(
        self,
        kind: str,
        network: Network,
        cfg: Any,
        params: dict,
        options: TextEncoderOptions,
        folder: pathlib.Path,
        pad_id: Any,
        source: str,
        digests: Mapping[str, str],
    ):
        self.name = f"{kind}-{cfg.depth}x{cfg.width}"
        self.width: int = cfg.width
        self.max_tokens: int = min(options.max_tokens, getattr(cfg, "positions", options.max_tokens))
        self.cfg, self.params, self.options, self.folder = cfg, params, options, folder
        self._network, self._pad_id, self._source, self._digests = network, pad_id, source, digests
        self._tokenizer: TextTokenizer | None = None

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """What the features depend on, as plain values for `config.json`: path, name,
        options and a hash of the files."""
        options = dataclasses.asdict(self.options) | {"max_tokens": self.max_tokens}
        return {"path": self._source, "name": self.name, **options, "hash": encoder_hash(self._digests, self.folder)}

    def apply(self, params: dict, ids_bt: jax.Array, mask_bt: jax.Array) -> jax.Array:
        """The chosen hidden state (b, t, width) in float32 as a pure function, without gradients."""
        return jax.lax.stop_gradient(_states(params, ids_bt, mask_bt.astype(bool), network=self._network, cfg=self.cfg))

    def states(self, ids_bt: Any, mask_bt: Any) -> jax.Array:
        """The chosen hidden state, float32 (b, t, width), of token ids and a mask (1 at real tokens), as they stand.

        Positions count from the start of the row, padding included, as in transformers.
        """
        ids, mask = np.asarray(ids_bt), np.asarray(mask_bt)
        require(ids.ndim == 2 and ids.shape == mask.shape, f"states: ids {ids.shape} and mask {mask.shape} must be one (b, t)")
        most = getattr(self.cfg, "positions", ids.shape[1])
        require(ids.shape[1] <= most, f"states: {ids.shape[1]} tokens in a row, but {self.name} has {most} positions; cut them")
        self._check_ids(ids, "states")
        return _states(self.params, ids.astype(np.int32), mask.astype(bool), network=self._network, cfg=self.cfg)

    def condition(self, params: dict, ids_bt: jax.Array, mask_bt: jax.Array) -> TextCondition:
        """What a call gives for the texts of these tokens, as a pure function of them and the parameters."""
        mask_bt = mask_bt.astype(bool)
        left = self.options.padding == "left"
        return TextCondition(*_padded(self.apply(params, ids_bt, mask_bt), mask_bt, length=ids_bt.shape[1], left=left))

    @property
    def tokenizer(self) -> TextTokenizer:
        """The folder's tokenizer, read at first use."""
        if self._tokenizer is None:
            self._tokenizer = TextTokenizer(self.folder, self.max_tokens, self._pad_id)
        return self._tokenizer

    def tokenize(self, texts: Sequence[str], *, warn: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """int32 ids and bool mask (b, max_tokens) of the template and each text, padded on the right.

        warn: name the texts that are cut, as in a call.
        """
        ids, mask = self.tokenizer(self._with_template(texts), warn=warn)
        self._check_ids(ids, str(self.tokenizer.file))
        return ids, mask

    def cut(self, texts: Sequence[str]) -> list[str]:
        """The texts that are longer than `max_tokens`."""
        found: list[str] = []
        for start in range(0, len(texts), PART):  # the tokenizer's results of millions of texts would fill the memory
            some = texts[start : start + PART]
            found += [some[row] for row in self.tokenizer.tokens(self._with_template(some))[2]]
        return found

    def _with_template(self, texts: Sequence[str]) -> Sequence[str]:
        template = self.options.template
        if not template or isinstance(texts, str):
            return texts
        return [template + text if isinstance(text, str) else text for text in texts]

    def __call__(self, texts: Sequence[str], *, warn: bool = True) -> TextCondition:
        """Features (b, max_tokens, width), zero at padding, and mask of the texts.

        Texts are computed in groups of 4 or 32, padded on the right, to the longest of the group; the features of a
        text depend on neither (up to rounding). For padding on the left, the results are shifted.
        """
        ids, mask = self.tokenize(texts, warn=warn)
        parts = []
        size = batch_size_of(len(ids))
        for start in range(0, len(ids), size):
            rows = slice(start, start + size)
            length = min(-(-max(1, int(mask[rows].sum(axis=1).max())) // STEP) * STEP, self.max_tokens)
            some_ids, some_mask = (np.pad(x[rows, :length], ((0, size - len(x[rows])), (0, 0))) for x in (ids, mask))
            states = self.states(some_ids, some_mask)
            left = self.options.padding == "left"
            parts.append(_padded(states, some_mask, length=self.max_tokens, left=left))
        features, masks = (np.concatenate(both)[: len(ids)] for both in zip(*to_host(parts)))
        return TextCondition(features, masks)

    def _check_ids(self, ids: np.ndarray, what: str) -> None:
        low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
        require(
            low >= 0 and high < self.cfg.vocabulary,
            f"{what}: ids {low}..{high} do not fit the {self.cfg.vocabulary} tokens of {self.folder}; use its own tokenizer",
        )
