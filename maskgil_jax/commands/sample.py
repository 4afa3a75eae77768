"""maskgil sample: images from a pipeline folder."""

from __future__ import annotations

import dataclasses
import pathlib

from maskgil_jax.commands.start import prepare_jax


def add(command) -> None:
    sub = command("sample", run, "Generate images.")
    sub.add_argument("--weights", default="demo", help="pipeline folder, shipped name or hf://owner/repo (default: demo)")
    sub.add_argument("--labels", help="class names or numbers with commas between; 'list' shows them, 'all' is the default")
    sub.add_argument("--per-class", type=int, default=4, help="images per label (default: 4)")
    sub.add_argument("--out", default="samples", help="folder for the images and grid.png (default: samples)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--batch-size", type=int, default=32)
    sub.add_argument("--ar", help="weights of a causal network with the same tokenizer, for --ar-ratio")
    sub.add_argument("--ar-ratio", type=float, help="share of the tokens it writes before masked decoding (default: 0.25)")
    from maskgil_jax.config import DECODE_PRESETS

    sub.add_argument("--preset", help=f"decoding options by name, below those given one by one: {', '.join(DECODE_PRESETS)}")
    add_decoding_options(sub)


def add_decoding_options(group) -> None:
    """One option for each decoding option there is."""
    for field in decoding_options():
        kind = {"int": int, "float": float, "int | None": int, "float | None": float}.get(str(field.type), str)
        group.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, help="decoding option (default: stored with the weights)"
        )


def run(args, rest) -> None:
    """maskgil sample"""
    import numpy as np
    from tqdm import tqdm

    from maskgil_jax.config import decode_preset, require
    from maskgil_jax.pictures import grid_of, save_png
    from maskgil_jax.pipeline import load

    prepare_jax()
    require(args.per_class >= 1, f"--per-class: must be at least 1, got {args.per_class}")
    require(args.ar_ratio is None or args.ar is not None, "--ar-ratio: needs --ar WEIGHTS, a causal network")
    pipeline = load(args.weights, ar=args.ar)
    ar_ratio = 0.0 if args.ar is None else 0.25 if args.ar_ratio is None else args.ar_ratio
    if args.labels == "list":
        print("\n".join(f"{i:4d}  {name}" for i, name in enumerate(pipeline.class_names)))
        return
    if args.preset:
        require(pipeline.masked, f"--preset: {args.weights} holds a causal generator; presets are of masked decoding")
        pipeline = dataclasses.replace(pipeline, cfg=decode_preset(args.preset))
    pipeline = with_options(pipeline, decoding_changes(args))
    wanted = (
        range(len(pipeline.class_names)) if args.labels in (None, "all") else split_labels(args.labels, pipeline.class_names)
    )
    labels = np.repeat(pipeline.label_ids(wanted), args.per_class)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    images = []
    with tqdm(total=len(labels), unit="image", disable=None) as bar:
        for batch in pipeline.batches(labels, seed=args.seed, batch_size=args.batch_size, ar_ratio=ar_ratio):
            for image in batch:
                save_png(out / f"{len(images):06d}.png", image)
                images.append(image)
            bar.update(len(batch))
    save_png(out / "grid.png", grid_of(np.stack(images), columns=args.per_class if len(labels) > args.per_class else None))
    print(f"{len(images)} images and grid.png in {out}")


def decoding_options() -> list[dataclasses.Field]:
    """Options of masked and of causal decoding, each name once."""
    from maskgil_jax.config import CausalConfig, DecodeConfig

    fields = {field.name: field for kind in (CausalConfig, DecodeConfig) for field in dataclasses.fields(kind)}
    return list(fields.values())


def decoding_changes(args) -> dict:
    """The decoding options that were given on the command line."""
    given = {field.name: getattr(args, field.name) for field in decoding_options()}
    return {name: value for name, value in given.items() if value is not None}


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
