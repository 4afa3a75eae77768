"""Classifier-free guidance: the scale at each step, and the network call that needs it."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import ConfigError, DecodeConfig


def progress(steps: int) -> np.ndarray:
    """Where each step stands between the first (0) and the last (1), float64 (steps,); a single step is the last."""
    return np.linspace(0.0, 1.0, steps) if steps > 1 else np.ones(1)


def guidance_scales(cfg: DecodeConfig) -> np.ndarray:
    """The scale s of `uncond + s * (cond - uncond)` at each step, float32 (steps,).

    `constant`: `cfg.guidance` throughout (paper 4.2). `linear`: from 1 at the first step to `1 + cfg.guidance` at the
    last (the published code, whose weights `(1 + w) cond - w uncond` are the same thing with s = 1 + w).
    """
    if cfg.guidance_ramp == "constant":
        return np.full(cfg.steps, cfg.guidance, np.float32)
    return (1.0 + cfg.guidance * progress(cfg.steps)).astype(np.float32)


def guided_runs(scales: np.ndarray) -> list[tuple[int, int, bool]]:
    """Consecutive steps (first, end, guided) with and without a second branch: a scale of 1 does not need one."""
    guided = scales != 1.0
    edges = [0, *(np.flatnonzero(guided[1:] != guided[:-1]) + 1).tolist(), len(scales)]
    return [(first, end, bool(guided[first])) for first, end in itertools.pairwise(edges)]


def mix(cond, uncond, scale):
    """`uncond + scale * (cond - uncond)`."""
    return uncond + scale * (cond - uncond)


def guided_logits(generator, tokens_bl, condition, scale, grid: tuple[int, int]):
    """Logits float32 (b, l, v) of one network call; with a `scale` other than None both branches share a batch of 2b.

    The two rows of an image are neighbours, so a batch sharded over devices keeps each image's branches together.

    Raises:
      ConfigError: the generator's logits are not (rows, l, codebook_size).
    """
    if scale is None:
        return _call(generator, tokens_bl, condition, grid)
    pairs = jax.tree.map(_pair, condition, generator.null_condition(condition))
    logits_xlv = _call(generator, _pair(tokens_bl, tokens_bl), pairs, grid)
    logits_b2lv = logits_xlv.reshape(-1, 2, *logits_xlv.shape[1:])
    return mix(logits_b2lv[:, 0], logits_b2lv[:, 1], scale)


def _pair(cond, uncond):
    """(b, ...) twice to (2b, ...), alternating."""
    return jnp.stack([cond, uncond], axis=1).reshape(-1, *cond.shape[1:])


def _call(generator, tokens_xl, condition, grid):
    logits_xlv = generator(tokens_xl, condition, grid=grid)
    expected = (*tokens_xl.shape, generator.cfg.codebook_size)
    if logits_xlv.shape != expected:
        raise ConfigError(f"generator: expected logits of shape {expected} (rows, tokens, codes), got {logits_xlv.shape}")
    return logits_xlv.astype(jnp.float32)
