"""Images from prompts and negative prompts: calls, edits and what does not fit. Networks are tiny and random."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.text_folders import with_tokenizer
from helpers.tiny_pipeline import assert_same_pictures, tiny_pipeline
from helpers.tiny_text_pipeline import TEXT_LLAMA, TOKENS, text_pipeline

from maskgil_jax.config import CausalConfig, ConfigError, DecodeConfig
from maskgil_jax.decoding.guidance import guided_logits
from maskgil_jax.models.condition import GuidedCondition
from maskgil_jax.models.generator import GuidedGenerator, for_condition, unstack_layers
from maskgil_jax.networks import build, create, params_of
from maskgil_jax.text_encoders import load_text_encoder

PROMPTS = ["red cat on the hat", "two green dog", "blue sun"]
GUIDED = {"guidance": 6.0, "temperature": 0.0, "choice_temperature": 0.0}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_text_encoder(with_tokenizer("t5", tmp_path_factory.mktemp("encoder")), max_tokens=TOKENS)


@pytest.fixture(scope="module")
def pipeline(encoder):
    return text_pipeline(encoder)


@pytest.fixture(scope="module")
def images(pipeline):
    return pipeline(prompts=PROMPTS, seed=1)


def differing(first, second):
    """How many images of two batches differ by more than rounding."""
    return int((np.abs(first.astype(int) - second.astype(int)).max(axis=(1, 2, 3)) > 1).sum())


def test_prompts_make_one_image_each_and_words_matter(pipeline, images):
    assert images.shape == (3, 16, 16, 3) and images.dtype == np.uint8
    assert_same_pictures(pipeline(prompts=PROMPTS[0], seed=1), images[:1])
    assert_same_pictures(pipeline(prompts=PROMPTS, seed=1, batch_size=2), images)
    assert differing(pipeline(prompts=PROMPTS[::-1], seed=1), images) >= 2
    assert pipeline(prompts=PROMPTS[:1], height=12, width=24).shape == (1, 12, 24, 3)


@pytest.mark.slow
def test_negative_prompt_is_the_second_branch_of_guidance(pipeline):
    condition = pipeline.condition(prompts=PROMPTS, negative_prompts="a dog")
    tokens, grid = jnp.full((3, 16), TEXT_LLAMA.mask_id), (4, 4)
    found = guided_logits(for_condition(pipeline.generator, condition), tokens, condition, 3.0, grid)
    with_text, against = (pipeline.generator(tokens, c, grid=grid) for c in (condition.condition, condition.negative))
    np.testing.assert_allclose(found, against + 3.0 * (with_text - against), atol=1e-4)
    assert float(jnp.abs(with_text - against).max()) > 1e-2


def test_negative_prompts_change_images_and_the_empty_one_does_not(pipeline):
    plain = pipeline(prompts=PROMPTS, seed=1, **GUIDED)
    assert_same_pictures(pipeline(prompts=PROMPTS, negative_prompts="", seed=1, **GUIDED), plain)
    against = pipeline(prompts=PROMPTS, negative_prompts=["two dog", "a red hat", "left of the cat"], seed=1, **GUIDED)
    assert differing(against, plain) >= 2
    alone = pipeline(prompts=PROMPTS[:1], negative_prompts="two dog", seed=1, **GUIDED)
    assert_same_pictures(alone, against[:1])
    unguided = {**GUIDED, "guidance": 1.0}
    assert_same_pictures(
        pipeline(prompts=PROMPTS, negative_prompts="two dog", seed=1, **unguided), pipeline(prompts=PROMPTS, seed=1, **unguided)
    )


@pytest.mark.slow
def test_prompts_on_several_devices_are_the_same(pipeline):
    options = dict(prompts=PROMPTS, negative_prompts="a dog", seed=1, **GUIDED)
    assert_same_pictures(pipeline.over(jax.devices()[:2])(**options), pipeline(**options))


@pytest.mark.slow
def test_edits_take_prompts_and_negative_prompts(pipeline, images):
    hole = np.zeros((16, 16), bool)
    hole[:4, :4] = True
    cfg = dataclasses.replace(pipeline.cfg, **GUIDED)
    text, against = dict(prompts="red cat", cfg=cfg), dict(prompts="red cat", negative_prompts="two dog", cfg=cfg)
    for edit in (
        lambda **options: pipeline.inpaint(images, hole, feather=0, **options),
        lambda **options: pipeline.vary(images, strength=0.9, **options),
        lambda **options: pipeline.outpaint(images, (4, 7), **options),
        lambda **options: pipeline.edit_box(images, (0, 0, 12, 12), **options),
    ):
        assert differing(edit(**text), edit(**against)) >= 1
        assert differing(edit(**text), edit(cfg=cfg)) >= 1  # no prompt: the null text
        assert_same_pictures(edit(negative_prompts="", cfg=cfg), edit(cfg=cfg))
    steps = pipeline.trajectory(prompts=PROMPTS, negative_prompts="two dog", cfg=cfg)
    assert_same_pictures(steps[-1], pipeline(prompts=PROMPTS, negative_prompts="two dog", cfg=cfg))
    between = pipeline.interpolate("red cat", "two dog", weights=(0.0, 0.5, 1.0), negative_prompts="a hat", cfg=cfg)[0]
    first = pipeline(prompts="red cat", negative_prompts="a hat", cfg=cfg)
    assert between.shape == (3, 16, 16, 3)
    assert_same_pictures(between[:1], first)


def test_causal_generator_takes_negative_prompts(encoder, pipeline):
    cfg = dataclasses.replace(TEXT_LLAMA, causal=True)
    generator = build(cfg, params_of(pipeline.generator))
    causal = dataclasses.replace(pipeline, generator=generator, cfg=CausalConfig(guidance=6.0, temperature=0.0))
    plain = causal(prompts=PROMPTS)
    assert_same_pictures(causal(prompts=PROMPTS, negative_prompts=""), plain)
    assert differing(causal(prompts=PROMPTS, negative_prompts="two dog"), plain) >= 1
    hybrid = dataclasses.replace(pipeline, ar=generator)
    assert hybrid(prompts=PROMPTS, negative_prompts="two dog", ar_ratio=0.5).shape == (3, 16, 16, 3)


def test_guided_generator_unrolls_the_network_within(pipeline):
    network = build(dataclasses.replace(TEXT_LLAMA, layers="unroll"), params_of(pipeline.generator))
    found = unstack_layers(GuidedGenerator(network))
    assert isinstance(found, GuidedGenerator) and len(found.generator.layers) == TEXT_LLAMA.depth


@pytest.mark.parametrize(
    "options,message",
    [
        (dict(prompts=[]), "prompts: none given"),
        (dict(prompts=[""], labels=[0]), "labels, prompts: give one of them"),
        (dict(prompts=PROMPTS, negative_prompts=["a", "b"]), "negative_prompts: 2 for 3 prompts; give one, or one for each"),
        (dict(prompts=PROMPTS, negative_prompts=[3]), "prompts: expected text, got int"),
        (dict(negative_prompts="a"), "labels, prompts: give one of them"),
        (dict(prompts=PROMPTS, height=17), "height: must be a multiple of 4 pixels, the size of a token, got 17; e.g. 16"),
        (dict(prompts=PROMPTS, width=0), "width: must be a multiple of 4 pixels"),
    ],
)
def test_request_that_does_not_fit_is_named(pipeline, options, message):
    with pytest.raises(ConfigError, match=message):
        pipeline(**options)


def test_class_conditional_pipeline_takes_no_prompts():
    with pytest.raises(ConfigError, match="prompts: this generator is conditioned on a class; give labels"):
        tiny_pipeline()(prompts="red cat")
    with pytest.raises(ConfigError, match="negative_prompts: this generator is conditioned on a class, and takes no text"):
        tiny_pipeline()([0], negative_prompts="red cat")


def test_edit_with_too_many_prompts_is_named(pipeline, images):
    with pytest.raises(ConfigError, match="prompts: 2 for 3 images; give one, or one for each"):
        pipeline.vary(images, prompts=PROMPTS[:2])


def test_guided_condition_and_fresh_network_fit_the_loop(pipeline):
    condition = pipeline.condition(prompts=PROMPTS, negative_prompts="a")
    assert isinstance(condition, GuidedCondition) and condition.negative.features_btd.shape == (3, TOKENS, 32)
    tokens = pipeline.tokens(condition, jax.random.key(0), cfg=DecodeConfig(steps=3, loop="unrolled", guidance=2.0))
    assert int(tokens.max()) < TEXT_LLAMA.codebook_size
    fresh = dataclasses.replace(pipeline, generator=create(TEXT_LLAMA, jax.random.key(3)))
    assert fresh(prompts="red cat", negative_prompts="a dog").shape == (1, 16, 16, 3)
