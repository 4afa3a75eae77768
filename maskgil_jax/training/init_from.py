"""Starting a generator from the weights of another one: a larger image size, or text in place of classes."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Collection

import jax
import numpy as np

from maskgil_jax.checkpoints.weights import open_weights
from maskgil_jax.config import ConfigError
from maskgil_jax.runtime.mesh import path_name, place
from maskgil_jax.training.state import TrainState

TRUNK = r"(layers|norm)/.*"  # what both networks must have alike
_log = logging.getLogger(__name__)


def init_from(path, state: TrainState, *, tokenizer_hash: str = "", keep: Collection[str] = ()) -> TrainState:
    """The state with the parameters of the weights folder `path` where name and shape agree, in the average too.

    Log lines name what was not taken. keep: parameters that stay as they are. The optimizer starts anew. Raises:
    ConfigError if the trunk, layers and last norm, is not of the same size.
    """
    _, metadata, tensors = open_weights(path, "generator")
    own = {path_name(key): leaf.shape for key, leaf in jax.tree_util.tree_leaves_with_path(state.params)}
    for name in sorted({name for name in (*own, *tensors) if re.fullmatch(TRUNK, name)}):
        here, there = own.get(name), tuple(tensors.shapes[name]) if name in tensors.shapes else None
        if here != there:
            raise ConfigError(
                f"config.init_from: {path} has {name} of shape {there}, this network {here}; layers and last norm "
                "must be of the same size (config.model)"
            )
    taken = {name for name in own if tuple(tensors.shapes.get(name, ())) == own[name] and name in tensors.shapes} - set(keep)
    _log.info("init_from: %d of %d parameters are those of %s", len(taken), len(own), path)
    for what, names in (("new", own.keys() - taken - set(keep)), ("not used", set(tensors.shapes) - taken - set(keep))):
        if names:
            _log.info("init_from: %s: %s", what, ", ".join(sorted(names)))
    trained_with = metadata.get("tokenizer_hash")
    if tokenizer_hash and trained_with and trained_with != tokenizer_hash:
        _log.warning(
            "init_from: %s was trained on the codes of another tokenizer (%s, now %s); its tables of codes mean nothing here",
            path,
            trained_with,
            tokenizer_hash,
        )

    def of(key, leaf):
        name = path_name(key)
        return place(np.asarray(tensors[name], leaf.dtype), leaf.sharding) if name in taken else leaf

    params = jax.tree_util.tree_map_with_path(of, state.params)
    return dataclasses.replace(state, params=params, ema=jax.tree.map(jax.numpy.copy, params) if state.ema else {})
