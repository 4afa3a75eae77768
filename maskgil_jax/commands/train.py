"""maskgil train: what a run file describes."""

from __future__ import annotations

import logging

from maskgil_jax.commands.run_files import read_run_file
from maskgil_jax.commands.start import add_process_options, prepare_jax


def add(command) -> None:
    sub = command("train", run, "Train what a run file describes; --config.x.y=z changes one of its options.", overrides=True)
    sub.add_argument(
        "--config", required=True, metavar="FILE", help="run file, e.g. configs/c2i_b.py or configs/study.py:llamagen-bi_llama"
    )
    sub.add_argument(
        "--workdir", required=True, help="folder of the run; an interrupted run is continued (or gs://bucket/folder)"
    )
    add_process_options(sub)


def run(args, rest) -> None:
    """maskgil train"""
    import jax

    from maskgil_jax.config import choose
    from maskgil_jax.distributed import initialize

    config = read_run_file(args.config, rest)
    choose("config.task", config.task, ("generator", "tokenizer", "classifier"))
    initialize(args.coordinator, args.num_processes, args.process_id)
    prepare_jax()
    lead = jax.process_index() == 0
    if not lead:  # one commentary is enough
        logging.getLogger("maskgil_jax").setLevel(logging.WARNING)
    if config.task == "generator":
        from maskgil_jax.training.generator import train
    elif config.task == "tokenizer":
        from maskgil_jax.training.tokenizer import train
    else:
        from maskgil_jax.training.classifier import train
    weights = train(config, args.workdir)
    if lead:
        print(f"weights: {weights}")
