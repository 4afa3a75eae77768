"""maskgil convert and inspect: weight files of other projects."""

from __future__ import annotations

import argparse


class ListFamilies(argparse.Action):
    """`--list` prints and exits, as --help does, so that FILE and OUT can be required positional arguments."""

    def __call__(self, parser, namespace, values, option_string=None):
        from maskgil_jax.convert.main import list_families

        print(list_families())
        parser.exit()


def add(command) -> None:
    sub = command("convert", run_convert, "Turn a published weight file (PyTorch, safetensors, flax) into a weights folder.")
    sub.add_argument(
        "file", metavar="FILE", help="weight file, folder of shards, or pipeline folder of diffusers; no code in it is run"
    )
    sub.add_argument("out", metavar="OUT", help="weights folder to write")
    sub.add_argument("--list", action=ListFamilies, nargs=0, help="list the known families of files and exit")
    sub.add_argument("--family", help="family of the file (default: identified by its tensor names)")
    sub.add_argument("--key", help="outer key of the file to take, e.g. model (default: the usual ones, EMA first)")
    sub.add_argument("--dtype", help="type of the values written: float32, float16 or bfloat16 (default: float32)")
    sub.add_argument(
        "--variant", help="files of a pipeline folder to take, e.g. fp16 (default: the plain ones if there are any)"
    )
    sub.add_argument("--tokenizer", metavar="FILE", help="the tokenizer's file: OUT becomes a pipeline folder")
    sub.add_argument(
        "--text-encoder", metavar="FOLDER", help="with --tokenizer: folder of flan-t5-xl, for LlamaGen's text network"
    )
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=N",
        help="an option that no tensor states, e.g. heads=12, grid=16x24 or num_classes=10",
    )

    sub = command("inspect", run_inspect, "Show what a weight file holds and what it can be converted to.")
    sub.add_argument("file", metavar="FILE")
    sub.add_argument("--family", help="family to plan for (default: identified by the tensor names)")
    sub.add_argument("--key", help="outer key of the file to show")


def run_convert(args, rest) -> None:
    """maskgil convert"""
    from maskgil_jax.config import require
    from maskgil_jax.convert.diffusers_folder import convert_folder, is_pipeline_folder
    from maskgil_jax.convert.main import convert
    from maskgil_jax.convert.weight_pairs import convert_pair

    options = dict(map(split_setting, args.set))
    if is_pipeline_folder(args.file):
        given = next((f"--{name}" for name in ("family", "key", "set", "tokenizer", "text_encoder") if getattr(args, name)), "")
        require(not given, f"{given.replace('_', '-')}: is for a weight file; {args.file} is a pipeline folder of diffusers")
        print(convert_folder(args.file, args.out, variant=args.variant, dtype=args.dtype))
        return
    require(args.variant is None, f"--variant: is for a pipeline folder of diffusers; {args.file} is not one")
    dtype = args.dtype or "float32"
    if args.tokenizer:
        pair = dict(tokenizer=args.tokenizer, text_encoder=args.text_encoder)
        print(convert_pair(args.file, args.out, dtype=dtype, options=options, **pair))
        return
    require(args.text_encoder is None, "--text-encoder: needs --tokenizer FILE, to make a pipeline folder")
    print(convert(args.file, args.out, family=args.family, key=args.key, dtype=dtype, options=options))


def split_setting(text: str) -> tuple[str, int | float | bool | str | list[int]]:
    """ "heads=12" -> ("heads", 12), "grid=24x16" -> ("grid", [24, 16]), "norm_eps=1e-6", "mask_logit=false",
    "positions=2d"."""
    from maskgil_jax.config import ConfigError

    name, _, value = text.partition("=")
    name, numbers = name.strip(), value.split("x")
    if all(n.isascii() and n.isdigit() and len(n) < 9 for n in numbers):
        return name, int(value) if len(numbers) == 1 else [int(n) for n in numbers]
    if value in ("true", "false"):
        return name, value == "true"
    try:
        return name, float(value)
    except ValueError:
        if value.isidentifier() or value.replace("_", "").isalnum():
            return name, value
        raise ConfigError(f"--set: expected NAME=N (or grid=ROWSxCOLUMNS), got {text!r}") from None


def run_inspect(args, rest) -> None:
    """maskgil inspect"""
    from maskgil_jax.convert.main import inspect

    print(inspect(args.file, key=args.key, family=args.family))
