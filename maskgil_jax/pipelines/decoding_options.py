"""Single decoding options that a call gives by name."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from maskgil_jax.config import ConfigError

# What other libraries call a decoding option.
FOREIGN_NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "cfg_scale": "guidance",
    "num_steps": "steps",
    "generator": "seed",
}


def changed(cfg: Any, changes: dict[str, Any]) -> Any:
    """The decoding options `cfg` with `changes` to single ones. Raises a `ConfigError` that names an unknown one."""
    known = [field.name for field in dataclasses.fields(cfg)]
    for name in changes:
        if name in FOREIGN_NAMES:
            raise ConfigError(f"{name}: is called {FOREIGN_NAMES[name]!r} here")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; they are {', '.join(known)}"
            raise ConfigError(f"{name}: is not an option of {type(cfg).__name__}{hint}")
    return dataclasses.replace(cfg, **changes) if changes else cfg
