"""Formats the result of an evaluation, with its provenance, as a table, as a Markdown row and as JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path

from maskgil_jax.evaluation.metrics import figures as all_figures

FORMAT = "maskgil_jax evaluation 1"


def environment() -> dict:
    """Format, date, versions and device: the first entries of every result."""
    import jax

    import maskgil_jax

    packages = {"maskgil_jax": maskgil_jax.__version__, "python": platform.python_version(), "jax": jax.__version__}
    for name in ("flax", "numpy", "pillow"):
        packages[name] = _version(name)
    device = jax.devices()[0]
    return {
        "format": FORMAT,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": packages,
        "device": {"kind": device.device_kind, "platform": device.platform, "count": jax.local_device_count()},
    }


def _version(name: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def label_of(key: str, extractor: dict) -> str:
    """A figure's name in tables; only features of the FID Inception give an FID or IS."""
    figure, family = all_figures()[key], extractor.get("family", "")
    return f"{figure.other_label} ({family})" if figure.other_label and family != "inception" else figure.label


def format_value(key: str, figures: dict) -> str:
    """A figure as text, with its deviation if there is one."""
    figure = all_figures()[key]
    values = [figure.scale * figures[name] for name in (key, f"{key}_std") if name in figures]
    return " +- ".join(f"{value:.{figure.digits}f}" for value in values)


def _columns(result: dict) -> list[tuple[str, str]]:
    """(label, value) of every figure of a result, in the order of tables."""
    figures = result["figures"]
    return [
        (label_of(key, result.get("extractor") or {}), format_value(key, figures)) for key in all_figures() if key in figures
    ]


def as_table(result: dict) -> str:
    """A table for the terminal: figures, then samples, reference and extractor, then warnings and notes."""
    rows = _columns(result)
    samples, reference, extractor = result["samples"], result.get("reference"), result.get("extractor")
    facts = [("images", f"{samples['name']}: {samples['count']} of {samples['size']}, hash {samples['hash']}")]
    if reference:
        count = f"{reference['count']} images" if reference["count"] else "count unknown"
        facts.append(("reference", f"{reference['path']}: {count}, hash {reference['hash']}"))
    if extractor:
        facts.append(("extractor", f"{extractor['name']}: {extractor['family']}, hash {extractor['hash']}"))
        facts.append(("protocol", extractor["protocol"]))
    width = max(len(name) for name, _ in [*rows, *facts])
    lines = [f"{name:<{width}}  {value}" for name, value in [*rows, ("", ""), *facts]]
    lines += [f"warning: {text}" for text in result["warnings"]] + [f"note: {text}" for text in result["notes"]]
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(result: dict) -> str:
    """A Markdown header and row, with samples, extractor, protocol and reference."""
    columns = _columns(result)
    samples, reference, extractor = result["samples"], result.get("reference"), result.get("extractor")
    columns.insert(0, ("images", f"{samples['count']} {samples['size']}"))
    if extractor:
        columns.append(("extractor, protocol", f"{extractor['family']} {extractor['hash']}, {extractor['protocol']}"))
    if reference:
        path = reference["path"] if reference["kind"] == "data set" else Path(reference["path"]).name
        columns.append(("reference", f"{path} {reference['hash']}"))
    head, row = ([cell.replace("|", "/") for cell in cells] for cells in zip(*columns, strict=True))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), row))


def read_json(path: str | os.PathLike) -> dict:
    """Reads a result of `maskgil evaluate`. Raises a `ValueError` that names the file."""
    try:
        value = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f"{path}: not a result of maskgil evaluate (expected format {FORMAT!r})")
    return value
