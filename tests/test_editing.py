"""Editing: what changes, what never does, and on what the new picture depends. Networks are tiny and random."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_pipeline import CELL, DECODE, LLAMA, SIDE, assert_same_pictures, tiny_pipeline

from maskgil_jax.config import CausalConfig, ConfigError, MaskGITConfig
from maskgil_jax.decoding import token_edits as editing
from maskgil_jax.decoding.masked import decode
from maskgil_jax.decoding.token_edits import (
    decode_windows,
    dilate,
    feather_mask,
    fill_holes,
    mask_fraction,
    token_mask,
    window_starts,
    windows,
)
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.networks import create
from maskgil_jax.tokenizers.images import to_pixels, to_tokens

MASK = LLAMA.mask_id


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def corner():
    """A hole in the top left corner, 4 x 5 pixels of 16 x 16: it touches two cells."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:4, :5] = True
    return mask


# ------------------------------------------------------------------------------------------------ masks
def test_token_mask_covers_touched_cells_and_their_neighbours(corner):
    cells = token_mask(corner[None], (4, 4), grow=0).reshape(4, 4)
    assert np.argwhere(cells).tolist() == [[0, 0], [0, 1]]
    assert np.argwhere(token_mask(corner[None], (4, 4)).reshape(4, 4)).tolist() == [[r, c] for r in (0, 1) for c in (0, 1, 2)]
    one_pixel = np.zeros((1, 8, 12), bool)
    one_pixel[0, 7, 3] = True
    assert np.argwhere(token_mask(one_pixel, (4, 3), grow=0).reshape(4, 3)).tolist() == [[3, 0]]
    with pytest.raises(ValueError, match="8 x 12 pixels cannot be divided into 3 x 3 cells"):
        token_mask(one_pixel, (3, 3))


def test_feather_mask_falls_linearly_over_its_width(corner):
    alpha = feather_mask(corner[None], 3)[0]
    np.testing.assert_array_equal(alpha == 1, corner)
    np.testing.assert_array_equal(alpha[0, 4:10], np.float32([1, 0.75, 0.5, 0.25, 0, 0]))
    ring = corner[None]
    for _ in range(3):
        ring = dilate(ring)
    np.testing.assert_array_equal(alpha > 0, ring[0])
    np.testing.assert_array_equal(feather_mask(corner[None], 0)[0], corner)


def test_fill_holes_uses_nearby_pixels(corner):
    image = np.full((1, SIDE, SIDE, 3), 40, np.uint8)
    image[:, :, 8:] = 200
    hole = np.zeros((1, SIDE, SIDE), bool)
    hole[:, 2:6, 1:5] = hole[:, 10:14, 11:15] = True
    soiled = np.where(hole[..., None], np.uint8(255), image)
    np.testing.assert_array_equal(fill_holes(soiled, hole), image)
    assert (fill_holes(image, np.ones_like(hole)) == 128).all()
    odd = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    np.testing.assert_array_equal(fill_holes(odd, np.zeros((2, 5, 7), bool)), odd)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.3, 5), (1.0, 16)])
def test_mask_fraction_masks_an_exact_number(share, count):
    tokens, keys = jnp.zeros((3, 16), jnp.int32), jax.random.split(jax.random.key(0), 3)
    hidden = np.asarray(mask_fraction(tokens, keys, share, MASK) == MASK)
    assert hidden.sum(axis=1).tolist() == [count] * 3
    if 0 < count < 16:
        assert (hidden[0] != hidden[1]).any()
        np.testing.assert_array_equal(np.asarray(mask_fraction(tokens[1:2], keys[1:2], share, MASK) == MASK)[0], hidden[1])


# ------------------------------------------------------------------------------------------------ inpainting
def test_inpaint_changes_only_the_hole_and_ignores_its_content(pipeline, images, corner):
    made = pipeline.inpaint(images, corner, [0, 1, 2], feather=2)
    seam = dilate(dilate(corner[None]))[0]
    np.testing.assert_array_equal(made[:, ~seam], images[:, ~seam])
    assert (made[:, corner] != images[:, corner]).any(axis=(1, 2)).all()
    other = np.where(corner[..., None], 255 - images, images)
    np.testing.assert_array_equal(pipeline.inpaint(other, corner, [0, 1, 2], feather=0)[:, corner], made[:, corner])


