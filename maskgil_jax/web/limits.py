"""What holds for every request before any route sees it: the key, sizes, times, headers against other hosts."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from maskgil_jax.config import ServeConfig

Message = MutableMapping[str, Any]
SMALL_BODY = 262_144  # bytes of a JSON request
DRAINED = 268_435_456  # bytes of a body that is too large which are still read and dropped, so that the client sees the answer
# A page of this server loads nothing from other hosts.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' 'wasm-unsafe-eval' blob:; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data:"
    " blob:; worker-src 'self' blob:; frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)


class Refused(Exception):
    """A request that is answered with `status` and an error of the images API."""

    def __init__(self, status: int, message: str, code: str, headers: dict[str, str] | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.headers, self.param = status, code, headers or {}, param

    def body(self) -> bytes:
        """The error as JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


class Guard:
    """ASGI middleware: the API key, limits on the body and its time, response headers,
    and the metrics of all requests."""

    def __init__(self, app: Callable[..., Awaitable[None]], cfg: ServeConfig, measures: Any, api_key: str | None):
        self.app, self.cfg, self.measures = app, cfg, measures
        self.api_key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Message, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no WebSockets here; the server answers 403
        start, status, body = time.perf_counter(), 500, _Body(receive, self._limit(scope["path"]), self.cfg.body_seconds)

        async def from_route(message: Message) -> None:
            if body.refused is None:  # else the answer follows below, whatever the route made of a body that was cut off
                await answer(message)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = {
                    b"content-security-policy": CONTENT_POLICY.encode(),
                    b"x-content-type-options": b"nosniff",
                    b"referrer-policy": b"same-origin",
                }
                sent = {name.lower() for name, _ in message["headers"]}
                added = [(name, value) for name, value in headers.items() if name not in sent]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            try:
                self._check_key(scope)
                body.check_length(_header(scope, b"content-length"))
                await self.app(scope, body.receive, from_route)
            except Refused as refused:
                body.refused = refused
            except Exception:
                if body.refused is None:
                    raise
            if body.refused is not None:
                await body.drain()
                await self._refuse(body.refused, answer)
        finally:
            self.measures.request(route_of(scope["path"]), status, time.perf_counter() - start)

    @staticmethod
    async def _refuse(refused: Refused, answer: Callable) -> None:
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        headers += [(name.encode(), value.encode()) for name, value in refused.headers.items()]
        await answer({"type": "http.response.start", "status": refused.status, "headers": headers})
        await answer({"type": "http.response.body", "body": refused.body()})

    def _limit(self, path: str) -> int:
        return SMALL_BODY if path == "/v1/images/generations" else self.cfg.max_upload

    def _check_key(self, scope: Message) -> None:
        if self.api_key is None or scope["path"] == "/healthz":
            return
        given = _header(scope, b"authorization") or b""
        scheme, _, value = given.partition(b" ")
        if scheme.lower() == b"basic":  # a browser, which asks its user for it; any user name
            try:
                value = base64.b64decode(value, validate=True).partition(b":")[2]
            except ValueError:
                value = b""
        if not hmac.compare_digest(value.strip(), self.api_key):
            asked = {} if scope["path"].startswith("/v1/") else {"WWW-Authenticate": 'Basic realm="maskgil", charset="UTF-8"'}
            raise Refused(401, "the API key is missing or wrong; send Authorization: Bearer KEY", "invalid_api_key", asked)


class _Body:
    """The body of one request as it arrives, within its size and time."""

    def __init__(self, receive: Callable, limit: int, seconds: float):
        self._receive, self._limit, self._seconds = receive, limit, seconds
        self._read, self._complete = 0, False
        self.refused: Refused | None = None
        self._until = time.monotonic() + seconds

    def check_length(self, stated: bytes | None) -> None:
        """Refuses a body whose stated length is too large, before it is read."""
        if stated is not None and (not stated.isdigit() or int(stated) > self._limit):
            raise self._too_large(f"{stated.decode('latin-1')[:20]} bytes")

    def _too_large(self, found: str) -> Refused:
        return Refused(413, f"body: {found}; at most {self._limit} bytes are read here", "body_too_large")

    async def receive(self) -> Message:
        if self._complete:  # waits for the client to leave
            return await self._receive()
        message = await self._next(self._until)
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            if self._read > self._limit:
                self.refused = self._too_large(f"more than {self._limit} bytes")
                raise self.refused
        return message

    async def _next(self, until: float) -> Message:
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, until - time.monotonic()))
        except TimeoutError:
            self.refused = self.refused or Refused(408, f"body: not complete within {self._seconds:g} s", "body_timeout")
            raise self.refused from None
        self._complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Reads and drops the rest of the body, so that a client which sends all of it before it listens sees the
        answer."""
        try:
            while not self._complete and self._read <= DRAINED:
                self._read += len((await self._next(self._until)).get("body", b""))
        except Refused:
            pass


def route_of(path: str) -> str:
    """The route of a path, for metrics: few values, whatever clients ask for."""
    if path.startswith("/v1/"):
        known = ("/v1/images/generations", "/v1/images/edits", "/v1/audio/translations", "/v1/models")
        return next((route for route in known if path == route or path.startswith(route + "/")), "other")
    return path if path in ("/healthz", "/metrics") else "page"


def _header(scope: Message, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key.lower() == name), None)


def http_protocol(header_seconds: float) -> type:
    """uvicorn's HTTP/1.1 protocol, which closes connections whose request headers do not arrive in time."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class TimedHeaders(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport):
            super().connection_made(transport)
            self._watch_headers()

        def data_received(self, data):
            super().data_received(data)
            self._watch_headers()

        def connection_lost(self, exc):
            self._stop_timer()
            super().connection_lost(exc)

        def _watch_headers(self) -> None:
            if self.conn.their_state is not h11.IDLE:
                self._stop_timer()
            elif self._header_timer is None:
                self._header_timer = self.loop.call_later(header_seconds, self._close_silent)

        def _close_silent(self) -> None:
            self._header_timer = None
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                self.transport.close()

        def _stop_timer(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

    return TimedHeaders
