"""Sampling speed, token to pixel: what each part takes, and the network's work beside the least that the steps need.

python -m benchmarks.decode [--presets B,L] [--batches 1,8,32] [--guidance 1,2] [--torch] [--json FILE]

With --torch the same sampler in PyTorch runs beside it, in turns (benchmarks/torch_decode.py; pip install
maskgil_jax[bench]).
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import digits, in_turns, measure, options, report, table
from maskgil_jax.config import LLAMA_PRESETS, VQ_PRESETS, DecodeConfig
from maskgil_jax.decoding.guidance import guidance_scales
from maskgil_jax.decoding.masked import decode
from maskgil_jax.decoding.schedules import reveal_counts
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.models.layers import normal_init
from maskgil_jax.networks import create
from maskgil_jax.planning.flops import count_flops


def networks(preset: str, tokenizer: str, dtype: str):
    """A generator and a tokenizer with random weights from their initialisers.

    Its head, which starts at zero, is drawn too.
    """
    vq = dataclasses.replace(VQ_PRESETS[tokenizer], dtype=dtype)
    cfg = dataclasses.replace(LLAMA_PRESETS[preset], codebook_size=vq.codebook_size, grid=vq.grid, dtype=dtype)
    generator = create(cfg, jax.random.key(1))
    generator.head.kernel[...] = normal_init(jax.random.key(2), generator.head.kernel.shape)
    return generator, create(vq, jax.random.key(0))


def to_images(cfg: DecodeConfig):
    """The program measured: labels and a key in, float images out."""

    def sample(generator, tokenizer, condition, key):
        tokens_bl = decode(generator, condition, key, cfg)
        return tokenizer.decode(tokens_bl.reshape(-1, *generator.cfg.grid))

    return jax.jit(sample)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Answered:
    """A network that costs nothing: its logits are given. What `decode` takes with it is the sampler's own time."""

    logits_blv: jax.Array
    cfg: object = dataclasses.field(metadata={"static": True})

    def null_condition(self, condition):
        return condition

    def __call__(self, tokens_bl, condition, *, grid):
        return self.logits(self.hidden(tokens_bl, condition, grid=grid))

    def hidden(self, tokens_bl, condition, *, grid):
        return tokens_bl[..., None]

    def logits(self, hidden_bm1, at_bm=None):
        b, m = hidden_bm1.shape[:2]
        # Different in every step, or the compiler would draw conclusions once for all of them.
        return self.logits_blv[:b, :m] * (1 + 1e-6 * hidden_bm1)


def network_flops(generator, condition, cfg: DecodeConfig) -> tuple[float, float]:
    """FLOPs of the matrix products of all steps: as traced, and the least needed.

    The least: every step runs the layers on all tokens and the head on those still masked, and a second branch only
    where the guidance scale is not 1.
    """
    batch, (rows, columns) = len(condition.label_b), generator.cfg.grid
    key, tokens_bl = jax.random.key(0), jnp.zeros((batch, rows * columns), jnp.int32)
    used = count_flops(jax.make_jaxpr(lambda g: decode(g, condition, key, cfg))(generator)).products
    layers = count_flops(jax.make_jaxpr(lambda g: g.hidden(tokens_bl, condition))(generator)).products
    counts = reveal_counts(cfg.plan, cfg.schedule, cfg.steps, rows * columns)
    left, branches = rows * columns - np.cumsum(counts) + counts, np.where(guidance_scales(cfg) != 1.0, 2, 1)
    head = 2.0 * batch * generator.cfg.width * generator.cfg.codebook_size
    return used, float((branches * (layers + head * left)).sum())


