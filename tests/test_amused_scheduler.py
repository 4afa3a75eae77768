"""aMUSEd's scheduler: recorded steps of diffusers (tests/golden/amused/scheduler) token for token,
and where it starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.amused_golden import GOLDEN, TINY, uvit_case

from maskgil_jax.config import DECODE_PRESETS, ConfigError, DecodeConfig
from maskgil_jax.decoding.guidance import mix, progress
from maskgil_jax.decoding.masked import confidence, decode_steps, reveal
from maskgil_jax.decoding.schedules import max_masked_per_step, reveal_counts
from maskgil_jax.networks import create


@pytest.mark.parametrize("case,preset", [("cosine_8", "amused"), ("linear_known_5", "amused_inpaint")])
def test_recorded_steps_of_the_scheduler_are_repeated_token_for_token(case, preset):
    with np.load(GOLDEN / "scheduler" / f"{case}.npz") as file:
        trace = {name: file[name] for name in file.files}
    options, steps, mask_id = DECODE_PRESETS[preset], int(trace["steps"]), int(trace["mask_id"])
    weights = options.choice_temperature * (1 - progress(steps))
    np.testing.assert_allclose(weights, trace["temperatures"], atol=1e-6)
    tokens = jnp.asarray(trace["start"], jnp.int32)
    masked = np.asarray((tokens == mask_id).sum(axis=-1))
    # The record states the masked share by itself, 0.5, where 20 and 19 of 36 are masked; the library counts each
    # image's.
    planned = int(tokens.shape[1] * trace["starting_mask_ratio"])
    counts = reveal_counts("gamma_canvas", options.schedule, steps, masked, canvas=planned)
    for i in range(steps):
        uncond, cond = np.moveaxis(trace["logits_int16_x512"][i].astype(np.float32) / 512, 1, 0)
        logits = mix(jnp.asarray(cond), jnp.asarray(uncond), float(trace["guidance"]))
        picks = jnp.asarray(trace["picks"][i], jnp.int32)
        scores = confidence(logits, picks, jnp.asarray(trace["gumbel"][i]), float(weights[i]))
        tokens = reveal(tokens, picks, scores, counts[:, i], mask_id)
        np.testing.assert_array_equal(tokens, trace["canvas_after"][i])
        np.testing.assert_array_equal((tokens == mask_id).sum(axis=-1), trace["masked_after"][i])


def test_floor_plans_keep_one_token_masked_and_reveal_at_least_one():
    np.testing.assert_array_equal(reveal_counts("gamma_floor", "cosine", 8, 3), [1, 1, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(reveal_counts("gamma_floor", "cosine", 4, 0), [0, 0, 0, 0])
    np.testing.assert_array_equal(reveal_counts("gamma_floor", "linear", 4, 40), [10, 10, 10, 10])


def test_canvas_plan_starts_late_and_follows_the_whole_canvas():
    masked = np.array([100, 50])  # of 100; the curve says 70 after the second of four steps, 38 after the third
    counts = reveal_counts("gamma_canvas", "cosine", 4, masked, skip_steps=1, canvas=100)
    np.testing.assert_array_equal(counts, [[0, 30, 32, 38], [0, 1, 11, 38]])
    bound = max_masked_per_step("gamma_canvas", "cosine", 4, 100, skip_steps=1)
    np.testing.assert_array_equal(bound, [100, 100, 70, 38])


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["fori", "unrolled"])
def test_decoding_begins_at_the_skipped_step(loop):
    tokens, condition, _, _ = uvit_case("uvit_256_like")
    given = jnp.where(jnp.arange(64)[None] < 32, TINY.mask_id, jnp.clip(tokens, max=TINY.codebook_size - 1))
    cfg = DecodeConfig(4, "cosine", "gamma_canvas", guidance=1.0, skip_steps=2, loop=loop)
    canvases = decode_steps(create(TINY, jax.random.key(0)), condition, jax.random.key(1), cfg, given)
    assert canvases.shape == (2, 2, 64)
    np.testing.assert_array_equal((canvases == TINY.mask_id).sum(axis=-1), [[24, 24], [0, 0]])
    np.testing.assert_array_equal(canvases[-1, :, 32:], given[:, 32:])


def test_skip_steps_needs_a_plan_that_knows_where_it_starts():
    with pytest.raises(ConfigError, match="skip_steps: needs plan"):
        DecodeConfig(skip_steps=1)
    with pytest.raises(ConfigError, match="skip_steps: must be"):
        DecodeConfig(plan="gamma_canvas", skip_steps=8)
