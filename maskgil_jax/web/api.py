"""The routes: the OpenAI images API, translations of speech, models, health and metrics."""

import asyncio
import base64
import contextlib
import json
import logging
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from maskgil_jax.config import ConfigError
from maskgil_jax.web.engine import Engine, QueueFull, Stopping, TimedOut
from maskgil_jax.web.limits import Guard, Refused
from maskgil_jax.web.measures import Measures
from maskgil_jax.web.pictures import encode, image_and_hole, read_upload
from maskgil_jax.web.requests import ImageRequest, RequestReader

logger = logging.getLogger(__name__)


def create_app(
    engine: Engine, reader: RequestReader, measures: Measures, *, speech: Any = None, api_key: str | None = None, lifespan=None
) -> tuple[FastAPI, Guard]:
    """(the FastAPI app, the same behind `limits.Guard`, which is what a server runs). speech: a `Speech`,
    if installed."""
    app = FastAPI(title="maskgil_jax", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    decoding_files = asyncio.Semaphore(2)  # uploads that are decoded at once; each may hold 100 MB of pixels
    model = {"id": reader.model, "object": "model", "created": int(time.time()), "owned_by": "maskgil_jax"}

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        return _error(Refused(error.status_code, str(error.detail), "http_error", dict(error.headers or {})))

    @app.exception_handler(Refused)
    async def on_refused(request: Request, error: Refused) -> Response:
        return _error(error)

    @app.exception_handler(ConfigError)
    async def on_bad_value(request: Request, error: ConfigError) -> Response:
        return _error(_as_refused(error))

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> Response:
        return _error(Refused(500, "an error of the server; its log has the details", "internal_error"))

    @app.get("/healthz")
    async def health() -> Response:
        status = 200 if engine.healthy else 503
        return JSONResponse({"status": "ok" if status == 200 else "stopping", "waiting": engine.waiting}, status)

    @app.get("/metrics")
    async def metrics() -> Response:
        measures.queue.set(engine.waiting)
        text, kind = measures.text()
        return Response(text, media_type=kind)

    @app.get("/v1/models")
    async def models() -> Response:
        served = [model] if speech is None else [model, {**model, "id": speech.model}]
        return JSONResponse({"object": "list", "data": served})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        if name != reader.model:
            raise Refused(404, f"model: {name[:80]!r} is not served here; it is {reader.model!r}", "model_not_found")
        return JSONResponse(model)

    @app.post("/v1/images/generations")
    async def generations(request: Request) -> Response:
        try:
            fields = json.loads(await request.body(), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise Refused(400, "body: is not valid JSON", "invalid_json") from None
        asked = await asyncio.to_thread(reader.images, fields)
        return await _drawn(request, engine, reader, asked)

    @app.post("/v1/images/edits")
    async def edits(request: Request) -> Response:
        async with _form(request, files=2) as form:
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            asked = await asyncio.to_thread(reader.images, fields)
            image, mask = await _file(form, "image", "image[]"), await _file(form, "mask")
        if image is None:
            raise ConfigError("image: no file given")
        async with decoding_files:
            image_hwc, hole_hw = await asyncio.to_thread(_read_edit, image, mask, asked.size, reader.cfg.max_side)
        return await _drawn(request, engine, reader, reader.edit(asked, image_hwc, hole_hw))

    @app.post("/v1/audio/translations")
    async def translations(request: Request) -> Response:
        if speech is None:
            raise Refused(
                501, "speech is not installed here: pip install 'maskgil_jax[speech]', serve with --speech", "no_speech"
            )
        async with _form(request, files=1) as form:
            shape, language = form.get("response_format") or "json", form.get("language") or None
            if shape not in ("json", "text", "verbose_json"):
                raise ConfigError(f"response_format: must be json, text or verbose_json, got {str(shape)[:40]!r}")
            audio = await _file(form, "file")
        if audio is None:
            raise ConfigError("file: no file given")
        heard = await _while_there(request, asyncio.to_thread(speech.translate, audio, language))
        if shape == "text":
            return PlainTextResponse(heard.text)
        about = {"text": heard.text}
        if shape == "verbose_json":
            about |= {"task": "translate", "language": heard.language, "duration": heard.seconds, **heard.about()}
        return JSONResponse(about)

    return app, Guard(app, engine.cfg, measures, api_key)


async def _drawn(request: Request, engine: Engine, reader: RequestReader, asked: ImageRequest) -> Response:
    """The answer with the images of a request; gives its place up when the client leaves."""
    try:
        ticket = engine.submit(asked.drawings)
    except (QueueFull, Stopping) as error:
        raise _as_refused(error) from None
    try:
        pictures = await _while_there(request, asyncio.wrap_future(ticket.future))
    except BaseException as error:
        engine.cancel(ticket)
        if isinstance(error, (TimedOut, ConfigError)):
            raise _as_refused(error) from None
        raise
    data = await asyncio.to_thread(_files, reader, asked, pictures)
    height, width = asked.size
    answer = {"created": int(time.time()), "output_format": asked.output_format, "size": f"{width}x{height}", "data": data}
    waits = {f"{stage};dur={1000 * max(p.seconds[stage] for p in pictures):.1f}" for stage in pictures[0].seconds}
    return JSONResponse(answer, headers={"Server-Timing": ", ".join(sorted(waits))})


def _files(reader: RequestReader, asked: ImageRequest, pictures: list) -> list[dict[str, Any]]:
    made = []
    for picture in pictures:
        about = reader.settings(asked, picture.drawing)
        file = encode(picture.image_hwc, about, asked.output_format, asked.compression)
        entry = {"b64_json": base64.b64encode(file).decode(), "seed": picture.drawing.seed}
        made.append(entry if asked.shown == asked.prompt else entry | {"revised_prompt": asked.shown})
    return made


async def _while_there(request: Request, work: Any) -> Any:
    """The result of `work`; cancelled, with an error nobody reads, when the client closes its connection."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Refused(499, "the client has left", "client_left")
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()


@contextlib.asynccontextmanager
async def _form(request: Request, files: int):
    """A form with at most `files` files; its temporary files are removed afterwards."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refused(415, "body: expected multipart/form-data", "unsupported_media_type")
    try:
        form = await request.form(max_files=files, max_fields=32, max_part_size=65_536)
    except (MultiPartException, HTTPException, ValueError, KeyError) as error:
        raise Refused(400, f"body: is not a valid form ({str(error)[:100]})", "invalid_form") from None
    try:
        yield form
    finally:
        await form.close()


async def _file(form: Any, *names: str) -> bytes | None:
    """The bytes of a file of a form. The name that the client gave it is not used."""
    value = next((form[name] for name in names if form.get(name) is not None), None)
    if value is None:
        return None
    if isinstance(value, str):
        raise ConfigError(f"{names[0]}: expected a file, got text")
    return await value.read()


def _read_edit(image: bytes, mask: bytes | None, size: tuple[int, int], max_side: int):
    shown = read_upload(image, "image", max_side)
    return image_and_hole(shown, None if mask is None else read_upload(mask, "mask", max_side), size)


def _as_refused(error: Exception) -> Refused:
    """The answer to an expected error."""
    if isinstance(error, QueueFull):
        return Refused(429, str(error), "queue_full", {"Retry-After": str(error.retry_after)})
    if isinstance(error, Stopping):
        return Refused(503, str(error), "stopping", {"Retry-After": "5"})
    if isinstance(error, TimedOut):
        return Refused(504, str(error), "time_limit")
    name = str(error).partition(":")[0]
    return Refused(400, str(error), "invalid_value", param=name if name.isidentifier() else None)


def _error(error: Refused) -> Response:
    return Response(error.body(), error.status, error.headers, "application/json")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
