"""maskgil train: what a run file describes."""

from __future__ import annotations

import logging

from maskgil_jax.commands.run_files import read_run_file
from maskgil_jax.commands.start import add_process_options, join_processes, prepare_jax


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

    from maskgil_jax.config.training import check_run_file

    config = read_run_file(args.config, rest)
    check_run_file(config.to_dict())
    join_processes(args)
    prepare_jax()
    lead = jax.process_index() == 0
    if not lead:  # one process logs
        logging.getLogger("maskgil_jax").setLevel(logging.WARNING)
    if config.task == "generator":
        from maskgil_jax.training import generator

        weights = generator.train(config, args.workdir, evaluator_of(config))
    elif config.task == "tokenizer":
        from maskgil_jax.training import tokenizer

        weights = tokenizer.train(config, args.workdir)
    else:
        from maskgil_jax.training import classifier

        weights = classifier.train(config, args.workdir)
    if lead:
        print(f"weights: {weights}")


def evaluator_of(config):
    """The evaluator of a generator in training, None unless `config.evaluate` asks for it."""
    if not config.get("evaluate") or not config.evaluate.every:
        return None
    from maskgil_jax.evaluation.during import SampleEvaluator

    data = config.data
    return SampleEvaluator(config.evaluate, image_size=data.image_size, data_label=data.label, data_dir=data.data_dir or None)
