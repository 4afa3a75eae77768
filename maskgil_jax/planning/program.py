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
from maskgil_jax.tokenizers.images import to_pixels, to_unit
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
    """FLOPs of `calls` images through the network once: two per weight and token,
    and the scores and sums of attention."""
    flat = network.flatten(network.abstract_params(cfg))
    weights = sum(int(np.prod(leaf.shape)) for name, leaf in flat.items() if name.endswith("kernel"))
    tokens, patch, text = cfg.grid[0] * cfg.grid[1], getattr(cfg, "patch", 1) ** 2, cfg.condition == "text"
    places = tokens // patch + cfg.prefix_tokens - cfg.causal  # a causal network does not read the last token
    head = flat["head/kernel"].size if patch > 1 or text else 0  # it runs on tokens, all else on positions
    captions = sum(leaf.size for name, leaf in flat.items() if name.startswith("caption_") and name.endswith("kernel"))
    layers = places * (2.0 * (weights - head - captions) + 4.0 * cfg.depth * cfg.width * places)
    return calls * (layers + 2.0 * head * tokens + 2.0 * captions * cfg.prefix_tokens)


def _on(mesh: Mesh, tree, layout=None):
    """Shapes with the sharding they will have: `layout`, or the same on every device."""
    layout = jax.tree.map(lambda _: replicated(mesh), tree) if layout is None else layout
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, layout)


def network_options(config, *, codebook_size: int, conditioner: Conditioner, downsample: int) -> GeneratorConfig:
    """Options of the run file's network."""
    grid = (config.data.image_size // downsample,) * 2
    return model_options(config.model.to_dict(), codebook_size=codebook_size, grid=grid, **conditioner.network_options())


def train_program(
    config, cfg: GeneratorConfig, conditioner: Conditioner, mesh: Mesh, tokenizer: VQConfig | None = None
) -> Program:
    """The step that `maskgil train` runs for `config.batch_size` images: of stored codes,
    or tokenised in it by `tokenizer`.

    With `config.data.buckets`, the codes are those of images of several sizes on one canvas. A text encoder of the
    conditioner computes in the step.
    """
    objective = from_dict(Objective, config.objective.to_dict(), "config.objective")
    check_batch(config, mesh, objective.accumulate)
    tx = make_optimizer(config.optimizer, config.total_steps, text=cfg.condition == "text")
    tx = skip_bad_updates(tx, skip_config(config))
    schedule = learning_rate(config.optimizer, config.total_steps)
    init = init_state(lambda key: network.params_of(network.create(cfg, key)), tx, ema=config.optimizer.ema_decay > 0)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(init, key)
    layout = shardings(state, mesh)
    rows = {**_images(config, cfg, tokenizer), **_texts_or_labels(config, cfg, conditioner)}
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=batch_sharding(mesh)), rows)
    network_of_images = None
    flops = 3.0 * product_flops(cfg, config.batch_size)
    if tokenizer is not None:
        network_of_images = _on(mesh, network.build(tokenizer, network.abstract_params(tokenizer)))
        flops += count_flops(jax.make_jaxpr(lambda n, x: n.encode(to_unit(x)))(network_of_images, rows["image"])).products
    if conditioner.frozen is not None:
        texts = {name: rows[name] for name in conditioner.batch_keys}
        flops += count_flops(jax.make_jaxpr(conditioner.from_batch)(texts, conditioner.frozen)).products
    step = jitted_step(cfg, objective, tx, schedule, config.optimizer.ema_decay, layout, conditioner=conditioner)
    arguments = (_on(mesh, state, layout), batch, _on(mesh, key), network_of_images, conditioner.frozen)
    return Program(step, arguments, cfg, flops, config.batch_size)


def _images(config, cfg: GeneratorConfig, tokenizer: VQConfig | None) -> dict[str, jax.ShapeDtypeStruct]:
    """The images of a training batch: codes, with their sizes if they differ, or pixels."""
    b = config.batch_size
    if tokenizer is not None:
        sides = (side * tokenizer.downsample for side in cfg.grid)
        return {"image": jax.ShapeDtypeStruct((b, *sides, 3), jnp.uint8)}
    sizes = {name: jax.ShapeDtypeStruct((b,), jnp.int32) for name in ("rows", "columns") if config.data.get("buckets")}
    return {"codes": jax.ShapeDtypeStruct((b, *cfg.grid), jnp.int32), **sizes}


def _texts_or_labels(config, cfg: GeneratorConfig, conditioner: Conditioner) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a training batch of which the conditioner makes the condition."""
    if conditioner.frozen is not None:
        shape = (config.batch_size, cfg.prefix_tokens)
        return {"text_ids": jax.ShapeDtypeStruct(shape, jnp.int32), "text_mask": jax.ShapeDtypeStruct(shape, jnp.bool_)}
    condition = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, conditioner.examples(config.batch_size)))
    return dict(zip(conditioner.batch_keys, jax.tree.leaves(condition), strict=True))


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
