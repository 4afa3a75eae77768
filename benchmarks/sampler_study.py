"""The sampler's choices on the built-in images with the shipped weights, one table for each question.

python -m benchmarks.sampler_study [--weights emoji] [--tables noise,presets,guidance,orders,changes,steps,hybrid]
    [--count 200] [--seed 0] [--out runs/sampler_study]

Each row draws the same labels, classes as often as among the training images, with the same seed. Agreement: the share
of images in which the shipped classifier sees the class that was asked for. Frechet distance: to all training images,
in that classifier's features. Every table is of `--weights`, but for "hybrid": that is of the pair `demo` and
`demo_ar`. Every row is kept in OUT/rows as soon as it is drawn, under its settings: a second run goes on where the
first one stopped, and a row of two tables is drawn once. One contact sheet per table, a row of it per row of the table
(of long tables, some), all with the same classes.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import pathlib
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from maskgil_jax.config import DECODE_PRESETS, ORDERS, REMASK_RULES, SCHEDULES, DecodeConfig, to_dict
from maskgil_jax.config.decoding import GUIDANCE_RAMPS
from maskgil_jax.decoding.hybrid import network_calls
from maskgil_jax.files.atomic import write_json

SHOWN = ("hearts", "country flags", "smiling", "cat faces", "time", "fruit", "birds", "buildings")
# The cells that become columns of a table, where it has two dimensions.
ACROSS = {"steps": "steps", "guidance": "guidance", "orders": "steps"}
# Orders that the table of steps and schedules compares: one that does not depend on the network, and the paper's.
STEPPED = {"halton": ("halton", 0.0), "confidence": ("confidence", 4.5)}
PAIR = ("demo", "demo_ar")  # the only shipped generator with a causal twin


class Row(NamedTuple):
    """What a table says of a row, how its images are made, the seed beyond the run's,
    and whether the sheet shows it."""

    cells: dict[str, Any]
    cfg: DecodeConfig
    ratio: float = 0.0
    seed: int = 0
    pictured: bool = True
    source: str = "samples"  # or held-out "drawings", or "reconstructions": those through the tokenizer


def noise_rows(base: DecodeConfig) -> Iterator[Row]:
    """What images can reach with this tokenizer and classifier, and how far apart equal rows of other seeds are."""
    for source in ("drawings", "reconstructions"):
        yield Row({"images": f"held-out {source}", "seed": "-"}, base, source=source)
    for name, cfg in (("stored options", base), ("preset fast", DECODE_PRESETS["fast"])):
        for seed in range(3):
            yield Row({"images": name, "seed": seed}, cfg, seed=seed)


def preset_rows(base: DecodeConfig) -> Iterator[Row]:
    """The options stored with the weights, and every preset."""
    yield Row({"preset": "(stored)", "steps": base.steps}, base)
    for name, cfg in DECODE_PRESETS.items():
        yield Row({"preset": name, "steps": cfg.steps}, cfg)


def hybrid_rows(base: DecodeConfig) -> Iterator[Row]:
    """The share of tokens that the causal twin writes; the rest by the stored options."""
    for ratio in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield Row({"AR tokens": f"{ratio:.0%}", "network calls": network_calls(ratio, (8, 8), base.steps)}, base, ratio)


def guidance_rows(base: DecodeConfig) -> Iterator[Row]:
    """Every ramp over its scales; from 1 to 1 is no guidance, whatever the ramp (but "linear" ends at 1 + scale)."""
    for ramp in GUIDANCE_RAMPS:
        cfg = dataclasses.replace(base, guidance_ramp=ramp)
        starts = (0.25, 0.5) if ramp == "interval" else (0.0,)
        for start in starts:
            name = f"interval from {start:.0%}" if ramp == "interval" else ramp
            scales = {"constant": (1.0, 1.5, 2.0, 3.0, 4.0, 6.0), "linear": (2.0, 3.0, 4.0)}
            for scale in scales.get(ramp, (3.0, 4.0, 6.0)):
                how = dataclasses.replace(cfg, guidance=scale, guidance_from=start)
                yield Row({"ramp": name, "guidance": scale}, how, pictured=ramp == "constant" or scale == 4.0)


def order_rows(base: DecodeConfig) -> Iterator[Row]:
    """Every order, confidence with several weights of its noise, and remasking; all else as stored."""
    for steps in (8, 16):
        cfg = dataclasses.replace(base, steps=steps, choice_temperature=0.0)
        for order in ORDERS:
            for noise in (0.0, 4.5, 9.0, 18.0) if order == "confidence" else (0.0,):
                name = f"confidence, noise {noise:g}" if order == "confidence" else order
                how = dataclasses.replace(cfg, order=order, choice_temperature=noise)
                yield Row({"order": name, "steps": steps}, how, pictured=steps != 16)
        for rule in REMASK_RULES if steps == 16 else ():
            yield Row(
                {"order": f"{base.order}, remask {rule}", "steps": steps}, dataclasses.replace(cfg, remask=rule), pictured=False
            )


def step_rows(base: DecodeConfig) -> Iterator[Row]:
    """Steps x schedule in two orders, and steps x plan for the stored schedule."""
    kinds = [(base.plan, schedule) for schedule in SCHEDULES]
    kinds += [(plan, base.schedule) for plan in ("density", "gamma", "cumulative") if plan != base.plan]
    for steps, (name, (order, noise)), (plan, schedule) in itertools.product((8, 4, 16), STEPPED.items(), kinds):
        changes = dict(plan=plan, schedule=schedule, steps=steps, order=order, choice_temperature=noise)
        alike = (plan == base.plan) + (schedule == base.schedule) + (steps == base.steps)
        pictured = alike == 3 or (steps != base.steps and alike == 2) or (name == "confidence" and alike == 2)
        yield Row(
            {"order": name, "plan": plan, "schedule": schedule, "steps": steps},
            dataclasses.replace(base, **changes),
            pictured=pictured,
        )


# Changes of the stored options that the other tables do not have: how codes are sampled.
TRIED: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.8},
    {"temperature": 0.6},
    {"temperature": 1.0, "temperature_end": 0.7},
    {"top_p": 0.9},
    {"top_k": 50},
    {"temperature": 1.0, "top_p": 0.9},
)


def change_rows(base: DecodeConfig) -> Iterator[Row]:
    """The sampling of codes, which the other tables keep fixed."""
    for changes in TRIED:
        name = ", ".join(f"{option} {value}" for option, value in changes.items())
        yield Row({"changed": name or "nothing", "steps": base.steps}, dataclasses.replace(base, **changes))


TABLES: dict[str, Callable[[DecodeConfig], Iterator[Row]]] = {
    "noise": noise_rows,
    "presets": preset_rows,
    "guidance": guidance_rows,
    "orders": order_rows,
    "changes": change_rows,
    "steps": step_rows,
    "hybrid": hybrid_rows,
}


def settings_of(row: Row, *, count: int, seed: int, weights: dict[str, str]) -> dict[str, Any]:
    """All that a row's figures depend on; rows of equal settings are the same row, in this run and in the next."""
    how = {"sampler": to_dict(row.cfg), "ar_ratio": row.ratio, "seed": seed + row.seed}
    return {"source": row.source, "count": count, "weights": weights, **(how if row.source == "samples" else {})}


