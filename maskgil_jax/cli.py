"""The `maskgil` command: its sub-commands, and what an error becomes. Each sub-command is a module of `commands/`.

Exit codes: 0 done, 2 usage or bad input, 3 training stopped by a guard or a plan that does not fit, 4 no usable
checkpoint, 5 training hung, 75 try later (disk full, peers missing), 130 interrupted.
"""

from __future__ import annotations

import logging
import sys

from maskgil_jax.commands import (
    checkpoints,
    configs,
    convert,
    demo,
    edit,
    encode,
    evaluate,
    export,
    pack,
    plan,
    plot,
    push,
    sample,
    serve,
    speak,
    stats,
    train,
)
from maskgil_jax.commands.parser import Parser, with_new_names

COMMANDS = (
    demo,
    train,
    configs,
    encode,
    sample,
    edit,
    speak,
    serve,
    evaluate,
    stats,
    plot,
    convert,
    pack,
    push,
    export,
    plan,
    checkpoints,
)


def main(argv: list[str] | None = None) -> int:
    """Runs one sub-command; returns its exit code. Wrong usage ends the program with code 2."""
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("absl", "jax", "orbax", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    # A sub-command is parsed by its own parser, so that usage lines and suggestions are its own.
    parser, words = make_parser().find(argv)
    words = with_new_names(words, parser)
    parser.check_names(words)
    args, rest = parser.parse_known_args(words)
    if parser.commands:
        parser.error(f"COMMAND: missing, it comes before all options; choose from {', '.join(parser.commands)}")
    if rest and not args.takes_overrides:
        parser.unknown(rest[0])

    try:
        return args.run(args, rest) or 0
    except KeyboardInterrupt:
        exit_without_barrier(130)
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe (head, less) has closed it
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


def make_parser() -> Parser:
    """All sub-commands and their options."""
    parser = Parser(prog="maskgil", description="Masked image generation in JAX.")
    parser.add_argument("--version", action="version", version=_version())

    def command(name: str, run, text: str, *, overrides: bool = False) -> Parser:
        sub = parser.add_command(name, text, run=run, takes_overrides=overrides, command=name)
        add_debug(sub)
        return sub

    for module in COMMANDS:
        module.add(command)
    return parser


def add_debug(parser: Parser) -> None:
    """The option of every sub-command."""
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")


def _version() -> str:
    import maskgil_jax

    return f"maskgil_jax {maskgil_jax.__version__}"


if __name__ == "__main__":
    sys.exit(main())
