"""What an evaluation says: a table for people, JSON for programs, a Markdown row to paste; with all that made the figures."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path

FORMAT = "maskgil_jax evaluation 1"
# figure -> (name in tables, digits after the point)
SHOWN = {
    "fid": ("FID", 4),
    "sfid": ("sFID", 4),
    "is": ("IS", 3),
    "precision": ("Precision", 4),
    "recall": ("Recall", 4),
    "density": ("Density", 4),
    "coverage": ("Coverage", 4),
    "kid": ("KID x 1000", 4),
    "agreement": ("Agreement", 4),
    "clipscore": ("CLIPScore", 3),
    "rfid": ("rFID", 4),
    "rfid_train": ("rFID (train ref.)", 4),
    "psnr": ("PSNR dB", 3),
    "ssim": ("SSIM", 4),
    "lpips": ("LPIPS", 4),
    "usage": ("Usage", 4),
    "perplexity": ("Perplexity", 1),
}


def provenance() -> dict:
    """Format, versions and device: the head of every result."""
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


def name_of(figure: str, extractor: dict) -> str:
    """A figure's name in tables; what is not from the FID Inception is not called FID or IS."""
    name = SHOWN[figure][0]
    if extractor.get("family") == "inception":
        return name
    tag = extractor.get("family", "")
    others = {"fid": "Frechet distance", "rfid": "reconstruction Frechet distance", "is": "exp(KL)", "kid": "MMD x 1000"}
    others["rfid_train"] = "reconstruction Frechet distance (train ref.)"
    return f"{others[figure]} ({tag})" if figure in others else name


def value_of(figure: str, figures: dict) -> str:
    """A figure as text."""
    scale = 1000 if figure == "kid" else 1
    text = f"{scale * figures[figure]:.{SHOWN[figure][1]}f}"
    if f"{figure}_std" in figures:
        text += f" +- {scale * figures[f'{figure}_std']:.{SHOWN[figure][1]}f}"
    return text


def shown(result: dict) -> list[tuple[str, str, str]]:
    """(figure, name, value) of everything a result has to show, in one fixed order."""
    figures = result["figures"]
    return [(f, name_of(f, result.get("extractor") or {}), value_of(f, figures)) for f in SHOWN if f in figures]


def as_table(result: dict) -> str:
    """Figures, then what was compared with what, then warnings and notes: for a terminal."""
    rows = [(name, value) for _, name, value in shown(result)]
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
    """A header and a row ready to paste, with what has to be named beside the figures."""
    columns = [(name, value) for _, name, value in shown(result)]
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
    """A result of `maskgil evaluate --json`. Raises a `ValueError` naming the file."""
    try:
        value = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f"{path}: not a result of maskgil evaluate (expected format {FORMAT!r})")
    return value
