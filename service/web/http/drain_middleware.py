"""The end of HTTP connections while the node drains: each with its next answer."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from service.realtime.node import Node


def middleware(node: Node) -> Middleware:
    """Has a backend's pool of connections move to other nodes: one that is kept would be cut at the end, perhaps just when the
    next request is on its way."""

    @web.middleware
    async def part(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if node.admission.is_draining:
            response.force_close()
        return response

    return part
