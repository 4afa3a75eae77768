"""Options of the sampler, and the named sets of them. docs/decoding.md has a section on each."""

from __future__ import annotations

import dataclasses

from .base import choose, require
from .orders import ORDERS
from .schedules import SCHEDULES

PLANS = ("density", "gamma", "gamma_ceil", "gamma_floor", "gamma_canvas", "cumulative")
GUIDANCE_RAMPS = ("constant", "linear", "cosine", "power-cosine", "interval")
REMASK_RULES = ("cap", "rescale")
REMASK_PICKS = ("even", "confidence")


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How masked decoding samples (paper 4.2); static under jit, so every distinct value compiles once.

    guidance: classifier-free scale s in `uncond + s * (cond - uncond)`; 1 means no second branch. guidance_ramp: how the
    scale runs over the steps (`decoding.guidance.guidance_scales` has the formulas). Mind that "linear" runs from 1 to
    `1 + guidance` (the published code), the others end at `guidance`. guidance_power: exponent of "power-cosine".
    guidance_from, guidance_to: the part of the steps, in 0..1, that "interval" guides.
    order: which tokens come first: the surest, along the Halton sequence (from its start, or from a random place for each
    image: "halton_rolled"), any, or row by row.
    temperature: divides the logits; 0 takes the likeliest code. temperature_end: the temperature of the last step, reached
    on a straight line; None keeps it constant. choice_temperature: weight of the Gumbel noise on the confidence, falling to
    0 at the last step. top_k, top_p: draw only from the likeliest codes. draw: how a code is drawn, the same law either
    way: "gumbel" (Gumbel-max, a random number for every code), or "inverse" (inverse CDF, two a position), which is "auto".
    remask: hides some of the tokens made so far again at each step, by the rule "cap" or "rescale" of ReMDM with the
    strength `remask_eta` (`schedules.remask_counts`). Given tokens are never hidden. remask_pick: which of them, each as
    likely ("even") or the less sure ones sooner ("confidence": ReMDM-conf). remask_from, remask_to: the part of the steps,
    in 0..1, that does so (ReMDM-switch). remask_loop: the plan stands still meanwhile, so that this part only corrects
    (ReMDM-loop).
    skip_steps: begin at this step of the plan "gamma_floor" or "gamma_canvas", with its noise and guidance: for given images
    of which only part is masked. aMUSEd's `strength` is steps - int(steps * strength) of them.
    loop: "fori" compiles one step and repeats it; "unrolled" compiles every step by itself, which takes as many times
    longer, and computes logits only where tokens may still be masked. Same tokens but for rounding in the network. "auto":
    by platform, unrolled on CPU (up to 16 steps), fori elsewhere.
    images: "together" gives the network a whole batch at once, "one_by_one" makes one image after the other inside the
    program. Same tokens but for rounding in the network. "auto": by platform, one by one on CPU (canvases of 256 tokens or
    more, on one device), together elsewhere.
    """

    steps: int = 8
    schedule: str = "arccos"
    plan: str = "density"
    guidance: float = 2.0
    guidance_ramp: str = "constant"
    order: str = "confidence"
    temperature: float = 1.0
    choice_temperature: float = 4.5
    top_k: int | None = None
    top_p: float | None = None
    remask: str | None = None
    draw: str = "auto"
    guidance_power: float = 3.0
    guidance_from: float = 0.0
    guidance_to: float = 1.0
    temperature_end: float | None = None
    remask_eta: float = 0.05
    loop: str = "auto"
    remask_pick: str = "even"
    remask_from: float = 0.0
    remask_to: float = 1.0
    remask_loop: bool = False
    images: str = "auto"
    skip_steps: int = 0

    def __post_init__(self):
        choose("schedule", self.schedule, SCHEDULES)
        choose("plan", self.plan, PLANS)
        choose("guidance_ramp", self.guidance_ramp, GUIDANCE_RAMPS)
        choose("order", self.order, ORDERS)
        choose("remask", self.remask, (None, *REMASK_RULES))
        choose("remask_pick", self.remask_pick, REMASK_PICKS)
        choose("draw", self.draw, ("auto", "gumbel", "inverse"))
        choose("loop", self.loop, ("auto", "fori", "unrolled"))
        choose("images", self.images, ("auto", "together", "one_by_one"))
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool)
        require(whole and self.steps >= 1, f"steps: must be a whole number >= 1, got {self.steps!r}")
        within = isinstance(self.skip_steps, int) and 0 <= self.skip_steps < self.steps
        require(within, f"skip_steps: must be a whole number from 0 to below steps {self.steps}, got {self.skip_steps!r}")
        planned = self.plan in ("gamma_floor", "gamma_canvas") and not self.remask_loop
        need = f"needs plan gamma_floor or gamma_canvas and no remask_loop, got plan {self.plan!r}"
        require(self.skip_steps == 0 or planned, f"skip_steps: {need}, remask_loop {self.remask_loop}")
        for name in ("guidance", "temperature", "choice_temperature"):
            value = getattr(self, name)
            require(0.0 <= value < float("inf"), f"{name}: must be a finite number >= 0, got {value}")
        require(0.0 < self.guidance_power < float("inf"), f"guidance_power: must be above 0, got {self.guidance_power}")
        for name in ("guidance", "remask"):
            start, stop = getattr(self, f"{name}_from"), getattr(self, f"{name}_to")
            inside = 0.0 <= start <= stop <= 1.0
            require(inside, f"{name}_from, {name}_to: must be 0 <= from <= to <= 1, got {start}, {stop}")
        if self.temperature_end is not None:
            require(self.temperature > 0, "temperature_end: a temperature of 0 takes the likeliest code and cannot change")
            finite = 0.0 < self.temperature_end < float("inf")
            require(finite, f"temperature_end: must be None or a finite number > 0, got {self.temperature_end}")
        require(0.0 <= self.remask_eta <= 1.0, f"remask_eta: must be in [0, 1], got {self.remask_eta}")
        for name in ("remask_pick", "remask_from", "remask_to", "remask_loop"):
            usual = getattr(self, name) == self.__dataclass_fields__[name].default
            require(usual or self.remask is not None, f"{name}: needs remask ({', '.join(REMASK_RULES)}), which is off")
        require(self.top_k is None or self.top_k >= 1, f"top_k: must be None or >= 1, got {self.top_k}")
        require(self.top_p is None or 0.0 < self.top_p <= 1.0, f"top_p: must be None or in (0, 1], got {self.top_p}")


@dataclasses.dataclass(frozen=True)
class CausalConfig:
    """How a causal (AR) network samples, one token after the other; static under jit.

    guidance: classifier-free scale s in `uncond + s * (cond - uncond)`; 1 means no second branch. cfg_interval: LlamaGen's
    option: steps are counted from 0 after the prefill (which is always guided), and those beyond `cfg_interval` are not
    guided; so the first `cfg_interval + 2` new tokens are. None guides all. temperature, top_k, top_p, draw: as in
    `DecodeConfig`. The defaults are LlamaGen's for its published figures.
    """

    guidance: float = 2.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    cfg_interval: int | None = None
    draw: str = "auto"

    def __post_init__(self):
        DecodeConfig(guidance=self.guidance, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, draw=self.draw)
        require(
            self.cfg_interval is None or self.cfg_interval >= 0,
            f"cfg_interval: must be None (guide every token) or >= 0, got {self.cfg_interval}",
        )


# Starting points by name; docs/decoding.md says where each number comes from and what of the original cannot be expressed.
DECODE_PRESETS = {
    # The text of the paper (4.2): gamma(t/T) of the tokens stay masked, constant guidance, no noise on the confidence.
    "paper": DecodeConfig(plan="gamma_ceil", choice_temperature=0.0),
    # The published code: the defaults of its `sample`, with the guidance of its main script.
    "release": DecodeConfig(steps=12, guidance=3.0, guidance_ramp="linear", draw="gumbel"),
    # MaskGIT. Its noise falls with 1 - (i + 1) / T from 4.5, which is 4.5 * 7/8 on the line used here when T is 8.
    "maskgit": DecodeConfig(schedule="cosine", plan="gamma", guidance=1.0, choice_temperature=4.5 * 7 / 8, draw="gumbel"),
    # Halton-MaskGIT as in its table: 32 steps, and for the B network w = 0.7, which is a scale of 1.7.
    "halton": DecodeConfig(steps=32, plan="gamma_ceil", guidance=1.7, order="halton_rolled", choice_temperature=0.0),
    # aMUSEd's scheduler and the settings of its pipelines; the second one is its inpainting, which plans for the hole alone.
    "amused": DecodeConfig(steps=12, schedule="cosine", plan="gamma_canvas", guidance=10.0, choice_temperature=2.0),
    "amused_inpaint": DecodeConfig(steps=12, schedule="linear", plan="gamma_floor", guidance=10.0, choice_temperature=2.0),
    # The best of 8 steps on the shipped weights (benchmarks/sampler_study.py, docs/decoding.md "Measured"): twice the noise.
    "fast": DecodeConfig(choice_temperature=9.0),
}


def decode_preset(name: str) -> DecodeConfig:
    """`DECODE_PRESETS[name]`, or a `ConfigError` that lists the names."""
    choose("preset", name, tuple(DECODE_PRESETS))
    return DECODE_PRESETS[name]
