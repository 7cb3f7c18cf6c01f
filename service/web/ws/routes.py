"""The aiohttp routes of the WebSocket transport: `/ws`."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from service.web.connect_checks import preflight
from service.web.http.detach import DetachedResponse, detach
from service.web.http.header_list import offers_websocket
from service.web.http_config import NODE
from service.web.ws.upgrade import UPGRADE_HANDLER


def routes() -> list[web.RouteDef]:
    """The routes, for an application with NODE, HTTP_CONFIG, HTTP_CONNECTIONS and UPGRADE_HANDLER."""
    return [
        web.get("/ws", _upgrade, allow_head=False),
        web.options("/ws", _preflight),
    ]


async def _upgrade(request: web.Request) -> web.StreamResponse:
    """Handles upgrades that UpgradeQueue passes on, and plain GET requests, whose response says why an upgrade would
    fail.

    UpgradeQueue passes on very large heads, and later requests of a connection that a proxy reuses.
    """

    received_at = request.app[NODE].runtime.clock.monotonic()
    refusal = await request.app[UPGRADE_HANDLER].answer(request, partial(detach, request), received_at)
    if refusal is None:
        return DetachedResponse()
    if offers_websocket(request.headers):
        refusal.force_close()  # the client may have sent frames after the request, which are not HTTP
    return refusal


async def _preflight(request: web.Request) -> web.StreamResponse:
    return preflight(request, "GET")
