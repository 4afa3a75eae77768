"""The sampler's choices on the built-in images with the shipped weights: steps x schedule x plan, guidance, orders, presets
and hybrid.

python -m benchmarks.sampler_study [--tables steps,guidance,orders,presets,hybrid] [--count 490] [--out runs/sampler_study]

Each row draws the same labels with the same seed. Agreement: the share of images in which the shipped classifier sees the class
that was asked for. Frechet distance: to all training images, in that classifier's features. One contact sheet per table,
a row of it per row of the table (thinned out to twelve).
"""

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator

import numpy as np

from maskgil_jax.config import DECODE_PRESETS, SCHEDULES, DecodeConfig
from maskgil_jax.decoding.hybrid import network_calls

SHOWN = ("hearts", "country flags", "smiling", "cat faces", "time", "fruit", "birds", "buildings")
HALTON = DecodeConfig(plan="gamma_ceil", order="halton", choice_temperature=0.0)


def rows_of(table: str, base: DecodeConfig) -> Iterator[tuple[dict, DecodeConfig, float]]:
    """(cells, how to sample, share of AR tokens) of each row."""
    if table == "steps":
        for plan in ("density", "gamma", "cumulative"):
            for schedule in SCHEDULES:
                for steps in (4, 8, 16):
                    yield (
                        {"plan": plan, "schedule": schedule, "steps": steps},
                        dataclasses.replace(base, plan=plan, schedule=schedule, steps=steps),
                        0.0,
                    )
    elif table == "guidance":
        for ramp in ("constant", "linear", "cosine", "power-cosine"):
            for scale in (1.0, 1.5, 2.0, 3.0, 4.0):
                yield {"ramp": ramp, "guidance": scale}, dataclasses.replace(base, guidance=scale, guidance_ramp=ramp), 0.0
        for start in (0.25, 0.5):
            cfg = dataclasses.replace(base, guidance_ramp="interval", guidance_from=start)
            yield {"ramp": f"interval from {start}", "guidance": cfg.guidance}, cfg, 0.0
    elif table == "orders":
        for order in ("confidence", "halton", "halton_rolled", "random", "raster"):
            for steps in (8, 16, 32):
                cfg = dataclasses.replace(base if order == "confidence" else HALTON, order=order, steps=steps)
                yield {"order": order, "steps": steps}, cfg, 0.0
        for rule in ("cap", "rescale"):
            yield {"order": f"confidence, remask {rule}", "steps": 16}, dataclasses.replace(base, remask=rule, steps=16), 0.0
    elif table == "presets":
        for name, cfg in DECODE_PRESETS.items():
            yield {"preset": name, "steps": cfg.steps}, cfg, 0.0
    elif table == "hybrid":
        for ratio in (0.0, 0.25, 0.5, 0.75, 1.0):
            yield {"AR tokens": f"{ratio:.0%}", "calls": network_calls(ratio, (8, 8), base.steps)}, base, ratio
    else:
        raise SystemExit(f"--tables: no table {table!r}")


def rate(pipeline, labels: np.ndarray, cfg: DecodeConfig, ratio: float) -> float:
    """Images a second, label to pixel, of one batch, the fastest of three after one that compiles."""
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        pipeline(labels, cfg=cfg, ar_ratio=ratio)
        seconds.append(time.perf_counter() - began)
    return len(labels) / min(seconds[1:])


def main() -> None:
    """Draws, measures, prints the tables and writes them with their sheets."""
    from maskgil_jax.data.images import open_images
    from maskgil_jax.evaluation.extractor import load_extractor
    from maskgil_jax.evaluation.generated import generated_set, labels_like
    from maskgil_jax.evaluation.reference import open_reference
    from maskgil_jax.evaluation.run import evaluate
    from maskgil_jax.pictures import grid_of, save_png
    from maskgil_jax.pipeline import load

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", default="steps,guidance,orders,presets,hybrid")
    parser.add_argument("--count", type=int, default=490, help="images per row (default: 490, five of each class)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=98)
    parser.add_argument("--out", default="runs/sampler_study")
    args = parser.parse_args()
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    pipeline, extractor, source = load("demo", ar="demo_ar"), load_extractor("demo"), open_images("emoji")
    reference = open_reference("emoji", extractor, moments=("features",), keep=False, image_size=source[0]["image"].shape[0])
    labels = labels_like(np.asarray([source[i]["label"] for i in range(len(source))]), args.count, args.seed)
    for table in args.tables.split(","):
        lines, sheets = [], []
        for cells, cfg, ratio in rows_of(table, pipeline.cfg):
            samples = generated_set(
                pipeline,
                labels,
                seed=args.seed,
                cfg=cfg,
                batch_size=args.batch_size,
                more={"ar_ratio": ratio} if ratio else None,
            )
            result = evaluate(samples, reference, extractor, ("fid", "agreement"), batch_size=args.batch_size)
            figures = result["figures"]
            cells |= {"agreement": f"{figures['agreement']:.1%}", "Frechet distance": round(figures["fid"], 2)}
            if table == "hybrid":
                cells["images/s"] = round(rate(pipeline, labels[: args.batch_size], cfg, ratio), 1)
            lines.append(cells)
            print(table, lines[-1], flush=True)
            sheets.append(pipeline(list(SHOWN), seed=args.seed, cfg=cfg, ar_ratio=ratio))
        picked = [sheets[i] for i in np.unique(np.linspace(0, len(sheets) - 1, min(len(sheets), 12)).astype(int))]
        save_png(out / f"{table}.png", grid_of(np.concatenate(picked), columns=len(SHOWN)))
        text = "| " + " | ".join(lines[0]) + " |\n|" + "---|" * len(lines[0]) + "\n"
        text += "\n".join("| " + " | ".join(map(str, line.values())) + " |" for line in lines) + "\n"
        (out / f"{table}.md").write_text(text)
        (out / f"{table}.json").write_text(json.dumps({"count": args.count, "seed": args.seed, "rows": lines}, indent=1) + "\n")
        print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
