"""Plots of training runs (metrics over steps) and evaluations (FID against steps and guidance), uint8 (h, w, 3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from maskgil_jax.evaluation.metrics import figures as all_figures
from maskgil_jax.evaluation.report import label_of, read_json

COLUMNS = 3


def read_metrics(folder) -> dict[str, tuple[list[int], list[float]]]:
    """Reads {metric: (steps, values)} from a training run's `metrics.jsonl`, without an incomplete last line.

    Raises a `ValueError` that names the file if it does not exist or is empty.
    """
    file = Path(folder) / "metrics.jsonl"
    if not file.is_file():
        raise ValueError(
            f"{folder}: holds no metrics.jsonl; give the --workdir of a training run, or results of maskgil evaluate"
        )
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in file.read_text().splitlines():
        try:
            values = json.loads(line)
            step = values.pop("step")
        except (ValueError, KeyError):
            continue
        for name, value in values.items():
            steps, heights = found.setdefault(name, ([], []))
            steps.append(step)
            heights.append(value)
    if not found:
        raise ValueError(f"{file}: holds no metrics yet")
    return found


def plot_runs(folders) -> np.ndarray:
    """Plots one panel per metric, with one line per run."""
    runs = {str(folder): read_metrics(folder) for folder in folders}
    names = list(dict.fromkeys(name for metrics in runs.values() for name in metrics))

    def draw(axes) -> None:
        for axis, name in zip(axes, names):
            for run, metrics in runs.items():
                if name in metrics:
                    steps, values = metrics[name]
                    axis.plot(steps, values, marker="." if len(steps) < 30 else "", label=run)
            axis.set(title=name, xlabel="step")
            if name == "learning_rate":
                axis.ticklabel_format(axis="y", scilimits=(-3, 3))
        if len(runs) > 1:
            axes[0].legend(fontsize="small")

    return _render(len(names), draw)


def loss_curves(runs: dict) -> np.ndarray:
    """Plots the logged losses of some runs side by side; runs: {name: folder with metrics.jsonl}."""
    losses = {name: {m: v for m, v in read_metrics(folder).items() if m.endswith("loss")} for name, folder in runs.items()}

    def draw(axes) -> None:
        for axis, (name, metrics) in zip(axes, losses.items()):
            for metric, (steps, values) in metrics.items():
                axis.plot(steps, values, label=metric)
            axis.set(title=name, xlabel="step", ylabel="loss")
            axis.legend()

    return _render(len(losses), draw)


def read_results(paths) -> list[dict]:
    """Reads JSON results of `maskgil evaluate`, from files or folders. Raises a `ValueError` if there are none."""
    found = []
    for path in map(Path, paths):
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path}: holds no results (*.json) of maskgil evaluate")
        found += [read_json(file) for file in files]
    return found


def plot_results(results: list[dict]) -> dict[str, np.ndarray]:
    """Plots {name: image}: "steps" (FID and IS against steps, a line per schedule), "guidance" (a line per generator),
    "schedule" (a bar each) and "tradeoff" (IS against FID), as far as the results differ in these options. Results of
    tokenizers are skipped.

    Raises a `ValueError` if extractors or references differ, as such figures cannot be compared.
    """
    sampled = [r for r in results if "sampler" in r["samples"] and "fid" in r["figures"]]
    if not sampled:
        raise ValueError("no result of samples drawn from weights with a FID among those given: nothing to plot")
    for what, key in (("extractor", "hash"), ("extractor", "protocol"), ("reference", "hash")):
        seen = {r[what][key] for r in sampled}
        if len(seen) > 1:
            raise ValueError(
                f"the results have {len(seen)} different {what}s ({what}.{key}): {', '.join(sorted(map(str, seen)))}"
            )
    plots = {}
    for name, along, line, others in (
        ("steps", "steps", "schedule", ("guidance",)),
        ("guidance", "guidance", None, ("steps", "schedule")),
    ):
        if len({r["samples"]["sampler"][along] for r in sampled}) > 1:
            plots[name] = _against(sampled, along, line, others)
    if len({r["samples"]["sampler"]["schedule"] for r in sampled}) > 1:
        plots["schedule"] = _schedules(sampled)
    if all("is" in r["figures"] for r in sampled) and len(sampled) > 1:
        plots["tradeoff"] = _tradeoff(sampled)
    return plots or {"fid": _bars(sampled)}


def _name(result: dict) -> str:
    return result.get("row", {}).get("name") or Path(result["samples"].get("path") or "samples").name


def _generator(result: dict) -> str:
    """The generator's name; a line connects the results of one generator."""
    return Path(result["samples"].get("path") or "").name or "samples"


