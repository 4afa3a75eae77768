"""The interface of a generator: what decoders, trainers and pipelines call, and what the four networks share."""

from __future__ import annotations

import functools
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from maskgil_jax.config import ConfigError, GeneratorConfig
from maskgil_jax.models.condition import (
    ClassCondition,
    GuidedCondition,
    PooledTextCondition,
    SizedCondition,
    TextCondition,
    TokenCondition,
    check_sizes,
)
from maskgil_jax.models.layers import layers_unrolled


@runtime_checkable
class Generator(Protocol):
    """Tokens and a condition -> logits. A pytree: it can be an argument of a jitted function.

    `cfg` is a `GeneratorConfig`. tokens_bl: int32 (b, rows * columns) in raster order, `cfg.mask_id` where masked.
    grid: (rows, columns); default `cfg.grid`. A causal generator also has `prefill` and `step` (`models.llama.Llama`).
    """

    cfg: Any

    def __call__(self, tokens_bl, condition, *, grid=None) -> jax.Array:
        """Logits (b, l, codebook_size)."""

    def hidden(self, tokens_bl, condition, *, grid=None) -> jax.Array:
        """What `logits` takes, (b, l, d)."""

    def logits(self, hidden_bmd, at_bm=None) -> jax.Array:
        """Logits (b, m, at least codebook_size) of states at the positions `at_bm`; default: of all positions."""

    def null_condition(self, condition) -> Any:
        """The condition that stands for none, for as many images. Raises a `ConfigError` if the network has none."""


def as_generator(network: Any) -> Any:
    """`network` if it is a `Generator`, else a `LogitsGenerator` around it."""
    return network if isinstance(network, Generator) else LogitsGenerator(network)


@flax.struct.dataclass
class LogitsGenerator:
    """Gives a network that has only `cfg`, `__call__` and `null_condition` the whole interface:
    its states are its logits."""

    network: Any

    @property
    def cfg(self) -> Any:
        return self.network.cfg

    def __call__(self, tokens_bl, condition, *, grid=None) -> jax.Array:
        return self.network(tokens_bl, condition, grid=grid)

    hidden = __call__

    def logits(self, hidden_bmd, at_bm=None) -> jax.Array:
        return hidden_bmd

    def null_condition(self, condition) -> Any:
        return self.network.null_condition(condition)


@flax.struct.dataclass
class GuidedGenerator:
    """A generator that takes a `GuidedCondition`: its null condition is the negative one."""

    generator: Any

    @property
    def cfg(self) -> Any:
        return self.generator.cfg

    def __call__(self, tokens_bl, condition: GuidedCondition, *, grid=None) -> jax.Array:
        return self.generator(tokens_bl, condition.condition, grid=grid)

    def hidden(self, tokens_bl, condition: GuidedCondition, *, grid=None) -> jax.Array:
        return self.generator.hidden(tokens_bl, condition.condition, grid=grid)

    def logits(self, hidden_bmd, at_bm=None) -> jax.Array:
        return self.generator.logits(hidden_bmd, at_bm)

    def null_condition(self, condition: GuidedCondition) -> GuidedCondition:
        return GuidedCondition(condition.negative, condition.negative)

    def prefill(self, tokens_bn, condition: GuidedCondition, *, grid=None):
        return self.generator.prefill(tokens_bn, condition.condition, grid=grid)

    def step(self, token_b, cache, index, *, grid=None):
        return self.generator.step(token_b, cache, index, grid=grid)


def for_condition(generator: Any, condition: Any) -> Any:
    """`generator`, wrapped if the condition is a `GuidedCondition`, so that it takes it."""
    return GuidedGenerator(as_generator(generator)) if isinstance(condition, GuidedCondition) else generator


