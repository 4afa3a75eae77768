"""`Pipeline.stream`: the pictures of every decoding step, of which the last are those of a call."""

import jax
import numpy as np
import pytest
from helpers.tiny_pipeline import CELL, tiny_pipeline
from PIL import Image

from maskgil_jax import CausalConfig
from maskgil_jax.config import ConfigError, LlamaConfig
from maskgil_jax.networks import create
from maskgil_jax.pipelines.pipeline import Pipeline
from maskgil_jax.pipelines.streaming import GREY, _without_masks


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"seeds": [4, 5, 6], "seed": 0}, {"grid": (2, 3)}])
def test_stream_ends_with_the_images_of_a_call(pipeline, options):
    asked = {"seed": 7, "steps": 4, **options}
    streamed = list(pipeline.stream([0, 1, 2], **asked))
    assert [step for step, _ in streamed] == [1, 2, 3, 4]
    np.testing.assert_array_equal(streamed[-1][1], pipeline([0, 1, 2], **asked))


def test_stream_paints_exactly_the_masked_cells_grey(pipeline):
    seen = []
    pipeline([0, 1], seed=3, steps=4, on_step=lambda _, tokens_bl: seen.append(np.asarray(tokens_bl)))
    for (_, images), tokens_bl in zip(pipeline.stream([0, 1], seed=3, steps=4), seen, strict=True):
        cells = images.reshape(2, 4, CELL, 4, CELL, 3)
        grey = (cells == GREY).all(axis=(2, 4, 5)).reshape(2, -1)
        np.testing.assert_array_equal(grey, tokens_bl == pipeline.generator.cfg.mask_id)


def test_stream_every_leaves_out_steps_but_not_the_last(pipeline):
    assert [step for step, _ in pipeline.stream(0, steps=5, every=2)] == [2, 4, 5]
    _, images = next(pipeline.stream([0, 1], steps=5, output="pil"))
    assert len(images) == 2 and all(isinstance(image, Image.Image) for image in images)


def test_masked_cells_take_the_code_of_the_nearest_revealed_one_before():
    tokens_bl = np.array([[9, 9, 3, 9, 5, 9], [9] * 6])
    np.testing.assert_array_equal(_without_masks(tokens_bl, 9), [[3, 3, 3, 3, 5, 5], [0] * 6])


def test_stream_of_a_causal_generator_yields_the_finished_images_once(pipeline):
    cfg = LlamaConfig(codebook_size=16, num_classes=3, grid=(4, 4), width=32, depth=1, heads=2, mlp_width=32, causal=True)
    causal = Pipeline(pipeline.tokenizer, create(cfg, jax.random.key(0)), ("a", "b", "c"), CausalConfig(guidance=1.0))
    [(step, images)] = causal.stream([0, 1], seed=1)
    assert step == 1
    np.testing.assert_array_equal(images, causal([0, 1], seed=1))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (0, {"every": 0}, "every: must be at least 1"),
        ([0, 1, 2], {"batch_size": 2}, "stream: 3 images do not fit into one batch of 2"),
        ("x", {}, "no class is called 'x'"),
        (0, {"stepz": 3}, "did you mean 'steps'"),
    ],
)
def test_stream_refuses_bad_requests_before_the_first_step(pipeline, labels, options, message):
    with pytest.raises(ConfigError, match=message):
        pipeline.stream(labels, **options)
