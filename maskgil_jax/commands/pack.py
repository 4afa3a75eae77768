"""maskgil pack: a pipeline folder in half precision, to be shared."""

from __future__ import annotations


def add(command) -> None:
    sub = command("pack", run, "Write a pipeline folder in half precision, to be shared.")
    sub.add_argument("weights", help="pipeline folder, e.g. runs/emoji/weights")
    sub.add_argument("out", help="folder to write")


def run(args, rest) -> None:
    """maskgil pack"""
    from maskgil_jax.pipelines.packing import pack

    pack(args.weights, args.out)
    print(f"weights: {args.out}")
