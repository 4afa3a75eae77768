"""maskgil demo: the whole job on the built-in emoji."""

from __future__ import annotations

import argparse
import pathlib

from maskgil_jax.commands.run_files import read_run_file
from maskgil_jax.commands.start import prepare_jax


def add(command) -> None:
    sub = command("demo", run, "Train a tokenizer and a generator on the built-in emoji and show what they make.")
    sub.add_argument(
        "--workdir", default="runs/demo", help="folder of the run; a second run continues or reuses it (default: runs/demo)"
    )
    sub.add_argument("--report", action=argparse.BooleanOptionalAction, default=True, help="measure how much was learned")
    sub.add_argument("--weights", help="report on these weights instead of training (e.g. the shipped 'demo')")


def run(args, rest) -> None:
    """maskgil demo"""
    from maskgil_jax.commands import demo_run as demo

    prepare_jax()
    demo.run(pathlib.Path(args.workdir), report=args.report, weights=args.weights, read_run_file=read_run_file)
