"""Run files: the Python programs in `configs/` that describe a training or an evaluation."""

from __future__ import annotations

import pathlib

CONFIGS = [pathlib.Path(__file__).parents[2] / "configs", pathlib.Path(__file__).parents[1] / "configs"]  # clone, installed


def read_run_file(path: str, overrides: list[str]):
    """A run file (a Python program, trusted as one) with `--config.x.y=z` applied; a typo is refused with a suggestion.

    "FILE:ARGUMENT" gives its `get_config` an argument.
    """
    from absl import flags
    from ml_collections import config_flags

    from maskgil_jax.config import ConfigError

    name, colon, argument = path.partition(":")
    file = next((f for f in [pathlib.Path(name), *(c / f"{name}.py" for c in CONFIGS)] if f.is_file()), None)
    if file is None:
        raise ConfigError(f"--config: no run file {name}")
    argv = ["maskgil", f"--config={file}{colon}{argument}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
        config = values.config
        _ = config.task
    except (flags.Error, AttributeError, KeyError, TypeError) as error:
        _, _, said = str(error).rpartition("\nValueError: ")  # by the run file itself, after the traceback ml_collections adds
        raise ConfigError(said or f"{file}: {str(error).strip(chr(34))}") from error
    if len(rest) > 1:
        raise ConfigError(f"unknown option {rest[1]}; options of a run file are written --config.name=value")
    return config
