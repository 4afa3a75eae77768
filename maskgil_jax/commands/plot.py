"""maskgil plot: what training runs logged and evaluations measured, as pictures."""

from __future__ import annotations

import pathlib


def add(command) -> None:
    sub = command("plot", run, "Draw the curves of training runs, or figures of evaluations against steps and guidance.")
    sub.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders with metrics.jsonl; JSON files of maskgil evaluate, or folders of them"
    )
    sub.add_argument("--out", default="plots", help="folder for the pictures (default: plots)")


def run(args, rest) -> None:
    """maskgil plot"""
    from maskgil_jax.config import ConfigError
    from maskgil_jax.evaluation.plots import plot_results, plot_runs, read_results
    from maskgil_jax.files.images import save_png

    missing = [name for name in args.runs if not pathlib.Path(name).exists()]
    if missing:
        raise ConfigError(f"{missing[0]}: no such file or folder")
    trained = [name for name in args.runs if (pathlib.Path(name) / "metrics.jsonl").is_file()]
    measured = [name for name in args.runs if name not in trained]
    pictures = {"curves": plot_runs(trained)} if trained else {}
    if measured:
        pictures.update(plot_results(read_results(measured)))
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        save_png(out / f"{name}.png", picture)
        print(f"{out / name}.png")
