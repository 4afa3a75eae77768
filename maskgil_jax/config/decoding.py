"""Options of the sampler, and the named sets of them. docs/decoding.md has a section on each."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from .base import Renamed, check_ranges, choose, current_names, option, require
from .orders import ORDERS
from .schedules import SCHEDULES

PLANS = ("density", "gamma", "gamma_ceil", "gamma_floor", "gamma_canvas", "cumulative")
GUIDANCE_RAMPS = ("constant", "linear", "cosine", "power-cosine", "interval")
REMASK_RULES = ("cap", "rescale")
REMASK_PICKS = ("even", "confidence")
DRAWS = ("auto", "gumbel", "inverse")
LOOPS = ("auto", "fori", "unrolled")
BATCH_MODES = ("auto", "vmap", "map")

# Options that only act together with another one: name -> the option that must be set.
_NEEDS_REMASK = ("remask_pick", "remask_from", "remask_to", "remask_loop")

_STEPS, _SAMPLING, _GUIDANCE, _REMASKING, _EXECUTION = (
    "steps",
    "sampling of tokens",
    "guidance",
    "remasking (ReMDM)",
    "execution",
)


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How masked decoding samples (paper 4.2); static under jit, so every distinct value compiles once.

    `maskgil sample --help-all` prints the help of every field. `decoding.guidance.guidance_scales` has the formulas of
    the guidance ramps, `decoding.schedules.reveal_counts` those of schedules and plans, `schedules.remask_counts` those
    of ReMDM. The images do not depend on `loop` and `batch_mode` but for rounding inside the network.
    """

    RENAMED: ClassVar = {"images": Renamed("batch_mode", {"together": "vmap", "one_by_one": "map"})}

    steps: int = option(8, "number of decoding steps", low=1, group=_STEPS)
    schedule: str = option(
        "arccos", "curve of the share of tokens that is still masked, over the steps", choices=SCHEDULES, group=_STEPS
    )
    plan: str = option(
        "density", "how the schedule becomes a number of tokens for each step", choices=PLANS, rare=True, group=_STEPS
    )
    guidance: float = option(
        2.0, "classifier-free scale s in uncond + s * (cond - uncond); 1: no unconditional branch", low=0.0, group=_GUIDANCE
    )
    guidance_ramp: str = option(
        "constant",
        "how the scale changes over the steps: linear runs from 1 to 1 + guidance (published code), the others end at guidance",
        choices=GUIDANCE_RAMPS,
        group=_GUIDANCE,
        rare=True,
    )
    order: str = option(
        "confidence",
        "which tokens are fixed first: the most probable ones, along the Halton sequence (halton_rolled: from a random start "
        "for each image), at random, or row by row",
        choices=ORDERS,
        group=_STEPS,
    )
    temperature: float = option(1.0, "divides the logits; 0 takes the most probable code", low=0.0, group=_SAMPLING)
    choice_temperature: float = option(
        4.5, "weight of the Gumbel noise on the confidence, which falls to 0 at the last step", low=0.0, group=_SAMPLING
    )
    top_k: int | None = option(None, "sample among the k most probable codes only", low=1, group=_SAMPLING)
    top_p: float | None = option(
        None,
        "sample among the most probable codes that together have this probability",
        low=0.0,
        high=1.0,
        open_low=True,
        group=_SAMPLING,
    )
    remask: str | None = option(
        None,
        "mask some of the generated tokens again at each step, by this rule; given tokens are never masked",
        choices=(None, *REMASK_RULES),
        group=_REMASKING,
    )
    draw: str = option(
        "auto",
        "how a code is sampled, with the same distribution: Gumbel-max (a random number for every code) or inverse CDF (two a "
        "position); auto: inverse",
        choices=DRAWS,
        group=_EXECUTION,
        rare=True,
    )
    guidance_power: float = option(3.0, "exponent of the ramp power-cosine", low=0.0, open_low=True, group=_GUIDANCE, rare=True)
    guidance_from: float = option(
        0.0, "start of the guided part of the steps, for the ramp interval", low=0.0, high=1.0, group=_GUIDANCE, rare=True
    )
    guidance_to: float = option(
        1.0, "end of the guided part of the steps, for the ramp interval", low=0.0, high=1.0, group=_GUIDANCE, rare=True
    )
    temperature_end: float | None = option(
        None,
        "temperature of the last step, approached linearly; unset: constant",
        low=0.0,
        open_low=True,
        group=_SAMPLING,
        rare=True,
    )
    remask_eta: float = option(0.05, "strength of remasking", low=0.0, high=1.0, group=_REMASKING, rare=True)
    loop: str = option(
        "auto",
        "fori compiles one step and repeats it; unrolled compiles every step and computes logits only where tokens may be "
        "masked; auto: unrolled on CPU up to 16 steps",
        choices=LOOPS,
        group=_EXECUTION,
        rare=True,
    )
    remask_pick: str = option(
        "even",
        "which tokens are remasked: all with equal probability, or the less probable ones rather (ReMDM-conf)",
        choices=REMASK_PICKS,
        group=_REMASKING,
        rare=True,
    )
    remask_from: float = option(
        0.0, "start of the part of the steps that remasks (ReMDM-switch)", low=0.0, high=1.0, group=_REMASKING, rare=True
    )
    remask_to: float = option(
        1.0, "end of the part of the steps that remasks (ReMDM-switch)", low=0.0, high=1.0, group=_REMASKING, rare=True
    )
    remask_loop: bool = option(
        False,
        "reveal no further tokens while remasking, so that this part only corrects (ReMDM-loop)",
        group=_REMASKING,
        rare=True,
    )
    batch_mode: str = option(
        "auto",
        "vmap gives the network a whole batch at once, map one image after the other inside the program; auto: map on one CPU "
        "device for grids of 256 tokens or more",
        choices=BATCH_MODES,
        group=_EXECUTION,
        rare=True,
    )
    skip_steps: int = option(
        0,
        "start at this step of the plan gamma_floor or gamma_canvas, with its noise and guidance, on images of which only "
        "a part is masked; aMUSEd's strength is steps - int(steps * strength)",
        low=0,
        group=_STEPS,
        rare=True,
    )
    images: dataclasses.InitVar[str | None] = None  # the name of `batch_mode` in version 0.1

    def __post_init__(self, images: str | None):
        if images is not None:
            mode = current_names(DecodeConfig, {"images": images}, "DecodeConfig")["batch_mode"]
            object.__setattr__(self, "batch_mode", mode)
        check_ranges(self)
        require(self.skip_steps < self.steps, f"skip_steps: must be below steps {self.steps}, got {self.skip_steps}")
        planned = self.plan in ("gamma_floor", "gamma_canvas") and not self.remask_loop
        need = f"needs plan gamma_floor or gamma_canvas and no remask_loop, got plan {self.plan!r}"
        require(self.skip_steps == 0 or planned, f"skip_steps: {need}, remask_loop {self.remask_loop}")
        for name in ("guidance", "remask"):
            start, stop = getattr(self, f"{name}_from"), getattr(self, f"{name}_to")
            require(start <= stop, f"{name}_from, {name}_to: must be 0 <= from <= to <= 1, got {start}, {stop}")
        require(
            self.temperature_end is None or self.temperature > 0,
            "temperature_end: a temperature of 0 takes the most probable code and cannot change",
        )
        for name in _NEEDS_REMASK:
            default = getattr(self, name) == self.__dataclass_fields__[name].default
            require(default or self.remask is not None, f"{name}: needs remask ({', '.join(REMASK_RULES)}), which is off")