def _against(results: list[dict], along: str, line: str | None, others: tuple[str, ...]) -> np.ndarray:
    figures = [
        f for f in all_figures() if all(f in r["figures"] for r in results) and f in ("fid", "is", "precision", "recall")
    ]
    lines: dict[tuple, list[dict]] = {}
    for result in results:
        sampler = result["samples"]["sampler"]
        lines.setdefault((_generator(result), sampler[line] if line else "", *(sampler[o] for o in others)), []).append(result)
    # A line is labelled with the options that differ between the lines.
    changing = [i for i in range(len(next(iter(lines)))) if len({key[i] for key in lines}) > 1]
    labels = ("", f"{line} " if line == "guidance" else "", *(f"{o} " for o in others))

    def draw(axes) -> None:
        for axis, figure in zip(axes, figures):
            for key, members in sorted(lines.items(), key=str):
                points = sorted((r["samples"]["sampler"][along], r["figures"][figure]) for r in members)
                name = ", ".join(f"{labels[i]}{key[i]}" for i in changing)
                axis.plot(*zip(*points), marker="o", label=name)
            axis.set(title=label_of(figure, results[0]["extractor"]), xlabel=along)
            if along == "steps":
                ticks = sorted({r["samples"]["sampler"]["steps"] for r in results})
                axis.set_xscale("log", base=2)
                axis.set_xticks(ticks, [str(t) for t in ticks])
        if changing:
            axes[0].legend(fontsize="small")

    return _render(len(figures), draw)


def _schedules(results: list[dict]) -> np.ndarray:
    """The best FID of each schedule over all other options."""
    best: dict[str, float] = {}
    for result in results:
        schedule = result["samples"]["sampler"]["schedule"]
        best[schedule] = min(best.get(schedule, np.inf), result["figures"]["fid"])

    def draw(axes) -> None:
        axes[0].bar(list(best), list(best.values()))
        axes[0].set(title=f"{label_of('fid', results[0]['extractor'])}, best of each schedule")

    return _render(1, draw)


def _tradeoff(results: list[dict]) -> np.ndarray:
    def draw(axes) -> None:
        for result in results:
            x, y = result["figures"]["fid"], result["figures"]["is"]
            axes[0].plot([x], [y], "o")
            axes[0].annotate(_name(result), (x, y), fontsize="x-small", xytext=(4, 4), textcoords="offset points")
        extractor = results[0]["extractor"]
        axes[0].set(xlabel=label_of("fid", extractor), ylabel=label_of("is", extractor), title="each result")

    return _render(1, draw)


def _bars(results: list[dict]) -> np.ndarray:
    def draw(axes) -> None:
        axes[0].bar([_name(r) for r in results], [r["figures"]["fid"] for r in results])
        axes[0].set(title=label_of("fid", results[0]["extractor"]))

    return _render(1, draw)


def _render(panels: int, draw: Callable) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(panels, COLUMNS)
    rows = -(-panels // columns)
    figure = Figure(figsize=(5 * columns + (1 if panels == 1 else 0), 3.4 * rows), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    draw(axes[:panels])
    for axis in axes[:panels]:
        axis.grid(alpha=0.3)
    for axis in axes[panels:]:
        axis.set_axis_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
