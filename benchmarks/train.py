"""Training speed: one step of the generator on codes, donated state, as `maskgil train` runs it.

python -m benchmarks.train [--presets B] [--batches 8]
"""

import dataclasses

import jax
import jax.numpy as jnp

from benchmarks.measure import measure, options, report
from maskgil_jax import params as network
from maskgil_jax.config import LLAMA_PRESETS
from maskgil_jax.sharding import batch_sharding, make_mesh, replicated
from maskgil_jax.training.generator import Objective, jitted_step
from maskgil_jax.training.optim import make_optimizer
from maskgil_jax.training.state import init_state, sharded_init


def main() -> None:
    """The paper's objective and optimizer on random codes."""
    parser = options(__doc__)
    parser.set_defaults(batches="8")
    args = parser.parse_args()
    paper = dict(learning_rate=1e-4, beta1=0.9, beta2=0.96, weight_decay=1e-5, decay_on="matrices", clip_norm=1.0)
    optimizer = type("Options", (), dict(paper, warmup_steps=0, decay="constant", ema_decay=0.0))
    mesh, rows = make_mesh(), []
    key = jax.device_put(jax.random.key(0), replicated(mesh))
    for preset in args.presets.split(","):
        cfg = dataclasses.replace(LLAMA_PRESETS[preset], dtype=args.dtype)
        tx = make_optimizer(optimizer, 1)
        for batch in map(int, args.batches.split(",")):
            state, layout = sharded_init(
                init_state(lambda k, c=cfg: network.params_of(network.create(c, k)), tx, ema=False), key, mesh
            )
            step = jitted_step(cfg, Objective(), tx, lambda _: 1e-4, 0.0, layout)
            data = {"codes": jnp.zeros((batch, *cfg.grid), jnp.int32), "label": jnp.zeros(batch, jnp.int32)}
            data = jax.device_put(data, batch_sharding(mesh))
            figures = measure(
                step,
                state,
                data,
                key,
                None,
                images=batch,
                repeats=args.repeats,
                fresh=lambda args, result: (result[0], *args[1:]),
            )
            rows.append({"part": "train step", "preset": preset, "batch": batch, **figures})
    report(rows, args.json)


if __name__ == "__main__":
    main()
