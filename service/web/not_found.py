"""Lets pages of other origins read that an address does not exist."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from service.web.client_info import add_cors_headers
from service.web.http_config import HttpConfig


def readable_not_found(config: HttpConfig) -> Middleware:
    """Adds the CORS headers to the response for an address without a resource. It holds no secret.

    Without them, a client with a wrong path cannot tell this from a service that is away.
    """

    @web.middleware
    async def add_headers(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        missing = request.match_info.http_exception
        if missing is not None and missing.status == 404:
            add_cors_headers(request, response, config)
        return response

    return add_headers