@dataclasses.dataclass(frozen=True)
class CausalConfig:
    """How a causal (AR) network samples, one token after the other; static under jit. The defaults are LlamaGen's."""

    guidance: float = option(
        2.0, "classifier-free scale s in uncond + s * (cond - uncond); 1: no unconditional branch", low=0.0, group=_GUIDANCE
    )
    temperature: float = option(1.0, "divides the logits; 0 takes the most probable code", low=0.0, group=_SAMPLING)
    top_k: int | None = option(None, "sample among the k most probable codes only", low=1, group=_SAMPLING)
    top_p: float | None = option(
        None,
        "sample among the most probable codes that together have this probability",
        low=0.0,
        high=1.0,
        open_low=True,
        group=_SAMPLING,
    )
    # Steps are counted from 0 after the prefill, which is always guided: the first `cfg_interval + 2` new tokens are
    # guided.
    cfg_interval: int | None = option(
        None, "causal networks: guide only the tokens up to this step (LlamaGen); unset: all", low=0, group=_GUIDANCE, rare=True
    )
    draw: str = option(
        "auto", "how a code is sampled: Gumbel-max or inverse CDF; auto: inverse", choices=DRAWS, group=_EXECUTION, rare=True
    )

    def __post_init__(self):
        check_ranges(self)


# Starting points by name; docs/decoding.md says where each number comes from and what of the original cannot be
# expressed.
DECODE_PRESETS = {
    # The text of the paper (4.2): gamma(t/T) of the tokens stay masked, constant guidance, no noise on the confidence.
    "paper": DecodeConfig(plan="gamma_ceil", choice_temperature=0.0),
    # The published code: the defaults of its `sample`, with the guidance of its main script.
    "release": DecodeConfig(steps=12, guidance=3.0, guidance_ramp="linear", draw="gumbel"),
    # MaskGIT. Its noise falls with 1 - (i + 1) / T from 4.5, which is 4.5 * 7/8 on the line used here when T is 8.
    "maskgit": DecodeConfig(schedule="cosine", plan="gamma", guidance=1.0, choice_temperature=4.5 * 7 / 8, draw="gumbel"),
    # Halton-MaskGIT as in its table: 32 steps, and for the B network w = 0.7, which is a scale of 1.7.
    "halton": DecodeConfig(steps=32, plan="gamma_ceil", guidance=1.7, order="halton_rolled", choice_temperature=0.0),
    # aMUSEd's scheduler and the settings of its pipelines; the second one is its inpainting, which plans for the hole
    # alone.
    "amused": DecodeConfig(steps=12, schedule="cosine", plan="gamma_canvas", guidance=10.0, choice_temperature=2.0),
    "amused_inpaint": DecodeConfig(steps=12, schedule="linear", plan="gamma_floor", guidance=10.0, choice_temperature=2.0),
    # The best of 8 steps on the weights "demo" (docs/results/sampler.md, "The preset fast"): twice the noise.
    "fast": DecodeConfig(choice_temperature=9.0),
}


def decode_preset(name: str) -> DecodeConfig:
    """`DECODE_PRESETS[name]`, or a `ConfigError` that lists the names."""
    choose("preset", name, tuple(DECODE_PRESETS))
    return DECODE_PRESETS[name]
