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
from maskgil_jax.config import ConfigError, GeneratorConfig
from maskgil_jax.decoding.hybrid import causal_tokens
from maskgil_jax.models.condition import TextCondition, TokenCondition
from maskgil_jax.planning.chips import Chip
from maskgil_jax.planning.program import Program
from maskgil_jax.planning.report import GIB, Plan
from maskgil_jax.runtime.mesh import batch_sharding, replicated, shardings

RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
STEPS = 64  # of the causal network in one planned loop
PROMPT = 96  # tokens of a prompt with its template
# The paper's Fig. 8: less time than the causal network alone, with a quarter of the tokens from it.
PAPER_QUARTER = 0.724


def causal_program(cfg: GeneratorConfig, mesh: Mesh, batch: int, grid: tuple[int, int], *, guided: bool, steps: int) -> Program:
    """Writing `steps` codes in a loop for `batch` images, guided ones as two rows; 0: the prompt and the frame alone.

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
    if not steps:
        prefill = jax.jit(lambda p, tokens, c: network.build(cfg, p).prefill(tokens, c, grid=grid))
        length = jax.tree.leaves(condition)[0].shape[1]
        return Program(prefill, (params, on((rows, 0), jnp.int32), condition), cfg, flops * length, batch)

    @functools.partial(jax.jit, donate_argnums=2)
    def write(p, token_b, cache):
        def step(i, carry):
            logits_bv, cache = network.build(cfg, p).step(carry[0], carry[1], i, grid=grid)
            return jnp.argmax(logits_bv, axis=-1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, steps, step, (token_b, cache))

    shapes = jax.eval_shape(
        lambda p, tokens, c: network.build(cfg, p).prefill(tokens, c, grid=grid)[1],
        params,
        jax.ShapeDtypeStruct((rows, 0), jnp.int32),
        condition,
    )
    cache = jax.tree.map(lambda a: _cache_leaf(a, mesh), shapes)
    return Program(write, (params, on((rows,), jnp.int32), cache), cfg, flops * steps, batch)


def _condition(cfg: Any, rows: int, on) -> Any:
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
    """Plans of `STEPS` steps of the causal network, of its prompt, and of masked decoding from conditions to pixels."""

    steps: Plan
    prompt: Plan
    masked: Plan
    grid: tuple[int, int]
    whole_rows: bool

    def parts(self, chip: Chip) -> dict[str, tuple[float, float, float]]:
        """{kind of estimate: seconds of a causal step, of the prompt, and of masked decoding}.

        "at least": a step reads weights and cache once at the published bandwidth. "cycles": the compiler's count.
        """
        prompt, masked = (plan.estimates(chip) for plan in (self.prompt, self.masked))
        bound = (self.steps.arguments or 0) / chip.bandwidth
        found = {"at least": (bound, prompt["roofline"]["seconds"], masked["roofline"]["seconds"])}
        counted = self.steps.cycle_seconds(chip)
        if counted is not None and "cycles" in prompt and "cycles" in masked:
            found["cycles"] = (counted / STEPS, prompt["cycles"]["seconds"], masked["cycles"]["seconds"])
        return found

    def seconds(self, chip: Chip) -> dict[str, dict[float, float]]:
        """{kind of estimate: {share of the causal network: seconds for the batch}}."""
        result: dict[str, dict[float, float]] = {}
        for kind, (step, prompt, masked) in self.parts(chip).items():
            result[kind] = {}
            for ratio in RATIOS:
                written = causal_tokens(ratio, self.grid, self.whole_rows)
                calls = min(written, math.prod(self.grid) - 1)  # nothing follows the last code
                result[kind][ratio] = (prompt + step * calls if written else 0.0) + (masked if ratio < 1 else 0.0)
        return result

    def peak(self) -> int:
        """Bytes a device needs: what both networks keep, and the largest temporaries."""
        kept = (self.steps.arguments or 0) + (self.masked.arguments or 0)
        return kept + max(plan.temporaries or 0 for plan in (self.steps, self.prompt, self.masked))


def as_table(plan: HybridPlan, chip: Chip, heading: list[tuple[str, str]]) -> str:
    """The times as text, a line a share."""
    lines = [f"{name:<16}  {value}" for name, value in heading]
    fits = "fits" if plan.peak() <= chip.memory else "DOES NOT FIT"
    lines.append(f"{'memory a device':<16}  {plan.peak() / GIB:.2f} GiB of {chip.memory / GIB:.0f}: {fits}")
    seconds = plan.seconds(chip)
    for kind, (step, prompt, masked) in plan.parts(chip).items():
        each = f"{step * 1e3:.2f} ms a causal step, {prompt * 1e3:.0f} ms the prompt, {masked * 1e3:.0f} ms masked decoding"
        lines += ["", f"{kind}: {each} with pixels"]
        for ratio, value in seconds[kind].items():
            saved = f"{value / seconds[kind][1.0] - 1:+.1%}" if ratio < 1 else ""
            paper = f"   (paper: {-PAPER_QUARTER:+.1%})" if ratio == 0.25 else ""
            lines.append(f"  {ratio:>4.0%} causal  {value:>8.2f} s  {saved:>7}{paper}")
    return "\n".join(lines)
