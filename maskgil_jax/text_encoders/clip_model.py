"""`load_clip`: a Hugging Face folder -> CLIP's text and image features in their shared space."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from maskgil_jax.config import ConfigError, choose, require
from maskgil_jax.config.encoders import CLIPTextConfig, CLIPVisionConfig
from maskgil_jax.text_encoders.clip import (
    read_text_config,
    read_vision_config,
    text_apply,
    text_table,
    vision_apply,
    vision_table,
)
from maskgil_jax.text_encoders.folder import (
    Table,
    chosen_layers,
    locate,
    match,
    network_options,
    read_config,
    read_params,
    stored_tensors,
)
from maskgil_jax.text_encoders.layers import layer_norm, linear
from maskgil_jax.text_encoders.placement import putter
from maskgil_jax.text_encoders.text_tokens import TextTokenizer

KINDS = ("clip", "clip_text_model", "clip_vision_model")  # `model_type` of both networks, or of one of them


@functools.partial(jax.jit, static_argnames=("cfg",))
def _text_states(params: dict, ids_bt: jax.Array, *, cfg: CLIPTextConfig) -> jax.Array:
    return text_apply(params, ids_bt, None, cfg).astype(jnp.float32)


def _at_end(x_btd: jax.Array, ids_bt: jax.Array, cfg: CLIPTextConfig) -> jax.Array:
    """The state at the end token, (b, d)."""
    ends_bt = ids_bt if cfg.end_id == 2 else (ids_bt == cfg.end_id).astype(jnp.int32)
    return jnp.take_along_axis(x_btd, jnp.argmax(ends_bt, axis=1)[:, None, None], axis=1)[:, 0]


def projected_end(params: dict, final_btd: jax.Array, ids_bt: jax.Array, cfg: CLIPTextConfig) -> jax.Array:
    """The projection of the final, normalised state at the end token, (b, p)."""
    return linear(params["projection"], _at_end(final_btd, ids_bt, cfg))


@functools.partial(jax.jit, static_argnames=("cfg",))
def _text_pooled(params: dict, ids_bt: jax.Array, *, cfg: CLIPTextConfig) -> tuple[jax.Array, jax.Array | None]:
    """(pooled state, its projection): the normalised state at the end token."""
    final_btd = text_apply(params, ids_bt, None, cfg)
    pooled = _at_end(final_btd, ids_bt, cfg)
    projected = projected_end(params, final_btd, ids_bt, cfg).astype(jnp.float32) if "projection" in params else None
    return pooled.astype(jnp.float32), projected


@functools.partial(jax.jit, static_argnames=("cfg",))
def _image_states(params: dict, pixels_bhwc: jax.Array, *, cfg: CLIPVisionConfig) -> jax.Array:
    return vision_apply(params, pixels_bhwc, cfg).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("cfg",))
def _image_pooled(params: dict, pixels_bhwc: jax.Array, *, cfg: CLIPVisionConfig) -> tuple[jax.Array, jax.Array | None]:
    """(pooled state, its projection): the normalised class token."""
    pooled = layer_norm(params["norm"], vision_apply(params, pixels_bhwc, cfg)[:, 0], cfg.eps)
    projected = linear(params["projection"], pooled).astype(jnp.float32) if "projection" in params else None
    return pooled.astype(jnp.float32), projected


class CLIP:
    """A frozen CLIP, or one half of it. text, vision: sizes, None for a half that the folder lacks. params:
    nested dicts."""

    def __init__(
        self,
        params: dict,
        text: CLIPTextConfig | None,
        vision: CLIPVisionConfig | None,
        folder: pathlib.Path,
        pad_id: Any = None,
    ):
        self.params, self.text, self.vision, self.folder = params, text, vision, folder
        self.pad_id = pad_id
        self._tokenizer: TextTokenizer | None = None

    def text_states(self, ids_bt: Any, layer: int | None = None) -> jax.Array:
        """float32 (b, t, d). layer: index into `hidden_states` (-1: before the final norm).

        None: after the final norm.
        """
        cfg, params = self._half("text", self.text)
        count, norm = chosen_layers(layer, cfg.depth, False, self.folder)
        used = {"embed", "positions"} | ({"norm"} if norm else set())
        part = {name: params[name] for name in used} | {"layers": params["layers"][:count]}
        return _text_states(part, self._ids(ids_bt, cfg), cfg=cfg)

    def text_pooled(self, ids_bt: Any) -> jax.Array:
        """float32 (b, d): the final state at the end token."""
        cfg, params = self._half("text", self.text)
        return _text_pooled(params, self._ids(ids_bt, cfg), cfg=cfg)[0]

    def text_features(self, ids_bt: Any) -> jax.Array:
        """float32 (b, p): the pooled state projected to the width shared with images, not normalised."""
        cfg, params = self._half("text", self.text)
        projected = _text_pooled(params, self._ids(ids_bt, cfg), cfg=cfg)[1]
        return self._projected(projected, "text_projection.weight")

    def image_states(self, pixels_bhwc: Any) -> jax.Array:
        """float32 (b, tokens, d), the class token first, before the final norm."""
        cfg, params = self._half("vision", self.vision)
        return _image_states(params, self._pixels(pixels_bhwc, cfg), cfg=cfg)

    def image_pooled(self, pixels_bhwc: Any) -> jax.Array:
        """float32 (b, d): the normalised class token."""
        cfg, params = self._half("vision", self.vision)
        return _image_pooled(params, self._pixels(pixels_bhwc, cfg), cfg=cfg)[0]

    def image_features(self, pixels_bhwc: Any) -> jax.Array:
        """float32 (b, p) of normalised pixels (CLIP's mean and standard deviation taken off), not normalised."""
        cfg, params = self._half("vision", self.vision)
        projected = _image_pooled(params, self._pixels(pixels_bhwc, cfg), cfg=cfg)[1]
        return self._projected(projected, "visual_projection.weight")

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """int32 ids (b, positions) with start, end and padding; longer texts are cut with a warning."""
        cfg, _ = self._half("text", self.text)
        if self._tokenizer is None:
            self._tokenizer = TextTokenizer(self.folder, cfg.positions, self.pad_id)
        return self._tokenizer(texts)[0]

    @property
    def logit_scale(self) -> float:
        """exp of the learned temperature: what similarities were multiplied by in training."""
        require(
            "logit_scale" in self.params, f"{self.folder}: holds one half of CLIP, which has no logit_scale; load the whole"
        )
        return float(jnp.exp(self.params["logit_scale"].astype(jnp.float32)))

    def _half(self, name: str, cfg: Any) -> tuple[Any, dict]:
        require(cfg is not None, f"{self.folder}: holds no {name} network; load a folder of the whole CLIP")
        return cfg, self.params[name]

    def _projected(self, features: jax.Array | None, name: str) -> jax.Array:
        if features is None:
            raise ConfigError(f"{self.folder}: {name} is missing, so there are no features; load a file with projection")
        return features

    def _ids(self, ids_bt: Any, cfg: CLIPTextConfig) -> np.ndarray:
        ids = np.asarray(ids_bt)
        good = ids.ndim == 2 and 1 <= ids.shape[1] <= cfg.positions
        require(good, f"ids: expected (b, t) with t up to {cfg.positions}, got {ids.shape}")
        fits = not ids.size or (ids.min() >= 0 and ids.max() < cfg.vocabulary)
        require(bool(fits), f"ids: must be 0..{cfg.vocabulary - 1} for {self.folder}; use its own tokenizer")
        return ids.astype(np.int32)

    def _pixels(self, pixels_bhwc: Any, cfg: CLIPVisionConfig) -> Any:
        expected = (cfg.image_size, cfg.image_size, cfg.channels)
        found = np.shape(pixels_bhwc)
        require(
            len(found) == 4 and found[1:] == expected, f"pixels: expected (b, {', '.join(map(str, expected))}), got {found}"
        )
        return pixels_bhwc


def load_clip(path, *, dtype: str = "float32", mesh: Mesh | None = None) -> CLIP:
    """Reads CLIP, or one half of it, from a Hugging Face folder or "hf://owner/repo[@revision]".

    dtype: "float32" or "bfloat16". mesh: of `make_mesh`. The tokenizer is read at the first text.
    Raises: ConfigError, one line that names the folder and the file, key or tensor.
    """
    choose("dtype", dtype, ("float32", "bfloat16"))
    folder = locate(path)
    values = read_config(folder, KINDS)
    where, kind = str(folder / "config.json"), values["model_type"]
    text = network_options(read_text_config, values, where) if kind != "clip_vision_model" else None
    vision = network_options(read_vision_config, values, where) if kind != "clip_text_model" else None
    stored = stored_tensors(folder)
    names = clip_names(folder, text, vision, {name: tensor.shape for name, tensor in stored.items()})
    pad_id = (values.get("text_config") or values).get("pad_token_id")
    return CLIP(read_params(stored, names, dtype, putter(mesh)), text, vision, folder, pad_id)


def clip_names(where: Any, text: CLIPTextConfig | None, vision: CLIPVisionConfig | None, shapes: dict) -> dict[str, str]:
    """Parameter -> name in the file. The whole CLIP has projections and a scale; half of it may have its projection."""
    halves: dict[str, tuple[Table, str, tuple[int, int]]] = {}
    if text is not None:
        halves["text"] = text_table(text), "text_projection.weight", (text.projection, text.width)
    if vision is not None:
        halves["vision"] = vision_table(vision), "visual_projection.weight", (vision.projection, vision.width)
    table: Table = {}
    whole = len(halves) == 2
    for half, (names, projection, shape) in halves.items():
        table |= {f"{half}/{path}": entry for path, entry in names.items()}
        if whole or projection in shapes:
            table[f"{half}/projection/weight"] = (projection, shape)
    if whole:
        table["logit_scale"] = ("logit_scale", ())
    return match(where, shapes, table, ignored=r".*\.position_ids")
