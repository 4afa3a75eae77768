"""Reveal plans against published counts (golden/samplers/plans.json), and what must hold for any number of steps."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgil_jax.config import PLANS, SCHEDULES, ConfigError
from maskgil_jax.decoding.schedules import gamma, mask_ratio, reveal_counts

GOLDEN = json.loads((Path(__file__).parent / "golden/samplers/plans.json").read_text())


def golden(source):
    """(schedule, tokens, steps, recorded numbers) of one source."""
    for name, numbers in GOLDEN.items():
        origin, _, rest = name.partition(".")
        if origin == source:
            schedule, tokens, steps = rest.split(".")
            yield schedule, int(tokens), int(steps), list(numbers)


@pytest.mark.parametrize(
    "plan, schedule, expected",
    [
        ("density", "root", [1, 7, 14, 22, 30, 41, 55, 86]),
        ("density", "linear", [1, 9, 18, 27, 37, 46, 55, 63]),
        ("density", "square", [1, 13, 24, 34, 41, 46, 49, 48]),
        ("density", "cosine", [1, 12, 22, 32, 41, 47, 51, 50]),
        ("density", "arccos", [1, 18, 26, 32, 38, 43, 48, 50]),
        ("density", "arccos", [1, 59, 87, 109]),
        ("density", "arccos", [1, 6, 9, 10, 12, 14, 15, 16, 18, 19, 20, 21, 22, 23, 25, 25]),
        ("density", "cosine", [1, 3, 5, 8, 10, 13, 15, 17, 19, 21, 22, 23, 24, 25, 25, 25]),
        ("gamma", "root", [91, 37, 29, 25, 21, 19, 18, 16]),
        ("gamma", "linear", [32] * 8),
        ("gamma", "square", [4, 12, 20, 28, 36, 44, 52, 60]),
        ("gamma", "cosine", [5, 15, 24, 31, 39, 45, 48, 49]),
        ("gamma", "arccos", [21, 21, 21, 23, 25, 28, 35, 82]),
        ("gamma_ceil", "arccos", [20, 21, 21, 23, 25, 28, 35, 83]),
        ("cumulative", "arccos", [1, 22, 24, 25, 27, 30, 38, 89]),
    ],
)
def test_reveal_counts_for_256_tokens_equal_the_table(plan, schedule, expected):
    counts = reveal_counts(plan, schedule, len(expected), 256)
    assert isinstance(counts, np.ndarray) and counts.tolist() == expected


def test_density_plan_equals_the_published_code():
    cases = list(golden("density"))
    for schedule, tokens, steps, counts in cases:
        assert reveal_counts("density", schedule, steps, tokens).tolist() == counts, (schedule, steps)
    assert len(cases) == 30


def test_density_plan_equals_the_published_formula_where_that_is_valid():
    valid = 0
    for schedule in SCHEDULES:
        for steps in range(2, 130):
            density = gamma(schedule, np.linspace(1, 0, steps))
            published = np.maximum(np.round(density / density.sum() * 256), 1)
            published[-1] += 256 - published.sum()
            if published.min() >= 0:
                assert reveal_counts("density", schedule, steps, 256).tolist() == published.tolist(), (schedule, steps)
                valid += 1
    assert 300 < valid < 5 * 128  # beyond some number of steps the formula asks for a negative last step


def test_cumulative_plan_equals_halton_maskgit():
    cases = list(golden("confidence"))
    for schedule, tokens, steps, totals in cases:
        assert np.cumsum(reveal_counts("cumulative", schedule, steps, tokens)).tolist() == totals, (schedule, tokens, steps)
    assert len(cases) == 90


def test_cumulative_plan_rounds_as_torch_and_keeps_idle_steps():
    assert np.cumsum(reveal_counts("cumulative", "linear", 10, 144))[6] == 96  # 95 if linspace is rounded twice
    counts = reveal_counts("cumulative", "root", 64, 64)
    assert counts[0] == 1 and counts.sum() == 64 and (counts == 0).sum() == 15


def test_gamma_ceil_plan_has_the_totals_of_the_halton_sampler():
    for schedule, tokens, steps, totals in golden("halton"):
        if tokens == 576:  # arccos(1/2) is a third of a right angle: 192 exactly, 191 in their float32
            totals[steps // 2 - 1] += 1
        assert np.cumsum(reveal_counts("gamma_ceil", schedule, steps, tokens)).tolist() == totals, (tokens, steps)


def test_gamma_plan_equals_maskgit():
    cases = list(golden("google"))
    for schedule, tokens, steps, masked in cases:
        if (schedule, steps) == ("cosine", 12):  # cos(60 degrees) is a half: 128 or 512 exactly, one less in their float32
            masked[7] += 1
        assert (tokens - np.cumsum(reveal_counts("gamma", schedule, steps, tokens))).tolist() == masked, (
            schedule,
            tokens,
            steps,
        )
    assert len(cases) == 32


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_reveal_counts_are_valid_for_any_steps_and_tokens(plan, schedule):
    for steps in (*range(1, 20), 64, 255, 256, 257):
        tokens = np.array([0, 1, 2, 3, 7, 12, 16, 17, 64, 128, 255, 256])
        counts = np.asarray(reveal_counts(plan, schedule, steps, tokens))
        assert counts.shape == (len(tokens), steps) and counts.min() >= 0
        np.testing.assert_array_equal(counts.sum(axis=1), tokens)
        if plan in ("gamma", "gamma_ceil"):  # the published counts of the others may hold zeros
            assert all(row[: min(steps, n)].min(initial=1) >= 1 for row, n in zip(counts, tokens))
    assert reveal_counts(plan, schedule, 1, 256).tolist() == [256]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_reveal_counts_traced_equal_numpy(plan, schedule):
    tokens = jnp.arange(145)
    traced = jax.jit(lambda n: reveal_counts(plan, schedule, 7, n, max_masked=144))(tokens)
    np.testing.assert_array_equal(traced, [reveal_counts(plan, schedule, 7, n) for n in range(145)])
    np.testing.assert_array_equal(traced, reveal_counts(plan, schedule, 7, tokens))


def test_reveal_counts_beyond_max_masked_are_minus_one():
    traced = jax.jit(lambda n: reveal_counts("gamma", "cosine", 3, n, max_masked=8))(jnp.array([8, 9]))
    assert traced[0].sum() == 8 and traced[1].tolist() == [-1, -1, -1]


def test_mask_ratio_of_both_conventions():
    draws = np.array(GOLDEN["mask_ratio"]["r"], np.float32)
    for schedule in ("linear", "square", "cosine", "arccos"):
        release = mask_ratio(schedule, jnp.asarray(draws), "release")
        np.testing.assert_allclose(release, GOLDEN["mask_ratio"][schedule], atol=2e-6)
    for schedule in SCHEDULES:
        ratio = mask_ratio(schedule, np.linspace(0, 1, 11))
        assert ratio[0] == 1 and abs(ratio[-1]) < 1e-12 and (np.diff(ratio) < 0).all()
        np.testing.assert_allclose(mask_ratio(schedule, jnp.linspace(0, 1, 11)), ratio, atol=1e-6)
    assert mask_ratio("square", 0.5) == 0.75 and mask_ratio("square", 0.5, "release") == 0.25
    assert mask_ratio("root", 0.25, "release") == 0.5


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("dens", "arccos", 8, 256), "plan.*density"),
        (("gamma", "sqrt", 8, 256), "schedule.*square"),
        (("gamma", "arccos", 0, 256), "steps.*0"),
        (("gamma", "arccos", 2.5, 256), "steps.*2.5"),
        (("gamma", "arccos", 8, -1), "num_masked.*-1"),
        (("gamma", "arccos", 8, np.array([3, -2])), "num_masked.*-2"),
    ],
)
def test_reveal_counts_names_invalid_arguments(arguments, named):
    with pytest.raises(ConfigError, match=named):
        reveal_counts(*arguments)
    with pytest.raises(ConfigError, match="schedule"):
        mask_ratio("sine", 0.5)