class TransformerGenerator(nnx.Module):
    """What the networks share.

    A subclass has `cfg`, `layers`, `hidden`, `logits`, and takes `stacked` when it is made.
    """

    cfg: Any
    layers: Any

    def hidden(self, tokens_bl, condition, *, grid=None, key_b=None) -> jax.Array:
        """Final normalised states (b, l, d) at the image tokens.

        `key_b`: one dropout key per image; None outside training.
        """
        raise NotImplementedError

    def logits(self, hidden_bmd, at_bm=None) -> jax.Array:
        """float32 logits over the classes of the head: the codebook, and [MASK] too if trained with `mask_logit`."""
        raise NotImplementedError

    def __call__(self, tokens_bl: jax.Array, condition, *, grid=None, key_b: jax.Array | None = None) -> jax.Array:
        """Logits (b, l, codebook_size), float32, for tokens (b, rows * columns) in raster order.

        [MASK] = codebook_size.
        """
        return self.logits(self.hidden(tokens_bl, condition, grid=grid, key_b=key_b))[..., : self.cfg.codebook_size]

    def training_states(self, tokens_bl, condition, *, grid=None, key_b=None) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`hidden`, and sums to be logged with the loss: by default none."""
        return self.hidden(tokens_bl, condition, grid=grid, key_b=key_b), {}

    def null_condition(self, condition) -> Any:
        """The same batch with the learned null class, for classifier-free guidance."""
        return ClassCondition(jnp.full_like(condition.label_b, self.cfg.num_classes))


def unstack_layers(network: Any) -> Any:
    """The network with a list of layers instead of stacked parameters, if its layers are unrolled; else itself.

    Unrolled layers are slices of the stack, copied at each call. Slicing once before a loop of calls saves those
    copies.
    """
    if isinstance(network, GuidedGenerator):
        return GuidedGenerator(unstack_layers(network.generator))
    if not isinstance(network, TransformerGenerator) or isinstance(network.layers, nnx.List):
        return network
    if not layers_unrolled(network.cfg.layers):
        return network
    params = nnx.to_pure_dict(nnx.state(network, nnx.Param))
    stack = params["layers"]
    params["layers"] = {i: jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(network.cfg.depth)}
    return nnx.merge(_list_structure(type(network), network.cfg), params)


# Kind of condition (`GeneratorConfig.condition`) -> its class.
CONDITIONS: dict[str, Any] = {
    "class": ClassCondition,
    "text": TextCondition,
    "pooled_text": PooledTextCondition,
    "tokens": TokenCondition,
}


@functools.cache
def _list_structure(kind: Any, cfg: GeneratorConfig) -> Any:
    """The graph definition of a network whose layers are a list."""
    return nnx.graphdef(nnx.eval_shape(lambda: kind(cfg, rngs=nnx.Rngs(0), stacked=False)))


def check_condition(cfg: Any, condition, batch: int) -> None:
    """Raises a `ConfigError` unless the condition is of the kind of the network and for `batch` images."""
    if not isinstance(condition, CONDITIONS[cfg.condition]):
        raise ConfigError(f"condition: this generator is {cfg.condition}-conditional, got {type(condition).__name__}")
    if isinstance(condition, ClassCondition):
        if condition.label_b.shape != (batch,):
            raise ConfigError(f"condition: {condition.label_b.shape} labels for a batch of {batch} images")
        return
    if isinstance(condition, TokenCondition):
        shape = condition.ids_bt.shape
        if condition.mask_bt.shape != shape or len(shape) != 2 or shape[0] != batch or not 1 <= shape[1] <= cfg.text_tokens:
            wanted = f"({batch}, 1 to {cfg.text_tokens})"
            raise ConfigError(f"condition: expected ids and a mask {wanted}, got {shape} and {condition.mask_bt.shape}")
        return
    expected = (batch, cfg.text_tokens, cfg.text_dim)
    if condition.features_btd.shape != expected or condition.mask_bt.shape != expected[:2]:
        found = f"{condition.features_btd.shape} and {condition.mask_bt.shape}"
        raise ConfigError(f"condition: expected features {expected} and a mask {expected[:2]}, got {found}")
    if isinstance(condition, PooledTextCondition):
        pooled, micro = (batch, cfg.pooled_dim), (batch, cfg.micro_values)
        if condition.pooled_bp.shape != pooled or condition.micro_bm.shape != micro:
            found = f"{condition.pooled_bp.shape} and {condition.micro_bm.shape}"
            raise ConfigError(f"condition: expected a pooled text {pooled} and numbers {micro}, got {found}")


def takes_sizes(cfg: Any) -> bool:
    """Whether the network takes a `SizedCondition`: a bidirectional Llama with 2-D positions that are not scaled."""
    expected = {"causal": False, "rope_scaling": "none", "positions": "2d", "class_position": "first"}
    return all(getattr(cfg, name, None) == value for name, value in expected.items())


def check_inputs(cfg: GeneratorConfig, tokens_bl: jax.Array, condition, grid: tuple[int, int]) -> None:
    """Raises a `ConfigError` unless tokens, condition and grid fit together.

    Tokens of a `SizedCondition` fill a padded canvas of rows * columns = grid tokens in all.
    """
    if isinstance(condition, SizedCondition):
        if not (cfg.causal is False and cfg.rope_scaling == "none"):
            raise ConfigError(
                "condition: sizes of single images need a bidirectional Llama with 2-D positions and rope_scaling none"
            )
        check_sizes(condition, tokens_bl.shape[1], getattr(cfg, "patch", 1))
        condition = condition.condition
    check_condition(cfg, condition, tokens_bl.shape[0])
    if tokens_bl.ndim != 2 or tokens_bl.shape[1] != grid[0] * grid[1]:
        raise ConfigError(f"tokens: expected (batch, {grid[0]} * {grid[1]}) for grid {grid}, got shape {tokens_bl.shape}")
