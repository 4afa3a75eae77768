"""maskgil demo: pictures and one page from the shipped weights; --train: the whole job from nothing first."""

from __future__ import annotations

import argparse
import pathlib

from maskgil_jax.commands.parser import path
from maskgil_jax.commands.run_files import read_run_file
from maskgil_jax.commands.start import prepare_jax


def add(command) -> None:
    sub = command(
        "demo",
        run,
        "Draw with the shipped weights: class and prompt sheets, inpainting, a trajectory, reconstructions, one HTML page. "
        "--train trains a tokenizer and a generator on the built-in drawings first.",
    )
    sub.add_argument(
        "--workdir",
        type=path,
        default="runs/demo",
        help="folder of pictures and page; with --train also of the run, which a second call continues (default: runs/demo)",
    )
    sub.add_argument("--train", action="store_true", help="train from nothing first, about ten minutes on two CPU cores")
    sub.add_argument(
        "--weights", type=path, help="class-conditional pipeline folder to draw with (default: the shipped 'emoji')"
    )
    sub.add_argument(
        "--text-weights",
        type=path,
        default="emoji_text",
        help="text-conditional pipeline folder for the prompt sheet (default: the shipped 'emoji_text')",
    )
    sub.add_argument("--report", action=argparse.BooleanOptionalAction, default=True, help="compute the table of figures")


def run(args, rest) -> None:
    """maskgil demo"""
    from maskgil_jax.commands import demo_run
    from maskgil_jax.config import require

    require(not (args.train and args.weights), "--train, --weights: give one of them")
    prepare_jax()
    workdir = pathlib.Path(args.workdir)
    weights = demo_run.train(workdir, read_run_file) if args.train else args.weights or "emoji"
    demo_run.draw(workdir, weights, args.text_weights, report=args.report)
