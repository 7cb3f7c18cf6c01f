"""Closes kept-alive HTTP connections while the node drains."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from service.realtime.node import Node


def drain_middleware(node: Node) -> Middleware:
    """Closes each connection after its next response while the node drains.

    So a backend's connection pool moves to other nodes. A connection kept until the end would be cut, possibly during a
    request.
    """

    @web.middleware
    async def close_while_draining(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if node.admission.is_draining:
            response.force_close()
        return response

    return close_while_draining
