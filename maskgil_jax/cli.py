"""The `maskgil` command. Each sub-command parses its options here and does its work in the room it belongs to.

Exit codes: 0 done, 2 usage or bad input, 3 training stopped by a guard, 4 no usable checkpoint, 75 try later (disk full),
130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import pathlib
import sys

CONFIGS = [pathlib.Path(__file__).parents[1] / "configs", pathlib.Path(__file__).parent / "configs"]  # clone, installed


def main(argv: list[str] | None = None) -> int:
    """Runs one sub-command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not getattr(args, "takes_overrides", False):
        parser.error(f"unknown option {rest[0]}; see maskgil {args.command} --help")
    logging.basicConfig(level=logging.INFO if args.command else logging.WARNING, format="%(message)s", stream=sys.stderr)
    for noisy in ("absl", "jax", "orbax", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return args.run(args, rest) or 0
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        sys.stdout = None
        return 0
    except Exception as error:
        code = exit_code(error)
        if code is None or args.debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return code


def exit_code(error: Exception) -> int | None:
    """The exit code of an expected error; None for a bug, which deserves its traceback."""
    from maskgil_jax.checkpoints.training import CheckpointError
    from maskgil_jax.training.log import TrainingDiverged

    if isinstance(error, TrainingDiverged):
        return 3
    if isinstance(error, CheckpointError):
        return 4
    if isinstance(error, ValueError):
        return 2
    if isinstance(error, OSError):
        return 75 if error.errno == 28 else 2
    return None


def make_parser() -> argparse.ArgumentParser:
    """All sub-commands and their options."""
    parser = argparse.ArgumentParser(prog="maskgil", description="Masked image generation in JAX.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, text: str, *, overrides: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=run, takes_overrides=overrides)
        return sub

    sub = command("demo", run_demo, "Train a tokenizer and a generator on the built-in emoji and show what they make.")
    sub.add_argument(
        "--workdir", default="runs/demo", help="folder of the run; a second run continues or reuses it (default: runs/demo)"
    )
    sub.add_argument("--report", action=argparse.BooleanOptionalAction, default=True, help="measure how much was learned")
    sub.add_argument("--weights", help="report on these weights instead of training (e.g. the shipped 'demo')")

    sub = command(
        "train", run_train, "Train what a run file describes; --config.x.y=z changes one of its options.", overrides=True
    )
    sub.add_argument("--config", required=True, metavar="FILE", help="run file, e.g. configs/c2i_b.py")
    sub.add_argument("--workdir", required=True, help="folder of the run; an interrupted run is continued")

    sub = command("encode", run_encode, "Tokenise a data set once into a code store.")
    sub.add_argument("--tokenizer", required=True, help="weights folder of the tokenizer")
    sub.add_argument("--out", required=True, help="folder of the store; an interrupted run is continued")
    sub.add_argument(
        "--data.path", dest="path", required=True, help="emoji, a folder with one sub-folder per class, or tfds:NAME"
    )
    sub.add_argument("--data.split", dest="split", default="train")
    sub.add_argument("--data.label", dest="label", default="subgroup", help="emoji only: subgroup, group or style")
    sub.add_argument("--data.dir", dest="data_dir", help="tfds only: where the prepared data are")
    sub.add_argument("--image-size", type=int, help="default: the tokenizer's training size")
    sub.add_argument("--batch-size", type=int, default=32)
    sub.add_argument("--num-workers", type=int, default=0)
    sub.add_argument("--flip", action="store_true", help="also store each image mirrored")
    sub.add_argument("--ten-crop", action="store_true", help="store ten crops of each image, as LlamaGen")

    sub = command("pack", run_pack, "Write a pipeline folder in half precision, to be shared.")
    sub.add_argument("weights", help="pipeline folder, e.g. runs/emoji/weights")
    sub.add_argument("out", help="folder to write")

    sub = command("sample", run_sample, "Generate images.")
    sub.add_argument("--weights", default="demo", help="pipeline folder, shipped name or hf://owner/repo (default: demo)")
    sub.add_argument("--labels", help="class names or numbers with commas between; 'list' shows them, 'all' is the default")
    sub.add_argument("--per-class", type=int, default=4, help="images per label (default: 4)")
    sub.add_argument("--out", default="samples", help="folder for the images and grid.png (default: samples)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--batch-size", type=int, default=32)
    from maskgil_jax.config import DecodeConfig

    for field in dataclasses.fields(DecodeConfig):
        kind = {"int": int, "float": float, "int | None": int, "float | None": float}.get(str(field.type), str)
        sub.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, help="decoding option (default: stored with the weights)"
        )

    sub = command("convert", run_convert, "Turn a published weight file (PyTorch, safetensors) into a weights folder.")
    sub.add_argument("file", nargs="?", metavar="FILE", help="weight file or folder of shards; nothing in it is ever run")
    sub.add_argument("out", nargs="?", metavar="OUT", help="weights folder to write")
    sub.add_argument("--list", action="store_true", help="show the families of files that are known")
    sub.add_argument("--family", help="what the file is (default: told by its names)")
    sub.add_argument("--key", help="outer key of the file to take, e.g. model (default: the usual ones, EMA first)")
    sub.add_argument("--dtype", default="float32", help="of the values written: float32 or float16 (default: float32)")
    sub.add_argument("--set", action="append", default=[], metavar="NAME=N", help="what the file does not say, e.g. heads=12")

    sub = command("inspect", run_inspect, "Show what a weight file holds and what it can be converted to.")
    sub.add_argument("file", metavar="FILE")
    sub.add_argument("--family", help="try it as this family (default: told by its names)")
    sub.add_argument("--key", help="outer key of the file to look into")

    sub = command("export", run_export, "Write a weights folder as a file that the original PyTorch code loads.")
    sub.add_argument("weights", metavar="WEIGHTS", help="weights folder, shipped name or hf://owner/repo")
    sub.add_argument("out", metavar="OUT", help="file to write: .safetensors, or .pt (needs torch)")
    sub.add_argument("--to", required=True, metavar="FAMILY", help="see maskgil convert --list")
    return parser


def _version() -> str:
    import maskgil_jax

    return f"maskgil_jax {maskgil_jax.__version__}"


def read_run_file(path: str, overrides: list[str]):
    """A run file (a Python program, trusted as one) with `--config.x.y=z` applied; a typo is refused with a suggestion."""
    from absl import flags
    from ml_collections import config_flags

    from maskgil_jax.config import ConfigError

    file = next((f for f in [pathlib.Path(path), *(c / f"{path}.py" for c in CONFIGS)] if f.is_file()), None)
    if file is None:
        raise ConfigError(f"--config: no run file {path}")
    argv = ["maskgil", f"--config={file}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
        config = values.config
        _ = config.task
    except (flags.Error, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: {str(error).strip(chr(34))}") from error
    if len(rest) > 1:
        raise ConfigError(f"unknown option {rest[1]}; options of a run file are written --config.name=value")
    return config


def run_train(args, rest) -> None:
    """maskgil train"""
    from maskgil_jax.config import choose

    config = read_run_file(args.config, rest)
    choose("config.task", config.task, ("generator", "tokenizer", "classifier"))
    prepare_jax()
    if config.task == "generator":
        from maskgil_jax.training.generator import train
    elif config.task == "tokenizer":
        from maskgil_jax.training.tokenizer import train
    else:
        from maskgil_jax.training.classifier import train
    print(f"weights: {train(config, args.workdir)}")


def run_demo(args, rest) -> None:
    """maskgil demo"""
    from maskgil_jax import demo

    prepare_jax()
    demo.run(pathlib.Path(args.workdir), report=args.report, weights=args.weights, read_run_file=read_run_file)


def run_encode(args, rest) -> None:
    """maskgil encode"""
    import jax

    from maskgil_jax.checkpoints.weights import load_weights
    from maskgil_jax.data.images import open_images
    from maskgil_jax.pipeline import encode_source

    prepare_jax()
    weights = load_weights(args.tokenizer, "tokenizer")
    image_size = args.image_size or weights.cfg.image_size
    source = open_images(args.path, split=args.split, label=args.label, size=image_size, data_dir=args.data_dir)
    store = encode_source(
        weights,
        source,
        args.out,
        image_size=image_size,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        flip=args.flip,
        ten_crop=args.ten_crop,
    )
    print(f"codes: {store} ({len(source)} images, on {jax.default_backend()})")


def run_pack(args, rest) -> None:
    """maskgil pack"""
    from maskgil_jax.pipeline import pack

    pack(args.weights, args.out)
    print(f"weights: {args.out}")


def run_sample(args, rest) -> None:
    """maskgil sample"""
    import numpy as np
    from tqdm import tqdm

    from maskgil_jax.config import DecodeConfig, require
    from maskgil_jax.pictures import grid_of, save_png
    from maskgil_jax.pipeline import load

    prepare_jax()
    require(args.per_class >= 1, f"--per-class: must be at least 1, got {args.per_class}")
    pipeline = load(args.weights)
    if args.labels == "list":
        print("\n".join(f"{i:4d}  {name}" for i, name in enumerate(pipeline.class_names)))
        return
    changes = {f.name: getattr(args, f.name) for f in dataclasses.fields(DecodeConfig)}
    cfg = dataclasses.replace(pipeline.cfg, **{name: value for name, value in changes.items() if value is not None})
    wanted = (
        range(len(pipeline.class_names)) if args.labels in (None, "all") else split_labels(args.labels, pipeline.class_names)
    )
    labels = np.repeat(pipeline.label_ids(wanted), args.per_class)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    images = []
    with tqdm(total=len(labels), unit="image", disable=None) as bar:
        for batch in pipeline.batches(labels, seed=args.seed, cfg=cfg, batch_size=args.batch_size):
            for image in batch:
                save_png(out / f"{len(images):06d}.png", image)
                images.append(image)
            bar.update(len(batch))
    save_png(out / "grid.png", grid_of(np.stack(images), columns=args.per_class if len(labels) > args.per_class else None))
    print(f"{len(images)} images and grid.png in {out}")


def run_convert(args, rest) -> None:
    """maskgil convert"""
    from maskgil_jax.config import require
    from maskgil_jax.convert import main as work

    if args.list:
        print(work.list_families())
        return
    require(args.file is not None and args.out is not None, "convert: needs FILE and OUT, or --list")
    options = dict(map(split_setting, args.set))
    print(work.convert(args.file, args.out, family=args.family, key=args.key, dtype=args.dtype, options=options))


def split_setting(text: str) -> tuple[str, int | list[int]]:
    """ "heads=12" -> ("heads", 12), "grid=24x16" -> ("grid", [24, 16])."""
    from maskgil_jax.config import ConfigError

    name, _, value = text.partition("=")
    numbers = value.split("x")
    if not all(n.isascii() and n.isdigit() and len(n) < 9 for n in numbers):
        raise ConfigError(f"--set: expected NAME=N (or grid=ROWSxCOLUMNS), got {text!r}")
    return name.strip(), int(value) if len(numbers) == 1 else [int(n) for n in numbers]


def run_inspect(args, rest) -> None:
    """maskgil inspect"""
    from maskgil_jax.convert.main import inspect

    print(inspect(args.file, key=args.key, family=args.family))


def run_export(args, rest) -> None:
    """maskgil export"""
    from maskgil_jax.convert.main import export_file

    print(f"{args.to}: {export_file(args.weights, args.out, args.to)}")


def split_labels(text: str, class_names) -> list[str]:
    """Comma-separated names; a class name that itself holds a comma ("light, film & video") may be given whole."""
    parts, labels = [p.strip() for p in text.split(",")], []
    while parts:
        width = next((n for n in range(len(parts), 1, -1) if ", ".join(parts[:n]) in class_names), 1)
        labels.append(", ".join(parts[:width]))
        parts = parts[width:]
    return labels


def prepare_jax() -> None:
    """A persistent compilation cache: the second run of the same program starts at once."""
    import os

    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(pathlib.Path.home() / ".cache" / "maskgil_jax" / "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


if __name__ == "__main__":
    sys.exit(main())
