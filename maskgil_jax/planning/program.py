"""The programs to plan, built from abstract arguments: the train step of a run file, and sampling with its network."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from maskgil_jax import networks as network
from maskgil_jax.conditioning import Conditioner
from maskgil_jax.config import DecodeConfig, GeneratorConfig, VQConfig, from_dict
from maskgil_jax.decoding.generate import generate_tokens
from maskgil_jax.planning.flops import count_flops
from maskgil_jax.runtime.mesh import batch_sharding, replicated, shardings
from maskgil_jax.tokenizers.images import to_pixels
from maskgil_jax.training.generator import Objective, jitted_step, model_options
from maskgil_jax.training.loop import check_batch
from maskgil_jax.training.optimizer import learning_rate, make_optimizer
from maskgil_jax.training.skip_updates import skip_bad_updates, skip_config
from maskgil_jax.training.state import init_state


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function with abstract arguments.

    cfg: options of the generator. useful_flops: matrix products of the mathematics, 6 (training) or 2 (each network
    call of sampling) times weights times tokens, attention, and the tokenizer's when sampling. images: how many one run
    consumes or produces.
    """

    function: Callable
    arguments: tuple
    cfg: object
    model_flops: float
    images: int

    def traced(self):
        return self.function.trace(*self.arguments)


def product_flops(cfg, calls: float) -> float:
    """FLOPs of `calls` images through the network once: two per weight and token, and the scores and sums of attention."""
    flat = network.flatten(network.abstract_params(cfg))
    weights = sum(int(np.prod(leaf.shape)) for name, leaf in flat.items() if name.endswith("kernel"))
    tokens, patch = cfg.grid[0] * cfg.grid[1], getattr(cfg, "patch", 1) ** 2
    places = tokens // patch + (not cfg.causal)  # a causal network does not read the last token
    head = flat["head/kernel"].size if patch > 1 else 0  # with patches it runs on tokens, all else on positions
    layers = places * (2.0 * (weights - head) + 4.0 * cfg.depth * cfg.width * places)
    return calls * (layers + 2.0 * head * tokens)


def _on(mesh: Mesh, tree, layout=None):
    """Shapes with the sharding they will have: `layout`, or the same on every device."""
    layout = jax.tree.map(lambda _: replicated(mesh), tree) if layout is None else layout
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, layout)


def network_options(config, *, codebook_size: int, conditioner: Conditioner, downsample: int) -> GeneratorConfig:
    """Options of the run file's network."""
    grid = (config.data.image_size // downsample,) * 2
    return model_options(config.model.to_dict(), codebook_size=codebook_size, grid=grid, **conditioner.network_options())


def train_program(config, cfg: GeneratorConfig, conditioner: Conditioner, mesh: Mesh) -> Program:
    """The step that `maskgil train` runs on stored codes, for `config.batch_size` images."""
    objective = from_dict(Objective, config.objective.to_dict(), "config.objective")
    check_batch(config, mesh, objective.accumulate)
    tx = skip_bad_updates(make_optimizer(config.optimizer, config.total_steps), skip_config(config))
    schedule = learning_rate(config.optimizer, config.total_steps)
    init = init_state(lambda key: network.params_of(network.create(cfg, key)), tx, ema=config.optimizer.ema_decay > 0)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(init, key)
    layout = shardings(state, mesh)
    condition = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, conditioner.examples(config.batch_size)))
    rows = {
        "codes": jax.ShapeDtypeStruct((config.batch_size, *cfg.grid), jnp.uint16),
        **dict(zip(conditioner.batch_keys, jax.tree.leaves(condition), strict=True)),
    }
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=batch_sharding(mesh)), rows)
    step = jitted_step(cfg, objective, tx, schedule, config.optimizer.ema_decay, layout, conditioner=conditioner)
    arguments = (_on(mesh, state, layout), batch, _on(mesh, key), None)
    return Program(step, arguments, cfg, 3.0 * product_flops(cfg, config.batch_size), config.batch_size)


def decode_program(
    config, cfg: GeneratorConfig, conditioner: Conditioner, mesh: Mesh, tokenizer: VQConfig, batch: int
) -> Program:
    """Sampling of `batch` images with the run file's decoding options, from labels to pixels."""
    decode_cfg = from_dict(DecodeConfig, config.decode.to_dict(), "config.decode")
    key = jax.eval_shape(lambda: jax.random.key(0))
    condition = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, conditioner.examples(batch)))

    @functools.partial(jax.jit, out_shardings=batch_sharding(mesh))
    def sample(params, tokenizer_params, condition, key):
        tokens_bl = generate_tokens(network.build(cfg, params), condition, key, decode_cfg)
        return to_pixels(network.build(tokenizer, tokenizer_params), tokens_bl, cfg.grid)

    params, tokenizer_params = network.abstract_params(cfg), network.abstract_params(tokenizer)
    arguments = (
        _on(mesh, params, shardings(params, mesh)),
        _on(mesh, tokenizer_params),
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=batch_sharding(mesh)), condition),
        _on(mesh, key),
    )
    branches = 1 if decode_cfg.guidance == 1.0 else 2
    codes = jax.ShapeDtypeStruct((batch, *cfg.grid), jnp.int32)
    to_image = jax.make_jaxpr(lambda p, c: network.build(tokenizer, p).decode(c))(tokenizer_params, codes)
    model_flops = product_flops(cfg, batch * branches * decode_cfg.steps) + count_flops(to_image).products
    return Program(sample, arguments, cfg, model_flops, batch)
