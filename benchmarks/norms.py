"""What QK-Norm and Post-Norm hold (the paper's Fig. 4c, small): four networks that differ in nothing else,
at each rate.

python -m benchmarks.norms [--rates 1e-3:500,1e-2:500] [--out runs/norms]

Each is a run of `maskgil train` on the built-in images' codes with the shipped tokenizer, one after the other; an
interrupted one goes on. The paper's recipe otherwise: constant rate, no warm-up, clipped gradients. Draws OUT/norms.png
and prints a table.
"""

import argparse
import pathlib
import subprocess
import sys

import numpy as np

ARMS = {  # name: options; the paper's XXL has both
    "both": dict(qk_norm="per_head", post_norm="sandwich"),
    "QK-Norm": dict(qk_norm="per_head", post_norm="none"),
    "Post-Norm": dict(qk_norm="none", post_norm="sandwich"),
    "neither": dict(qk_norm="none", post_norm="none"),
}
SHOWN = {"masked_loss": "linear", "output_norm": "log", "grad_norm": "log"}  # metric: scale of its axis


def command(*arguments: str) -> int:
    """Runs `maskgil` and returns its exit code."""
    print("maskgil", *arguments, flush=True)
    return subprocess.run([sys.executable, "-m", "maskgil_jax", *arguments], check=False).returncode


def overrides(arm: str, rate: str, steps: str, codes: pathlib.Path, args) -> list[str]:
    """Options against `configs/demo.py`: a deep, narrow network, since it is depth that adds up,
    and the paper's optimizer."""
    width = dict(width=args.width, depth=args.depth, heads=args.width // 32, mlp_width=args.width * 8 // 3)
    options = {f"model.{name}": value for name, value in (width | ARMS[arm]).items()}
    options |= {"tokenizer": "demo", "data.codes": codes, "seed": args.seed, "batch_size": args.batch_size}
    options |= {"total_steps": steps, "log_every": 10, "sample_every": 0, "checkpoint.every": 100}
    options |= {"guard.watchdog_seconds": 0}  # the machine may be busy, or asleep
    options |= {"optimizer.learning_rate": rate, "optimizer.weight_decay": 1e-5, "optimizer.warmup_steps": 0}
    options |= {"optimizer.decay": "constant", "optimizer.ema_decay": 0.0}
    return [f"--config.{name}={value}" for name, value in options.items()]


def draw(runs: dict[str, dict[str, pathlib.Path]], title: str) -> np.ndarray:
    """{rate: {arm: folder}} -> picture: a column per rate, a row per metric."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from maskgil_jax.evaluation.plots import read_metrics

    figure = Figure(figsize=(4.6 * len(runs), 2.5 * len(SHOWN)), dpi=72, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(SHOWN), len(runs), squeeze=False, sharex="col", sharey="row")
    for column, (rate, arms) in enumerate(runs.items()):
        for arm, folder in arms.items():
            metrics = read_metrics(folder)
            for axis, (name, scale) in zip(axes[:, column], SHOWN.items(), strict=True):
                axis.plot(*metrics[name], label=arm, linewidth=1.2)
                axis.set_yscale(scale)
                axis.set_ylabel(name.replace("_", " ") if not column else "")
                axis.grid(alpha=0.3)
        axes[0, column].set_title(f"learning rate {rate}")
        axes[-1, column].set_xlabel("step")
    axes[0, 0].legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def main() -> None:
    """Encodes once, trains the arms, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rates", default="1e-3:500,1e-2:500", help="learning rates and steps of their runs (default: 1e-3:500,1e-2:500)"
    )
    parser.add_argument("--width", type=int, default=96, help="default: 96")
    parser.add_argument("--depth", type=int, default=12, help="default: 12")
    parser.add_argument("--batch-size", type=int, default=16, help="default: 16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/norms", help="folder of the runs and the picture (default: runs/norms)")
    args = parser.parse_args()
    out = pathlib.Path(args.out)
    codes = out / "codes"
    if command("encode", "--tokenizer=demo", "--data.path=emoji", f"--out={codes}"):
        sys.exit("encoding failed")
    runs: dict[str, dict[str, pathlib.Path]] = {}
    for rate, _, steps in (pair.partition(":") for pair in args.rates.split(",")):
        for arm in ARMS:
            folder = runs.setdefault(rate, {})[arm] = out / f"{arm.lower()}-{rate}"
            code = command(
                "train", "--config=configs/demo.py", f"--workdir={folder}", *overrides(arm, rate, steps, codes, args)
            )
            if code not in (0, 3):  # 3: the guard stopped it, which is a result
                sys.exit(f"{folder}: stopped with exit code {code}; the same command goes on from there")
    report(runs)
    from maskgil_jax.files.images import save_png

    save_png(out / "norms.png", draw(runs, f"{args.depth} layers, width {args.width}, batch {args.batch_size}"))
    print(out / "norms.png")


def report(runs: dict[str, dict[str, pathlib.Path]]) -> None:
    """Prints a Markdown table: means over the last hundred steps (of the output norm also the first),
    and steps skipped."""
    from maskgil_jax.evaluation.plots import read_metrics

    print(
        "\n| rate | norms | masked loss | output norm, first hundred steps -> last | gradient norm | skipped |\n"
        + "|---" * 6
        + "|"
    )
    for rate, arms in runs.items():
        for arm, folder in arms.items():
            metrics = read_metrics(folder)
            loss, size, grad = (metrics[name][1] for name in SHOWN)
            print(
                f"| {rate} | {arm} | {np.mean(loss[-10:]):.2f} | {np.mean(size[:10]):,.0f} -> {np.mean(size[-10:]):,.0f} "
                f"| {np.mean(grad[-10:]):.2f} | {sum(metrics['skipped'][1]):.0f} |"
            )


if __name__ == "__main__":
    main()