def test_inpaint_decodes_the_hole_from_the_known_tokens(pipeline, images, corner):
    made = pipeline.inpaint(images[:1], corner, 1, seed=4)[0]
    known = to_tokens(pipeline.tokenizer, fill_holes(images[:1], corner[None]))
    canvas = jnp.where(token_mask(corner[None], (4, 4)), MASK, known)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(4), jnp.arange(1))
    tokens = decode(pipeline.generator, ClassCondition(jnp.array([1], jnp.int32)), keys, DECODE, canvas)
    np.testing.assert_array_equal(tokens[canvas != MASK], known[canvas != MASK])
    drawn = np.asarray(to_pixels(pipeline.tokenizer, tokens, (4, 4)))[0]
    assert_same_pictures(made[corner], drawn[corner])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["inpaint", "vary", "outpaint"])
def test_inpaint_depends_on_the_index_and_not_on_the_batch(pipeline, images, corner, mode):
    arguments = {"inpaint": (corner,), "vary": (), "outpaint": ((4, 6),)}[mode]
    edit = getattr(pipeline, mode)
    whole = edit(images, *arguments, [0, 1, 2], seed=1)
    assert_same_pictures(edit(images, *arguments, [0, 1, 2], seed=1, batch_size=2), whole)
    assert_same_pictures(edit(images[:1], *arguments, 0, seed=1), whole[:1])
    np.testing.assert_array_equal(edit(images, *arguments, [0, 1, 2], key=jax.random.key(1)), whole)
    assert (edit(images, *arguments, [0, 1, 2], seed=2) != whole).any()
    assert (edit(images, *arguments, [1, 1, 2], seed=1)[0] != whole[0]).any()
    np.testing.assert_array_equal(edit(images, *arguments, [1, 1, 2], seed=1)[1:], whole[1:])


def test_inpaint_accepts_masks_per_image_levels_or_alpha(pipeline, images, corner):
    masks = np.stack([corner, corner.T, ~corner])
    made = pipeline.inpaint(images, masks, 0)
    np.testing.assert_array_equal(pipeline.inpaint(images, np.where(masks, 128, 127).astype(np.uint8), 0), made)
    clear = np.where(masks, np.uint8(0), np.uint8(7))[..., None]  # faint is not see-through
    np.testing.assert_array_equal(pipeline.inpaint(np.concatenate([images, clear], axis=-1), labels=0), made)
    np.testing.assert_array_equal(
        pipeline.edit_box(images, (0, 0, 5, 4), 2, feather=1), pipeline.inpaint(images, corner, 2, feather=1)
    )


def test_edits_without_label_use_the_null_class(pipeline, images, corner):
    free = pipeline.inpaint(images, corner, seed=3)
    unguided = dataclasses.replace(DECODE, guidance=1.0)
    assert (free != pipeline.inpaint(images, corner, 0, seed=3)).any()
    np.testing.assert_array_equal(free, pipeline.inpaint(images, corner, seed=3, cfg=unguided))


# ------------------------------------------------------------------------------------------------ variations, classes
def test_vary_spans_reconstruction_to_new_image(pipeline, images):
    assert_same_pictures(pipeline.vary(images, 0, strength=1.0, seed=5), pipeline([0, 0, 0], seed=5))
    none = pipeline.vary(images, 0, strength=0.0)
    np.testing.assert_array_equal(none, to_pixels(pipeline.tokenizer, to_tokens(pipeline.tokenizer, images), (4, 4)))
    np.testing.assert_array_equal(none, pipeline.vary(images, 1, strength=0.0, seed=9))