def measured(generator, tokenizer, condition, cfg: DecodeConfig, repeats: int) -> dict:
    """One row of the table: token to pixel, and its parts; the network is what the others leave."""
    batch, grid, key = len(condition.label_b), generator.cfg.grid, jax.random.key(3)
    figures = measure(to_images(cfg), generator, tokenizer, condition, key, images=batch, repeats=repeats)
    logits_blv = jax.random.normal(jax.random.key(4), (2 * batch, grid[0] * grid[1], generator.cfg.codebook_size))
    sampler = jax.jit(lambda network, condition, key: decode(network, condition, key, cfg))
    stub = Answered(logits_blv, generator.cfg)
    sampling = measure(sampler, stub, condition, key, images=batch, repeats=repeats)["seconds"]
    pixels = jax.jit(lambda network, codes_bhw: network.decode(codes_bhw))
    codes_bhw = jnp.zeros((batch, *grid), jnp.int32)
    drawing = measure(pixels, tokenizer, codes_bhw, images=batch, repeats=repeats)["seconds"]
    used, least = network_flops(generator, condition, cfg)
    parts = {"network_s": figures["seconds"] - sampling - drawing, "sampling_s": sampling, "vq_s": drawing}
    parts = {name: digits(seconds) for name, seconds in parts.items()}
    return figures | parts | {"network_gflop": round(used / 1e9), "least_gflop": round(least / 1e9)}


def beside_torch(generator, tokenizer, condition, cfg: DecodeConfig, repeats: int) -> list[dict]:
    """The same sampler as this package has it, as eager and as compiled PyTorch, run in turns: one row each."""
    try:
        from benchmarks import torch_decode
    except ImportError as error:
        raise SystemExit(f"--torch: needs PyTorch, run: pip install maskgil_jax[bench] ({error})") from None
    key, forms = jax.random.key(3), {}
    sample = to_images(cfg).lower(generator, tokenizer, condition, key).compile()
    forms["maskgil_jax"] = lambda: jax.block_until_ready(sample(generator, tokenizer, condition, key))
    forms |= torch_decode.forms(generator, tokenizer, np.asarray(condition.label_b), cfg)
    rows = in_turns(forms, images=len(condition.label_b), repeats=repeats)
    ours = rows[0]
    ratios = ("seconds", "cpu_s")
    return [row | {f"{name}, times ours": round(row[name] / max(ours[name], 1e-9), 2) for name in ratios} for row in rows]


def main() -> None:
    """Random weights of the published sizes; the work does not depend on their values."""
    parser = options(__doc__)
    parser.add_argument("--guidance", default="1,2", help="scales, comma-separated; 1 is without (default: 1,2)")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--loop", default="auto", choices=("auto", "fori", "unrolled"), help="form of the loop (default: auto)")
    parser.add_argument("--batch-mode", default="auto", choices=("auto", "vmap", "map"), help="of a batch (default: auto)")
    parser.add_argument("--tokenizer", default="VQ-16", help="tokenizer preset (default: VQ-16)")
    parser.add_argument("--torch", action="store_true", help="measure PyTorch's form of the sampler beside it")
    parser.add_argument("--no-parts", action="store_true", help="only the comparison of --torch")
    args = parser.parse_args()
    rows, beside = [], []
    for preset in args.presets.split(","):
        generator, tokenizer = networks(preset, args.tokenizer, args.dtype)
        for batch in map(int, args.batches.split(",")):
            condition = ClassCondition(jnp.arange(batch, dtype=jnp.int32) % generator.cfg.num_classes)
            for guidance in map(float, args.guidance.split(",")):
                cfg = DecodeConfig(steps=args.steps, guidance=guidance, loop=args.loop, batch_mode=args.batch_mode)
                case = {"preset": preset, "batch": batch, "guidance": guidance}
                if not args.no_parts:
                    rows.append(case | measured(generator, tokenizer, condition, cfg, args.repeats))
                if args.torch:
                    compared = beside_torch(generator, tokenizer, condition, cfg, args.repeats)
                    beside += [case | row for row in compared]
                    print(table(compared), flush=True)
    report(rows, args.json, **({"beside": beside} if beside else {}))
    if beside:
        print(f"\nSide by side, in turns, {len(os.sched_getaffinity(0))} threads each:\n\n{table(beside)}")


if __name__ == "__main__":
    main()
