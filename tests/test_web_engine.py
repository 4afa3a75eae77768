"""The engine of the server: shared batches, the bounded queue, time limits, stopping."""

import concurrent.futures
import dataclasses
import threading
import time

import numpy as np
import pytest
from helpers.tiny_pipeline import CELL, SIDE, tiny_pipeline

from maskgil_jax.config import ConfigError, ServeConfig
from maskgil_jax.web.drawing import Drawing
from maskgil_jax.web.engine import Engine, QueueFull, Stopping, TimedOut


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


def drawing(label=0, seed=0, **changes):
    pipeline = tiny_pipeline()
    return Drawing(label, seed, **{"cfg": pipeline.cfg, "grid": pipeline.generator.cfg.grid, **changes})


class Counted:
    """Keeps the sizes of batches and the reasons of refusals."""

    def __init__(self):
        self.batches, self.refusals = [], []

    def batch(self, images, seconds):
        self.batches.append(images)

    def refused(self, reason):
        self.refusals.append(reason)


@pytest.fixture
def held(pipeline):
    """An engine whose worker waits before each batch until `release` is set, with its counts."""
    counted, release, started = Counted(), threading.Event(), threading.Event()
    engine = Engine(pipeline, ServeConfig(max_queue=8, max_images=4, batch_sizes=(1, 4), max_wait_ms=0.0), counted)
    draw = engine.drawer.draw

    def wait_and_draw(*args):
        started.set()
        assert release.wait(60)
        return draw(*args)

    engine.drawer.draw = wait_and_draw
    engine.release, engine.started, engine.counted = release, started, counted
    yield engine.start()
    release.set()
    assert engine.stop(60)


@pytest.mark.parametrize("batch_sizes", [(1,), (1, 4), (8,)])
def test_images_equal_those_of_the_pipeline_whatever_shares_the_batch(pipeline, batch_sizes):
    asked = [drawing(label, seed) for label, seed in [(0, 5), (2, 5), (1, 7), (0, 2**32 - 1), (2, 0), (1, 1), (0, 5)]]
    with engine_of(pipeline, batch_sizes=batch_sizes, max_wait_ms=50.0) as engine:
        tickets = [engine.submit([one]) for one in asked]
        pictures = [ticket.future.result(60)[0] for ticket in tickets]
    for one, picture in zip(asked, pictures, strict=True):
        np.testing.assert_array_equal(picture.image_hwc, pipeline([one.request], seed=one.seed)[0])


class engine_of:
    """A running engine, stopped at the end."""

    def __init__(self, pipeline, counted=None, **options):
        self.engine = Engine(pipeline, ServeConfig(**options), counted)

    def __enter__(self):
        return self.engine.start()

    def __exit__(self, *_):
        assert self.engine.stop(60)


def test_requests_of_one_program_share_a_batch_and_others_do_not(pipeline, held):
    first = held.submit([drawing(0)])
    assert held.started.wait(60)
    wide = (pipeline.generator.cfg.grid[0], 2 * pipeline.generator.cfg.grid[1])
    others = [held.submit([drawing(label, seed)]) for label, seed in ((1, 3), (2, 4))]
    large = held.submit([drawing(1, 9, grid=wide)])
    held.release.set()
    for ticket in (first, *others, large):
        ticket.future.result(60)
    assert held.counted.batches == [1, 2, 1]
    assert large.future.result()[0].image_hwc.shape == (SIDE, 2 * SIDE, 3)


def test_images_of_one_request_come_back_in_its_order(pipeline):
    with engine_of(pipeline, batch_sizes=(1, 2)) as engine:
        pictures = engine.submit([drawing(1, seed) for seed in range(5)]).future.result(60)
    assert [picture.drawing.seed for picture in pictures] == list(range(5))
    assert set(pictures[0].seconds) == {"waited", "encoded", "drawn"}


def test_full_queue_refuses_a_whole_request_and_says_when_to_come_back(held):
    held.submit([drawing()])
    assert held.started.wait(60)
    for _ in range(2):
        held.submit([drawing(seed=seed) for seed in range(4)])
    with pytest.raises(QueueFull) as refused:
        held.submit([drawing()])
    assert refused.value.retry_after >= 1
    assert held.waiting == 8 and held.counted.refusals == ["queue_full"]