def test_interpolate_starts_and_ends_at_the_classes(pipeline):
    weights = (0.0, 0.5, 1.0)
    way = pipeline.interpolate(["ant", "cat"], ["bee", "bee"], weights=weights, seed=2, batch_size=4)
    assert way.shape == (2, 3, SIDE, SIDE, 3) and way.dtype == np.uint8
    assert_same_pictures(way[:, 0], pipeline(["ant", "cat"], seed=2))
    assert_same_pictures(way[:, 2], pipeline(["bee", "bee"], seed=2))
    assert (way[:, 1] != way[:, 0]).any() and (way[:, 1] != way[:, 2]).any()
    assert_same_pictures(pipeline.interpolate("ant", "bee", weights=(0.5,), seed=2)[0, 0], way[0, 1])


# ------------------------------------------------------------------------------------------------ wide canvases
@pytest.mark.parametrize("case", [(8, 4, 2, 0), (8, 4, 2, 3), (9, 4, 1, 2), (4, 4, 2, 0), (13, 4, 3, 6), (7, 4, 0, 1)])
def test_windows_cover_an_axis_and_overlap(case):
    length, side, overlap, anchor = case
    starts = window_starts(*case)
    assert starts[0] == 0 and starts[-1] == length - side and min(anchor, length - side) in starts
    assert all(1 <= b - a <= side - overlap for a, b in itertools.pairwise(starts))


def test_windows_overlap_an_earlier_one():
    order = windows((10, 12), (4, 4), (1, 2), (3, 5))
    assert order[0] == (3, 5) and len(set(order)) == len(order)
    for i, (top, left) in enumerate(order[1:], 1):
        assert any(abs(top - t) < 4 and abs(left - l) < 4 for t, l in order[:i])
    covered = np.zeros((10, 12), bool)
    for top, left in order:
        covered[top : top + 4, left : left + 4] = True
    assert covered.all()


def test_decode_windows_keeps_given_tokens_and_fills_the_rest(pipeline, monkeypatch):
    canvas = np.full((2, 4, 6), MASK, np.int32)
    canvas[:, 1:3, 0:2] = 5
    keys, label = jax.random.split(jax.random.key(3), 2), ClassCondition(jnp.array([0, 2], jnp.int32))
    grids = []

    def watched(*arguments):
        grids.append(arguments[5] if len(arguments) > 5 else None)
        return decode(*arguments)

    monkeypatch.setattr(editing, "decode", watched)
    made = decode_windows(pipeline.generator, label, keys, DECODE, canvas)
    assert (made != MASK).all() and (made[canvas != MASK] == 5).all() and (canvas == MASK).any()
    assert grids == [None, None]  # two windows, both on the training grid
    alone = decode_windows(pipeline.generator, ClassCondition(jnp.array([2], jnp.int32)), keys[1:], DECODE, canvas[1:])
    np.testing.assert_array_equal(alone[0], made[1])


@pytest.mark.parametrize("place", [None, (0, 0), (1, 2)])
def test_outpaint_keeps_the_picture_inside_its_edge(pipeline, images, place):
    made = pipeline.outpaint(images, (5, 6), [0, 1, 2], place=place, feather=1)
    assert made.shape == (3, 20, 24, 3)
    top, left = (0, 1) if place is None else place
    part = made[:, top * CELL : (top + 4) * CELL, left * CELL : (left + 4) * CELL]
    np.testing.assert_array_equal(part[:, 1:-1, 1:-1], images[:, 1:-1, 1:-1])


# ------------------------------------------------------------------------------------------------ watching
def test_trajectory_ends_with_the_images(pipeline):
    steps = pipeline.trajectory([0, 1, 2], seed=6, batch_size=2)
    assert steps.shape == (2, 3, SIDE, SIDE, 3)
    assert_same_pictures(steps[-1], pipeline([0, 1, 2], seed=6))
    grey = (steps[0].reshape(3, 4, CELL, 4, CELL, 3) == 160).all(axis=(2, 4, 5))
    assert grey.any(axis=(1, 2)).all() and not grey.all()
    seen = ~grey.repeat(CELL, axis=1).repeat(CELL, axis=2)
    np.testing.assert_array_equal(steps[0][seen], steps[1][seen])


