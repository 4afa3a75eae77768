"""`load_pooled_clip`: CLIP's text network as aMUSEd uses it: texts -> states, embedding and micro-conditioning."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from maskgil_jax.config import require
from maskgil_jax.config.encoders import CLIPTextConfig, TextEncoderOptions
from maskgil_jax.models.condition import PooledTextCondition
from maskgil_jax.runtime.batch_sizes import batch_size_of
from maskgil_jax.runtime.mesh import to_host
from maskgil_jax.text_encoders.clip import text_apply, text_layers
from maskgil_jax.text_encoders.clip_model import CLIP, load_clip, projected_end
from maskgil_jax.text_encoders.identity import encoder_hash, sample_digest
from maskgil_jax.text_encoders.text_tokens import TextTokenizer

AESTHETIC = 6.0  # the score that aMUSEd's pipelines state


@functools.partial(jax.jit, static_argnames=("cfg",))
def _outputs(params: dict, ids_bt: jax.Array, *, cfg: CLIPTextConfig) -> tuple[jax.Array, jax.Array]:
    """(states after all layers but the last one, without the final norm;
    the projected state at the end token), float32."""
    first = {name: params[name] for name in ("embed", "positions")} | {"layers": params["layers"][:-1]}
    states_btd = text_apply(first, ids_bt, None, cfg)
    last_btd = text_layers({"layers": params["layers"][-1:], "norm": params["norm"]}, states_btd, None, cfg)
    return states_btd.astype(jnp.float32), projected_end(params, last_btd, ids_bt, cfg).astype(jnp.float32)


class PooledTextEncoder:
    """Texts -> `PooledTextCondition`, by a CLIP text network with its projection, which is never trained.

    size: (height, width) of the images in pixels, which the micro-conditioning states, with no crop and the aesthetic
    score 6.
    width, pooled, max_tokens: sizes of the condition. clip: the network.
    """

    def __init__(self, clip: CLIP, size: tuple[int, int], source: str):
        cfg = clip.text
        has_projection = cfg is not None and "projection" in clip.params["text"]
        require(has_projection, f"{clip.folder}: has no text_projection.weight; expected a CLIP text network with projection")
        assert cfg is not None
        self.clip, self.cfg, self.size, self._source = clip, cfg, size, source
        self.width, self.pooled, self.max_tokens = cfg.width, cfg.projection, cfg.positions
        self.name = f"clip-{cfg.depth}x{cfg.width}-pooled"
        self.tokenizer = TextTokenizer(clip.folder, cfg.positions, clip.pad_id)
        self.params, self.options = clip.params["text"], TextEncoderOptions(layer=-2, max_tokens=cfg.positions)

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """What the features depend on, as plain values for `config.json`."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(self.params)
        digests = {jax.tree_util.keystr(path): sample_digest(np.asarray(leaf)) for path, leaf in leaves}
        return {"path": self._source, "name": self.name, "hash": encoder_hash(digests, self.clip.folder)}

    def condition(self, params: dict, ids_bt: jax.Array) -> PooledTextCondition:
        """The condition of token ids as a pure function, without gradients."""
        states_btd, pooled_bp = jax.lax.stop_gradient(_outputs(params, ids_bt, cfg=self.cfg))
        return PooledTextCondition(states_btd, jnp.ones(ids_bt.shape, bool), pooled_bp, jnp.asarray(self._micro(len(ids_bt))))

    def _micro(self, count: int) -> np.ndarray:
        height, width = self.size
        return np.tile(np.array([width, height, 0, 0, AESTHETIC], np.float32), (count, 1))

    def __call__(self, texts: Sequence[str]) -> PooledTextCondition:
        """The conditions of the texts. All positions of a text are real to the network, padding too, as published."""
        ids_bt = self.tokenizer(texts)[0]
        parts = []
        size = batch_size_of(len(ids_bt))
        for start in range(0, len(ids_bt), size):
            some = ids_bt[start : start + size]
            some = np.pad(some, ((0, size - len(some)), (0, 0)), mode="edge")
            parts.append(_outputs(self.params, some, cfg=self.cfg))
        states_btd, pooled_bp = (np.concatenate(both)[: len(ids_bt)] for both in zip(*to_host(parts)))
        return PooledTextCondition(states_btd, np.ones(ids_bt.shape, bool), pooled_bp, self._micro(len(ids_bt)))


def load_pooled_clip(path, size: tuple[int, int], *, dtype: str = "float32", mesh: Mesh | None = None) -> PooledTextEncoder:
    """Reads a CLIP text network with projection, and its tokenizer, from a Hugging Face folder or "hf://owner/repo".

    size: (height, width) of the images. mesh: of `make_mesh`. Raises: ConfigError, one line that names the folder and
    the file, key or tensor.
    """
    return PooledTextEncoder(load_clip(path, dtype=dtype, mesh=mesh), size, os.fspath(path))
