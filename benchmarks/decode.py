"""Sampling speed: 8 steps with guidance, network and VQ decoding apart.

python -m benchmarks.decode [--presets B,L] [--batches 1,8]
"""

import dataclasses

import jax
import jax.numpy as jnp

from benchmarks.measure import measure, options, report
from maskgil_jax.config import LLAMA_PRESETS, VQ_PRESETS, DecodeConfig
from maskgil_jax.decoding.masked import decode
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.params import create


def main() -> None:
    """Random weights of the published sizes; the work does not depend on their values."""
    args = options(__doc__).parse_args()
    tokenizer = create(dataclasses.replace(VQ_PRESETS["VQ-16"], dtype=args.dtype), jax.random.key(0))
    pixels = jax.jit(lambda network, codes_bhw: network.decode(codes_bhw))
    rows = []
    for preset in args.presets.split(","):
        cfg = dataclasses.replace(LLAMA_PRESETS[preset], dtype=args.dtype)
        generator = create(cfg, jax.random.key(1))
        for batch in map(int, args.batches.split(",")):
            label = ClassCondition(jnp.arange(batch) % cfg.num_classes)
            for guidance in (1.0, 2.0):
                options_ = DecodeConfig(steps=8, guidance=guidance)
                sample = jax.jit(lambda g, c, k, o=options_: decode(g, c, k, o))
                figures = measure(sample, generator, label, jax.random.key(2), images=batch, repeats=args.repeats)
                rows.append({"part": "8-step decode", "preset": preset, "batch": batch, "guidance": guidance, **figures})
    for batch in map(int, args.batches.split(",")):
        codes = jnp.zeros((batch, 16, 16), jnp.int32)
        figures = measure(pixels, tokenizer, codes, images=batch, repeats=args.repeats)
        rows.append({"part": "VQ-16 decode", "preset": "-", "batch": batch, "guidance": "-", **figures})
    report(rows, args.json)


if __name__ == "__main__":
    main()
