"""maskgil configs: the shipped run files, and the options of one."""

from __future__ import annotations

import dataclasses
import textwrap

from maskgil_jax.commands.run_files import read_run_file, shipped_run_files


def add(command) -> None:
    sub = command("configs", run, "List the run files, or the options of one.", overrides=True)
    sub.add_argument("name", metavar="NAME", nargs="?", help="run file: a name of the list, or a file of one's own")


def run(args, rest) -> None:
    """maskgil configs"""
    if args.name is None:
        files = shipped_run_files()
        width = max(map(len, files))
        print("\n".join(f"{name:<{width}}  {text}" for name, text in files.items()))
        print("\nmaskgil configs NAME prints the options of one; maskgil train --config NAME --config.x.y=z changes them.")
        return
    config = read_run_file(args.name, rest)
    print("\n".join(describe(config)))


def describe(config) -> list[str]:
    """A line for each option of a run file, as it is given on the command line, and its help where there is one."""
    from maskgil_jax.commands.run_files import option_paths

    lines, infos, values = [], _infos(config.to_dict()), config.to_dict()
    for path in option_paths(config):
        value = values
        for part in path.split("."):
            value = value[part]
        if path == "rows":
            lines.append(f"--config.rows  {len(value)} rows: {', '.join(row['name'] for row in value[:3])}, ...")
            continue
        lines.append(f"--config.{path}={value}")
        if text := infos.get(path, ""):
            lines += textwrap.wrap(text, 110, initial_indent="    ", subsequent_indent="    ")
    return lines


def _infos(values: dict) -> dict[str, str]:
    """Option path -> help text with choices and range."""
    from maskgil_jax.commands.decoding_options import help_of
    from maskgil_jax.config import AdaLNConfig, BertConfig, ClassifierConfig, LlamaConfig, MagvitConfig, VQConfig
    from maskgil_jax.config.base import info_of
    from maskgil_jax.config.training import SECTIONS, sections_of

    networks = {
        "generator": (AdaLNConfig, BertConfig, LlamaConfig),
        "tokenizer": (MagvitConfig, VQConfig),
        "classifier": (ClassifierConfig,),
    }
    task = values["task"]
    sections = [*sections_of(task, causal=bool(values["model"].get("causal"))).items()] if task in SECTIONS else []
    sections += [("model", kind) for kind in networks.get(task, ())]
    found = {}
    for path, kind in sections:
        for field in dataclasses.fields(kind):
            if text := help_of(info_of(field)).replace("%%", "%"):
                found[f"{path}.{field.name}".lstrip(".")] = text
    return found