@pytest.mark.slow
def test_editing_on_several_devices_is_the_same(pipeline, images, corner):
    spread = pipeline.over()
    for edit in (
        lambda p: p.inpaint(images, corner, [0, 1, 2]),
        lambda p: p.vary(images, 1),
        lambda p: p.interpolate(0, 1),
        lambda p: p.outpaint(images, (4, 6), 2),
        lambda p: p.trajectory([0, 1]),
    ):
        assert_same_pictures(edit(spread), edit(pipeline))


# ------------------------------------------------------------------------------------------------ mistakes
def unguided():
    cfg = MaskGITConfig(codebook_size=16, num_classes=3, grid=(4, 4), width=8, depth=1, heads=1, mlp_width=8)
    return create(cfg, jax.random.key(0))


BLACK = np.zeros((2, SIDE, SIDE, 3), np.uint8)
HOLE = np.ones((SIDE, SIDE), bool)
MISTAKES = {
    "other size": (lambda p: p.inpaint(BLACK, HOLE[:8]), r"masks: images are \(2, 16, 16\).*got masks of \(8, 16\)"),
    "empty": (lambda p: p.inpaint(BLACK, np.stack([HOLE, ~HOLE])), "masks: nothing is masked in image 1"),
    "no alpha": (lambda p: p.inpaint(BLACK), "masks: none given, and the images have no fourth channel"),
    "float mask": (lambda p: p.inpaint(BLACK, HOLE.astype(float)), "masks: expected bool or uint8.*float64"),
    "float image": (lambda p: p.vary(BLACK / 255), "images: expected uint8.*float64"),
    "odd size": (lambda p: p.vary(BLACK[:, :15]), "15 x 16 pixels .* not multiples of the tokenizer's 4"),
    "feather": (lambda p: p.inpaint(BLACK, HOLE, feather=-1), "feather: must be 0 or more"),
    "box outside": (lambda p: p.edit_box(BLACK, (8, 0, 17, 4)), r"box: .*inside 16 x 16 pixels.*\(8, 0, 17, 4\)"),
    "box empty": (lambda p: p.edit_box(BLACK, (8, 0, 8, 4)), "box: "),
    "labels": (lambda p: p.vary(BLACK, [0, 1, 2]), "labels: 3 classes for 2 images"),
    "label": (lambda p: p.vary(BLACK, "dog"), "no class is called 'dog'"),
    "share": (lambda p: p.vary(BLACK, strength=1.5), "strength: must be between 0 .* got 1.5"),
    "batch": (lambda p: p.vary(BLACK, batch_size=0), "batch_size: must be at least 1"),
    "seed": (lambda p: p.vary(BLACK, seed=-1), "seed: must be in"),
    "pairs": (lambda p: p.interpolate([0, 1], [2]), "second: 2 first and 1 second classes"),
    "weights": (lambda p: p.interpolate(0, 1, weights=(0, 2)), "weights: expected numbers from 0"),
    "small canvas": (lambda p: p.outpaint(BLACK, (4, 3)), "canvas: 4x3 cells are less than the image's 4x4"),
    "same canvas": (lambda p: p.outpaint(BLACK, (4, 4)), "nothing to add"),
    "place": (lambda p: p.outpaint(BLACK, (4, 6), place=(0, 3)), r"place: must be \(row, column\).*got \(0, 3\)"),
    "overlap": (lambda p: p.outpaint(BLACK, (4, 6), overlap=(0, 4)), r"overlap: must be .*4x4, got \(0, 4\)"),
    "narrow canvas": (lambda p: p.outpaint(BLACK[:, :8, :8], (3, 6)), "canvas: 3x6 is smaller than the training grid 4x4"),
    "hybrid": (lambda p: p.vary(BLACK, ar_ratio=0.5), "ar_ratio: editing uses masked decoding alone"),
    "no null class": (lambda p: dataclasses.replace(p, generator=unguided()).vary(BLACK), "labels: .* without a null class"),
    "causal": (lambda p: dataclasses.replace(p, cfg=CausalConfig()).vary(BLACK), "tiny: holds a causal generator"),
}


@pytest.mark.parametrize(("call", "message"), MISTAKES.values(), ids=MISTAKES)
def test_edits_name_invalid_arguments(pipeline, call, message):
    with pytest.raises(ConfigError, match=message):
        call(pipeline)
