"""Prompts -> `TextCondition`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.conditioning.base import checked_prompts
from maskgil_jax.config import ConfigError, require
from maskgil_jax.data.text_store import TextStore
from maskgil_jax.models.condition import GuidedCondition, TextCondition, batch_size, take
from maskgil_jax.runtime.mesh import to_host
from maskgil_jax.text_encoders.load import load_text_encoder

_OPTIONS = ("layer", "max_tokens", "padding", "template", "dtype")  # of `load_text_encoder`, as `config.json` records them
_EXAMPLES = 64  # stored texts that previews show


@dataclasses.dataclass(frozen=True)
class TextConditioner:
    """Conditions on the states of a frozen text encoder, `tokens` positions of width `width`.

    encoder: texts -> `TextCondition`, with `about`; None: the one that `about` names, loaded at the first prompt.
    about: the entry "text_encoder" of `config.json`: path, name, options and hash of the encoder of training, and the
    hash of its captions if their features were stored; empty if unknown. known: features of texts that are known
    without an encoder, the first of them those of "". online: training batches hold token ids, and the encoder computes
    in the train step.
    """

    tokens: int
    width: int
    encoder: Any = dataclasses.field(default=None, compare=False)
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    known: TextCondition | None = dataclasses.field(default=None, compare=False)
    online: bool = dataclasses.field(default=False, compare=False)

    @property
    def batch_keys(self) -> tuple[str, ...]:
        return ("text_ids", "text_mask") if self.online else ("text_features", "text_mask")

    @property
    def frozen(self) -> Any:
        return self.encoder.params if self.online and self.encoder is not None else None

    def encode(self, requests: Any) -> Any:
        """Prompts -> their `TextCondition`. A condition is returned as it is. Prompts that are too long are cut."""
        if isinstance(requests, TextCondition | GuidedCondition):
            return requests
        return self._fit(self._encoder(checked_prompts(requests)))

    @functools.cached_property
    def _encoder(self) -> Callable[[Sequence[str]], TextCondition]:
        if self.encoder is not None:
            return self.encoder
        path = self.about.get("path")
        if not path:
            raise ConfigError(
                "prompts: this generator is conditioned on text, and no text encoder is loaded with it; give "
                "load(..., text_encoder=FOLDER)"
            )
        try:
            return _opened(path, self.about)
        except ConfigError as error:
            raise ConfigError(f"{error}; or give load(..., text_encoder=FOLDER), the encoder of training") from None

    def _fit(self, condition: TextCondition) -> TextCondition:
        """Pads an encoder's result to `tokens` positions."""
        _, count, width = condition.features_btd.shape
        fits = width == self.width and count <= self.tokens
        require(
            fits, f"text_encoder: gives {count} x {width} (tokens x width), the generator takes {self.tokens} x {self.width}"
        )
        more = (self.tokens - count, 0) if self.about.get("padding") == "left" else (0, self.tokens - count)
        if more == (0, 0):
            return condition
        return TextCondition(
            jnp.pad(condition.features_btd, ((0, 0), more, (0, 0))), jnp.pad(condition.mask_bt.astype(bool), ((0, 0), more))
        )

    def from_batch(self, batch: dict, frozen: Any = None) -> TextCondition:
        if self.online:
            return self._fit(self.encoder.condition(frozen, batch["text_ids"], batch["text_mask"]))
        return TextCondition(batch["text_features"], batch["text_mask"])

    def examples(self, count: int) -> TextCondition:
        if self.known is None and self.encoder is not None:
            return self.encode([""] * count)
        if self.known is not None:
            rows = np.arange(count) % max(1, batch_size(self.known) - 1) + (batch_size(self.known) > 1)
            return self._fit(take(self.known, rows))
        return TextCondition(np.zeros((count, self.tokens, self.width), np.float32), np.ones((count, self.tokens), bool))

    def fixed_parameters(self, cfg: Any) -> dict[str, Any]:
        """The encoder's output for "", if the network's null text is that."""
        if cfg.null_text != "encoder":
            return {}
        features_btd, mask_bt = self._null()
        return {
            "caption_null": np.asarray(features_btd[0], np.float32),
            "caption_null_mask": np.asarray(mask_bt[0], np.float32),
        }

    def _null(self) -> tuple[Any, Any]:
        null = self.encode([""]) if self.known is None else self._fit(take(self.known, slice(0, 1)))
        return null.features_btd, null.mask_bt

    def network_options(self) -> dict[str, Any]:
        return {"condition": "text", "text_tokens": self.tokens, "text_dim": self.width}

    def metadata(self) -> dict[str, Any]:
        about = dict(self.about or getattr(self.encoder, "about", {}))
        return {"text_encoder": about} if about else {}


