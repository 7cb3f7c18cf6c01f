"""The aiohttp routes of clients without WebSockets (docs/streams.md)."""

from __future__ import annotations

from aiohttp import web

from service.web.connect_checks import preflight
from service.web.http_stream.call import call
from service.web.http_stream.emit import emit
from service.web.http_stream.history import get_history, get_page
from service.web.http_stream.poll_handler import POLL_HANDLER
from service.web.http_stream.stream_handler import STREAM_HANDLER


def routes() -> list[web.RouteDef]:
    """The routes, for an application with NODE, HTTP_CONFIG, HTTP_CONNECTIONS, STREAM_HANDLER and POLL_HANDLER."""
    return [
        web.post("/stream", _post_stream),
        web.options("/stream", _preflight_post),
        web.post("/poll", _post_poll),
        web.options("/poll", _preflight_post),
        web.post("/emit", _post_emit),
        web.options("/emit", _preflight_post),
        web.post("/call", _post_call),
        web.options("/call", _preflight_post),
        web.get("/sse", _get_sse, allow_head=False),
        web.options("/sse", _preflight_get),
        web.get("/history", get_history, allow_head=False),
        web.options("/history", _preflight_get),
        web.get("/history/{address:.+}", get_page),
    ]


async def _post_stream(request: web.Request) -> web.StreamResponse:
    return await request.app[STREAM_HANDLER].post_stream(request)


async def _post_poll(request: web.Request) -> web.StreamResponse:
    return await request.app[POLL_HANDLER].post_poll(request)


async def _post_emit(request: web.Request) -> web.StreamResponse:
    return await emit(request)


async def _post_call(request: web.Request) -> web.StreamResponse:
    return await call(request)


async def _get_sse(request: web.Request) -> web.StreamResponse:
    return await request.app[STREAM_HANDLER].get_sse(request)


async def _preflight_post(request: web.Request) -> web.StreamResponse:
    return preflight(request, "POST")


async def _preflight_get(request: web.Request) -> web.StreamResponse:
    return preflight(request, "GET")
