"""maskgil sample: images from a pipeline folder, a few to look at or many thousand to measure."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

from maskgil_jax.commands.start import add_process_options, join_processes, prepare_jax

SHEET = 256  # the most images that make a contact sheet by themselves
WATCHED = 64  # the most whose every step is drawn


def add(command) -> None:
    sub = command("sample", run, "Generate images. An interrupted run is continued by the same command.")
    sub.add_argument("--weights", default="demo", help="pipeline folder, shipped name or hf://owner/repo (default: demo)")
    sub.add_argument("--labels", help="class names or numbers with commas between; 'list' shows them, 'all' is the default")
    sub.add_argument("--per-class", type=int, help="images per label (default: 4)")
    sub.add_argument("--num", type=int, help="images in all, the same number of each label as far as they go")
    sub.add_argument("--out", default="samples", help="folder for the images and grid.png (default: samples)")
    sub.add_argument("--format", default="png", help="png, webp (lossless), npz (as ADM's evaluation reads it) or array_record")
    sub.add_argument("--overwrite", action="store_true", help="take samples of other settings out of the folder first")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--batch-size", type=int, default=32, help="images at a time, over all devices of a process (default: 32)")
    sub.add_argument("--part-size", type=int, default=1000, help="images per part of npz and array_record (default: 1000)")
    sub.add_argument(
        "--grid", action=argparse.BooleanOptionalAction, help=f"write a contact sheet (default: up to {SHEET} images)"
    )
    sub.add_argument("--trajectory", action="store_true", help=f"draw the canvas after each step (up to {WATCHED} images)")
    sub.add_argument("--canvas", metavar="ROWSxCOLUMNS", help="tokens of the canvas, e.g. 12x16 (default: the training canvas)")
    sub.add_argument("--rope-scaling", help="for larger canvases: none, interpolate or ntk (default: stored with the weights)")
    sub.add_argument("--ar", help="weights of a causal network with the same tokenizer, for --ar-ratio")
    sub.add_argument("--ar-ratio", type=float, help="share of the tokens it writes before masked decoding (default: 0.25)")
    add_decoding_options(sub)
    add_process_options(sub)


def add_decoding_options(group) -> None:
    """One option for each decoding option there is, and `--preset`."""
    from maskgil_jax.config import DECODE_PRESETS

    group.add_argument("--preset", help=f"decoding options by name, below those given one by one: {', '.join(DECODE_PRESETS)}")
    for field in decoding_options():
        name, text = f"--{field.name.replace('_', '-')}", "decoding option (default: stored with the weights)"
        if field.type == "bool":
            group.add_argument(name, action=argparse.BooleanOptionalAction, help=text)
            continue
        kind = {"int": int, "float": float, "int | None": int, "float | None": float}.get(str(field.type), str)
        group.add_argument(name, type=kind, help=text)


def run(args, rest) -> None:
    """maskgil sample"""
    import jax

    from maskgil_jax.config import require
    from maskgil_jax.files.images import contact_sheet, save_png
    from maskgil_jax.pipelines.jobs import balanced_labels, read_samples, sample_to_folder
    from maskgil_jax.pipelines.pipeline import load

    join_processes(args)
    prepare_jax()
    require(args.ar_ratio is None or args.ar is not None, "--ar-ratio: needs --ar WEIGHTS, a causal network")
    pipeline = load(args.weights, ar=args.ar, rope_scaling=args.rope_scaling)
    if args.labels == "list":
        print("\n".join(f"{i:4d}  {name}" for i, name in enumerate(pipeline.class_names)))
        return
    ar_ratio = 0.0 if args.ar is None else 0.25 if args.ar_ratio is None else args.ar_ratio
    pipeline = with_cli_options(pipeline, args)
    wanted = (
        range(len(pipeline.class_names)) if args.labels in (None, "all") else split_labels(args.labels, pipeline.class_names)
    )
    per_class = 4 if args.per_class is None and args.num is None else args.per_class
    labels = balanced_labels(pipeline.label_ids(wanted), num=args.num, per_class=per_class)
    if args.trajectory:
        require(len(labels) <= WATCHED, f"--trajectory: at most {WATCHED} images, {len(labels)} were asked for")
        require(pipeline.masked and not ar_ratio, "--trajectory: shows the steps of masked decoding, without --ar")
    canvas = parse_pair("canvas", args.canvas)
    out = pathlib.Path(args.out)
    spread = pipeline if len(jax.local_devices()) == 1 else pipeline.over()
    sample_to_folder(
        spread,
        labels,
        args.out,
        format=args.format,
        seed=args.seed,
        batch_size=args.batch_size,
        grid=canvas,
        ar_ratio=ar_ratio,
        part_size=args.part_size,
        overwrite=args.overwrite,
    )
    if jax.process_index() != 0:
        return
    made = [f"{len(labels)} images"]
    if args.grid or (args.grid is None and len(labels) <= SHEET):
        row = len(labels) // len(wanted) if len(labels) % len(wanted) == 0 else len(labels)
        save_png(out / "grid.png", contact_sheet(read_samples(out), columns=row if len(labels) > row else None))
        made.append("grid.png")
    if args.trajectory:
        film = ".webp" if args.format == "webp" else ".gif"
        draw_steps(spread, labels, out, film, seed=args.seed, batch_size=args.batch_size, grid=canvas)
        made.append(f"trajectory.png and {film}")
    print(f"{' and '.join(made)} in {out}")


def draw_steps(pipeline, labels, out: pathlib.Path, film: str, **options) -> None:
    """trajectory.png, a row for each image and a column for each step, and a film (.gif or .webp): the contact sheet as it
    fills."""
    import numpy as np

    from maskgil_jax.files.images import contact_sheet, save_animation, save_png

    steps_tbhwc = pipeline.trajectory(labels, **options)
    rows = steps_tbhwc.swapaxes(0, 1)
    save_png(out / "trajectory.png", contact_sheet(rows.reshape(-1, *rows.shape[2:]), columns=len(steps_tbhwc)))
    save_animation(out / f"trajectory{film}", np.stack([contact_sheet(images) for images in steps_tbhwc]))


def parse_pair(option: str, text: str | None, least: int = 1) -> tuple[int, int] | None:
    """Rows and columns, both at least `least`: "12x16" -> (12, 16)."""
    from maskgil_jax.config import require

    if text is None:
        return None
    sides = text.lower().split("x")
    sound = len(sides) == 2 and all(side.isdecimal() and int(side) >= least for side in sides)
    require(sound, f"--{option}: expected ROWSxCOLUMNS of tokens, e.g. 12x16, got {text!r}")
    return int(sides[0]), int(sides[1])


def with_cli_options(pipeline, args):
    """The pipeline with the preset and the decoding options of the command line."""
    from maskgil_jax.config import decode_preset, require

    if args.preset:
        require(pipeline.masked, f"--preset: {args.weights} holds a causal generator; presets are of masked decoding")
        pipeline = dataclasses.replace(pipeline, cfg=decode_preset(args.preset))
    return with_options(pipeline, decoding_changes(args))


def decoding_changes(args) -> dict:
    """The decoding options that were given on the command line."""
    given = {field.name: getattr(args, field.name) for field in decoding_options()}
    return {name: value for name, value in given.items() if value is not None}


def decoding_options() -> list[dataclasses.Field]:
    """Options of masked and of causal decoding, each name once."""
    from maskgil_jax.config import CausalConfig, DecodeConfig

    fields = {field.name: field for kind in (CausalConfig, DecodeConfig) for field in dataclasses.fields(kind)}
    return list(fields.values())


def with_options(pipeline, changes: dict):
    """The pipeline with these decoding options; with a causal network beside it, both take those they have."""
    from maskgil_jax.config import require

    def names(cfg):
        return {field.name for field in dataclasses.fields(cfg)}

    def changed(cfg):
        return dataclasses.replace(cfg, **{name: value for name, value in changes.items() if name in names(cfg)})

    known = names(pipeline.cfg) | (names(pipeline.ar_cfg) if pipeline.ar is not None else set())
    for name in changes.keys() - known:
        kind = "masked" if pipeline.masked else "causal"
        require(False, f"--{name.replace('_', '-')}: {pipeline.name} holds a {kind} generator, which has no such option")
    return dataclasses.replace(pipeline, cfg=changed(pipeline.cfg), ar_cfg=changed(pipeline.ar_cfg))


def split_labels(text: str, class_names) -> list[str]:
    """Comma-separated names; a class name that itself holds a comma ("light, film & video") may be given whole."""
    parts, labels = [p.strip() for p in text.split(",")], []
    while parts:
        width = next((n for n in range(len(parts), 1, -1) if ", ".join(parts[:n]) in class_names), 1)
        labels.append(", ".join(parts[:width]))
        parts = parts[width:]
    return labels
