"""The argument parser of the sub-commands: short usage lines, `--help-all` for rare options,
errors with the nearest name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from maskgil_jax.config.base import nearest, warn_renamed

# Command-line options of version 0.1 that are accepted with one warning: old -> new, where a sub-command has the new
# one.
RENAMED_FLAGS = {"--canvas": "--grid", "--no-grid": "--no-contact-sheet", "--share": "--strength", "--images": "--batch-mode"}


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose usage line names what is required, and whose errors name the nearest option.

    An option is rare if it was added with `add_rare`: `--help` leaves it out, `--help-all` prints it.
    """

    def __init__(self, **options):
        super().__init__(**{"allow_abbrev": False, "formatter_class": _Formatter, **options})
        self.rare: dict[argparse.Action, str] = {}
        self.commands: dict[str, Parser] = {}
        self._menu: argparse._SubParsersAction | None = None

    def add_rare(self, group, *names: str, help: str, **options) -> None:
        """Adds an option to `group` that only `--help-all` prints."""
        self.add_help_all()
        self.rare[group.add_argument(*names, help=argparse.SUPPRESS, **options)] = help

    def add_help_all(self) -> None:
        """Adds `--help-all`, unless it is there already."""
        if "--help-all" not in self._option_string_actions:
            self.add_argument("--help-all", action=_HelpAll, help="show rare options too and exit")

    def add_command(self, name: str, text: str, **defaults) -> Parser:
        """A parser of a sub-command; `defaults` are set in its namespace."""
        if self._menu is None:
            self._menu = self.add_subparsers(metavar="COMMAND", parser_class=Parser)
        sub = self.commands[name] = self._menu.add_parser(name, help=text, description=text)
        sub.set_defaults(**defaults)
        return sub

    def format_usage(self) -> str:
        """One line: the program, what is required, "[options]"."""
        if self.commands:
            return f"usage: {self.prog} COMMAND [options]\n"
        words = [self.prog]
        for action in self._actions:
            if action.option_strings and action.required:
                words += [action.option_strings[0], _metavar(action)]
            elif not action.option_strings and action.help != argparse.SUPPRESS:
                word = _metavar(action)
                words.append({"?": f"[{word}]", "+": f"{word}..."}.get(str(action.nargs), word))
        return f"usage: {' '.join(words)} [options]\n"

    def format_help(self) -> str:
        """The help text with the short usage line."""
        self.usage = self.format_usage().removeprefix("usage: ").rstrip()
        return super().format_help()

    def error(self, message: str):
        """Prints the usage line and the error, and exits with code 2."""
        message = message.removeprefix("argument ")
        pointer = f"{' See' if message.endswith(('?', '.')) else '; see'} {self.prog} --help"
        print(f"{self.format_usage()}error: {message}{pointer}", file=sys.stderr)
        raise SystemExit(2)

    def unknown(self, word: str) -> None:
        """The error of an option that does not exist."""
        name = word.partition("=")[0]
        if not name.startswith("-"):
            self.error(f"unexpected argument {name!r}")
        known = [option for option in self._option_string_actions if option.startswith("--")]
        head, dot, tail = name.partition(".")
        hint = nearest(name, known) or nearest(head, known).replace("'?", f"{dot}{tail}'?")
        self.error(f"unknown option {name}{hint.replace(chr(39), '')}")

    def check_names(self, words: Sequence[str]) -> None:
        """The error of the first option that does not exist: before that of a required one, which a typo leaves out."""
        overrides = ("--config.", "--noconfig.") if self.get_default("takes_overrides") else ()
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0]
            if name.startswith("--") and name not in self._option_string_actions and not name.startswith(overrides):
                self.unknown(word)

    def find(self, argv: Sequence[str]) -> tuple[Parser, list[str]]:
        """(the parser of the sub-command that `argv` names, the words after its name)."""
        if not self.commands or not argv or argv[0].startswith("-"):
            return self, list(argv)
        if argv[0] not in self.commands:
            known = ", ".join(self.commands)
            self.error(f"unknown command {argv[0]!r}{nearest(argv[0], self.commands) or f'; choose from {known}'}")
        return self.commands[argv[0]].find(argv[1:])


def _metavar(action: argparse.Action) -> str:
    return str(action.metavar or action.dest.upper().replace("_", "-"))


class _Formatter(argparse.HelpFormatter):
    """Help texts in a column of their own, 120 characters wide."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=118)


class _HelpAll(argparse.Action):
    """`--help-all`: the help with the rare options."""

    def __init__(self, option_strings, dest, **options):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser, namespace, values, option_string=None):
        for action, text in parser.rare.items():
            action.help = text
        parser.print_help()
        raise SystemExit(0)


def with_new_names(argv: Sequence[str], parser: Parser) -> list[str]:
    """`argv` with old option names replaced by the new ones, where `parser` has those."""
    known, words = parser._option_string_actions, []
    for word in argv:
        name, equals, value = word.partition("=")
        new = RENAMED_FLAGS.get(name)
        if new in known and name not in known:
            warn_renamed(name, new)
            word = f"{new}{equals}{value}"
        words.append(word)
    return words


def parse_pair(option: str, text: str | None, least: int = 1) -> tuple[int, int] | None:
    """Rows and columns, both at least `least`: "12x16" -> (12, 16)."""
    from maskgil_jax.config import require

    if text is None:
        return None
    sides = text.lower().split("x")
    sound = len(sides) == 2 and all(side.isdecimal() and int(side) >= least for side in sides)
    require(sound, f"--{option}: expected ROWSxCOLUMNS of tokens, e.g. 12x16, got {text!r}")
    return int(sides[0]), int(sides[1])


def at_least(least: int):
    """The `type` of an option that is a whole number of at least `least`."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {value}")
        return value

    return number


def in_range(low: float, high: float):
    """The `type` of an option that is a number in [low, high]."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a number in [{low:g}, {high:g}], got {text!r}")
        return value

    return number


def one_of(*choices: str):
    """The `type` of an option that is one of `choices`; its error names the nearest."""

    def choice(text: str) -> str:
        if text not in choices:
            listed = ", ".join(choices)
            raise argparse.ArgumentTypeError(f"unknown value {text!r}{nearest(text, choices)}; choose from {listed}")
        return text

    return choice


def path(text: str) -> str:
    """The `type` of an option that is a file or folder: an empty text is a mistake, most often of a shell variable."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a file or folder")
    return text
