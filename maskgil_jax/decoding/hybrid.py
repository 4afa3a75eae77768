"""Hybrid decoding (paper 5.1): a causal network writes the first tokens in raster order,
masked decoding fills the rest."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from maskgil_jax.config import CausalConfig, ConfigError, DecodeConfig, is_causal, require
from maskgil_jax.decoding.causal import decode_causal
from maskgil_jax.decoding.masked import decode
from maskgil_jax.models.condition import HybridCondition


def causal_tokens(ratio: float, grid: tuple[int, int], whole_rows: bool = False) -> int:
    """Number of tokens that the causal network writes: `ratio` (0..1) of the canvas,
    to the nearest token or whole row."""
    require(0.0 <= ratio <= 1.0, f"ar_ratio: must be between 0 (masked only) and 1 (AR only), got {ratio}")
    return round(ratio * grid[0]) * grid[1] if whole_rows else round(ratio * math.prod(grid))


def network_calls(ratio: float, grid: tuple[int, int], steps: int) -> int:
    """Network calls for one batch: one per AR token, and `steps` if any token is left to masked decoding.

    Guidance does not count, both branches are one call: at 16x16 with 8 steps 8, 72, 136, 200, 256 for 0, 25, 50, 75,
    100%.
    """
    written = causal_tokens(ratio, grid)
    return written + (steps if written < math.prod(grid) else 0)


def decode_hybrid(
    ar,
    generator,
    condition,
    key,
    ar_cfg: CausalConfig,
    cfg: DecodeConfig,
    ratio: float,
    grid: tuple[int, int] | None = None,
    tokens_bl=None,
):
    """Fills a batch of canvases in `network_calls(ratio, grid, cfg.steps)` network calls, all in one compiled program.

    Masked decoding plans its steps on the tokens that are left. Both networks need the codes of one tokenizer. With
    `ratio` 0 the result is that of `decode`, with 1 that of `decode_causal`, for the same key.

    Args:
      ar, ar_cfg: the causal network, as in `decoding.causal`, and how it samples.
      generator, cfg: the masked network, as in `decoding.masked`, and how it samples.
      condition, key: as there; both networks get the same, or with a `HybridCondition` each its own.
      ratio: share of the tokens that the causal network writes, 0..1; whole rows if its sequence has newline tokens.
      grid: (rows, columns) of the canvas. Default: the masked network's training grid.
      tokens_bl: int (b, rows * columns), the masked network's `mask_id` where a token is to be made, any number of them
        per image. Both networks keep the given ones; the causal one sees those in its own part, each from its place on.
        Default: everything masked.

    Returns:
      int32 (b, rows * columns).

    Raises:
      ConfigError: the networks differ in codebook or are not of these kinds, or sizes do not belong together.
    """
    if is_causal(generator.cfg):
        raise ConfigError("generator: is causal; hybrid decoding fills the rest with a masked one")
    if ar.cfg.codebook_size != generator.cfg.codebook_size:
        raise ConfigError(
            f"ar: has {ar.cfg.codebook_size} codes, the masked generator {generator.cfg.codebook_size}; "
            "both must be trained on the codes of one tokenizer"
        )
    rows, columns = generator.cfg.grid if grid is None else grid
    grid = (int(rows), int(columns))
    if tokens_bl is not None and (tokens_bl.ndim != 2 or tokens_bl.shape[1] != math.prod(grid)):
        raise ConfigError(
            f"tokens_bl: a {grid[0]}x{grid[1]} grid needs tokens of shape (b, {math.prod(grid)}), got {tokens_bl.shape}"
        )
    if not isinstance(condition, HybridCondition):
        condition = HybridCondition(condition, condition)
    written = causal_tokens(ratio, grid, whole_rows=ar.cfg.condition == "tokens")
    return _decode_hybrid(ar, generator, condition, key, tokens_bl, ar_cfg, cfg, written, grid)


@functools.partial(jax.jit, static_argnames=("ar_cfg", "cfg", "written", "grid"))
def _decode_hybrid(ar, generator, both: HybridCondition, key, tokens_bl, ar_cfg, cfg, written: int, grid):
    """Each stage is a compiled program of its own kind; called under jit, they become one."""
    count, mask_id, condition = math.prod(grid), generator.cfg.mask_id, both.condition
    if written == 0:
        return decode(generator, condition, key, cfg, tokens_bl, grid)
    kept_bn = None if tokens_bl is None else jnp.where(tokens_bl == mask_id, -1, tokens_bl)[:, :written]
    tokens_bn = decode_causal(ar, both.ar, key, ar_cfg, grid=grid, end=written, kept_bl=kept_bn)
    if written == count:
        return tokens_bn
    rest_bm = jnp.full((len(tokens_bn), count - written), mask_id) if tokens_bl is None else tokens_bl[:, written:]
    return decode(generator, condition, key, cfg, jnp.concatenate([tokens_bn, rest_bm], axis=1), grid)
