"""Training of low-rank factors beside frozen weights (LoRA, Hu et al. 2021, arXiv 2106.09685).

The train state holds the factors alone; the frozen weights are an argument of every step. Inside the loss both become
one set of parameters, so the network knows nothing of it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maskgil_jax.checkpoints.weights import load_weights
from maskgil_jax.config import ConfigError, from_dict, require
from maskgil_jax.config.training import LoraConfig
from maskgil_jax.convert.lora import foreign_names, write_lora
from maskgil_jax.networks import abstract_params, compare_trees, flatten, unflatten
from maskgil_jax.runtime.mesh import place, shardings

DOWN, UP = "lora_a", "lora_b"  # (..., in, rank) and (..., rank, out)


@dataclasses.dataclass(frozen=True, eq=False)
class LoraTraining:
    """What the trainer of a generator needs of a run with low-rank factors.

    cfg: the network. base: its frozen parameters, on the mesh. identity: for the fingerprint of checkpoints.
    """

    options: LoraConfig
    cfg: Any
    base: dict
    identity: dict[str, Any]

    def init(self, key: jax.Array) -> dict:
        """The first factors."""
        return init_factors(key, self.cfg, self.options)

    def merge(self, factors: dict, base: dict) -> dict:
        """See `merge`; a function of both, for the train step."""
        return merge(factors, base, self.options)

    @functools.cached_property
    def _merged(self) -> Any:
        return jax.jit(self.merge)

    def whole(self, factors: dict) -> dict:
        """The network's parameters."""
        return self._merged(factors, self.base)

    def save(self, path: str | os.PathLike, factors: dict) -> None:
        """Writes factors (on the host) as a LoRA file; see `save_factors`."""
        save_factors(path, self.cfg, factors, self.options)


def open_lora(config, sizes: dict[str, Any], mesh: Mesh) -> LoraTraining | None:
    """The `lora` section of a run file with the frozen weights of `init_from`; None if it is off.

    sizes: options that data and tokenizer decide. The network is that of the weights, with the run's grid, and its
    dropout, precision and order of execution where the `model` section sets them.
    """
    section = config.get("lora")
    options = from_dict(LoraConfig, section.to_dict() if section else {}, "config.lora")
    if not options.rank:
        return None
    require(bool(config.get("init_from")), "config.lora: needs config.init_from, the weights folder whose weights are frozen")
    weights = load_weights(config.init_from, "generator")
    set_here = {name: config.model.get(name) for name in ("dropout", "dtype", "layers", "remat")}
    changes = {name: value for name, value in set_here.items() if value is not None and hasattr(weights.cfg, name)}
    for name, value in sizes.items():
        found = getattr(weights.cfg, name, None)
        require(
            name == "grid" or found == value,
            f"config.init_from: {config.init_from} has {name} = {found!r}, data and tokenizer of this run {value!r}",
        )
    cfg = dataclasses.replace(weights.cfg, grid=tuple(sizes["grid"]), **changes)
    compare_trees(weights.params, abstract_params(cfg), f"config.init_from: {config.init_from}")
    identity = {"lora": options, "init_from": weights.hash}
    return LoraTraining(options, cfg, place_base(weights.params, mesh), identity)


def targets(cfg: Any, options: LoraConfig) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the kernels that get factors. Raises a `ConfigError` if the pattern matches none."""
    matrices = {part.path for tensor in foreign_names(cfg).values() if len(tensor.shape) == 2 for part in tensor.parts}
    leaves = {path: tuple(leaf.shape) for path, leaf in flatten(abstract_params(cfg)).items() if path in matrices}
    found = {path: shape for path, shape in leaves.items() if path.endswith("kernel") and re.search(options.targets, path)}
    if not found:
        some = ", ".join(sorted(path for path in leaves if path.endswith("kernel"))[:4])
        raise ConfigError(f"config.lora.targets: {options.targets!r} matches no matrix; there are {some} ...")
    return found


def init_factors(key: jax.Array, cfg: Any, options: LoraConfig) -> dict:
    """The first factors: `a` normal with deviation 1/sqrt(in), `b` zero, so that the network starts as it was."""
    factors: dict[str, jax.Array] = {}
    for i, (path, shape) in enumerate(sorted(targets(cfg, options).items())):
        *stack, size_in, size_out = shape
        drawn = jax.random.normal(jax.random.fold_in(key, i), (*stack, size_in, options.rank), jnp.float32)
        factors[f"{path}/{DOWN}"] = drawn * size_in**-0.5
        factors[f"{path}/{UP}"] = jnp.zeros((*stack, options.rank, size_out), jnp.float32)
    return unflatten(factors)


def merge(factors: dict, base: dict, options: LoraConfig) -> dict:
    """The network's parameters: `base` with scale * a @ b added where there are factors. Traceable."""
    flat, merged = flatten(factors), dict(flatten(base))
    for path in {name.rpartition("/")[0] for name in flat}:
        merged[path] = merged[path] + options.scale * (flat[f"{path}/{DOWN}"] @ flat[f"{path}/{UP}"])
    return unflatten(merged)


def place_base(params: dict, mesh: Mesh) -> dict:
    """Frozen parameters on the mesh, sharded as trained ones."""
    return jax.tree.map(place, params, shardings(params, mesh))


def save_factors(path: str | os.PathLike, cfg: Any, factors: dict, options: LoraConfig) -> None:
    """Writes factors (on the host) as a LoRA file."""
    flat = flatten(factors)
    paths = {name.rpartition("/")[0] for name in flat}
    write_lora(path, cfg, {name: (flat[f"{name}/{DOWN}"], flat[f"{name}/{UP}"]) for name in paths}, options.scale)
