"""Options of the sampler."""

from __future__ import annotations

import dataclasses

from .base import choose, require

SCHEDULES = ("root", "linear", "square", "cosine", "arccos")
PLANS = ("density", "gamma", "gamma_ceil", "cumulative")


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How masked decoding samples (paper 4.2); static under jit, so every distinct value compiles once.

    guidance: classifier-free scale s in `uncond + s * (cond - uncond)`; 1 means no second branch. With
    `guidance_ramp="linear"` the scale runs from 1 at the first step to `1 + guidance` at the last (the published code).
    temperature: divides the logits; 0 takes the likeliest code. choice_temperature: weight of the Gumbel noise on the
    confidence, falling to 0 at the last step. top_k, top_p: draw only from the likeliest codes. draw: how a code is
    drawn, the same law either way: "gumbel" (Gumbel-max), "inverse" (inverse CDF), or by platform: inverse on CPU.
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

    def __post_init__(self):
        choose("schedule", self.schedule, SCHEDULES)
        choose("plan", self.plan, PLANS)
        choose("guidance_ramp", self.guidance_ramp, ("constant", "linear"))
        choose("order", self.order, ("confidence", "random", "raster"))
        choose("remask", self.remask, (None,))
        choose("draw", self.draw, ("auto", "gumbel", "inverse"))
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool)
        require(whole and self.steps >= 1, f"steps: must be a whole number >= 1, got {self.steps!r}")
        require(0.0 <= self.guidance < float("inf"), f"guidance: must be a finite number >= 0, got {self.guidance}")
        require(0.0 <= self.temperature < float("inf"), f"temperature: must be a finite number >= 0, got {self.temperature}")
        require(
            0.0 <= self.choice_temperature < float("inf"),
            f"choice_temperature: must be a finite number >= 0, got {self.choice_temperature}",
        )
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
