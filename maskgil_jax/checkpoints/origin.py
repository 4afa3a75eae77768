"""Whether a checkpoint was made by the model and on the data of this run."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

from maskgil_jax.config.base import current_names, to_dict
from maskgil_jax.runtime.distributed import first_difference

_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """No checkpoint can be used, or it belongs to another run; the files on disk are unchanged."""


def plain(fingerprint_inputs: dict) -> dict:
    """Fingerprint inputs as JSON has them: options (dataclasses) become dicts, tuples lists."""
    values = {name: to_dict(v) if dataclasses.is_dataclass(v) else v for name, v in fingerprint_inputs.items()}
    return json.loads(json.dumps(values))


def _completed(found: dict, fingerprint_inputs: dict) -> dict:
    """A record with the options it lacks.

    It was made by a version without them, which is what their defaults stand for.
    """
    completed = dict(found)
    for name, value in fingerprint_inputs.items():
        if dataclasses.is_dataclass(value) and isinstance(found.get(name), dict):
            options: Any = type(value)
            known = current_names(options, found[name], name, warn=False)
            completed[name] = {**plain({name: options()})[name], **known}
    return completed


def require_same_origin(
    where: str, record: dict, fingerprint_inputs: dict, shapes: Mapping[str, tuple], allow: tuple[str, ...]
) -> None:
    """Raises a `CheckpointError` that names the first difference between a step's record and this run.

    where: the step's folder, for the message. fingerprint_inputs: what this run's state depends on, options as
    dataclasses.
    shapes: {array: (shape, dtype)} of this run. allow: names of fingerprint inputs whose differences are only logged.
    """
    found, expected = _comparable(_completed(record["about"], fingerprint_inputs), plain(fingerprint_inputs))
    for name in sorted(expected.keys() | found.keys()):
        if difference := first_difference(name, found.get(name), expected.get(name)):
            message = "{}: made with {} = {!r}, this run has {!r}".format(where, *difference)
            if name not in allow:
                raise CheckpointError(f"{message}; {_advice(difference[0])}")
            _log.warning("%s; continuing, as allowed", message)
    saved = record["arrays"]
    for name in sorted(shapes.keys() | saved.keys()):
        old = f"{saved[name][1]} {tuple(saved[name][0])}" if name in saved else "nothing"
        new = f"{shapes[name][1]} {tuple(shapes[name][0])}" if name in shapes else "nothing"
        if old != new:
            raise CheckpointError(
                f"{where}: holds {old} as {name}, this run has {new}; use another --workdir, or the options (optimizer, EMA, "
                "guard) it was made with"
            )


def _advice(name: str) -> str:
    if name == "data.content":
        allow = "--config.checkpoint.allow_data_change=True"
        return f"the images or codes have changed: use another --workdir, or continue on the new ones with {allow}"
    return "use another --workdir, or the options it was made with"


def _comparable(found: dict, expected: dict) -> tuple[dict, dict]:
    """Fingerprint inputs without the part of "data" that cannot be compared.

    If both identify the content of the same kind of data (images or codes), its path does not matter; otherwise the
    paths are compared. Records of older versions have no content.
    """
    old, new = found.get("data"), expected.get("data")
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return found, expected
    kinds = [str(data.get("content", "")).partition(":")[0] for data in (old, new)]
    ignored = "path" if kinds[0] and kinds[0] == kinds[1] else "content"
    left, right = ({name: value for name, value in data.items() if name != ignored} for data in (old, new))
    return {**found, "data": left}, {**expected, "data": right}
