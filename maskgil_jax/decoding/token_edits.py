"""Preparation of edits for `masked.decode`: the tokens under a hole, variations, mixtures of conditions, wide canvases.

Tokens that are given to the decoder never change.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import DecodeConfig, require
from maskgil_jax.decoding.masked import decode, topk_mask
from maskgil_jax.models.condition import ConditionPair, concatenate
from maskgil_jax.runtime.rng import fold_keys

# Folded into an image's key first, so that these draws are independent of those of the decoder.
_VARIATION_DRAWS, _WINDOW_DRAWS = 2**32 - 2, 2**32 - 3


def dilate(mask_bhw: np.ndarray) -> np.ndarray:
    """Dilates a mask by one cell in all eight directions: bool (b, h, w)."""
    h, w = mask_bhw.shape[1:]
    padded = np.pad(mask_bhw, ((0, 0), (1, 1), (1, 1)))
    return np.logical_or.reduce([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)])


def token_mask(mask_bhw: np.ndarray, grid: tuple[int, int], grow: int = 1) -> np.ndarray:
    """The tokens under a hole: bool (b, h, w) of pixels -> bool (b, rows * columns).

    A token is masked if any pixel of its cell is, and so are the tokens up to `grow` cells further, because the
    receptive field of the encoder reaches into the hole. The sides of the picture must be multiples of those of the
    grid.
    """
    (b, h, w), (rows, columns) = mask_bhw.shape, grid
    if h % rows or w % columns:
        raise ValueError(f"masks: {h} x {w} pixels cannot be divided into {rows} x {columns} cells")
    cells_bhw = np.logical_or.reduce(mask_bhw.reshape(b, rows, h // rows, columns, w // columns), axis=(2, 4))
    for _ in range(grow):
        cells_bhw = dilate(cells_bhw)
    return cells_bhw.reshape(b, -1)


def feather_mask(mask_bhw: np.ndarray, width: int) -> np.ndarray:
    """Weight of the new picture: float32 (b, h, w), 1 in the hole, falling linearly to 0 over `width` pixels around
    it."""
    alpha_bhw: np.ndarray = mask_bhw.astype(np.float32)
    ring_bhw = mask_bhw
    for distance in range(1, width + 1):
        wider_bhw = dilate(ring_bhw)
        alpha_bhw = np.where(wider_bhw & ~ring_bhw, np.float32(1 - distance / (width + 1)), alpha_bhw)
        ring_bhw = wider_bhw
    return alpha_bhw


def fill_holes(images_bhwc: np.ndarray, mask_bhw: np.ndarray) -> np.ndarray:
    """Fills masked pixels by pull-push interpolation, so that the tokenizer's encoder sees no edge at the hole; uint8.

    A hole gets the mean of the known pixels near it, coarser the larger the hole; an image without any is grey.
    """
    known_bhw1 = (~mask_bhw)[..., None].astype(np.float32)
    return np.where(mask_bhw[..., None], _pyramid(images_bhwc * known_bhw1, known_bhw1).round().astype(np.uint8), images_bhwc)


def _pyramid(sums_bhwc, counts_bhw1):
    """Means of the known pixels, and where there is none, of the next coarser level: float32 (b, h, w, c)."""
    b, h, w, _ = sums_bhwc.shape
    if h == w == 1:
        return np.where(counts_bhw1 > 0, sums_bhwc / np.maximum(counts_bhw1, 1), 128.0).astype(np.float32)
    halves = [np.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))) for x in (sums_bhwc, counts_bhw1)]
    coarse = _pyramid(*(x.reshape(b, -(-h // 2), 2, -(-w // 2), 2, x.shape[-1]).sum(axis=(2, 4)) for x in halves))
    finer = coarse.repeat(2, axis=1).repeat(2, axis=2)[:, :h, :w]
    return np.where(counts_bhw1 > 0, sums_bhwc / np.maximum(counts_bhw1, 1), finer)


def mask_fraction(tokens_bl, key_b, strength: float, mask_id: int):
    """Masks round(strength * l) tokens of each image, at positions drawn from its own key: int32 (b,
    l). strength: 0..1."""
    require(0.0 <= strength <= 1.0, f"strength: must be between 0 (reconstruction) and 1 (a new image), got {strength}")
    b, l = tokens_bl.shape
    key_b = fold_keys(key_b, _VARIATION_DRAWS)
    chance_bl = jax.vmap(lambda key: jax.random.uniform(key, (l,)))(key_b)
    hidden_bl = topk_mask(jnp.ones((b, l), bool), chance_bl, jnp.full(b, round(strength * l))) if round(strength * l) else False
    return jnp.where(hidden_bl, mask_id, tokens_bl)


@flax.struct.dataclass
class InterpolatedGenerator:
    """A generator that takes a `ConditionPair`: its logits are `(1 - weight) first + weight second`.

    Mixed logits are the geometric mean of the two distributions. That works for any network and any kind of condition;
    mixed class embeddings would halve the work, but are inputs that the network was not trained on. Each call has twice
    the rows.
    """

    generator: Any

    @property
    def cfg(self):
        return self.generator.cfg

    def null_condition(self, condition: ConditionPair) -> ConditionPair:
        null = self.generator.null_condition
        return ConditionPair(null(condition.first), null(condition.second), condition.weight_b)

    def __call__(self, tokens_bl, condition: ConditionPair, *, grid: tuple[int, int] | None = None):
        both = concatenate(condition.first, condition.second)
        logits_xlv = self.generator(jnp.concatenate([tokens_bl, tokens_bl]), both, grid=grid).astype(jnp.float32)
        first_blv, second_blv = jnp.split(logits_xlv, 2)
        weight_b11 = condition.weight_b[:, None, None]
        return (1 - weight_b11) * first_blv + weight_b11 * second_blv


def window_starts(length: int, side: int, overlap: int, anchor: int) -> list[int]:
    """Where windows of `side` cells begin on an axis of `length`: steps of `side - overlap` both ways from `anchor`, up
    to the edges, so each shares `overlap` cells or more with the next.
    """
    step = side - overlap
    steps = range(-anchor // step - 1, length // step + 2)
    return sorted({min(max(anchor + k * step, 0), length - side) for k in steps})


def windows(canvas: tuple[int, int], side: tuple[int, int], overlap: tuple[int, int], anchor: tuple[int, int]) -> list:
    """(top, left) of the windows that cover a canvas, nearest to the anchor first: each overlaps one before it."""
    tops, lefts = (window_starts(n, s, o, a) for n, s, o, a in zip(canvas, side, overlap, anchor, strict=True))
    return sorted(
        ((top, left) for top in tops for left in lefts),
        key=lambda at: (abs(at[0] - anchor[0]) + abs(at[1] - anchor[1]), at),
    )


def decode_windows(
    generator,
    condition,
    key_b,
    cfg: DecodeConfig,
    tokens_bhw: np.ndarray,
    anchor: tuple[int, int] = (0, 0),
    overlap: tuple[int, int] | None = None,
) -> np.ndarray:
    """Fills a canvas at least as large as the training grid, one window of the training grid after the other.

    Each window is given its known tokens, from the images and from earlier windows. The network gets only positions and
    sizes it was trained on, so learned positions work too. All windows share one compiled program.

    Args:
      key_b: one key per image; each window folds its number into them.
      tokens_bhw: int (b, rows, columns), `mask_id` where a token is to be made. On the host.
      anchor: (row, column) of the window to begin with, usually where the known part is.
      overlap: (rows, columns) that neighbouring windows share at least. Default: half the training grid.

    Returns:
      int32 (b, rows, columns) on the host.
    """
    (rows, columns), (h, w) = generator.cfg.grid, tokens_bhw.shape[1:]
    require(h >= rows and w >= columns, f"canvas: {h}x{w} is smaller than the training grid {rows}x{columns}")
    overlap = (rows // 2, columns // 2) if overlap is None else overlap
    require(
        0 <= overlap[0] < rows and 0 <= overlap[1] < columns,
        f"overlap: must be (rows, columns) from 0 to below the training grid's {rows}x{columns}, got {overlap}",
    )
    tokens_bhw = np.array(tokens_bhw, np.int32)
    key_b = fold_keys(key_b, _WINDOW_DRAWS)
    for number, (top, left) in enumerate(windows((h, w), (rows, columns), overlap, anchor)):
        window = tokens_bhw[:, top : top + rows, left : left + columns]  # a view of the canvas
        if (window == generator.cfg.mask_id).any():
            keys_b = fold_keys(key_b, number)
            given_bl = jnp.asarray(window.reshape(len(window), -1))
            window[:] = jax.device_get(decode(generator, condition, keys_b, cfg, given_bl)).reshape(window.shape)
    return tokens_bhw
