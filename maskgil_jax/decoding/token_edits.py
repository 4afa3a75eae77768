"""Editing on tokens: which ones a hole in the picture hides, variations, between two conditions, wide canvases by windows.

All of it is preparation for `masked.decode`, whose promise it keeps: tokens that are given never change.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import DecodeConfig, require
from maskgil_jax.decoding.masked import decode, topk_mask
from maskgil_jax.runtime.rng import fold_keys

# Folded into an image's key before anything else is, so that these draws have nothing to do with those of the decoder.
_VARIATION_DRAWS, _WINDOW_DRAWS = 2**32 - 2, 2**32 - 3


def dilate(mask_bhw: np.ndarray) -> np.ndarray:
    """A mask and all cells that touch it, corners included: bool (b, h, w)."""
    h, w = mask_bhw.shape[1:]
    padded = np.pad(mask_bhw, ((0, 0), (1, 1), (1, 1)))
    return np.logical_or.reduce([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)])


def token_mask(mask_bhw: np.ndarray, grid: tuple[int, int], grow: int = 1) -> np.ndarray:
    """The tokens that a hole in the picture hides: bool (b, h, w) of pixels -> bool (b, rows * columns).

    A token goes if any pixel of its cell is masked, and so do the tokens up to `grow` cells further: they were encoded with
    the hole in sight. The sides of the picture must be multiples of those of the grid.
    """
    (b, h, w), (rows, columns) = mask_bhw.shape, grid
    if h % rows or w % columns:
        raise ValueError(f"masks: {h} x {w} pixels do not fall into {rows} x {columns} cells")
    cells_bhw = np.logical_or.reduce(mask_bhw.reshape(b, rows, h // rows, columns, w // columns), axis=(2, 4))
    for _ in range(grow):
        cells_bhw = dilate(cells_bhw)
    return cells_bhw.reshape(b, -1)


def feather_mask(mask_bhw: np.ndarray, width: int) -> np.ndarray:
    """How much of the new picture is seen: float32 (b, h, w), 1 in the hole, falling to 0 over `width` pixels around it."""
    alpha_bhw: np.ndarray = mask_bhw.astype(np.float32)
    ring_bhw = mask_bhw
    for distance in range(1, width + 1):
        wider_bhw = dilate(ring_bhw)
        alpha_bhw = np.where(wider_bhw & ~ring_bhw, np.float32(1 - distance / (width + 1)), alpha_bhw)
        ring_bhw = wider_bhw
    return alpha_bhw


def fill_holes(images_bhwc: np.ndarray, mask_bhw: np.ndarray) -> np.ndarray:
    """The images with smooth nothing in their holes, uint8: what stands there is not seen, and the rest is encoded undisturbed.

    Pulled up and pushed down a pyramid: a hole gets the mean of what is known near it. Without anything known it is grey.
    """
    known_bhw1 = (~mask_bhw)[..., None].astype(np.float32)
    return np.where(mask_bhw[..., None], _pyramid(images_bhwc * known_bhw1, known_bhw1).round().astype(np.uint8), images_bhwc)


def _pyramid(sums_bhwc, counts_bhw1):
    """Means of the known pixels, and where there is none that of a coarser level: float32 (b, h, w, c)."""
    b, h, w, _ = sums_bhwc.shape
    if h == w == 1:
        return np.where(counts_bhw1 > 0, sums_bhwc / np.maximum(counts_bhw1, 1), 128.0).astype(np.float32)
    halves = [np.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))) for x in (sums_bhwc, counts_bhw1)]
    coarse = _pyramid(*(x.reshape(b, -(-h // 2), 2, -(-w // 2), 2, x.shape[-1]).sum(axis=(2, 4)) for x in halves))
    finer = coarse.repeat(2, axis=1).repeat(2, axis=2)[:, :h, :w]
    return np.where(counts_bhw1 > 0, sums_bhwc / np.maximum(counts_bhw1, 1), finer)


def mask_fraction(tokens_bl, key_b, share: float, mask_id: int):
    """Masks round(share * l) tokens of each image, drawn evenly from its own key: int32 (b, l). share: 0..1."""
    require(0.0 <= share <= 1.0, f"share: must be between 0 (nothing is made anew) and 1 (everything), got {share}")
    b, l = tokens_bl.shape
    key_b = fold_keys(key_b, _VARIATION_DRAWS)
    chance_bl = jax.vmap(lambda key: jax.random.uniform(key, (l,)))(key_b)
    hidden_bl = topk_mask(jnp.ones((b, l), bool), chance_bl, jnp.full(b, round(share * l))) if round(share * l) else False
    return jnp.where(hidden_bl, mask_id, tokens_bl)


@flax.struct.dataclass
class ConditionPair:
    """Conditions of one kind and batch size, and where between them to be: `weight_b` float32 (b,), 0 first, 1 second."""

    first: Any
    second: Any
    weight_b: jax.Array


@flax.struct.dataclass
class InterpolatedGenerator:
    """A generator that takes `ConditionPair`: its logits are `(1 - weight) first + weight second`.

    Mixing logits is a geometric mean of the two predictions. It asks nothing of the network, so any generator and any kind
    of condition will do; mixing class embeddings would be half the work, and at the weights in between give the network
    inputs it was not trained on. Each call of the network has twice the rows.
    """

    generator: Any

    @property
    def cfg(self):
        return self.generator.cfg

    def null_condition(self, condition: ConditionPair) -> ConditionPair:
        null = self.generator.null_condition
        return ConditionPair(null(condition.first), null(condition.second), condition.weight_b)

    def __call__(self, tokens_bl, condition: ConditionPair, *, grid: tuple[int, int] | None = None):
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), condition.first, condition.second)
        logits_xlv = self.generator(jnp.concatenate([tokens_bl, tokens_bl]), both, grid=grid).astype(jnp.float32)
        first_blv, second_blv = jnp.split(logits_xlv, 2)
        weight_b11 = condition.weight_b[:, None, None]
        return (1 - weight_b11) * first_blv + weight_b11 * second_blv


def window_starts(length: int, side: int, overlap: int, anchor: int) -> list[int]:
    """Where windows of `side` cells begin on an axis of `length`: steps of `side - overlap` both ways from `anchor`, up to
    the edges, so each shares `overlap` cells or more with the next."""
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

    Each window is given what is known of it, by the images and by earlier windows, so the network never sees a position or a
    size it was not trained on: this works for learned positions too. All windows share one compiled program.

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
        window = tokens_bhw[:, top : top + rows, left : left + columns]  # a view: what is written here is written there
        if (window == generator.cfg.mask_id).any():
            keys_b = fold_keys(key_b, number)
            given_bl = jnp.asarray(window.reshape(len(window), -1))
            window[:] = jax.device_get(decode(generator, condition, keys_b, cfg, given_bl)).reshape(window.shape)
    return tokens_bhw
