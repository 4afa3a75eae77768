"""Reproduces the paper's tables: evaluates each row whose weights exist, and prints our figures next to the paper's.

The rows are plain data in `configs/eval_*.py`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from maskgil_jax.checkpoints.weights import load_weights
from maskgil_jax.config import ConfigError, from_dict, require, to_dict
from maskgil_jax.evaluation.features import FeatureExtractor, load_feature_extractor
from maskgil_jax.evaluation.generated import cycled_labels, even_counts, generated_set
from maskgil_jax.evaluation.images import open_image_set
from maskgil_jax.evaluation.metrics import figures as all_figures
from maskgil_jax.evaluation.reconstruction import evaluate_tokenizer
from maskgil_jax.evaluation.reference import Reference, open_reference
from maskgil_jax.evaluation.run import evaluate, needs
from maskgil_jax.files.atomic import write_json
from maskgil_jax.files.images import save_png
from maskgil_jax.pipelines.pipeline import load

KINDS = ("generator", "tokenizer")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table.

    weights: its sub-folder of the weights folder. decode: decoding options that differ from the table's. paper: figures
    as the paper prints them. note: footnote. ar, ar_ratio: sub-folder of a causal generator, and the fraction of the
    codes it samples.
    """

    name: str
    paper: dict
    weights: str = ""
    decode: dict = dataclasses.field(default_factory=dict)
    note: str = ""
    ar: str = ""
    ar_ratio: float = 0.0

    @property
    def folder(self) -> str:
        """Name of its sub-folder of weights."""
        return self.weights or self.name


def rows_of(config) -> list[Row]:
    """Reads the rows of a run file. Raises a `ConfigError` for an unknown field or figure, or a name used twice."""
    rows = [from_dict(Row, dict(row), "config.rows") for row in config.rows]
    names = [row.name for row in rows]
    require(bool(rows), "config.rows: is empty")
    require(len(set(names)) == len(names), f"config.rows: {sorted({n for n in names if names.count(n) > 1})} are used twice")
    for row in rows:
        for figure in row.paper:
            known = ", ".join(all_figures())
            require(figure in all_figures(), f"config.rows: {row.name}: no figure is called {figure!r}; choose from {known}")
    return rows


def run_table(config, weights, out, report: Callable[[str], None] = print) -> list[dict]:
    """Evaluates the rows of `config` with weights; returns [{"name", "paper", "note", "ours", "skipped"}].

    Writes each result to `out`/ROW.json and the table to `out`/table.md. Rows without weights are skipped and reported
    by name.
    """
    require(config.kind in KINDS, f"config.kind: unknown value {config.kind!r}; choose from {', '.join(KINDS)}")
    root, out, rows = Path(weights), Path(out), rows_of(config)
    require(root.is_dir(), f"--weights: there is no folder {root}; it holds a sub-folder for each row: {rows[0].folder}, ...")
    reasons = {row.name: _missing(root, row) for row in rows}
    runnable = [row for row in rows if not reasons[row.name]]
    if not runnable:
        raise ConfigError(
            f"--weights {root}: no row has weights there; expected {', '.join(dict.fromkeys(r.folder for r in rows))}"
        )
    extractor = load_feature_extractor(config.features, config.protocol or None)
    runner = (_GeneratorRows if config.kind == "generator" else _TokenizerRows)(config, extractor, root, runnable[0])
    table = []
    for row in rows:
        entry = {"name": row.name, "paper": dict(row.paper), "note": row.note, "ours": {}, "skipped": reasons[row.name]}
        if entry["skipped"]:
            report(f"skipped {row.name}: {entry['skipped']}")
        else:
            _log.info("row %s, weights %s", row.name, root / row.folder)
            result = runner(row, out)
            result["row"] = {"table": config.title, "name": row.name, "paper": dict(row.paper)}
            write_json(out / f"{row.name}.json", result)
            entry["ours"] = result["figures"]
        table.append(entry)
    text = as_markdown(config.title, table, list(config.footnotes), extractor)
    (out / "table.md").write_text(text + "\n")
    report("\n" + text)
    return table


def _missing(root: Path, row: Row) -> str:
    missing = [root / name for name in (row.folder, row.ar) if name and not (root / name).is_dir()]
    return f"there is no {missing[0]}" if missing else ""


