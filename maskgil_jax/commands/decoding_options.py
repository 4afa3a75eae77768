"""The decoding options on a command line, made from the fields of `DecodeConfig` and `CausalConfig`."""

from __future__ import annotations

import argparse
import dataclasses

from maskgil_jax.commands.parser import Parser, one_of
from maskgil_jax.config import DECODE_PRESETS, CausalConfig, ConfigError, DecodeConfig, decode_preset, require
from maskgil_jax.config.base import check_option, info_of, type_of


def decoding_options() -> dict[str, tuple[type, dataclasses.Field]]:
    """Options of masked and of causal decoding, each name once: name -> (dataclass, field)."""
    found = {field.name: (CausalConfig, field) for field in dataclasses.fields(CausalConfig)}
    masked = {field.name: (DecodeConfig, field) for field in dataclasses.fields(DecodeConfig)}
    return masked | {name: entry for name, entry in found.items() if name not in masked}


def add_decoding_options(parser: Parser, without: tuple[str, ...] = ()) -> None:
    """One option for each decoding option there is, but for those in `without`, and `--preset`; in argument groups."""
    text = "options not given come from the weights; see docs/decoding.md"
    presets = parser.add_argument_group("decoding", text)
    presets.add_argument(
        "--preset", type=one_of(*DECODE_PRESETS), help=f"start from these options: {', '.join(DECODE_PRESETS)}"
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, (kind, field) in decoding_options().items():
        if name in without:
            continue
        info = info_of(field)
        if info.group not in groups:
            groups[info.group] = parser.add_argument_group(f"decoding: {info.group}")
        value_type, _ = type_of(kind, name)
        options: dict = dict(dest=name, default=None)
        if value_type is bool:
            options |= dict(action=argparse.BooleanOptionalAction)
        else:
            options |= dict(type=_reader(kind, field, value_type), metavar=_metavar(info, value_type))
        flag, help_text = f"--{name.replace('_', '-')}", help_of(info)
        if info.rare:
            parser.add_rare(groups[info.group], flag, help=help_text, **options)
        else:
            groups[info.group].add_argument(flag, help=help_text, **options)


def _metavar(info, value_type: type) -> str:
    return "NAME" if info.choices else {int: "N", float: "X"}.get(value_type, "TEXT")


def help_of(info) -> str:
    """Help text with choices and range, for argparse."""
    choices = ", ".join("none" if choice is None else str(choice) for choice in info.choices)
    facts = "; ".join(part for part in (choices, info.range) if part)
    return (f"{info.help} ({facts})" if facts else info.help).replace("%", "%%")


def _reader(kind: type, field: dataclasses.Field, value_type: type):
    """The argparse `type` of an option: the value, checked as the dataclass does."""

    def read(text: str):
        value: object = text
        if value_type in (int, float):
            try:
                value = value_type(text)
            except ValueError:
                raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
        elif None in info_of(field).choices and text == "none":
            return NONE
        try:
            check_option(kind, field, value, "value")
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("value: ")) from None
        return value

    return read


NONE = "none"  # on the command line: None, where an option may be that


def with_cli_options(pipeline, args):
    """The pipeline with the preset and the decoding options of the command line."""
    if args.preset:
        require(pipeline.masked, f"--preset: {args.weights} holds a causal generator; presets are of masked decoding")
        pipeline = dataclasses.replace(pipeline, cfg=decode_preset(args.preset))
    return with_options(pipeline, decoding_changes(args))


def decoding_changes(args) -> dict:
    """The decoding options that were given on the command line."""
    given = {name: getattr(args, name, None) for name in decoding_options()}
    return {name: None if value == NONE else value for name, value in given.items() if value is not None}


def with_options(pipeline, changes: dict):
    """The pipeline with these decoding options.

    If it has a causal network for hybrid decoding, both take those they know.
    """

    def names(cfg):
        return {field.name for field in dataclasses.fields(cfg)}

    def changed(cfg):
        return dataclasses.replace(cfg, **{name: value for name, value in changes.items() if name in names(cfg)})

    known = names(pipeline.cfg) | (names(pipeline.ar_cfg) if pipeline.ar is not None else set())
    for name in changes.keys() - known:
        kind = "masked" if pipeline.masked else "causal"
        require(False, f"--{name.replace('_', '-')}: {pipeline.name} holds a {kind} generator, which has no such option")
    return dataclasses.replace(pipeline, cfg=changed(pipeline.cfg), ar_cfg=changed(pipeline.ar_cfg))
