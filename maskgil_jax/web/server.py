"""A running server: the engine, the API and the page behind one uvicorn."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from maskgil_jax.config import ServeConfig
from maskgil_jax.pipelines.canvas import on_canvas
from maskgil_jax.web.drawing import Drawing
from maskgil_jax.web.engine import Engine
from maskgil_jax.web.measures import Measures
from maskgil_jax.web.page_actions import STRENGTH
from maskgil_jax.web.requests import RequestReader

logger = logging.getLogger(__name__)


def create_server(
    pipeline: Any,
    cfg: ServeConfig,
    *,
    model: str,
    api_key: str | None = None,
    speech: Any = None,
    page: bool = True,
    root_path: str = "",
    warm_up: bool = True,
    progress: Callable[[str], Any] = lambda _: None,
) -> Any:
    """A uvicorn server, ready to `run(sockets=...)`: every program of the default settings is compiled,
    the worker runs.

    SIGTERM and SIGINT stop it: it accepts nothing more, answers what it had accepted, and ends.
    """
    import uvicorn

    from maskgil_jax.web.api import create_app
    from maskgil_jax.web.limits import http_protocol

    measures = Measures()
    engine = Engine(pipeline, cfg, measures)
    reader = RequestReader(pipeline, cfg, model)
    if warm_up:
        progress("preparing the words of requests")
        reader.prompts.warm_up()
        engine.drawer.warm_up(_usual(reader), progress)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        yield
        engine.stop(cfg.stop_seconds)
        progress(f"stopped; images accepted and not answered: {engine.waiting}")

    app, guarded = create_app(engine, reader, measures, speech=speech, api_key=api_key, lifespan=lifespan)
    if page:
        from maskgil_jax.web.page import mount_page

        progress("building the page")
        mount_page(app, engine, reader, speech)
    engine.start()
    options = uvicorn.Config(
        guarded,
        http=http_protocol(cfg.header_seconds),
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=round(cfg.stop_seconds),
        limit_concurrency=cfg.max_connections,
        server_header=False,
        root_path=root_path,
        proxy_headers=True,
    )
    server = uvicorn.Server(options)
    server.engine = engine
    return server


def _usual(reader: RequestReader) -> list[Drawing]:
    """What is compiled at the start: the stored number of steps at the first size, drawn and edited.

    With weights of a canvas, also the other sizes that it holds: they share the sampler, and each decodes its own
    pixels.
    """
    request = 0 if reader.prompts.by_class else "a red circle"
    drawing = Drawing(request, 0, reader.pipeline.cfg, reader.pipeline.grid_of(*reader.sizes[0]))
    if not reader.pipeline.masked:
        return [drawing]
    image_hwc = np.zeros((*reader.sizes[0], 3), np.uint8)
    edit = dataclasses.replace(drawing, image_hwc=image_hwc, mask_hw=image_hwc[..., 0] == 0)
    grids = [reader.pipeline.grid_of(*size) for size in reader.sizes]
    shared = [grid for grid in grids if on_canvas(reader.pipeline, grid, drawing.cfg)]
    others = [dataclasses.replace(drawing, grid=grid) for grid in shared if drawing.grid in shared and grid != drawing.grid]
    return [drawing, *others, edit, dataclasses.replace(edit, mask_hw=None, strength=STRENGTH)]