def test_cancelled_request_frees_its_places(held):
    held.submit([drawing()])
    assert held.started.wait(60)
    gone, kept = (held.submit([drawing(seed=seed) for seed in range(4)]) for _ in range(2))
    held.cancel(gone)
    assert held.waiting == 4
    late = held.submit([drawing(seed=seed) for seed in range(4)])
    held.release.set()
    assert len(kept.future.result(60)) == len(late.future.result(60)) == 4
    with pytest.raises(concurrent.futures.CancelledError):
        gone.future.result(0)


def test_request_cancelled_while_drawn_leaves_the_worker_alive(held):
    ticket = held.submit([drawing()])
    assert held.started.wait(60)
    held.cancel(ticket)
    held.release.set()
    assert len(held.submit([drawing()]).future.result(60)) == 1


def test_request_that_waits_too_long_is_given_up(held):
    held.submit([drawing()])
    assert held.started.wait(60)
    late = held.submit([drawing()], time_limit=0.01)
    time.sleep(0.05)
    held.release.set()
    with pytest.raises(TimedOut):
        late.future.result(60)
    assert "time_limit" in held.counted.refusals


def test_stop_draws_what_was_accepted_and_refuses_the_rest(pipeline):
    engine = Engine(pipeline, ServeConfig(batch_sizes=(1,))).start()
    tickets = [engine.submit([drawing(seed=seed)]) for seed in range(5)]
    assert engine.stop(60)
    assert all(len(ticket.future.result(0)) == 1 for ticket in tickets)
    with pytest.raises(Stopping):
        engine.submit([drawing()])
    assert not engine.healthy


def test_error_of_one_request_does_not_end_the_worker(pipeline):
    with engine_of(pipeline, batch_sizes=(1,), max_wait_ms=0.0) as engine:
        with pytest.raises(ConfigError, match="out of range"):
            engine.submit([drawing(label=99)]).future.result(60)
        assert len(engine.submit([drawing()]).future.result(60)) == 1


def test_previews_show_every_step_and_do_not_change_the_image(pipeline):
    seen = []
    cfg = dataclasses.replace(pipeline.cfg, steps=3)
    with engine_of(pipeline, batch_sizes=(2,)) as engine:
        ticket = engine.submit([drawing(1, 3, cfg=cfg)], lambda *step: seen.append(step))
        image = ticket.future.result(60)[0].image_hwc
    assert [(index, step) for index, step, _ in seen] == [(0, 1), (0, 2)]
    grey = [(preview == 160).all(axis=-1).reshape(4, CELL, 4, CELL).all(axis=(1, 3)).sum() for _, _, preview in seen]
    assert 0 < grey[1] < grey[0] < 16
    np.testing.assert_array_equal(image, pipeline([1], seed=3, cfg=cfg)[0])


def test_failing_viewer_does_not_fail_its_request(pipeline):
    def fail(*_):
        raise RuntimeError("gone")

    with engine_of(pipeline, batch_sizes=(1,)) as engine:
        assert len(engine.submit([drawing()], fail).future.result(60)) == 1


@pytest.mark.slow
def test_edits_equal_those_of_the_pipeline(pipeline):
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    hole = np.zeros((SIDE, SIDE), bool)
    hole[:8, :8] = True
    with engine_of(pipeline, batch_sizes=(4,)) as engine:
        filled = engine.submit([drawing(2, 11, image_hwc=image, mask_hw=hole)]).future.result(60)[0]
        varied = engine.submit([drawing(2, 11, image_hwc=image, strength=0.5)]).future.result(60)[0]
    np.testing.assert_array_equal(filled.image_hwc, pipeline.inpaint(image[None], hole, [2], seed=11)[0])
    np.testing.assert_array_equal(varied.image_hwc, pipeline.vary(image[None], [2], seed=11, strength=0.5)[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(batch_sizes=()), "batch_sizes"),
        (dict(steps=(0,)), "steps"),
        (dict(max_queue=2), "max_images"),
        (dict(time_limit=0.5), "time_limit"),
        (dict(ar_ratios=(0.0,)), "ar_ratios"),
    ],
)
def test_impossible_options_are_refused_by_name(options, named):
    with pytest.raises(ConfigError, match=named):
        ServeConfig(**options)
