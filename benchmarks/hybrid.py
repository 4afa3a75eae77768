"""Hybrid sampling: what each share of AR tokens costs, and how much faster it is than the largest share,
all in one run.

python -m benchmarks.hybrid [--presets B] [--ar-preset L] [--batches 1,8] [--ratios 0,0.25,0.5,0.75,1]
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from benchmarks.measure import measure, options, report
from maskgil_jax.config import LLAMA_PRESETS, VQ_PRESETS, CausalConfig, DecodeConfig
from maskgil_jax.decoding.hybrid import decode_hybrid, network_calls
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.networks import create


def main() -> None:
    """Random weights of the published sizes, token to pixel: the work does not depend on their values."""
    parser = options(__doc__)
    parser.add_argument("--ar-preset", default="L", help="size of the causal network (default: L, the paper's)")
    parser.add_argument("--ratios", default="0,0.25,0.5,0.75,1", help="shares of AR tokens, comma-separated")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tokenizer", default="VQ-16", help="tokenizer preset (default: VQ-16)")
    args = parser.parse_args()
    vq = dataclasses.replace(VQ_PRESETS[args.tokenizer], dtype=args.dtype)
    size = dict(codebook_size=vq.codebook_size, grid=vq.grid, dtype=args.dtype)
    tokenizer = create(vq, jax.random.key(0))
    ar = create(dataclasses.replace(LLAMA_PRESETS[args.ar_preset], causal=True, **size), jax.random.key(1))
    ar_cfg, cfg, rows = CausalConfig(), DecodeConfig(steps=args.steps), []

    def sample(networks, condition, key, ratio):
        ar, generator, tokenizer = networks
        tokens_bl = decode_hybrid(ar, generator, condition, key, ar_cfg, cfg, ratio)
        return tokenizer.decode(tokens_bl.reshape(-1, *vq.grid))

    for preset in args.presets.split(","):
        generator = create(dataclasses.replace(LLAMA_PRESETS[preset], **size), jax.random.key(2))
        networks = (ar, generator, tokenizer)
        for batch in map(int, args.batches.split(",")):
            condition, alone = ClassCondition(jnp.arange(batch, dtype=jnp.int32)), None
            for ratio in sorted(map(float, args.ratios.split(",")), reverse=True):
                run = jax.jit(functools.partial(sample, ratio=ratio))
                figures = measure(run, networks, condition, jax.random.key(3), images=batch, repeats=args.repeats)
                alone = alone or figures["seconds"]
                calls = network_calls(ratio, vq.grid, args.steps)
                row = {"AR": args.ar_preset, "masked": preset, "batch": batch, "AR tokens": f"{ratio:.0%}", "calls": calls}
                rows.append(row | {"speed-up": round(alone / max(figures["seconds"], 1e-9), 2)} | figures)
    report(rows, args.json)


if __name__ == "__main__":
    main()
