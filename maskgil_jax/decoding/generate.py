"""Condition -> codes with whatever networks there are: masked, causal, or a causal one followed by a masked one."""

from __future__ import annotations

from typing import Any

import jax

from maskgil_jax.config import CausalConfig, DecodeConfig, require
from maskgil_jax.decoding.causal import decode_causal
from maskgil_jax.decoding.hybrid import decode_hybrid
from maskgil_jax.decoding.masked import decode
from maskgil_jax.models.condition import HybridCondition
from maskgil_jax.models.generator import for_condition


def generate_tokens(
    generator: Any,
    condition: Any,
    key: jax.Array,
    cfg: DecodeConfig | CausalConfig,
    *,
    grid: tuple[int, int] | None = None,
    tokens_bl: jax.Array | None = None,
    ar: Any = None,
    ar_cfg: CausalConfig | None = None,
    ar_ratio: float = 0.0,
    on_step=None,
) -> jax.Array:
    """Samples the codes of one batch: int32 (b, rows * columns).

    A `CausalConfig` decodes token by token (`decode_causal`), a `DecodeConfig` by masked decoding (`decode`), with
    `ar_ratio` after the causal network `ar` has written that share of the tokens (`decode_hybrid`). tokens_bl: given
    tokens, `mask_id` where one is to be sampled; for a causal generator the first ones of each image, (b, n).

    Raises:
      ConfigError: `ar_ratio` without `ar`, or `on_step` with a causal network.
    """
    require(not ar_ratio or ar is not None, f"ar_ratio: {ar_ratio} needs a causal network; load the pipeline with ar=WEIGHTS")
    ar_condition = condition
    if isinstance(condition, HybridCondition):
        condition, ar_condition = condition.condition, condition.ar
    generator, ar = for_condition(generator, condition), ar if ar is None else for_condition(ar, ar_condition)
    require(on_step is None or not ar_ratio, "on_step: is called in masked decoding alone, not together with ar_ratio")
    if isinstance(cfg, CausalConfig):
        require(on_step is None, "on_step: is called in masked decoding, and this generator is causal")
        return decode_causal(generator, condition, key, cfg, tokens_bl, grid)
    if ar_ratio:
        both = HybridCondition(condition, ar_condition)
        return decode_hybrid(ar, generator, both, key, ar_cfg or CausalConfig(), cfg, ar_ratio, grid, tokens_bl)
    return decode(generator, condition, key, cfg, tokens_bl, grid, on_step)
