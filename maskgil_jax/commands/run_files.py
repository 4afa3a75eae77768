"""Run files: the Python programs in `configs/` that describe a training or an evaluation."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import pathlib
from collections.abc import Iterator

from maskgil_jax.config import ConfigError, DecodeConfig
from maskgil_jax.config.base import Renamed, current_names, nearest, warn_renamed
from maskgil_jax.config.training import Objective
from maskgil_jax.configs import FOLDER

# section of a run file -> the dataclass whose renamed options it may still use
_RENAMED: dict[str, type] = {"objective": Objective, "decode": DecodeConfig}


def shipped_run_files() -> dict[str, str]:
    """Name -> first line of the docstring, of every shipped run file."""
    found = {}
    for file in sorted(FOLDER.glob("*.py")):
        if not file.stem.startswith("_"):
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            found[file.stem] = text.partition("\n")[0]
    return found


def find_run_file(name: str) -> pathlib.Path:
    """The file that `--config NAME` means: a path, or the name of a shipped one,
    with or without `configs/` and `.py`."""
    path = pathlib.Path(name)
    if path.is_file():
        return path
    plain = path.parent.name in ("", "configs") and not path.is_absolute() and len(path.parts) <= 2
    stem = path.name.removesuffix(".py")
    if plain and (FOLDER / f"{stem}.py").is_file() and not stem.startswith("_"):
        return FOLDER / f"{stem}.py"
    hint = nearest(stem, shipped_run_files())
    raise ConfigError(f"--config: no run file {name}{hint}; maskgil configs lists the shipped ones")


def read_run_file(path: str, overrides: list[str]):
    """The `ConfigDict` of a run file (a Python program, trusted as one) with `--config.x.y=z` applied.

    "FILE:ARGUMENT" gives its `get_config` an argument. Raises a `ConfigError` that names the option for an unknown
    name, with the nearest, or an impossible value.
    """
    name, colon, argument = path.partition(":")
    file = find_run_file(name)
    config = _load(file, (argument,) if colon else ())
    _rename(config, file)
    _apply(config, overrides)
    return config


def _load(file: pathlib.Path, arguments: tuple[str, ...]):
    """What `get_config` of a run file returns."""
    from ml_collections import ConfigDict

    spec = importlib.util.spec_from_file_location(f"maskgil_run_file_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config: {file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"{file}: has no function get_config, which returns the options")
    if arguments and not module.get_config.__code__.co_argcount:
        raise ConfigError(f"{file}: its get_config takes no argument, got {arguments[0]!r}")
    config = module.get_config(*arguments)
    if not isinstance(config, ConfigDict) or "task" not in config:
        raise ConfigError(f"{file}: get_config must return a ConfigDict with a task, got {type(config).__name__}")
    return config


def _rename(config, file: pathlib.Path) -> None:
    """Moves values under old option names to the new ones."""
    for section, kind in _RENAMED.items():
        if section in config and _renamed_options(section).keys() & set(config[section]):
            values = current_names(kind, {name: config[section][name] for name in config[section]}, f"{file}: {section}")
            with config.unlocked():
                for old in set(config[section]) - values.keys():
                    del config[section][old]
                for name in values.keys() - set(config[section]):
                    config[section][name] = values[name]


def option_paths(config, prefix: str = "") -> Iterator[str]:
    """ "data.path", "model.width", ...: every option of a run file."""
    from ml_collections import ConfigDict

    for name in config:
        value = config.get(name)
        if isinstance(value, ConfigDict):
            yield from option_paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@dataclasses.dataclass(frozen=True)
class _Override:
    """One `--config.path=value`; value None: a boolean that is set or, with `--noconfig.path`, not."""

    path: str
    value: str | None
    negated: bool

    def flag(self) -> str:
        """The same for absl."""
        if self.value is None:
            return f"--{'no' if self.negated else ''}config.{self.path}"
        return f"--config.{self.path}={self.value}"


def _overrides(words: list[str], config) -> Iterator[_Override]:
    """Takes the words of a command line apart. Raises a `ConfigError` for anything else than `--config.name=value`."""
    words = list(words)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        negated = flag.startswith("--noconfig.")
        if not (negated or flag.startswith("--config.")):
            raise ConfigError(f"unknown option {flag}; options of a run file are written --config.name=value")
        path = _renamed_path(flag.partition("config.")[2])
        if path not in (known := list(option_paths(config))):
            raise ConfigError(f"--config.{path}: there is no such option{_nearest_path(path, known)}")
        found: str | None = value if equals else None
        if found is None and not negated and _type(config, path) is not bool:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"--config.{path}: needs a value, written --config.{path}=value")
            found = words.pop(0)
        if found is not None and (new := _renamed_values(path)):
            found = new.get(found, found)
        yield _Override(path, found, negated)


def _renamed_options(section: str) -> dict[str, Renamed]:
    return getattr(_RENAMED.get(section), "RENAMED", {})


def _renamed_path(path: str) -> str:
    section, _, name = path.rpartition(".")
    new = _renamed_options(section).get(name)
    if new is None:
        return path
    warn_renamed(f"--config.{path}", f"--config.{section}.{new.name}")
    return f"{section}.{new.name}"


def _renamed_values(path: str) -> dict:
    section, _, name = path.rpartition(".")
    return next((new.values for new in _renamed_options(section).values() if new.name == name), {})


def _nearest_path(path: str, known: list[str]) -> str:
    """ "; did you mean --config.x.y?": by the whole path, or by its last name in another section."""
    last = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.75)
    near = near or [last[name] for name in difflib.get_close_matches(path.rpartition(".")[2], last, n=1, cutoff=0.75)]
    return f"; did you mean --config.{near[0]}?" if near else "; maskgil configs NAME lists the options"


def _type(config, path: str):
    section, _, name = path.rpartition(".")
    for part in filter(None, section.split(".")):
        config = config[part]
    return config.get_type(name)


def _apply(config, words: list[str]) -> None:
    """Sets the options of `--config.name=value`."""
    from absl import flags
    from ml_collections import config_flags

    for override in _overrides(words, config):
        argv, values = ["maskgil", override.flag()], flags.FlagValues()
        try:
            config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
            values(argv)
        except (flags.Error, TypeError, ValueError) as error:
            kind = _type(config, override.path).__name__
            raise ConfigError(f"--config.{override.path}: expected {kind}, got {override.value!r}") from error
