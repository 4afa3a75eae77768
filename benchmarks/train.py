"""Training speed: one step of the generator on codes, donated state, as `maskgil train` runs it.

python -m benchmarks.train [--presets B] [--batches 8] [--remat none,dots] [--attention xla,flash]
python -m benchmarks.train --torch [--configs configs/demo_tokenizer.py,configs/demo.py] [--repeats 5]

With --torch the steps of run files (tokenizers and generators of 98 classes) are measured instead, and PyTorch's form
of the same step beside them, in turns (benchmarks/torch_train.py; pip install maskgil_jax[bench]).
"""

import dataclasses
import itertools
import runpy

import jax
import jax.numpy as jnp

from benchmarks.measure import in_turns, measure, options, report
from maskgil_jax import networks as network
from maskgil_jax.conditioning import conditioner_of
from maskgil_jax.config import LLAMA_PRESETS, VQ_PRESETS, from_dict
from maskgil_jax.planning.chips import CHIPS
from maskgil_jax.planning.program import product_flops
from maskgil_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from maskgil_jax.training import tokenizer as tokenizer_training
from maskgil_jax.training.generator import Objective, jitted_step, model_options
from maskgil_jax.training.optimizer import learning_rate, make_optimizer
from maskgil_jax.training.skip_updates import skip_bad_updates, skip_config
from maskgil_jax.training.state import init_state, sharded_init

# bfloat16 products a second without sparsity, as published; what MFU is a share of. Others show TFLOP/s alone.
PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100-SXM4-80GB": 312e12}
PEAKS |= {"TPU v5 lite": CHIPS["v5e"].flops, "TPU v5": CHIPS["v5p"].flops, "TPU v6 lite": CHIPS["v6e"].flops}


def speed(cfg, batch: int, seconds: float) -> dict:
    """The products that a step's mathematics needs, a second: on every device, and as a share of its peak."""
    rate = 3.0 * product_flops(cfg, batch) / seconds / jax.device_count()
    peak = PEAKS.get(jax.devices()[0].device_kind)
    return {"tflop_per_s": round(rate / 1e12, 1), "mfu": f"{rate / peak:.1%}" if peak else ""}


def steps_of(call, state, data, key):
    """A call without arguments that runs one step, compiled here, and keeps the state for the next."""
    compiled, kept = call.lower(state, data, key, None).compile(), [state]

    def step():
        kept[0] = jax.block_until_ready(compiled(kept[0], data, key, None)[0])

    return step


def beside_torch(file: str, repeats: int) -> list[dict]:
    """One row for each form of a run file's step, on random data of its sizes."""
    try:
        from benchmarks import torch_train
    except ImportError as error:
        raise SystemExit(f"--torch: needs PyTorch, run: pip install maskgil_jax[bench] ({error})") from None
    config = runpy.run_path(file)["get_config"]()
    key, batch, size = jax.random.key(0), config.batch_size, config.data.image_size
    tx = skip_bad_updates(make_optimizer(config.optimizer, config.total_steps), skip_config(config))
    schedule, ema = learning_rate(config.optimizer, config.total_steps), config.optimizer.ema_decay
    if config.task == "tokenizer":
        changes = {name: value for name, value in config.model.items() if name != "preset" and value is not None}
        cfg = dataclasses.replace(VQ_PRESETS[config.model.preset], **changes, image_size=size)
        loss = from_dict(tokenizer_training.VQLossConfig, config.loss.to_dict(), "config.loss")
        state = jax.jit(tokenizer_training.init_state(cfg, None, tx, None, ema=ema > 0))(key)
        step = tokenizer_training.jitted_step(cfg, loss, config, None, tx, None, schedule, None)
        data = {"image": jax.random.randint(key, (batch, size, size, 3), 0, 256).astype(jnp.uint8)}
        theirs = torch_train.tokenizer_forms(network.build(cfg, state.params), loss, config.optimizer, batch)
    else:
        vq = VQ_PRESETS[runpy.run_path("configs/demo_tokenizer.py")["get_config"]().model.preset]
        cfg = model_options(config.model.to_dict(), codebook_size=vq.codebook_size, num_classes=98, grid=vq.grid)
        objective = from_dict(Objective, config.objective.to_dict(), "config.objective")
        state = jax.jit(init_state(lambda k: network.params_of(network.create(cfg, k)), tx, ema=ema > 0))(key)
        step = jitted_step(cfg, objective, tx, schedule, ema, None, conditioner=conditioner_of(cfg, {}))
        codes = jax.random.randint(key, (batch, *cfg.grid), 0, cfg.codebook_size)
        data = {"codes": codes, "label": jnp.arange(batch, dtype=jnp.int32) % 98}
        theirs = torch_train.generator_forms(network.build(cfg, state.params), objective, config.optimizer, batch)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    rows = in_turns({"maskgil_jax": steps_of(step, state, data, key), **theirs}, images=batch, repeats=repeats)
    about = {"config": file, "parameters": f"{count / 1e6:.2f}M", "batch": batch}
    rate = rows[0]["images_per_s"]
    return [about | row | {"rate, times ours": round(row["images_per_s"] / rate, 2)} for row in rows]


def main() -> None:
    """The paper's objective and optimizer on random codes; one row for every combination of the options."""
    parser = options(__doc__)
    parser.set_defaults(batches="8")
    parser.add_argument("--remat", default="none", help="policies of recomputation, comma-separated (default: none)")
    parser.add_argument("--attention", default="xla", help="forms of attention, comma-separated (default: xla)")
    parser.add_argument("--torch", action="store_true", help="measure run files' steps, and PyTorch's form beside them")
    parser.add_argument("--configs", default="configs/demo_tokenizer.py,configs/demo.py", help="run files for --torch")
    args = parser.parse_args()
    if args.torch:
        report([row for file in args.configs.split(",") for row in beside_torch(file, args.repeats)], args.json)
        return
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
