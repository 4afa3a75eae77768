"""A small fake generator, and the decoder written once more in plain Python: one image, one token after the other."""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskgil_jax.decoding import masked
from maskgil_jax.decoding.orders import halton_ranks
from maskgil_jax.decoding.schedules import reveal_counts
from maskgil_jax.models.condition import ClassCondition

CODES, CLASSES, GRID = 11, 3, (3, 4)
LENGTH = math.prod(GRID)

# These programs run once on a few numbers: optimising them takes most of the time and changes nothing.
HASTY = {"xla_backend_optimization_level": 0}
HASTY_DECODE = jax.jit(
    masked._decode.__wrapped__,
    static_argnames=("cfg", "grid", "trajectory"),
    donate_argnames=("canvas_bl", "revealed_prob_bl"),
    compiler_options=HASTY,
)


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Compiles without optimising; a test that wants the program as shipped calls `monkeypatch.undo()`."""
    monkeypatch.setattr(masked, "_decode", HASTY_DECODE)


@dataclasses.dataclass(frozen=True)
class StubConfig:
    codebook_size: int = CODES
    grid: tuple[int, int] = GRID

    @property
    def mask_id(self) -> int:
        return self.codebook_size


class Stub(nnx.Module):
    """Random tables: logits depend on the token, its left neighbour, its position and the label. Counts its traces."""

    traces = 0  # of the class: an instance is rebuilt from its arrays at every call
    rows = 0  # of the last trace

    def __init__(self, seed: int = 0):
        self.cfg = StubConfig()
        table = np.random.default_rng(seed).normal(scale=1.5, size=(4, 64, CODES)).astype(np.float32)
        self.tables = nnx.Param(jnp.asarray(table))

    def __call__(self, tokens_bl, condition, *, grid):
        Stub.traces += 1
        Stub.rows = tokens_bl.shape[0]
        return stub_logits(self.tables[...], tokens_bl, condition.label_b, jnp)

    def null_condition(self, condition):
        return ClassCondition(jnp.full_like(condition.label_b, CLASSES))


def stub_logits(tables, tokens_bl, label_b, xp):
    token, left, place, label = tables
    near_blv = token[tokens_bl] + left[xp.roll(tokens_bl, 1, axis=1)]
    return (near_blv + place[None, : tokens_bl.shape[1]]) + label[label_b][:, None]


def batch(b=4, length=LENGTH):
    """Labels, one key per image, and canvases with none to all tokens given."""
    rng = np.random.default_rng(0)
    tokens = np.full((b, length), CODES, np.int32)
    for row, n in zip(tokens, np.linspace(0, length, b).astype(int)):
        row[rng.permutation(length)[:n]] = rng.integers(0, CODES, n)
    return jnp.arange(b, dtype=jnp.int32) % CLASSES, jax.random.split(jax.random.key(1), b), jnp.asarray(tokens)


class Headed(Stub):
    """The stub with its last step apart, as the networks have it: an unrolled loop asks for some positions only."""

    asked: ClassVar[list[int]] = []  # positions per call since it was emptied

    def hidden(self, tokens_bl, condition, *, grid):
        return stub_logits(self.tables[...], tokens_bl, condition.label_b, jnp)

    def logits(self, hidden_bmd, at_bm):
        assert hidden_bmd.shape[:2] == at_bm.shape
        Headed.asked.append(at_bm.shape[1])
        return hidden_bmd


@functools.partial(jax.jit, static_argnames=("steps", "length"), compiler_options=HASTY)
def draws(keys, steps, length):
    """What the loop draws from each image's key: noise for codes, noise and numbers for scores, remasking,
    and a shift."""
    keys = jax.random.clone(keys)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    i = jnp.arange(steps)
    even, odd, again = (jax.vmap(fold, (0, None))(keys, data) for data in (2 * i, 2 * i + 1, 2 * steps + i))
    every = lambda scaled, keys, shape: jax.vmap(jax.vmap(lambda key: scaled(key, shape)))(keys)  # noqa: E731
    return {
        "codes": every(jax.random.gumbel, even, (length, CODES)),
        "scores": every(jax.random.gumbel, odd, (length,)),
        "random": every(jax.random.uniform, jax.random.clone(odd), (length,)),
        "again": every(jax.random.uniform, again, (length,)),
        "remask": every(jax.random.gumbel, jax.random.clone(again), (length,)),
        "shift": jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 3 * steps), (), 0, length))(keys),
    }


def twin_scale(cfg, i):
    """The guidance scale of step i, written out anew."""
    s, done = cfg.guidance, (i / (cfg.steps - 1) if cfg.steps > 1 else 1.0)
    inside = cfg.guidance_from - 1e-9 <= (i + 1) / cfg.steps <= cfg.guidance_to + 1e-9
    return np.float32(
        {
            "constant": s,
            "linear": 1 + s * done,
            "cosine": 1 + (s - 1) * (1 - math.cos(math.pi * done)) / 2,
            "power-cosine": 1 + (s - 1) * (1 - math.cos(math.pi * (i / cfg.steps) ** cfg.guidance_power)) / 2,
            "interval": s if inside else 1.0,
        }[cfg.guidance_ramp]
    )


def twin_again(cfg, made, left):
    """How many made tokens are hidden again when `left` are to be masked after the step."""
    if cfg.remask is None or made == 0:
        return 0
    most = min(1.0, left / made)
    sigma = min(cfg.remask_eta, most) if cfg.remask == "cap" else cfg.remask_eta * most
    return math.floor(sigma * made + 1e-9)


def twin_counts(cfg, masked):
    """What each step reveals on balance: while remasking loops the plan stands still."""
    still = [cfg.remask_loop and twin_remasks(cfg, i) for i in range(cfg.steps)]
    moving = iter(reveal_counts(cfg.plan, cfg.schedule, cfg.steps - sum(still), masked))
    return [0 if paused else int(next(moving)) for paused in still]


def twin_remasks(cfg, i):
    """Whether step i may hide tokens: in ReMDM's time t = 1 - i / T, that of the step's beginning,
    t_on >= t > t_off."""
    return 0 < i < cfg.steps - 1 and cfg.remask_from - 1e-9 <= i / cfg.steps < cfg.remask_to - 1e-9


def twin(stub, labels, noise, cfg, tokens_bl, grid=GRID):
    """One image after the other, one token after the other."""
    tables, noise, finished = np.asarray(stub.tables[...]), {k: np.asarray(v) for k, v in noise.items()}, []
    for b, (label, given) in enumerate(zip(labels, np.array(tokens_bl))):
        tokens, places = given.copy(), range(len(given))
        counts, sure = twin_counts(cfg, int((tokens == CODES).sum())), np.zeros(len(given), np.float32)
        for i in range(cfg.steps):
            done = i / (cfg.steps - 1) if cfg.steps > 1 else 1.0
            scale = twin_scale(cfg, i)
            cond, uncond = (stub_logits(tables, tokens[None], np.array([c]), np)[0] for c in (label, CLASSES))
            logits = cond if scale == 1 else uncond + scale * (cond - uncond)
            end = cfg.temperature if cfg.temperature_end is None else cfg.temperature_end
            scaled = logits / np.float32(cfg.temperature + (end - cfg.temperature) * done or 1)
            drawn = scaled + noise["codes"][b, i] if cfg.temperature else scaled
            if cfg.top_k:
                drawn = np.where(scaled >= np.sort(scaled)[:, -cfg.top_k, None], drawn, -np.inf)
            picks = drawn.argmax(axis=-1)
            log_p = scaled[np.arange(len(tokens)), picks] - np.log(np.exp(scaled.astype(np.float64)).sum(axis=-1))
            rank = halton_ranks(grid)
            scores = {
                "confidence": log_p + cfg.choice_temperature * (1 - done) * noise["scores"][b, i],
                "random": noise["random"][b, i],
                "raster": [-p for p in places],
                "halton": -rank,
                "halton_rolled": -((rank + noise["shift"][b]) % len(tokens)),
            }[cfg.order]
            masked, made = ([p for p in places if given[p] == CODES and (tokens[p] == CODES) == m] for m in (True, False))
            again = twin_again(cfg, len(made), len(masked) - counts[i]) if twin_remasks(cfg, i) else 0
            chance = noise["remask"][b, i] - sure if cfg.remask_pick == "confidence" else noise["again"][b, i]
            for p in sorted(made, key=lambda p: (-chance[p], p))[:again]:
                tokens[p] = CODES
            for p in sorted(masked, key=lambda p: (-scores[p], p))[: counts[i] + again]:
                tokens[p], sure[p] = picks[p], np.exp(log_p[p])
        finished.append(tokens)
    return np.stack(finished)
