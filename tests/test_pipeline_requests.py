"""What a call of a pipeline accepts: labels, sizes, seeds, decoding options, and what it refuses by name."""

import jax
import numpy as np
import pytest
from helpers.tiny_pipeline import assert_same_pictures, tiny_pipeline
from PIL import Image

from maskgil_jax.conditioning import ClassConditioner
from maskgil_jax.config import ConfigError, DecodeConfig
from maskgil_jax.decoding import masked
from maskgil_jax.models.condition import ClassCondition


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


def test_class_conditioner_reads_integers_as_numbers_and_text_as_names():
    conditioner = ClassConditioner(("10", "2", "1"))
    np.testing.assert_array_equal(conditioner.label_ids([0, 1, 2]), [0, 1, 2])
    np.testing.assert_array_equal(conditioner.label_ids(np.array([2, 0])), [2, 0])
    np.testing.assert_array_equal(conditioner.label_ids(["10", "1", "0"]), [0, 2, 0])
    once = conditioner.encode(["1"])
    assert conditioner.encode(once) is once, "a condition is not converted again"
    for labels, message in (
        ([3], "3 is out of range; classes are 0..2"),
        (["x"], "no class is called 'x'"),
        ([], "none given"),
    ):
        with pytest.raises(ConfigError, match=message):
            conditioner.label_ids(labels)
    with pytest.raises(ConfigError, match="out of range"):
        conditioner.encode(ClassCondition(np.array([4])))


def test_seeds_give_each_image_that_of_its_seed_alone(pipeline):
    several = pipeline(0, seeds=[3, 4, 5])
    for image, seed in zip(several, (3, 4, 5)):
        assert_same_pictures(image, pipeline(0, seed=seed)[0])
    pairs = pipeline([0, 1], seeds=[3, 4])
    assert_same_pictures(pairs[1], pipeline(1, seed=4)[0])


def test_num_per_label_repeats_each_label(pipeline):
    np.testing.assert_array_equal(pipeline([0, 1], num_per_label=2, seed=1), pipeline([0, 0, 1, 1], seed=1))


def test_decoding_keywords_replace_single_options(pipeline):
    options = pipeline.options(None, steps=2)
    assert options.steps == 2 and options.guidance == pipeline.cfg.guidance
    np.testing.assert_array_equal(pipeline(0, steps=2, seed=1), pipeline(0, cfg=options, seed=1))
    np.testing.assert_array_equal(pipeline(0, cfg="paper", steps=2), pipeline(0, cfg=pipeline.options("paper", steps=2)))


def test_height_and_width_choose_the_grid(pipeline):
    cell = pipeline.tokenizer.cfg.downsample
    image = pipeline(0, height=2 * cell, width=3 * cell)
    assert image.shape[1:3] == (2 * cell, 3 * cell)
    np.testing.assert_array_equal(image, pipeline(0, grid=(2, 3)))
    assert pipeline(0, width=3 * cell).shape[1] == pipeline.generator.cfg.grid[0] * cell


def test_output_pil_is_a_list_of_images(pipeline):
    images = pipeline([0, 1], output="pil", seed=2)
    assert all(isinstance(image, Image.Image) for image in images)
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in images]), pipeline([0, 1], seed=2))


def test_another_number_of_labels_compiles_nothing(pipeline):
    pipeline([0, 1, 0, 1, 0], seed=1)
    programs = masked._decode._cache_size()
    few = pipeline([0, 1, 0, 1, 0, 1, 0], seed=1)
    assert masked._decode._cache_size() == programs and len(few) == 7
    assert_same_pictures(few[:5], pipeline([0, 1, 0, 1, 0], seed=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 3}, "num_inference_steps: is called 'steps' here"),
        ({"guidance_scale": 3}, "guidance_scale: is called 'guidance' here"),
        ({"guidanc": 3}, "guidanc: .*did you mean 'guidance'"),
        ({"seeds": [1, 2], "seed": 3}, "seeds: "),
        ({"seeds": [1.5]}, "seeds: must be whole numbers"),
        ({"prompts": ["a cat"]}, "labels, prompts: give one of them"),
        ({"height": 3}, "height: must be a multiple"),
        ({"height": 8, "grid": (2, 2)}, "grid: "),
        ({"output": "tensor"}, "output: "),
        ({"num_per_label": 0}, "num_per_label: "),
    ],
)
def test_pipeline_names_invalid_requests(pipeline, options, message):
    with pytest.raises(ConfigError, match=message):
        pipeline(0, **options)


def test_prompts_are_refused_by_a_class_conditional_pipeline(pipeline):
    with pytest.raises(ConfigError, match="prompts: this generator is conditioned on a class"):
        pipeline(prompts=["a cat"])


def test_repr_is_one_short_line(pipeline):
    assert len(repr(pipeline)) < 120 and "class-conditional" in repr(pipeline)


@pytest.mark.slow
def test_old_names_of_arguments_are_accepted(pipeline, caplog):
    images = pipeline([0, 1], seed=1)
    np.testing.assert_array_equal(pipeline.vary(images, 0, share=0.5, seed=2), pipeline.vary(images, 0, strength=0.5, seed=2))
    parts = list(pipeline.batches([0, 1], places=[4, 5], seed=1))
    np.testing.assert_array_equal(np.concatenate(parts), np.concatenate(list(pipeline.batches([0, 1], indices=[4, 5], seed=1))))
    assert isinstance(pipeline.options(), DecodeConfig) and jax.process_count() == 1
