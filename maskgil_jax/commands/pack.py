"""maskgil pack: a pipeline folder in half precision or int8, to be shared."""

from __future__ import annotations

from maskgil_jax.commands.parser import one_of


def add(command) -> None:
    sub = command("pack", run, "Write a pipeline folder in half precision or int8, to be shared.")
    sub.add_argument("weights", help="pipeline folder, e.g. runs/emoji/weights")
    sub.add_argument("out", help="folder to write")
    text = "of the generator's matrices (default: float16); the tokenizer is written in float16"
    sub.add_argument("--dtype", type=one_of("float16", "int8"), default="float16", help=text)


def run(args, rest) -> None:
    """maskgil pack"""
    from maskgil_jax.pipelines.packing import pack

    pack(args.weights, args.out, args.dtype)
    print(f"weights: {args.out}")
