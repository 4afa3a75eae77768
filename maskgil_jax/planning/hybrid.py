"""Plans hybrid decoding: the programs of both networks, measured apart, and the time of every share between them."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maskgil_jax import networks as network
from maskgil_jax.config import ConfigError, GeneratorConfig, require
from maskgil_jax.decoding.hybrid import causal_tokens
from maskgil_jax.models.condition import TextCondition, TokenCondition
from maskgil_jax.planning.chips import Chip
from maskgil_jax.planning.program import Program
from maskgil_jax.planning.report import GIB, Plan
from maskgil_jax.runtime.mesh import batch_sharding, replicated, shardings

RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
PROMPT = 96  # tokens of a prompt with its template
# The paper's Fig. 8: less time than the causal network alone, with a quarter of the tokens from it.
PAPER_QUARTER = 0.724


def step_program(cfg: GeneratorConfig, mesh: Mesh, batch: int, grid: tuple[int, int], *, guided: bool, codes: int) -> Program:
    """Writing `codes` codes at once for `batch` images, guided ones as two rows: 1 is a step of the loop, more the prefill.

    Weights are in the network's compute type, as `checkpoints.placed` loads them, and the cache is updated in place.
    """
    rows = batch * (2 if guided else 1)
    params = network.abstract_params(cfg)
    layout = shardings(params, mesh)
    narrow = {"kernel", "embedding"}
    flat = network.flatten(params)
    stored = {
        n: a.dtype if a.dtype == jnp.int8 or n.split("/")[-1] not in narrow else jnp.dtype(cfg.dtype) for n, a in flat.items()
    }
    params = network.unflatten({name: jax.ShapeDtypeStruct(leaf.shape, stored[name]) for name, leaf in flat.items()})
    params = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), params, layout)
    split = batch_sharding(mesh) if rows % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else replicated(mesh)

    def on(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

    condition: Any = _condition(cfg, rows, on)
    flops = 2.0 * rows * sum(math.prod(leaf.shape) for name, leaf in flat.items() if name.endswith("kernel"))
    if codes > 1:
        prefill = jax.jit(lambda p, tokens, c: network.build(cfg, p).prefill(tokens, c, grid=grid))
        length = jax.tree.leaves(condition)[0].shape[1]
        return Program(prefill, (params, on((rows, 0), jnp.int32), condition), cfg, flops * length, batch)

    @functools.partial(jax.jit, donate_argnums=2)
    def step(p, token_b, cache, index):
        return network.build(cfg, p).step(token_b, cache, index, grid=grid)

    shapes = jax.eval_shape(
        lambda p, tokens, c: network.build(cfg, p).prefill(tokens, c, grid=grid)[1],
        params,
        jax.ShapeDtypeStruct((rows, 0), jnp.int32),
        condition,
    )
    cache = jax.tree.map(lambda a: _cache_leaf(a, mesh), shapes)
    index = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    return Program(step, (params, on((rows,), jnp.int32), cache, index), cfg, flops, batch)


def _condition(cfg: GeneratorConfig, rows: int, on) -> Any:
    if cfg.condition == "tokens":
        length = min(PROMPT, cfg.text_tokens)
        return TokenCondition(on((rows, length), jnp.int32), on((rows, length), jnp.bool_))
    if cfg.condition == "text":
        return TextCondition(on((rows, cfg.text_tokens, cfg.text_dim), jnp.float32), on((rows, cfg.text_tokens), jnp.bool_))
    raise ConfigError(f"--ar: a network that is conditioned on text is planned, got one on a {cfg.condition}")


def _cache_leaf(leaf: jax.ShapeDtypeStruct, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """A part of the cache as decoding keeps it: keys and values split over their heads."""
    heads = leaf.ndim == 5 and leaf.shape[3] % mesh.shape["tensor"] == 0
    rows = leaf.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0
    spec = jax.sharding.PartitionSpec(("data", "fsdp") if rows else None, *([None, None, "tensor"] if heads else []))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.sharding.NamedSharding(mesh, spec))


@dataclasses.dataclass(frozen=True)
class HybridPlan:
    """Plans of a step of the causal network, of its prompt, and of masked decoding from labels to pixels.

    masked_steps: steps of masked decoding in that plan; each share below 1 takes as many.
    """

    step: Plan
    prompt: Plan
    masked: Plan
    grid: tuple[int, int]
    whole_rows: bool

    def seconds(self, chip: Chip, kind: str) -> dict[float, float]:
        """{share of the causal network: seconds for the batch}, by "roofline" or "cycles" (`Plan.estimates`)."""
        step, prompt, masked = (plan.estimates(chip)[kind]["seconds"] for plan in (self.step, self.prompt, self.masked))
        result = {}
        for ratio in RATIOS:
            written = causal_tokens(ratio, self.grid, self.whole_rows)
            calls = min(written, math.prod(self.grid) - 1)  # nothing follows the last code
            result[ratio] = (prompt + step * calls if written else 0.0) + (masked if ratio < 1 else 0.0)
        return result

    def peak(self) -> int:
        """Bytes a device needs: what both networks keep, and the largest temporaries."""
        plans = (self.step, self.prompt, self.masked)
        kept = (self.step.arguments or 0) + (self.masked.arguments or 0)
        return kept + max(plan.temporaries or 0 for plan in plans)


def as_table(plan: HybridPlan, chip: Chip, heading: list[tuple[str, str]]) -> str:
    """The times as text, a line a share."""
    lines = [f"{name:<16}  {value}" for name, value in heading]
    fits = "fits" if plan.peak() <= chip.memory else "DOES NOT FIT"
    lines.append(f"{'memory a device':<16}  {plan.peak() / GIB:.2f} GiB of {chip.memory / GIB:.0f}: {fits}")
    kinds = [kind for kind in ("roofline", "cycles") if all(kind in p.estimates(chip) for p in (plan.step, plan.masked))]
    for kind in kinds:
        step, masked = (p.estimates(chip)[kind]["seconds"] for p in (plan.step, plan.masked))
        seconds = plan.seconds(chip, kind)
        lines += ["", f"by {kind}: {step * 1e3:.2f} ms a causal step, {masked * 1e3:.0f} ms masked decoding with pixels"]
        for ratio, value in seconds.items():
            saved = f"{value / seconds[1.0] - 1:+.1%}" if ratio < 1 else ""
            paper = f"   (paper: {-PAPER_QUARTER:+.1%})" if ratio == 0.25 else ""
            lines.append(f"  {ratio:>4.0%} causal  {value:>8.2f} s  {saved:>7}{paper}")
    require(bool(kinds), "--ar: no estimate for this topology")
    return "\n".join(lines)
