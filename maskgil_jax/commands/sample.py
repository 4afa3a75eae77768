"""maskgil sample: images from a pipeline folder, a few to look at or many thousand to measure."""

from __future__ import annotations

import argparse
import pathlib

from maskgil_jax.commands.decoding_options import add_decoding_options, with_cli_options
from maskgil_jax.commands.parser import Parser, at_least, in_range, one_of, parse_pair, path
from maskgil_jax.commands.prompt_options import add_prompt_options, requests_of, sample_prompts
from maskgil_jax.commands.start import add_process_options, join_processes, prepare_jax

SHEET_LIMIT = 256  # up to this many images a contact sheet is written by default
TRAJECTORY_LIMIT = 64  # images whose every step may be drawn


def add(command) -> None:
    sub = command("sample", run, "Generate images. An interrupted run is continued by the same command.")
    sub.add_help_all()
    add_pipeline_options(sub)
    sub.add_argument("--labels", help="class names or numbers with commas between; 'list' prints them, 'all' is the default")
    add_prompt_options(sub)
    sub.add_argument("--per-class", type=at_least(1), metavar="N", help="images per label (default: 4)")
    sub.add_argument("--num", type=at_least(1), metavar="N", help="images in all, evenly over the labels")
    sub.add_argument("--out", type=path, default="samples", help="folder for the images and grid.png (default: samples)")
    sub.add_argument(
        "--format",
        type=one_of("png", "webp", "npz", "array_record"),
        default="png",
        help="png (default), webp (lossless), npz (as ADM's evaluation reads it) or array_record",
    )
    sub.add_argument("--overwrite", action="store_true", help="delete samples of other settings in the folder first")
    add_size_options(sub, nargs="?", const=_SHEET)
    sub.add_argument(
        "--contact-sheet",
        action=argparse.BooleanOptionalAction,
        help=f"write all images as grid.png (default: up to {SHEET_LIMIT} images)",
    )
    sub.add_argument(
        "--trajectory", action="store_true", help=f"draw the image after each step (up to {TRAJECTORY_LIMIT} images)"
    )
    sub.add_argument("--ar", metavar="WEIGHTS", help="causal network with the same tokenizer, for hybrid sampling")
    sub.add_argument(
        "--ar-ratio", type=in_range(0, 1), metavar="X", help="share of the tokens that --ar samples first (default: 0.25)"
    )
    text = "share a Chameleon's weights over N devices; the others share the images"
    sub.add_rare(sub, "--tensor", type=at_least(1), metavar="N", help=text)
    sub.add_rare(sub, "--int8", action="store_true", help="a Chameleon's layers with 8-bit weights (extra [int8])")
    sub.add_rare(
        sub,
        "--part-size",
        type=at_least(1),
        default=1000,
        metavar="N",
        help="images per part of npz and array_record (default: 1000)",
    )
    add_decoding_options(sub)
    add_process_options(sub)


_SHEET = object()  # `--grid` without a value: the contact sheet's option in version 0.1


def add_size_options(sub: Parser, **grid) -> None:
    """The size of the images, in pixels or in tokens; `grid`: how argparse reads `--grid`."""
    sub.add_argument("--height", type=at_least(1), metavar="N", help="height in pixels (default: the training size)")
    sub.add_argument("--width", type=at_least(1), metavar="N", help="width in pixels (default: the training size)")
    text = "rows and columns of tokens, e.g. 12x16, instead of --height and --width"
    sub.add_argument("--grid", metavar="ROWSxCOLUMNS", help=text, **grid)


def grid_of(pipeline, args) -> tuple[int, int] | None:
    """(rows, columns) of tokens of the options above; None if none was given."""
    grid = parse_pair("grid", args.grid)
    if grid is None and args.height is None and args.width is None:
        return None
    return pipeline.grid_of(args.height, args.width, grid)


