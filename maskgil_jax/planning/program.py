"""The programs that are planned for, built from shapes alone: the train step of a run file, and sampling with its network."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from maskgil_jax import params as network
from maskgil_jax.config import DecodeConfig, VQConfig, from_dict
from maskgil_jax.data.images import to_uint8
from maskgil_jax.decoding.masked import decode
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.planning.flops import count_flops
from maskgil_jax.sharding import batch_sharding, replicated, shardings
from maskgil_jax.training.generator import Objective, jitted_step, model_options
from maskgil_jax.training.guards import guard_config, guarded
from maskgil_jax.training.loop import check_batch
from maskgil_jax.training.optim import learning_rate, make_optimizer
from maskgil_jax.training.state import init_state


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function with abstract arguments.

    cfg: options of the generator. useful_flops: matrix products that the mathematics needs, 6 (training) or 2 (each network
    call of sampling) times weights times tokens, attention, and the tokenizer's when sampling. images: what one run takes
    or makes, for a rate.
    """

    function: Callable
    arguments: tuple
    cfg: object
    useful_flops: float
    images: int

    def traced(self):
        return self.function.trace(*self.arguments)


def product_flops(cfg, calls: float) -> float:
    """FLOPs of `calls` images through the network once: two per weight and token, and the scores and sums of attention."""
    flat = network.flatten(network.abstract_params(cfg))
    weights = sum(int(np.prod(leaf.shape)) for name, leaf in flat.items() if name.endswith("kernel"))
    tokens, patch = cfg.grid[0] * cfg.grid[1], getattr(cfg, "patch", 1) ** 2
    places = tokens // patch + (not getattr(cfg, "causal", False))  # a causal network leaves the last one out
    head = flat["head/kernel"].size if patch > 1 else 0  # with patches it runs on tokens, all else on positions
    layers = places * (2.0 * (weights - head) + 4.0 * cfg.depth * cfg.width * places)
    return calls * (layers + 2.0 * head * tokens)


def _on(mesh: Mesh, tree, layout=None):
    """Shapes with the sharding they will have: `layout`, or the same on every device."""
    layout = jax.tree.map(lambda _: replicated(mesh), tree) if layout is None else layout
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, layout)


def network_options(config, *, codebook_size: int, num_classes: int, downsample: int):
    """Options of the run file's network."""
    grid = (config.data.image_size // downsample,) * 2
    return model_options(config.model.to_dict(), codebook_size=codebook_size, num_classes=num_classes, grid=grid)


def train_program(config, cfg, mesh: Mesh) -> Program:
    """The very step that `maskgil train` runs on stored codes, for `config.batch_size` images."""
    objective = from_dict(Objective, config.objective.to_dict(), "config.objective")
    check_batch(config, mesh, objective.accumulate)
    tx = guarded(make_optimizer(config.optimizer, config.total_steps), guard_config(config))
    schedule = learning_rate(config.optimizer, config.total_steps)
    init = init_state(lambda key: network.params_of(network.create(cfg, key)), tx, ema=config.optimizer.ema_decay > 0)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(init, key)
    layout = shardings(state, mesh)
    rows = {
        "codes": jax.ShapeDtypeStruct((config.batch_size, cfg.grid[0] * cfg.grid[1]), jnp.uint16),
        "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
    }
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=batch_sharding(mesh)), rows)
    step = jitted_step(cfg, objective, tx, schedule, config.optimizer.ema_decay, layout)
    arguments = (_on(mesh, state, layout), batch, _on(mesh, key), None)
    return Program(step, arguments, cfg, 3.0 * product_flops(cfg, config.batch_size), config.batch_size)


def decode_program(config, cfg, mesh: Mesh, tokenizer: VQConfig, batch: int) -> Program:
    """Sampling of `batch` images with the run file's decoding options, from labels to pixels."""
    decode_cfg = from_dict(DecodeConfig, config.decode.to_dict(), "config.decode")
    key = jax.eval_shape(lambda: jax.random.key(0))

    @functools.partial(jax.jit, out_shardings=batch_sharding(mesh))
    def sample(params, tokenizer_params, label_b, key):
        tokens_bl = decode(network.build(cfg, params), ClassCondition(label_b), key, decode_cfg)
        return to_uint8(network.build(tokenizer, tokenizer_params).decode(tokens_bl.reshape(-1, *cfg.grid)))

    params, tokenizer_params = network.abstract_params(cfg), network.abstract_params(tokenizer)
    arguments = (
        _on(mesh, params, shardings(params, mesh)),
        _on(mesh, tokenizer_params),
        jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=batch_sharding(mesh)),
        _on(mesh, key),
    )
    branches = 1 if decode_cfg.guidance == 1.0 else 2
    codes = jax.ShapeDtypeStruct((batch, *cfg.grid), jnp.int32)
    to_image = jax.make_jaxpr(lambda p, c: network.build(tokenizer, p).decode(c))(tokenizer_params, codes)
    useful = product_flops(cfg, batch * branches * decode_cfg.steps) + count_flops(to_image).products
    return Program(sample, arguments, cfg, useful, batch)
