"""Editing images with a pipeline. `Pipeline` has these functions as its methods; none of them calls back into it by name.

Common to all: images are uint8 (b, height, width, 3), in and out, and sides must be multiples of the tokenizer's cells. labels:
one class for all images, one per image, or None for no class. seed or key, cfg, batch_size: as in a call of the pipeline. The
image at place i depends on the key, i, its own pixels, mask and label, and not on its batch or its neighbours. Every batch
has one shape, so each function compiles once per shape. A `ConfigError` says what does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import ConfigError, require
from maskgil_jax.decoding.masked import decode
from maskgil_jax.decoding.token_edits import (
    ConditionPair,
    InterpolatedGenerator,
    decode_windows,
    feather_mask,
    fill_holes,
    mask_fraction,
    token_mask,
)
from maskgil_jax.decoding.token_sampling import batch_requests
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.tokenizers.images import to_pixels, to_tokens

GREY = 160  # of cells that are still masked
MASKED_ONLY = "editing is masked decoding alone; a causal network does not see what stands below a hole and to the right of it"


def inpaint(pipeline: Any, images, masks=None, labels=None, *, feather: int | None = None, cfg=None, **options) -> np.ndarray:
    """Fills holes in images: uint8 (b, height, width, 3).

    masks: true where the hole is: bool, or uint8 where 128 and more counts, (b, height, width) or one (height, width) for all.
    None: the images have a fourth channel, and the hole is where it is 0. What stands in the hole is not looked at. Tokens
    whose cell the hole touches are made anew, and their neighbours with them. In the picture only the hole changes, and
    `feather` pixels around it (default: half a cell), in which the old picture fades into the new; 0 for a hard edge.
    """
    images_bhwc, masks_bhw = _images_and_masks(images, masks)
    cell = pipeline.tokenizer.cfg.downsample
    feather = cell // 2 if feather is None else feather
    require(feather >= 0, f"feather: must be 0 or more pixels, got {feather}")
    grid = _grid_of(pipeline, images_bhwc)
    made = []
    for rows, keys_b, label_b, wanted in _batches(pipeline, labels, len(images_bhwc), **options):
        old_bhwc, hole_bhw = images_bhwc[rows], masks_bhw[rows]
        given_bl = to_tokens(pipeline.tokenizer, pipeline.shared(fill_holes(old_bhwc, hole_bhw)))
        tokens_bl = jnp.where(token_mask(hole_bhw, grid), pipeline.generator.cfg.mask_id, given_bl)
        tokens_bl = pipeline.tokens(label_b, keys_b, cfg=cfg, grid=grid, tokens_bl=tokens_bl)
        new_bhwc = jax.device_get(to_pixels(pipeline.tokenizer, tokens_bl, grid))
        made.append(_composite(old_bhwc, new_bhwc, feather_mask(hole_bhw, feather))[:wanted])
    return np.concatenate(made)


def edit_box(pipeline: Any, images, box: tuple[int, int, int, int], labels=None, **options) -> np.ndarray:
    """Draws something of another class into a box of the images: `inpaint` with that hole, uint8 (b, height, width, 3).

    box: (left, top, right, bottom) in pixels, right and bottom just outside it, the same for all images.
    """
    images_bhwc = _images(images)
    _, height, width, _ = images_bhwc.shape
    left, top, right, bottom = box
    inside = 0 <= left < right <= width and 0 <= top < bottom <= height
    require(
        inside, f"box: expected (left, top, right, bottom) inside {width} x {height} pixels (width x height), got {tuple(box)}"
    )
    mask_hw = np.zeros((height, width), bool)
    mask_hw[top:bottom, left:right] = True
    return inpaint(pipeline, images_bhwc, mask_hw, labels, **options)


def vary(pipeline: Any, images, labels=None, *, share: float = 0.5, cfg=None, **options) -> np.ndarray:
    """Variations of images, with the class they have or another one: uint8 (b, height, width, 3).

    share: part of the tokens that is made anew, evenly drawn: 0 gives what the tokenizer makes of the image, 1 new images.
    """
    images_bhwc = _images(images)
    grid, made = _grid_of(pipeline, images_bhwc), []
    for rows, keys_b, label_b, wanted in _batches(pipeline, labels, len(images_bhwc), **options):
        given_bl = to_tokens(pipeline.tokenizer, pipeline.shared(images_bhwc[rows]))
        tokens_bl = mask_fraction(given_bl, keys_b, share, pipeline.generator.cfg.mask_id)
        tokens_bl = pipeline.tokens(label_b, keys_b, cfg=cfg, grid=grid, tokens_bl=tokens_bl)
        made.append(jax.device_get(to_pixels(pipeline.tokenizer, tokens_bl, grid))[:wanted])
    return np.concatenate(made)


def interpolate(
    pipeline: Any, first, second, *, weights=(0.0, 0.25, 0.5, 0.75, 1.0), cfg=None, grid=None, **options
) -> np.ndarray:
    """Images on the way from one class to another: uint8 (pairs, weights, height, width, 3).

    first, second: a class each, or as many of one as of the other. weights: 0 is the first, 1 the second, in between the
    logits are mixed (`decoding.token_edits.InterpolatedGenerator`). The images of a pair share their key, so only the weight
    differs.
    """
    first_b, second_b = pipeline.label_ids(first), pipeline.label_ids(second)
    require(len(first_b) == len(second_b), f"second: {len(first_b)} first and {len(second_b)} second classes; give pairs")
    weight_w = np.asarray(weights, np.float32)
    if weight_w.ndim != 1 or not len(weight_w) or not ((weight_w >= 0) & (weight_w <= 1)).all():
        raise ConfigError(f"weights: expected numbers from 0 (first class) to 1 (second), got {weights}")
    _check_masked(pipeline)
    places = np.repeat(np.arange(len(first_b)), len(weight_w))
    weight_n, made = np.tile(weight_w, len(first_b)), []
    shape = tuple(grid or pipeline.generator.cfg.grid)
    for rows, keys_b, _, wanted in _batches(pipeline, first_b[places], len(places), places=places, **options):
        start, end = (ClassCondition(jnp.asarray(ids[places[rows]])) for ids in (first_b, second_b))
        condition = pipeline.shared(ConditionPair(start, end, jnp.asarray(weight_n[rows])))
        tokens_bl = decode(InterpolatedGenerator(pipeline.generator), condition, keys_b, pipeline.options(cfg), grid=shape)
        made.append(jax.device_get(to_pixels(pipeline.tokenizer, tokens_bl, shape))[:wanted])
    images_nhwc = np.concatenate(made)
    return images_nhwc.reshape(len(first_b), len(weight_w), *images_nhwc.shape[1:])


def outpaint(
    pipeline: Any,
    images,
    canvas: tuple[int, int],
    labels=None,
    *,
    place: tuple[int, int] | None = None,
    overlap: tuple[int, int] | None = None,
    feather: int | None = None,
    cfg=None,
    **options,
) -> np.ndarray:
    """Continues images beyond their edges: uint8 (b, rows * cell, columns * cell, 3).

    canvas: (rows, columns) of cells, at least as many as the images and the training grid have. place: cell of the canvas
    that the image's top left corner goes to; default: the middle. The rest is filled window by window, each on the training
    grid (`decoding.editing.decode_windows`, which says what `overlap` is): wide canvases of networks that know only
    one. feather: pixels inside the image's edge that fade into the new picture; default half a cell.
    """
    images_bhwc, cell = _images(images), pipeline.tokenizer.cfg.downsample
    (rows, columns), (h, w) = canvas, _grid_of(pipeline, images_bhwc)
    room = (rows - h, columns - w)
    require(min(room) >= 0, f"canvas: {rows}x{columns} cells are less than the image's {h}x{w}")
    require(max(room) > 0, f"canvas: {rows}x{columns} cells is the size of the image: nothing to add")
    top, left = (room[0] // 2, room[1] // 2) if place is None else place
    require(
        0 <= top <= room[0] and 0 <= left <= room[1],
        f"place: must be (row, column) from (0, 0) to {room} for {h}x{w} cells on {rows}x{columns}, got {(top, left)}",
    )
    feather = cell // 2 if feather is None else feather
    require(feather >= 0, f"feather: must be 0 or more pixels, got {feather}")
    outside_1hw = np.ones((1, rows * cell, columns * cell), bool)
    inner = np.s_[:, top * cell : (top + h) * cell, left * cell : (left + w) * cell]
    outside_1hw[inner] = False
    hidden_1hw, alpha_1hw = token_mask(outside_1hw, canvas).reshape(1, rows, columns), feather_mask(outside_1hw, feather)
    made = []
    for at, keys_b, label_b, wanted in _batches(pipeline, labels, len(images_bhwc), **options):
        known_bhw = jax.device_get(to_tokens(pipeline.tokenizer, pipeline.shared(images_bhwc[at]))).reshape(-1, h, w)
        tokens_bhw = np.pad(known_bhw, ((0, 0), (top, room[0] - top), (left, room[1] - left)))
        tokens_bhw = np.where(hidden_1hw, pipeline.generator.cfg.mask_id, tokens_bhw)
        condition = ClassCondition(jnp.asarray(label_b))
        tokens_bhw = decode_windows(
            pipeline.generator, condition, keys_b, pipeline.options(cfg), tokens_bhw, (top, left), overlap
        )
        flat_bl = tokens_bhw.reshape(len(tokens_bhw), -1)
        new_bhwc = np.array(jax.device_get(to_pixels(pipeline.tokenizer, flat_bl, (rows, columns))))
        old_bhwc = new_bhwc.copy()
        old_bhwc[inner] = images_bhwc[at]
        made.append(_composite(old_bhwc, new_bhwc, alpha_1hw)[:wanted])
    return np.concatenate(made)


def trajectory(pipeline: Any, labels, *, cfg=None, grid=None, **options) -> np.ndarray:
    """The canvas after each step of masked decoding: uint8 (steps, b, height, width, 3), the last ones the images of a call.

    Cells that are still masked are grey. The others show the tokens they hold at that step, drawn with the final tokens
    around them: a tokenizer cannot draw a hole.
    """
    _check_masked(pipeline)
    shape, mask_id = tuple(grid or pipeline.generator.cfg.grid), pipeline.generator.cfg.mask_id
    cell, steps = pipeline.tokenizer.cfg.downsample, []
    ids = pipeline.label_ids(labels)
    for _, keys_b, label_b, wanted in _batches(pipeline, ids, len(ids), **options):
        seen: list[jax.Array] = []
        pipeline.tokens(label_b, keys_b, cfg=cfg, grid=shape, on_step=lambda _, tokens_bl, seen=seen: seen.append(tokens_bl))
        batch = []
        for tokens_bl in seen:
            masked_bl = tokens_bl == mask_id
            pixels_bhwc = jax.device_get(to_pixels(pipeline.tokenizer, jnp.where(masked_bl, seen[-1], tokens_bl), shape))
            masked_bhw = np.asarray(masked_bl).reshape(-1, *shape).repeat(cell, axis=1).repeat(cell, axis=2)
            batch.append(np.where(masked_bhw[..., None], np.uint8(GREY), pixels_bhwc)[:wanted])
        steps.append(np.stack(batch))
    return np.concatenate(steps, axis=1)


def _batches(
    pipeline: Any,
    labels,
    count: int,
    *,
    seed: int = 0,
    key=None,
    batch_size: int | None = None,
    places=None,
    ar_ratio: float = 0.0,
) -> Iterator[tuple[np.ndarray, jax.Array, jax.Array, int]]:
    """(rows of the request, their keys, their classes, how many of them are wanted), a batch at a time."""
    _check_masked(pipeline)
    require(not ar_ratio, f"ar_ratio: {MASKED_ONLY}")
    if labels is None:
        ids_b = _no_class(pipeline.generator, count)
    else:
        ids_b = pipeline.label_ids(labels)
        require(len(ids_b) in (1, count), f"labels: {len(ids_b)} classes for {count} images; give one, or one for each")
        ids_b = np.broadcast_to(ids_b, count)
    key, size = pipeline.request(count, seed, key, batch_size)
    for rows, keys_b, wanted in batch_requests(key, np.arange(count) if places is None else places, size):
        yield rows, *pipeline.shared((keys_b, ids_b[rows])), wanted


def _no_class(generator, count: int) -> np.ndarray:
    """The null class, as often as there are images."""
    try:
        return np.asarray(generator.null_condition(ClassCondition(jnp.zeros(count, jnp.int32))).label_b)
    except ConfigError:
        raise ConfigError("labels: this generator was trained without a null class; give a class") from None


def _check_masked(pipeline: Any) -> None:
    require(pipeline.masked, f"{pipeline.name}: holds a causal generator; this needs one that fills in masked tokens")


def _images(images, channels: tuple[int, ...] = (3,)) -> np.ndarray:
    images_bhwc = np.asarray(images)
    if images_bhwc.dtype != np.uint8 or images_bhwc.ndim != 4 or images_bhwc.shape[-1] not in channels or not images_bhwc.size:
        raise ConfigError(
            f"images: expected uint8 (b, height, width, {' or '.join(map(str, channels))}), got {images_bhwc.dtype} "
            f"{images_bhwc.shape}"
        )
    return images_bhwc


def _images_and_masks(images, masks) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 (b, h, w, 3), bool (b, h, w)), checked; see `inpaint`."""
    images_bhwc = _images(images, (3, 4))
    if masks is None:
        require(images_bhwc.shape[-1] == 4, "masks: none given, and the images have no fourth channel (alpha) to say where")
        masks_bhw = images_bhwc[..., 3] == 0
    else:
        masks_bhw = np.asarray(masks)
        if masks_bhw.dtype not in (bool, np.uint8):
            raise ConfigError(f"masks: expected bool or uint8 (128 and more is masked), got {masks_bhw.dtype}")
        masks_bhw = masks_bhw if masks_bhw.dtype == bool else masks_bhw >= 128
        if masks_bhw.shape not in (images_bhwc.shape[1:3], images_bhwc.shape[:3]):
            raise ConfigError(f"masks: images are {images_bhwc.shape[:3]} (b, height, width), got masks of {masks_bhw.shape}")
        masks_bhw = np.broadcast_to(masks_bhw, images_bhwc.shape[:3])
    empty = np.flatnonzero(~masks_bhw.any(axis=(1, 2)))
    require(not len(empty), f"masks: nothing is masked in image {empty[0] if len(empty) else ''}; there is nothing to fill")
    return images_bhwc[..., :3], masks_bhw


def _grid_of(pipeline: Any, images_bhwc: np.ndarray) -> tuple[int, int]:
    """(rows, columns) of the images' tokens."""
    cell, (height, width) = pipeline.tokenizer.cfg.downsample, images_bhwc.shape[1:3]
    require(
        height % cell == 0 and width % cell == 0,
        f"images: {height} x {width} pixels (height x width) are not multiples of the tokenizer's {cell}; crop or scale them",
    )
    return height // cell, width // cell


def _composite(old_bhwc: np.ndarray, new_bhwc: np.ndarray, alpha_bhw: np.ndarray) -> np.ndarray:
    """The old picture where alpha is 0, the new one where it is 1; uint8."""
    alpha_bhw1 = alpha_bhw[..., None]
    return ((1 - alpha_bhw1) * old_bhwc + alpha_bhw1 * new_bhwc).round().astype(np.uint8)