def add_pipeline_options(sub: Parser) -> None:
    """The options of commands that load a pipeline and draw images."""
    sub.add_argument(
        "--weights", type=path, default="demo", help="pipeline folder, shipped name or hf://owner/repo (default: demo)"
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all random draws (default: 0)")
    sub.add_argument(
        "--batch-size", type=at_least(1), default=32, metavar="N", help="images drawn together, over all devices (default: 32)"
    )
    sub.add_rare(
        sub,
        "--rope-scaling",
        type=one_of("none", "interpolate", "ntk"),
        metavar="NAME",
        help="positions on larger grids: none, interpolate or ntk (default: stored with the weights)",
    )


def run(args, rest) -> None:
    """maskgil sample"""
    import jax

    from maskgil_jax.config import require
    from maskgil_jax.files.images import contact_sheet, save_png
    from maskgil_jax.pipelines.jobs import balanced_labels, read_samples, sample_to_folder
    from maskgil_jax.pipelines.pipeline import load
    from maskgil_jax.runtime.mesh import make_mesh

    if args.labels == "list":
        print("\n".join(f"{i:4d}  {name}" for i, name in enumerate(class_names_of(args.weights))))
        return
    _read_old_grid(args)
    requests = requests_of(args)
    require(args.ar_ratio is None or args.ar is not None, "--ar-ratio: needs --ar WEIGHTS, a causal network")

    join_processes(args)
    prepare_jax()
    options = dict(rope_scaling=args.rope_scaling, text_encoder=args.text_encoder)
    options |= dict(mesh=make_mesh(tensor=args.tensor) if args.tensor else None, kernels="int8" if args.int8 else None)
    pipeline = with_cli_options(load(args.weights, ar=args.ar, **options), args)
    if len(jax.local_devices()) > 1 and pipeline.mesh is None:
        pipeline = pipeline.over()
    ar_ratio = 0.0 if args.ar is None else 0.25 if args.ar_ratio is None else args.ar_ratio
    if requests is not None:
        sample_prompts(pipeline, requests, args, ar_ratio)
        return

    names = pipeline.class_names
    requested = range(len(names)) if args.labels in (None, "all") else split_labels(args.labels, names)
    per_class = 4 if args.per_class is None and args.num is None else args.per_class
    labels = balanced_labels(pipeline.label_ids(requested), num=args.num, per_class=per_class)
    if args.trajectory:
        require(len(labels) <= TRAJECTORY_LIMIT, f"--trajectory: at most {TRAJECTORY_LIMIT} images, got {len(labels)}")
        require(pipeline.masked and not ar_ratio, "--trajectory: shows the steps of masked decoding, without --ar")

    out = pathlib.Path(args.out)
    options = dict(seed=args.seed, batch_size=args.batch_size, grid=grid_of(pipeline, args))
    sample_to_folder(
        pipeline,
        labels,
        args.out,
        format=args.format,
        ar_ratio=ar_ratio,
        part_size=args.part_size,
        overwrite=args.overwrite,
        **options,
    )
    if jax.process_index() != 0:
        return
    written = [f"{len(labels)} images"]
    if args.contact_sheet or (args.contact_sheet is None and len(labels) <= SHEET_LIMIT):
        row = len(labels) // len(requested) if len(labels) % len(requested) == 0 else len(labels)
        save_png(out / "grid.png", contact_sheet(read_samples(out), columns=row if len(labels) > row else None))
        written.append("grid.png")
    if args.trajectory:
        suffix = ".webp" if args.format == "webp" else ".gif"
        save_trajectory(pipeline, labels, out, suffix, **options)
        written.append(f"trajectory.png and {suffix}")
    print(f"{' and '.join(written)} in {out}")


def _read_old_grid(args) -> None:
    """`--grid` without a value asked for the contact sheet in version 0.1."""
    from maskgil_jax.config.base import warn_renamed

    if args.grid is _SHEET:
        warn_renamed("--grid without a value", "--contact-sheet")
        args.grid, args.contact_sheet = None, True


def class_names_of(weights: str) -> list[str]:
    """The class names of a pipeline folder, from its `config.json` alone."""
    from maskgil_jax.checkpoints.weights import read_metadata, resolve

    about = read_metadata(resolve(weights, "generator"))
    return about.get("class_names") or [str(i) for i in range(about["options"].get("num_classes", 0))]


def save_trajectory(pipeline, labels, out: pathlib.Path, suffix: str, **options) -> None:
    """Writes trajectory.png, a row an image and a column a step, and an animation of the contact sheet (.gif or
    .webp)."""
    import numpy as np

    from maskgil_jax.files.images import contact_sheet, save_animation, save_png

    steps_tbhwc = pipeline.trajectory(labels, **options)
    rows = steps_tbhwc.swapaxes(0, 1)
    save_png(out / "trajectory.png", contact_sheet(rows.reshape(-1, *rows.shape[2:]), columns=len(steps_tbhwc)))
    save_animation(out / f"trajectory{suffix}", np.stack([contact_sheet(images) for images in steps_tbhwc]))


def split_labels(text: str, class_names) -> list[str]:
    """Comma-separated names; a class name that itself holds a comma ("light, film & video") may be given whole."""
    parts, labels = [p.strip() for p in text.split(",")], []
    while parts:
        width = next((n for n in range(len(parts), 1, -1) if ", ".join(parts[:n]) in class_names), 1)
        labels.append(", ".join(parts[:width]))
        parts = parts[width:]
    return labels
