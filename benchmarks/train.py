"""Training speed: one step of the generator on codes, donated state, as `maskgil train` runs it.

python -m benchmarks.train [--presets B] [--batches 8] [--remat none,dots] [--attention xla,flash]
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp

from benchmarks.measure import measure, options, report
from maskgil_jax import networks as network
from maskgil_jax.conditioning import conditioner_of
from maskgil_jax.config import LLAMA_PRESETS
from maskgil_jax.planning.chips import CHIPS
from maskgil_jax.planning.program import product_flops
from maskgil_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from maskgil_jax.training.generator import Objective, jitted_step
from maskgil_jax.training.optimizer import make_optimizer
from maskgil_jax.training.state import init_state, sharded_init

# bfloat16 products a second without sparsity, as published; what MFU is a share of. Others show TFLOP/s alone.
PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100-SXM4-80GB": 312e12}
PEAKS |= {"TPU v5 lite": CHIPS["v5e"].flops, "TPU v5": CHIPS["v5p"].flops, "TPU v6 lite": CHIPS["v6e"].flops}


def speed(cfg, batch: int, seconds: float) -> dict:
    """The products that a step's mathematics needs, a second: on every device, and as a share of its peak."""
    rate = 3.0 * product_flops(cfg, batch) / seconds / jax.device_count()
    peak = PEAKS.get(jax.devices()[0].device_kind)
    return {"tflop_per_s": round(rate / 1e12, 1), "mfu": f"{rate / peak:.1%}" if peak else ""}


def main() -> None:
    """The paper's objective and optimizer on random codes; one row for every combination of the options."""
    parser = options(__doc__)
    parser.set_defaults(batches="8")
    parser.add_argument("--remat", default="none", help="policies of recomputation, comma-separated (default: none)")
    parser.add_argument("--attention", default="xla", help="forms of attention, comma-separated (default: xla)")
    args = parser.parse_args()
    paper = dict(learning_rate=1e-4, beta1=0.9, beta2=0.96, weight_decay=1e-5, decay_on="matrices", clip_norm=1.0)
    optimizer = type("Options", (), dict(paper, warmup_steps=0, decay="constant", ema_decay=0.0))
    mesh, rows = make_mesh(), []
    key = jax.device_put(jax.random.key(0), replicated(mesh))
    tx = make_optimizer(optimizer, 1)
    lists = (args.presets, args.batches, args.remat, args.attention)
    for preset, batch, remat, attention in itertools.product(*(names.split(",") for names in lists)):
        cfg = dataclasses.replace(LLAMA_PRESETS[preset], dtype=args.dtype, remat=remat, attention=attention)
        init = init_state(lambda k, c=cfg: network.params_of(network.create(c, k)), tx, ema=False)
        state, layout = sharded_init(init, key, mesh)
        step = jitted_step(cfg, Objective(), tx, lambda _: 1e-4, 0.0, layout, conditioner=conditioner_of(cfg, {}))
        codes = jax.random.randint(key, (int(batch), *cfg.grid), 0, cfg.codebook_size)
        data = jax.device_put({"codes": codes, "label": jnp.zeros(int(batch), jnp.int32)}, batch_sharding(mesh))

        def again(args, result):
            return (result[0], *args[1:])

        case = {"preset": preset, "batch": int(batch), "remat": remat, "attention": attention}
        try:
            figures = measure(step, state, data, key, None, images=int(batch), repeats=args.repeats, fresh=again)
        except jax.errors.JaxRuntimeError as error:  # out of memory, above all: the other rows are still worth having
            print(f"{case}: {str(error).splitlines()[0]}", flush=True)
            continue
        rows.append(case | figures | speed(cfg, int(batch), figures["seconds"]))
    report(rows, args.json)


if __name__ == "__main__":
    main()