def name_of(settings: dict[str, Any]) -> str:
    """The file name of these settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def table_text(rows: list[tuple[dict, dict]], across: str | None) -> str:
    """A Markdown table of (cells, figures); the values of the cell `across` become columns if one is named."""
    shown = [(cells, f"{f['agreement']:.1%}", f"{f['frechet']:.2f}") for cells, f in rows]
    if across is None:
        lines = [[*map(str, cells.values()), *figures] for cells, *figures in shown]
        head = [*rows[0][0], "agreement", "Frechet distance"]
    else:
        columns = sorted({cells[across] for cells, *_ in shown})
        grid: dict[tuple, dict] = {}
        for cells, agreement, frechet in shown:
            place = tuple(str(value) for name, value in cells.items() if name != across)
            grid.setdefault(place, {})[cells[across]] = f"{agreement} / {frechet}"
        lines = [[*place, *(found.get(column, "") for column in columns)] for place, found in grid.items()]
        head = [*(name for name in rows[0][0] if name != across), *(f"{across} {column}" for column in columns)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines)) + "\n"


def sheet_of(strips: list[np.ndarray], names: list[str]) -> np.ndarray:
    """The strips of pictures (h, w, 3) one below the other, each with its name on the left."""
    from PIL import Image, ImageDraw, ImageFont

    height, margin, font = strips[0].shape[0], 190, ImageFont.load_default(12)
    sheet = Image.new("RGB", (margin + strips[0].shape[1], height * len(strips)), "white")
    for i, (strip, name) in enumerate(zip(strips, names, strict=True)):
        sheet.paste(Image.fromarray(strip), (margin, i * height))
        ImageDraw.Draw(sheet).text((4, i * height + height // 2), name, "black", font, anchor="lm")
    return np.asarray(sheet)


def write_table(out: pathlib.Path, table: str, found: list[tuple[Row, dict, np.ndarray]]) -> None:
    """OUT/table.md and OUT/table.webp of (row, figures, strip of pictures)."""
    from PIL import Image

    (out / f"{table}.md").write_text(table_text([(row.cells, figures) for row, figures, _ in found], ACROSS.get(table)))
    lines = [[textwrap.fill(f"{name}: {value}", 28) for name, value in row.cells.items()] for row, *_ in found if row.pictured]
    sheet = sheet_of([strip for row, _, strip in found if row.pictured], ["\n".join(names) for names in lines])
    Image.fromarray(sheet).save(out / f"{table}.webp", quality=80, method=6)


class Study:
    """Networks, reference and labels, loaded once; and the folder of rows that are there already."""

    def __init__(self, out: pathlib.Path, name: str, ar: str | None, count: int, seed: int, batch_size: int):
        from maskgil_jax.checkpoints.weights import load_weights
        from maskgil_jax.data.images import open_images
        from maskgil_jax.evaluation.extraction import BatchedApply
        from maskgil_jax.evaluation.features import load_feature_extractor
        from maskgil_jax.evaluation.generated import labels_like
        from maskgil_jax.evaluation.images import open_image_set
        from maskgil_jax.evaluation.reference import open_reference, write_stats
        from maskgil_jax.pipelines.pipeline import load

        self.folder, self.count, self.seed, self.batch_size = out / "rows", count, seed, batch_size
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pipeline, extractor, source = load(name, ar=ar), load_feature_extractor("demo"), open_images("emoji")
        self.held_out = open_images("emoji", split="test")
        self.weights = {
            "classifier": extractor.hash,
            **{part: load_weights(name, part).hash for part in ("tokenizer", "generator")},
            **({"ar": load_weights(ar, "generator").hash} if ar else {}),
        }
        if not (stats := out / "reference.npz").exists():
            write_stats(open_image_set("emoji", image_size=64), extractor, stats)
        self.reference = open_reference(stats, extractor, moments=("features",), keep=False)
        self.labels = labels_like(np.asarray([source[i]["label"] for i in range(len(source))]), count, 0)
        self.features = BatchedApply(extractor.apply, extractor.network, batch_size=batch_size)

    def images(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 images, the class each is meant to be) of a row."""
        from maskgil_jax.evaluation.generated import generated_set
        from maskgil_jax.tokenizers.images import reconstruct

        if row.source == "samples":
            more = {"ar_ratio": row.ratio} if row.ratio else None
            options = dict(seed=self.seed + row.seed, cfg=row.cfg, batch_size=self.batch_size, more=more)
            return np.concatenate(list(generated_set(self.pipeline, self.labels, **options).batches(0))), self.labels
        records = [self.held_out[int(i)] for i in np.linspace(0, len(self.held_out) - 1, self.count)]
        images = np.stack([record["image"] for record in records])
        if row.source == "reconstructions":
            images = np.asarray(reconstruct(self.pipeline.tokenizer, images))
        return images, np.asarray([record["label"] for record in records])

    def figures(self, row: Row) -> tuple[dict, np.ndarray]:
        """(agreement and Frechet distance, a strip of pictures) of a row,
        from the folder if it has been drawn before."""
        from PIL import Image

        from maskgil_jax.evaluation.metrics import FeatureStatistics, frechet_distance
        from maskgil_jax.files.images import contact_sheet, save_png

        settings = settings_of(row, count=self.count, seed=self.seed, weights=self.weights)
        file = self.folder / f"{name_of(settings)}.json"
        if file.exists():
            return json.loads(file.read_text())["figures"], np.asarray(Image.open(file.with_suffix(".png")))
        images, labels = self.images(row)
        statistics, seen = FeatureStatistics(), []
        for outputs in self.features([images]):
            statistics.update(outputs["features"])
            seen.append(outputs["logits"].argmax(axis=1))
        figures = {
            "agreement": float((np.concatenate(seen) == labels).mean()),
            "frechet": frechet_distance(*self.reference.moments["features"], statistics.mean, statistics.covariance),
        }
        blank = np.full_like(images[:1], 255)  # for a class that is not among the held-out ones
        shown = [np.concatenate([images[labels == label], blank])[0] for label in self.pipeline.label_ids(SHOWN)]
        strip = contact_sheet(np.stack(shown), columns=len(SHOWN))
        save_png(file.with_suffix(".png"), strip)
        write_json(file, {"settings": settings, "figures": figures})
        return figures, strip


