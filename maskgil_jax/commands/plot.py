"""maskgil plot: plots the metrics of training runs and the results of evaluations."""

from __future__ import annotations

import pathlib

from maskgil_jax.commands.evaluate import output_path


def add(command) -> None:
    sub = command("plot", run, "Plot the metrics of training runs, or results of evaluations against steps and guidance.")
    sub.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders with metrics.jsonl; JSON files of maskgil evaluate, or folders of them"
    )
    sub.add_argument("--out", type=output_path, default="plots", help="folder for the plots (default: plots)")


def run(args, rest) -> None:
    """maskgil plot"""
    from maskgil_jax.config import ConfigError
    from maskgil_jax.evaluation.plots import plot_results, plot_runs, read_results
    from maskgil_jax.files.images import save_png

    missing = [name for name in args.runs if not pathlib.Path(name).exists()]
    if missing:
        raise ConfigError(f"{missing[0]}: no such file or folder")
    trained = [name for name in args.runs if (pathlib.Path(name) / "metrics.jsonl").is_file()]
    evaluated = [name for name in args.runs if name not in trained]
    plots = {"curves": plot_runs(trained)} if trained else {}
    if evaluated:
        plots.update(plot_results(read_results(evaluated)))
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, image in plots.items():
        save_png(out / f"{name}.png", image)
        print(f"{out / name}.png")
