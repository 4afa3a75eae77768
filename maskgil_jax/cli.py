"""The `maskgil` command: its sub-commands, and what an error becomes. Each sub-command is a module of `commands/`.

Exit codes: 0 done, 2 usage or bad input, 3 training stopped by a guard or a plan that does not fit, 4 no usable checkpoint,
5 training hung, 75 try later (disk full, peers missing), 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys

from maskgil_jax.commands import (
    checkpoints,
    convert,
    demo,
    edit,
    encode,
    evaluate,
    pack,
    plan,
    plot,
    push,
    sample,
    stats,
    train,
)

COMMANDS = (demo, train, encode, sample, edit, evaluate, stats, plot, convert, pack, push, plan, checkpoints)


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
        exit_without_barrier(130)
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        sys.stdout = None
        return 0
    except Exception as error:
        code, sentence = exit_code(error), " ".join(str(error).split())
        if code is not None:  # else JAX's shutdown barrier ends this process, with the others
            exit_without_barrier(code)
        if code is None or args.debug:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return code


def exit_without_barrier(code: int) -> None:
    """Lets one of several processes end without waiting for the others; see `runtime.distributed`."""
    if "maskgil_jax.runtime.distributed" in sys.modules:
        from maskgil_jax.runtime import distributed

        distributed.exit_without_barrier(code)


def exit_code(error: Exception) -> int | None:
    """The exit code of an expected error; None for a bug or a lost process, whose traceback is shown."""
    from maskgil_jax.checkpoints.train_state import CheckpointError, CheckpointWriteError
    from maskgil_jax.runtime.distributed import CoordinatorTimeout, is_communication_error
    from maskgil_jax.training.metrics_log import TrainingDiverged

    if is_communication_error(error):
        return None
    if isinstance(error, TrainingDiverged):
        return 3
    if isinstance(error, CheckpointWriteError):
        return 75
    if isinstance(error, CheckpointError):
        return 4
    if isinstance(error, ValueError):
        return 2
    if isinstance(error, CoordinatorTimeout):
        return 75
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

    for module in COMMANDS:
        module.add(command)
    return parser


def _version() -> str:
    import maskgil_jax

    return f"maskgil_jax {maskgil_jax.__version__}"


if __name__ == "__main__":
    sys.exit(main())