def text_conditioner(cfg: Any, about: Mapping[str, Any] | None, text_encoder: Any = None) -> TextConditioner:
    """The conditioner of a text-conditional generator whose `config.json` has the entry `about` ("text_encoder").

    text_encoder: None, what `load_text_encoder` takes, or an encoder. The entry's options apply to a folder; without an
    entry it gets the generator's length, and the padding of LlamaGen (left) if the generator has LlamaGen's random null
    text.
    """
    if about is not None and not isinstance(about, Mapping):
        raise ConfigError(f"config.json: text_encoder is a {type(about).__name__}, expected an object")
    known = dict(about or {})
    if text_encoder is None:
        return TextConditioner(cfg.text_tokens, cfg.text_dim, None, known)
    if not callable(text_encoder):
        layout = {"max_tokens": cfg.text_tokens, "padding": "left" if cfg.null_text == "random" else "right"}
        text_encoder = _opened(text_encoder, layout | known)
    found = getattr(text_encoder, "about", {})
    if known.get("hash") and found.get("hash"):
        require(
            known["hash"] == found["hash"],
            f"text_encoder: {found.get('path')} ({found.get('name')}) has hash {found['hash']}, the generator was trained with "
            f"{known.get('path')} ({known.get('name')}), hash {known['hash']}; give that one",
        )
    conditioner = TextConditioner(cfg.text_tokens, cfg.text_dim, text_encoder, known or dict(found))
    width, count = getattr(text_encoder, "width", cfg.text_dim), getattr(text_encoder, "max_tokens", cfg.text_tokens)
    require(
        width == cfg.text_dim and count <= cfg.text_tokens,
        f"text_encoder: {found.get('path')} gives {count} x {width} (tokens x width), the generator takes "
        f"{cfg.text_tokens} x {cfg.text_dim}; give the encoder of training",
    )
    return conditioner


def stored_texts(store: TextStore) -> TextConditioner:
    """The conditioner of a training on stored features (`data.text_store`); its examples are the first captions."""
    features_btd, mask_bt = store.batch(store.ids[: 1 + _EXAMPLES])
    known = TextCondition(features_btd.astype(np.float32), mask_bt)
    return TextConditioner(store.max_tokens, store.width, None, {**store.about, "texts": store.texts}, known)


def online_texts(encoder: Any, captions: Sequence[str] = ()) -> TextConditioner:
    """The conditioner of a training whose step runs a frozen encoder on token ids; `captions` are its examples."""
    ids_bt, mask_bt, _ = encoder.tokenizer.tokens([encoder.options.template + caption for caption in ("", *captions)])
    known = to_host(jax.jit(encoder.condition)(encoder.params, ids_bt, mask_bt))
    return TextConditioner(encoder.max_tokens, encoder.width, encoder, dict(encoder.about), known, online=True)


def _opened(path: Any, options: Mapping[str, Any]) -> Any:
    """The encoder of a folder or name, with the options that are known."""
    encoder = load_text_encoder(path, **{name: options[name] for name in _OPTIONS if name in options})
    if options.get("hash"):
        require(
            encoder.about["hash"] == options["hash"],
            f"text_encoder: {path} ({encoder.name}) has hash {encoder.about['hash']}, the generator was trained with "
            f"hash {options['hash']} ({options.get('name')}); give that one",
        )
    return encoder
