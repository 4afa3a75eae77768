"""Classifier-free guidance: the scale at each step, and the network call that needs it."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import ConfigError, DecodeConfig

_TIE = 1e-9  # far above float64 rounding, far below the distance of two steps


def progress(steps: int) -> np.ndarray:
    """Position of each step from the first (0) to the last (1), float64 (steps,); a single step is the last."""
    return np.linspace(0.0, 1.0, steps) if steps > 1 else np.ones(1)


def guidance_scales(cfg: DecodeConfig) -> np.ndarray:
    """The scale s of `uncond + s * (cond - uncond)` at each step i of T, float32 (steps,).

    With g = `cfg.guidance` and p = i / (T - 1):
    `constant`: g throughout (paper 4.2).
    `linear`: 1 + g p, so 1 + g at the last step (the published code, whose weights `(1 + w) cond - w uncond` are the
    same thing with s = 1 + w; Muse increases it linearly too).
    `cosine`: 1 + (g - 1) (1 - cos(pi p)) / 2, from 1 to g, flat at both ends.
    `power-cosine`: 1 + (g - 1) (1 - cos(pi (i / T)^a)) / 2 with a = `cfg.guidance_power` (MDT, as used by 1d-tokenizer;
    their i / T falls short of 1, so the last scale falls short of g).
    `interval`: g where `guidance_from <= (i + 1) / T <= guidance_to`, else 1 (eMIGM, whose time runs the other way:
    its (t_min, t_max) is `(1 - guidance_to, 1 - guidance_from)`).
    """
    gain, index = cfg.guidance - 1.0, np.arange(cfg.steps)
    if cfg.guidance_ramp == "constant":
        scales = np.full(cfg.steps, cfg.guidance)
    elif cfg.guidance_ramp == "linear":
        scales = 1.0 + cfg.guidance * progress(cfg.steps)
    elif cfg.guidance_ramp == "cosine":
        scales = 1.0 + gain * (1.0 - np.cos(np.pi * progress(cfg.steps))) / 2
    elif cfg.guidance_ramp == "power-cosine":
        scales = 1.0 + gain * (1.0 - np.cos(np.pi * (index / cfg.steps) ** cfg.guidance_power)) / 2
    else:
        done = (index + 1) / cfg.steps
        inside = (done >= cfg.guidance_from - _TIE) & (done <= cfg.guidance_to + _TIE)
        scales = np.where(inside, cfg.guidance, 1.0)
    return scales.astype(np.float32)


def guided_runs(scales: np.ndarray) -> list[tuple[int, int, bool]]:
    """Consecutive steps (first, end, guided) with and without a second branch: a scale of 1 does not need one."""
    guided = scales != 1.0
    edges = [0, *(np.flatnonzero(guided[1:] != guided[:-1]) + 1).tolist(), len(scales)]
    return [(first, end, bool(guided[first])) for first, end in itertools.pairwise(edges)]


def mix(cond, uncond, scale):
    """`uncond + scale * (cond - uncond)`."""
    return uncond + scale * (cond - uncond)


def guided_logits(generator, tokens_bl, condition, scale, grid: tuple[int, int], at_bm=None):
    """Logits float32 (b, l, v) of one network call; with a `scale` other than None both branches share a batch of 2b.

    With positions `at_bm` int (b, m) the logits are those of these positions only, (b, m, v).

    Raises:
      ConfigError: the generator's logits are not (rows, positions, codebook_size).
    """
    if scale is None:
        return _call(generator, tokens_bl, condition, grid, at_bm)
    pairs = jax.tree.map(alternate, condition, generator.null_condition(condition))
    at_xm = None if at_bm is None else alternate(at_bm, at_bm)
    logits_xmv = _call(generator, alternate(tokens_bl, tokens_bl), pairs, grid, at_xm)
    logits_b2mv = logits_xmv.reshape(-1, 2, *logits_xmv.shape[1:])
    return mix(logits_b2mv[:, 0], logits_b2mv[:, 1], scale)


def alternate(cond, uncond):
    """Interleaves two (b, ...) arrays to (2b, ...), so that the rows of an image stay on one device of a sharded
    batch."""
    return jnp.stack([cond, uncond], axis=1).reshape(-1, *cond.shape[1:])


def _call(generator, tokens_xl, condition, grid, at_xm):
    codes = generator.cfg.codebook_size
    if at_xm is None:
        logits_xmv = generator(tokens_xl, condition, grid=grid)
    else:
        hidden_xld = generator.hidden(tokens_xl, condition, grid=grid)
        hidden_xmd = jnp.take_along_axis(hidden_xld, at_xm[..., None], axis=1)
        logits_xmv = generator.logits(hidden_xmd, at_xm)[..., :codes]
    expected = (*(tokens_xl if at_xm is None else at_xm).shape, codes)
    if logits_xmv.shape != expected:
        raise ConfigError(f"generator: expected logits of shape {expected} (rows, tokens, codes), got {logits_xmv.shape}")
    return logits_xmv.astype(jnp.float32)
