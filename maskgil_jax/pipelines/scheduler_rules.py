"""Where editing starts and what it plans for under aMUSEd's scheduler, whose generation follows the whole canvas.

Its options are recognised by their plan, `gamma_canvas`; all others are returned as they are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from maskgil_jax.config import require
from maskgil_jax.decoding.schedules import gamma


def image_to_image(cfg: Any, strength: float) -> tuple[Any, float]:
    """(decoding options, share of the tokens to mask) of a variation of `strength`.

    Under aMUSEd's scheduler `int(steps * strength)` steps are run, the last ones, and the share is what the schedule
    leaves masked before them; else the share is the strength.
    """
    require(0.0 <= strength <= 1.0, f"strength: must be between 0 (reconstruction) and 1 (a new image), got {strength}")
    if cfg.plan != "gamma_canvas":
        return cfg, strength
    skipped = cfg.steps - int(cfg.steps * strength)
    if skipped == cfg.steps:
        return cfg, 0.0
    share = float(gamma(cfg.schedule, np.array([skipped / cfg.steps]))[0])
    return dataclasses.replace(cfg, skip_steps=skipped), share


def inpainting(cfg: Any) -> Any:
    """Decoding options for holes: under aMUSEd's scheduler the masked share of each image falls linearly to none."""
    if cfg.plan != "gamma_canvas":
        return cfg
    return dataclasses.replace(cfg, plan="gamma_floor", schedule="linear")
