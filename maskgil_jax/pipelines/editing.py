"""Editing images with a pipeline. `Pipeline` has these functions as its methods; none of them calls it by name.

Common to all: images are uint8 (b, height, width, 3), PIL images, paths of files, or lists of them; one picture is a
batch of one, and the result is always a batch, as in a call of the pipeline. Sides are multiples of the tokenizer's
cells. Results are uint8 (b, height, width, 3), or with output="pil" lists of PIL images.
labels: one request for all images, one per image, or None for none (the null condition); prompts, and negative_prompts
if any, instead for a text-conditional generator. seed or key, cfg, batch_size: as in a call of the pipeline. The image
of index i depends on the key, i, its own pixels, mask and label, and not on its batch. Every batch has one shape, so
each function compiles once per shape. A `ConfigError` says what does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskgil_jax.config import ConfigError, renamed, require
from maskgil_jax.decoding.masked import decode
from maskgil_jax.decoding.token_edits import (
    InterpolatedGenerator,
    decode_windows,
    feather_mask,
    fill_holes,
    mask_fraction,
    token_mask,
)
from maskgil_jax.models.condition import ConditionPair, take
from maskgil_jax.models.condition import batch_size as rows_of
from maskgil_jax.models.generator import for_condition
from maskgil_jax.pipelines.canvas import program_of
from maskgil_jax.pipelines.draw import RequestBatch, batch_requests
from maskgil_jax.pipelines.pictures import as_images, as_masks, with_output
from maskgil_jax.pipelines.scheduler_rules import image_to_image, inpainting
from maskgil_jax.pipelines.streaming import paint_masked
from maskgil_jax.tokenizers.images import to_pixels, to_tokens

MASKED_ONLY = "editing uses masked decoding alone; a causal network attends to nothing below a hole or to the right of it"


@with_output
def inpaint(pipeline: Any, images, masks=None, labels=None, *, feather: int | None = None, cfg=None, **options) -> np.ndarray:
    """Fills holes in images: uint8 (b, height, width, 3).

    masks: true in the hole: bool, or uint8 where 128 and more counts, (b, height, width) or one (height, width) for
    all; or PIL images or paths, white in the hole. None: the images have a fourth channel (alpha), which is 0 in the
    hole. The pixels of the hole are ignored. Tokens whose cell overlaps the hole, and their neighbours, are sampled
    anew. Pixels change in the hole and in `feather` pixels around it (default: half a cell), over which the old picture
    is blended into the new one; 0 for a hard edge.
    """
    images_bhwc, masks_bhw = _images_and_masks(images, masks)
    cell = pipeline.tokenizer.cfg.downsample
    feather = cell // 2 if feather is None else feather
    require(feather >= 0, f"feather: must be 0 or more pixels, got {feather}")
    grid, made = _grid_of(pipeline, images_bhwc), []
    _check_masked(pipeline)
    cfg = inpainting(pipeline.options(cfg))
    for rows, condition, key_b, num_valid in _batches(pipeline, labels, len(images_bhwc), **options):
        old_bhwc, hole_bhw = images_bhwc[rows], masks_bhw[rows]
        given_bl = to_tokens(pipeline.tokenizer, pipeline.shard(fill_holes(old_bhwc, hole_bhw)))
        tokens_bl = jnp.where(token_mask(hole_bhw, grid), pipeline.generator.cfg.mask_id, given_bl)
        tokens_bl = pipeline.tokens(condition, key_b, cfg=cfg, grid=grid, tokens_bl=tokens_bl)
        new_bhwc = jax.device_get(to_pixels(pipeline.tokenizer, tokens_bl, grid))
        made.append(_composite(old_bhwc, new_bhwc, feather_mask(hole_bhw, feather))[:num_valid])
    return np.concatenate(made)


@with_output
def edit_box(pipeline: Any, images, box: tuple[int, int, int, int], labels=None, **options) -> np.ndarray:
    """Replaces a box of the images, usually by another class: `inpaint` with that hole, uint8 (b, height, width, 3).

    box: (left, top, right, bottom) in pixels, right and bottom just outside it, the same for all images.
    """
    images_bhwc = as_images(images)
    _, height, width, _ = images_bhwc.shape
    left, top, right, bottom = box
    inside = 0 <= left < right <= width and 0 <= top < bottom <= height
    require(
        inside, f"box: expected (left, top, right, bottom) inside {width} x {height} pixels (width x height), got {tuple(box)}"
    )
    mask_hw = np.zeros((height, width), bool)
    mask_hw[top:bottom, left:right] = True
    return inpaint(pipeline, images_bhwc, mask_hw, labels, **options)


@with_output
@renamed(share="strength")
def vary(pipeline: Any, images, labels=None, *, strength: float = 0.5, cfg=None, **options) -> np.ndarray:
    """Variations of images, with the class they have or another one: uint8 (b, height, width, 3).

    strength: fraction of the tokens that is sampled anew, at random positions: 0 gives the tokenizer's reconstruction,
    1 new images. Under aMUSEd's scheduler (plan gamma_canvas), the share of its steps that are run.
    """
    images_bhwc = as_images(images)
    _check_masked(pipeline)
    cfg, share = image_to_image(pipeline.options(cfg), strength)
    grid, made = _grid_of(pipeline, images_bhwc), []
    for rows, condition, key_b, num_valid in _batches(pipeline, labels, len(images_bhwc), **options):
        given_bl = to_tokens(pipeline.tokenizer, pipeline.shard(images_bhwc[rows]))
        tokens_bl = mask_fraction(given_bl, key_b, share, pipeline.generator.cfg.mask_id)
        tokens_bl = pipeline.tokens(condition, key_b, cfg=cfg, grid=grid, tokens_bl=tokens_bl)
        made.append(jax.device_get(to_pixels(pipeline.tokenizer, tokens_bl, grid))[:num_valid])
    return np.concatenate(made)


@with_output
def interpolate(
    pipeline: Any, first, second, *, weights=(0.0, 0.25, 0.5, 0.75, 1.0), cfg=None, grid=None, **options
) -> np.ndarray:
    """Images between two classes or prompts: uint8 (pairs, weights, height, width, 3).

    first, second: one each, or as many of one as of the other. weights: 0 is the first, 1 the second; in between the
    logits are mixed (`decoding.token_edits.InterpolatedGenerator`). The images of a pair share their key, so only the
    weight differs.
    """
    _check_masked(pipeline)
    negative = options.pop("negative_prompts", None)
    ends = [pipeline.with_negative(pipeline.conditioner.encode(request), negative) for request in (first, second)]
    pairs, others = map(rows_of, ends)
    require(pairs == others, f"second: {pairs} first and {others} second classes; give pairs")
    weight_w = np.asarray(weights, np.float32)
    if weight_w.ndim != 1 or not len(weight_w) or not ((weight_w >= 0) & (weight_w <= 1)).all():
        raise ConfigError(f"weights: expected numbers from 0 (first class) to 1 (second), got {weights}")
    indices_n = np.repeat(np.arange(pairs), len(weight_w))
    weight_n, made, cfg = np.tile(weight_w, pairs), [], pipeline.options(cfg)
    shape = tuple(grid or pipeline.generator.cfg.grid)
    for rows, start, key_b, num_valid in _batches(
        pipeline, take(ends[0], indices_n), len(indices_n), indices=indices_n, **options
    ):
        end = pipeline.shard(jax.tree.map(jnp.asarray, take(ends[1], indices_n[rows])))
        (start, canvas), (end, _) = (program_of(pipeline, each, shape, cfg) for each in (start, end))
        condition = ConditionPair(start, end, pipeline.shard(jnp.asarray(weight_n[rows])))
        generator = InterpolatedGenerator(for_condition(pipeline.generator, start))
        tokens_bl = decode(generator, condition, key_b, cfg, grid=canvas)[:, : math.prod(shape)]
        made.append(jax.device_get(to_pixels(pipeline.tokenizer, tokens_bl, shape))[:num_valid])
    images_nhwc = np.concatenate(made)
    return images_nhwc.reshape(pairs, len(weight_w), *images_nhwc.shape[1:])


@with_output
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

    canvas: (rows, columns) of cells, at least as many as the images and the training grid have. place: cell of the
    canvas that the image's top left corner goes to; default: the middle. The rest is filled window by window, each on
    the training grid (`decoding.token_edits.decode_windows`, which defines `overlap`), so learned positions work too.
    feather: pixels inside the image's edge that are blended into the new picture; default half a cell.
    """
    images_bhwc, cell = as_images(images), pipeline.tokenizer.cfg.downsample
    (rows, columns), (h, w) = canvas, _grid_of(pipeline, images_bhwc)
    margin = (rows - h, columns - w)
    require(min(margin) >= 0, f"canvas: {rows}x{columns} cells are less than the image's {h}x{w}")
    require(max(margin) > 0, f"canvas: {rows}x{columns} cells is the size of the image: nothing to add")
    top, left = (margin[0] // 2, margin[1] // 2) if place is None else place
    require(
        0 <= top <= margin[0] and 0 <= left <= margin[1],
        f"place: must be (row, column) from (0, 0) to {margin} for {h}x{w} cells on {rows}x{columns}, got {(top, left)}",
    )
    feather = cell // 2 if feather is None else feather
    require(feather >= 0, f"feather: must be 0 or more pixels, got {feather}")
    outside_1hw = np.ones((1, rows * cell, columns * cell), bool)
    inner = np.s_[:, top * cell : (top + h) * cell, left * cell : (left + w) * cell]
    outside_1hw[inner] = False
    hidden_1hw, alpha_1hw = token_mask(outside_1hw, canvas).reshape(1, rows, columns), feather_mask(outside_1hw, feather)
    _check_masked(pipeline)
    made, cfg = [], inpainting(pipeline.options(cfg))
    for at, condition, key_b, num_valid in _batches(pipeline, labels, len(images_bhwc), **options):
        known_bhw = jax.device_get(to_tokens(pipeline.tokenizer, pipeline.shard(images_bhwc[at]))).reshape(-1, h, w)
        tokens_bhw = np.pad(known_bhw, ((0, 0), (top, margin[0] - top), (left, margin[1] - left)))
        tokens_bhw = np.where(hidden_1hw, pipeline.generator.cfg.mask_id, tokens_bhw)
        generator = for_condition(pipeline.generator, condition)
        tokens_bhw = decode_windows(generator, condition, key_b, cfg, tokens_bhw, (top, left), overlap)
        flat_bl = tokens_bhw.reshape(len(tokens_bhw), -1)
        new_bhwc = np.array(jax.device_get(to_pixels(pipeline.tokenizer, flat_bl, (rows, columns))))
        old_bhwc = new_bhwc.copy()
        old_bhwc[inner] = images_bhwc[at]
        made.append(_composite(old_bhwc, new_bhwc, alpha_1hw)[:num_valid])
    return np.concatenate(made)


@with_output
def trajectory(pipeline: Any, labels=None, *, cfg=None, grid=None, **options) -> np.ndarray:
    """The canvas after each step of masked decoding: uint8 (steps, b, height, width, 3),
    the last ones the images of a call.

    Cells that are still masked are grey. The others show their tokens at that step, decoded together with the final
    tokens of the masked cells, since a tokenizer cannot decode a mask.
    """
    _check_masked(pipeline)
    shape, mask_id = tuple(grid or pipeline.generator.cfg.grid), pipeline.generator.cfg.mask_id
    steps = []
    requests = pipeline.condition(labels, options.pop("prompts", None), options.pop("negative_prompts", None))
    for _, condition, key_b, num_valid in _batches(pipeline, requests, rows_of(requests), **options):
        seen: list[jax.Array] = []
        pipeline.tokens(condition, key_b, cfg=cfg, grid=shape, on_step=lambda _, tokens_bl, seen=seen: seen.append(tokens_bl))
        batch = []
        for tokens_bl in seen:
            masked_bl = tokens_bl == mask_id
            pixels_bhwc = jax.device_get(to_pixels(pipeline.tokenizer, jnp.where(masked_bl, seen[-1], tokens_bl), shape))
            batch.append(paint_masked(pixels_bhwc, np.asarray(masked_bl), shape)[:num_valid])
        steps.append(np.stack(batch))
    return np.concatenate(steps, axis=1)


def _batches(
    pipeline: Any,
    labels: Any,
    count: int,
    *,
    prompts: Any = None,
    negative_prompts: Any = None,
    seed: int = 0,
    key: jax.Array | None = None,
    batch_size: int | None = None,
    indices: np.ndarray | None = None,
    ar_ratio: float = 0.0,
) -> Iterator[RequestBatch]:
    """The request for `count` images, a batch at a time."""
    _check_masked(pipeline)
    require(not ar_ratio, f"ar_ratio: {MASKED_ONLY}")
    if labels is None and prompts is None:
        condition = pipeline.with_negative(_null_condition(pipeline, count), negative_prompts)
    else:
        condition = pipeline.condition(labels, prompts, negative_prompts)
        given = rows_of(condition)
        asked = f"labels: {given} classes" if prompts is None else f"prompts: {given}"
        require(given in (1, count), f"{asked} for {count} images; give one, or one for each")
        condition = take(condition, np.arange(count) % given)
    key, size = pipeline.request(count, seed, key, batch_size)
    yield from batch_requests(condition, key, np.arange(count) if indices is None else indices, size, pipeline.shard)


def _null_condition(pipeline: Any, count: int) -> Any:
    """The null condition, as often as there are images."""
    try:
        examples = jax.tree.map(jnp.asarray, pipeline.conditioner.examples(count))
        return for_condition(pipeline.generator, examples).null_condition(examples)
    except ConfigError:
        raise ConfigError("labels: this generator was trained without a null class; give a class") from None


def _check_masked(pipeline: Any) -> None:
    require(pipeline.masked, f"{pipeline.name}: holds a causal generator; editing needs one that fills in masked tokens")


def _images_and_masks(images, masks) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 (b, h, w, 3), bool (b, h, w)), checked; see `inpaint`."""
    images_bhwc = as_images(images, (3, 4))
    if masks is None:
        require(images_bhwc.shape[-1] == 4, "masks: none given, and the images have no fourth channel (alpha) to say where")
        masks_bhw = images_bhwc[..., 3] == 0
    else:
        masks_bhw = as_masks(masks)
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
