"""Pipelines of generators that were trained on a padded canvas: images of all sizes by one program."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.text_folders import with_tokenizer
from helpers.tiny_pipeline import CELL, tiny_pipeline
from helpers.tiny_text_pipeline import TOKENS, save_text_pipeline, text_pipeline

from maskgil_jax.config import ConfigError, ServeConfig
from maskgil_jax.decoding.masked import _decode, decode
from maskgil_jax.files.images import read_image
from maskgil_jax.models.condition import SizedCondition
from maskgil_jax.pipelines.jobs import sample_to_folder
from maskgil_jax.pipelines.packing import pack
from maskgil_jax.pipelines.pipeline import load
from maskgil_jax.pipelines.prompts import PromptRequest
from maskgil_jax.runtime.rng import keys_for_indices
from maskgil_jax.text_encoders import load_text_encoder
from maskgil_jax.web.drawing import Drawing
from maskgil_jax.web.engine import Engine
from maskgil_jax.web.requests import RequestReader
from maskgil_jax.web.server import _usual

pytestmark = pytest.mark.slow

CANVAS, GRIDS = (4, 6), [(4, 4), (4, 6), (3, 5), (8, 2)]
PROMPTS = ["a red cat", "two dogs", "a hat", "blue"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_text_encoder(with_tokenizer("t5", tmp_path_factory.mktemp("encoder")), max_tokens=TOKENS, layer=-2)


@pytest.fixture(scope="module")
def plain(encoder):
    return text_pipeline(encoder)


@pytest.fixture(scope="module")
def pipeline(plain):
    return dataclasses.replace(plain, metadata={"generator": {"canvas": list(CANVAS)}})


def pixels(grid):
    return dict(height=grid[0] * CELL, width=grid[1] * CELL)


def options(order, steps):
    """Decoding options that no other test has, so that their programs are counted alone."""
    return dict(order=order, steps=steps, guidance=2.5)


@pytest.mark.parametrize("order", ["halton", "confidence"])
def test_images_of_several_sizes_are_drawn_by_one_program_of_the_canvas(pipeline, plain, order):
    before, how = _decode._cache_size(), options(order, 3)
    for grid in GRIDS:
        found = []
        image = pipeline(prompts=PROMPTS[0], seed=4, **pixels(grid), **how)
        assert image.shape == (1, grid[0] * CELL, grid[1] * CELL, 3)
        sizes = (jnp.array([side]) for side in grid)
        condition = SizedCondition(jax.tree.map(jnp.asarray, plain.condition(prompts=PROMPTS[0])), *sizes)
        key_b = keys_for_indices(jax.random.key(4), np.arange(1))
        expected = decode(plain.generator, condition, key_b, plain.options(**how), grid=CANVAS)
        decoded = plain.decode(np.asarray(expected)[:, : grid[0] * grid[1]].reshape(1, *grid))
        np.testing.assert_array_equal(image, decoded)
        watch = lambda _, tokens_bl, found=found: found.append(np.asarray(tokens_bl))  # noqa: E731
        pipeline(prompts=PROMPTS[0], seed=4, **pixels(grid), **how, on_step=watch)
        np.testing.assert_array_equal(found[-1], expected[:, : grid[0] * grid[1]])
        assert len(found) == 3 and all(tokens_bl.shape == (1, grid[0] * grid[1]) for tokens_bl in found)
    assert _decode._cache_size() == before + 3, "of calls, of calls with on_step, of the one image here"


def test_image_that_the_canvas_does_not_hold_is_that_of_its_own_program(pipeline, plain):
    asked = dict(prompts=PROMPTS[:2], seed=3, **pixels((5, 5)))
    np.testing.assert_array_equal(pipeline(**asked), plain(**asked))
    assert plain.canvas is None and pipeline.canvas == CANVAS


def test_tokens_of_several_devices_and_inside_a_jitted_function_are_those_of_a_call(pipeline):
    condition, key_b = pipeline.condition(prompts=PROMPTS * 2), keys_for_indices(jax.random.key(4), np.arange(8))
    how = dict(cfg=pipeline.options(**options("halton", 2)), grid=(3, 5))
    expected = pipeline.tokens(condition, jax.random.clone(key_b), **how)
    inside = jax.jit(lambda condition, key_b: pipeline.tokens(condition, key_b, **how))(condition, jax.random.clone(key_b))
    np.testing.assert_array_equal(inside, expected)
    several, parts = pipeline.over(), (condition, jax.random.clone(key_b))
    assert several.canvas == CANVAS
    np.testing.assert_array_equal(several.tokens(*several.shard(parts), **how), expected)


def test_stream_ends_with_the_images_of_the_call(pipeline):
    for negative in (None, "rain"):
        asked = dict(prompts=PROMPTS[:2], seed=3, negative_prompts=negative, **pixels((3, 5)), **options("halton_rolled", 4))
        seen = list(pipeline.stream(**asked))
        assert [step for step, _ in seen] == [1, 2, 3, 4]
        np.testing.assert_array_equal(seen[-1][1], pipeline(**asked))


def test_edits_of_several_sizes_share_one_program(pipeline):
    before, cfg = _decode._cache_size(), pipeline.options(**options("confidence", 5))
    for rows, columns in GRIDS:
        image = np.random.default_rng(0).integers(0, 256, (1, rows * CELL, columns * CELL, 3), np.uint8)
        hole = np.zeros(image.shape[1:3], bool)
        hole[:CELL, :CELL] = True
        filled = pipeline.inpaint(image, hole, prompts="a hat", cfg=cfg, feather=0)
        np.testing.assert_array_equal(filled[0][~hole], image[0][~hole])
        kept = pipeline.vary(image, prompts="a hat", strength=0.0, cfg=cfg)
        np.testing.assert_array_equal(kept, pipeline.reconstruct(image))
    assert _decode._cache_size() == before + 1


@pytest.mark.parametrize("negative", [None, "rain"])
def test_interpolation_starts_and_ends_at_the_images_of_calls(pipeline, negative):
    how = dict(seed=2, cfg=pipeline.options(**options("halton", 3)), negative_prompts=negative)
    way = pipeline.interpolate(PROMPTS[0], PROMPTS[1], weights=(0, 1), grid=(3, 5), **how)[0]
    for image, prompt in zip(way, PROMPTS, strict=False):
        alone = pipeline(prompts=prompt, **pixels((3, 5)), **how)[0]
        np.testing.assert_allclose(image.astype(int), alone.astype(int), atol=1)


def test_job_draws_prompts_of_all_sizes_by_one_program(pipeline, tmp_path):
    how = dataclasses.replace(pipeline, cfg=pipeline.options(**options("halton", 6)))
    requests = [PromptRequest(PROMPTS[i % 4], seed=i, **pixels(GRIDS[i % 3])) for i in range(5)]
    before = _decode._cache_size()
    out = sample_to_folder(how, None, tmp_path / "out", prompts=requests, batch_size=2)
    assert _decode._cache_size() == before + 1
    assert json.loads((out / "samples.json").read_text())["padded_canvas"] == list(CANVAS)
    for i, request in enumerate(requests):
        image = how(prompts=request.prompt, seed=i, height=request.height, width=request.width)[0]
        found = read_image(out / f"{i:06d}.png")
        np.testing.assert_allclose(found.astype(int), image.astype(int), atol=1)


def test_canvas_is_kept_by_save_pack_and_load(encoder, tmp_path):
    folder = save_text_pipeline(tmp_path / "weights", encoder)
    assert load(folder).canvas is None
    config = folder / "generator" / "config.json"
    about = json.loads(config.read_text())
    config.write_text(json.dumps({**about, "canvas": [4, 6]}))
    made = load(folder)
    made.save(tmp_path / "saved")
    pack(folder, tmp_path / "packed")
    assert made.canvas == load(tmp_path / "saved").canvas == load(tmp_path / "packed").canvas == CANVAS
    assert load(folder, rope_scaling="ntk").canvas is None, "scaled positions depend on the size"
    for wrong in ([4], [4, 0], "4x6", [4, 6.5], 24):
        config.write_text(json.dumps({**about, "canvas": wrong}))
        with pytest.raises(ConfigError, match=r"config.json: canvas: expected \[rows, columns\]"):
            load(folder)


def test_class_weights_draw_as_without_a_canvas():
    classes = dataclasses.replace(tiny_pipeline(), metadata={"generator": {"canvas": [4, 6]}})
    assert classes.canvas is None


class Counted:
    """Keeps the sizes of batches."""

    def __init__(self):
        self.batches = []

    def batch(self, images, seconds):
        self.batches.append(images)

    def refused(self, reason):
        raise AssertionError(reason)


@pytest.mark.parametrize("order", ["halton", "confidence"])
def test_server_draws_requests_of_different_sizes_in_one_batch(pipeline, order):
    cfg, counted, seen = pipeline.options(**options(order, 7)), Counted(), []
    engine = Engine(pipeline, ServeConfig(batch_sizes=(1, 4), max_wait_ms=500.0), counted)
    asked = [Drawing(PROMPTS[i], 2**31 + i, cfg, grid) for i, grid in enumerate(GRIDS)]
    large = Drawing(PROMPTS[0], 5, cfg, (6, 6))
    tickets = [engine.submit([drawing], lambda *step: seen.append(step)) for drawing in asked[:1]]
    tickets += [engine.submit([drawing]) for drawing in [large, *asked[1:]]]
    engine.start()
    pictures = [ticket.future.result(120)[0] for ticket in tickets]
    assert engine.stop(60)
    assert counted.batches == [4, 1]
    for picture in pictures:
        drawing = picture.drawing
        alone = pipeline(prompts=drawing.request, seed=drawing.seed, cfg=cfg, batch_size=1, **pixels(drawing.grid))[0]
        np.testing.assert_array_equal(picture.image_hwc, alone, err_msg=str(drawing.grid))
    assert [step for _, step, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert all(preview.shape == pictures[0].image_hwc.shape for *_, preview in seen)


def test_warm_up_of_several_sizes_compiles_one_sampler_a_batch_size(pipeline):
    cfg = pipeline.options(**options("halton", 9))
    engine, before = Engine(pipeline, ServeConfig(batch_sizes=(1, 2))), _decode._cache_size()
    drawings, said = [Drawing("a hat", 0, cfg, grid) for grid in GRIDS], []
    engine.drawer.warm_up(drawings, said.append)
    assert _decode._cache_size() == before + 2 * 2, "two batch sizes, each with and without previews"
    assert said[2:] == [f"compiling pixels of {rows}x{columns} tokens" for rows, columns in GRIDS[1:]]
    engine.drawer.draw(drawings[2:4])
    assert _decode._cache_size() == before + 2 * 2


def test_server_compiles_the_sizes_that_the_canvas_holds(pipeline, plain):
    sizes = ((16, 16), (16, 24), (24, 24))
    for weights, grids in ((pipeline, [(4, 4), (4, 6)]), (plain, [(4, 4)])):
        reader = RequestReader(weights, ServeConfig(sizes=sizes), "tiny")
        assert [drawing.grid for drawing in _usual(reader) if drawing.kind == "draw"] == grids
