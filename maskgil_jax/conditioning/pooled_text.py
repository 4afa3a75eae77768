"""Texts with a pooled embedding and micro-conditioning -> `PooledTextCondition`."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from maskgil_jax.conditioning.base import checked_prompts
from maskgil_jax.config import ConfigError, require
from maskgil_jax.models.condition import GuidedCondition, PooledTextCondition, take
from maskgil_jax.runtime.mesh import place, replicated, to_host
from maskgil_jax.text_encoders.pooled_clip import load_pooled_clip


@dataclasses.dataclass(frozen=True)
class PooledTextConditioner:
    """Conditions on states (`tokens` x `width`) and the embedding (`pooled`) of a text,
    and `micro` numbers about the image.

    encoder: texts -> `PooledTextCondition`; None: the one that `about` names, loaded at the first prompt. about: the
    entry "text_encoder" of `config.json`: path, and name and hash if known; empty without an encoder, when only a
    `PooledTextCondition` can be asked for. size: (height, width) in pixels of the training images, which the encoder
    states.
    captions: of `examples`. online: training batches hold token ids, and the encoder computes in the train step.
    """

    tokens: int
    width: int
    pooled: int
    micro: int = 5
    encoder: Any = dataclasses.field(default=None, compare=False)
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size: tuple[int, int] = (512, 512)
    captions: tuple[str, ...] = dataclasses.field(default=("",), compare=False)
    online: bool = dataclasses.field(default=False, compare=False)

    @property
    def batch_keys(self) -> tuple[str, ...]:
        return ("text_ids", "text_mask") if self.online else ("text_features", "text_mask", "text_pooled", "micro")

    @functools.cached_property
    def frozen(self) -> Any:
        if not self.online:
            return None
        sharding = jax.tree.leaves(self.encoder.params)[0].sharding
        null = self._null
        if isinstance(sharding, NamedSharding):
            null = place(to_host(null), replicated(sharding.mesh))
        return self.encoder.params, null

    def encode(self, requests: Any) -> Any:
        """Prompts -> their conditions with that of "" for guidance. A condition is returned as it is."""
        if isinstance(requests, PooledTextCondition | GuidedCondition):
            return requests
        prompts = checked_prompts(requests)
        condition = self._checked(self._encoder(prompts))
        return GuidedCondition(condition, take(self._null, np.zeros(len(prompts), np.int32)))

    @functools.cached_property
    def _encoder(self) -> Callable[[Sequence[str]], PooledTextCondition]:
        if self.encoder is not None:
            return self.encoder
        path = self.about.get("path")
        if not path:
            raise ConfigError(
                "prompts: no text encoder is loaded with this generator; give load(..., text_encoder=FOLDER), CLIP's text "
                "network with projection, or a PooledTextCondition"
            )
        return load_pooled_clip(path, self.size)

    @functools.cached_property
    def _null(self) -> PooledTextCondition:
        """The condition of "": what guidance moves away from."""
        return self._checked(self._encoder([""]))

    def _checked(self, condition: PooledTextCondition) -> PooledTextCondition:
        found = (*condition.features_btd.shape[1:], condition.pooled_bp.shape[1])
        wanted = (self.tokens, self.width, self.pooled)
        require(
            found == wanted,
            f"text_encoder: gives {found[0]} x {found[1]} states (tokens x width) and an embedding of {found[2]}, the "
            f"generator takes {wanted[0]} x {wanted[1]} and {wanted[2]}; give the encoder of training",
        )
        return condition

    def from_batch(self, batch: dict, frozen: Any = None) -> PooledTextCondition | GuidedCondition:
        if not self.online:
            return PooledTextCondition(*(batch[name] for name in self.batch_keys))
        params, null = frozen
        condition = self._checked(self.encoder.condition(params, batch["text_ids"]))
        rows = condition.pooled_bp.shape[0]
        return GuidedCondition(condition, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape[1:])), null))

    def examples(self, count: int) -> Any:
        if self.encoder is not None or self.about.get("path"):
            return self.encode([self.captions[i % len(self.captions)] for i in range(count)])
        features = np.zeros((count, self.tokens, self.width), np.float32)
        pooled, micro = (np.zeros((count, size), np.float32) for size in (self.pooled, self.micro))
        return PooledTextCondition(features, np.ones((count, self.tokens), bool), pooled, micro)

    def fixed_parameters(self, cfg: Any) -> dict[str, Any]:
        return {}

    def network_options(self) -> dict[str, Any]:
        sizes: dict[str, Any] = {"text_tokens": self.tokens, "text_dim": self.width, "pooled_dim": self.pooled}
        return sizes | {"micro_values": self.micro}

    def metadata(self) -> dict[str, Any]:
        about = dict(self.about or getattr(self.encoder, "about", {}))
        return {"text_encoder": about} if about else {}


def pooled_conditioner(cfg: Any, metadata: Mapping[str, Any], text_encoder: Any = None) -> PooledTextConditioner:
    """The conditioner of a generator with a pooled text, by its options and its `config.json`.

    text_encoder: None, a folder for `load_pooled_clip`, or an encoder.
    """
    about, size = metadata.get("text_encoder") or {}, metadata.get("image_size", 512)
    if not isinstance(about, Mapping):
        raise ConfigError(f"config.json: text_encoder is a {type(about).__name__}, expected an object")
    height, width = (size, size) if isinstance(size, int) else size
    if text_encoder is not None and not callable(text_encoder):
        about, text_encoder = {"path": str(text_encoder)}, load_pooled_clip(text_encoder, (height, width))
    sizes = (cfg.text_tokens, cfg.text_dim, cfg.pooled_dim, cfg.micro_values)
    return PooledTextConditioner(*sizes, text_encoder, dict(about), (height, width))


def pooled_texts(encoder: Any, captions: Sequence[str] = ()) -> PooledTextConditioner:
    """The conditioner of a training whose step runs a frozen `PooledTextEncoder`; `captions` are its examples."""
    sizes = (encoder.max_tokens, encoder.width, encoder.pooled)
    about, captions = dict(encoder.about), tuple(captions) or ("",)
    return PooledTextConditioner(*sizes, 5, encoder, about, encoder.size, captions, online=True)


def beside(about: Any, folder: pathlib.Path | None) -> Any:
    """The entry "text_encoder" with a path that begins with ".." made absolute:
    it is relative to the generator's folder."""
    path = about.get("path") if isinstance(about, Mapping) else None
    if folder is None or not isinstance(path, str) or not path.startswith(".."):
        return about
    return {**about, "path": str((pathlib.Path(folder) / path).resolve())}