class _GeneratorRows:
    """Evaluates samples of each row's pipeline against one reference, which is opened once."""

    def __init__(self, config, extractor: FeatureExtractor, root: Path, first: Row):
        self.config, self.extractor, self.root, self.metrics = config, extractor, root, tuple(config.metrics)
        moments, keep = needs(self.metrics)
        pipeline = load(root / first.folder)
        height, width = (side * pipeline.tokenizer.cfg.downsample for side in pipeline.generator.cfg.grid)
        require(bool(config.reference), "config.reference: is empty; give ADM's reference batch or another reference")
        self.reference = open_reference(
            config.reference,
            extractor,
            moments=moments,
            keep=keep,
            image_size=(height, width),
            batch_size=config.batch_size,
            split=config.split,
            data_dir=config.data_dir or None,
        )

    def __call__(self, row: Row, out: Path) -> dict:
        config, folder = self.config, self.root / row.folder
        pipeline = load(folder, ar=self.root / row.ar if row.ar else None)
        options = {**to_dict(pipeline.cfg), **config.decode.to_dict(), **row.decode}
        cfg = from_dict(type(pipeline.cfg), options, f"config.rows: {row.name}: decode")
        classes = len(pipeline.class_names)
        hashes = {part: load_weights(folder, part).hash for part in ("tokenizer", "generator")}
        samples = generated_set(
            pipeline,
            cycled_labels(config.count, classes),
            seed=config.seed,
            cfg=cfg,
            batch_size=config.batch_size,
            hashes=hashes,
            more={"ar_ratio": row.ar_ratio} if row.ar else None,
        )
        result = evaluate(samples, self.reference, self.extractor, self.metrics, batch_size=config.batch_size)
        result["warnings"] = even_counts(config.count, classes) + result["warnings"]
        return result


class _TokenizerRows:
    """Evaluates each row's tokenizer on one image set, and against a training reference if one is given."""

    def __init__(self, config, extractor: FeatureExtractor, root: Path, first: Row):
        self.config, self.extractor, self.root = config, extractor, root
        self.train: Reference | None = None
        if config.reference:
            side = load_weights(root / first.folder, "tokenizer").cfg.image_size
            self.train = open_reference(
                config.reference, extractor, moments=("features",), keep=False, image_size=side, batch_size=config.batch_size
            )

    def __call__(self, row: Row, out: Path) -> dict:
        config, tokenizer = self.config, load_weights(self.root / row.folder, "tokenizer")
        images = open_image_set(
            config.data,
            split=config.split,
            data_dir=config.data_dir or None,
            image_size=config.image_size,
            count=config.count or None,
        )
        result, sheet = evaluate_tokenizer(
            tokenizer, images, self.extractor, train_reference=self.train, batch_size=config.batch_size
        )
        out.mkdir(parents=True, exist_ok=True)
        save_png(out / f"{row.name}.png", sheet)
        return result


def as_markdown(title: str, table: list[dict], footnotes: list[str], extractor: FeatureExtractor) -> str:
    """Formats the paper's figures, ours and the difference (ours minus the paper's), one line per row."""
    known = all_figures()
    figures = [figure for figure in known if any(figure in entry["paper"] for entry in table)]
    head = ["row", *(f"{known[f].label}: {what}" for f in figures for what in ("paper", "ours", "difference"))]
    lines, notes = [head, ["---"] * len(head)], []
    for entry in table:
        mark = ""
        if entry["note"]:
            if entry["note"] not in notes:
                notes.append(entry["note"])
            mark = f" [{notes.index(entry['note']) + 1}]"
        cells = [entry["name"] + mark]
        for figure in figures:
            paper, ours, digits = entry["paper"].get(figure), entry["ours"].get(figure), known[figure].digits
            cells.append("" if paper is None else f"{paper:g}")
            cells.append("" if ours is None else f"{ours:.{digits}f}")
            cells.append("" if paper is None or ours is None else f"{ours - paper:+.{digits}f}")
        lines.append(cells)
    text = [f"**{title}**", "", *("| " + " | ".join(cells) + " |" for cells in lines), ""]
    text += [f"[{i}] {note}" for i, note in enumerate(notes, 1)]
    text += footnotes
    ours = extractor.metadata()
    text.append(f"Ours: features of {ours['name']} ({ours['family']}, hash {ours['hash']}), protocol {ours['protocol']}.")
    if not extractor.is_inception:
        text.append("These are not features of the FID Inception: the difference to the paper means nothing.")
    return "\n".join(text)