def main() -> None:
    """Draws what is not there yet; tables and sheets are written as they grow."""
    from maskgil_jax.commands.start import prepare_jax

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", default="emoji", help="shipped name or folder; 64x64, in the classes of emoji (default: emoji)"
    )
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--count", type=int, default=200, help="images per row (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--batch-size", type=int, default=14, help="per network call (default: 14, what a small CPU's cache likes)"
    )
    parser.add_argument("--out", default="runs/sampler_study")
    args = parser.parse_args()
    tables = args.tables.split(",")
    if unknown := [name for name in tables if name not in TABLES]:
        parser.error(f"--tables: no table {', '.join(unknown)}; choose from {', '.join(TABLES)}")
    prepare_jax()
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    studies: dict[tuple[str, str | None], Study] = {}
    for table in tables:
        names = PAIR if table == "hybrid" else (args.weights, None)
        if names not in studies:
            studies[names] = Study(out, *names, count=args.count, seed=args.seed, batch_size=args.batch_size)
        study = studies[names]
        rows, drawn = list(TABLES[table](study.pipeline.cfg)), {}
        for i in sorted(range(len(rows)), key=lambda i: not rows[i].pictured):  # those of the sheet first
            drawn[i] = study.figures(rows[i])
            print(table, rows[i].cells, drawn[i][0], flush=True)
            write_table(out, table, [(rows[k], *drawn[k]) for k in sorted(drawn)])  # each time: this row may be the last


if __name__ == "__main__":
    main()
