"""One operation of the backend API: its route, its checks, its metrics and its description.

One table of operations serves both routes.py, which answers requests, and openapi.py, which describes them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import hdrs, web
from msgspec import Struct

from service.errors import ErrorCode, ServiceError
from service.web.api.call import Call
from service.web.api.messages import NoQuery
from service.web.http_config import NODE
from service.web.json_response import json_response

COMMON_REFUSALS = (
    ErrorCode.INVALID_REQUEST,
    ErrorCode.INVALID_API_KEY,
    ErrorCode.RATE_LIMITED,
    ErrorCode.BROKER_UNAVAILABLE,
    ErrorCode.OVERLOADED,
    ErrorCode.INTERNAL,
)
"""Error codes that every operation can return."""

BODY_REFUSALS = (
    ErrorCode.MALFORMED,
    ErrorCode.INVALID_MESSAGE,
    ErrorCode.DEADLINE,
    ErrorCode.TOO_BIG,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE,
)
"""Further error codes of operations with a body."""

_HEADERS: Mapping[str, str] = {hdrs.CACHE_CONTROL: "no-store"}

CHANNEL_REFUSALS = (ErrorCode.NOT_FOUND, ErrorCode.INVALID_CHANNEL, ErrorCode.UNKNOWN_CHANNEL)
"""Further error codes of operations on a channel."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one resource."""

    name: str
    """Unique; the OpenAPI operationId."""
    method: str
    path: str
    """The route, and the metrics' label."""
    summary: str
    handle: Callable[[Call, Any], Awaitable[Struct]]
    """Called with the call and an instance of `query`; its result is the JSON body of a 200."""
    replies: tuple[type[Struct], ...]
    """The types of the result."""
    query: type[Struct] = NoQuery
    body: Any = None
    """The type of the JSON body, as msgspec decodes it; None if there is none."""
    body_required: bool = True
    idempotent: bool = False
    """Whether the operation reads Idempotency-Key."""
    refusals: tuple[ErrorCode, ...] = ()
    """Further error codes of this operation."""

    @property
    def all_refusals(self) -> tuple[ErrorCode, ...]:
        """Every error code that this operation can return."""
        return COMMON_REFUSALS + (BODY_REFUSALS if self.body is not None else ()) + self.refusals

    def route(self) -> web.RouteDef:
        """The aiohttp route."""
        return web.route(self.method, self.path, self.answer)

    async def answer(self, request: web.Request) -> web.Response:
        """Authenticates the call, parses the query, runs the handler and counts the outcome."""
        node = request.app[NODE]
        started = node.runtime.clock.monotonic()
        status = ErrorCode.INTERNAL.status
        call: Call | None = None
        try:
            call = Call.authenticate_request(request)
            result = await self.handle(call, call.query(self.query))
            response = json_response(msgspec.json.encode(result), call.account, _HEADERS)
            status = response.status
        except ServiceError as error:
            status = error.code.status
            raise
        finally:
            if call is not None:
                call.holding.release()
            metrics = node.runtime.metrics
            with metrics.guarded("api_requests"):
                metrics.http.api_requests.labels(route=self.path, method=self.method, status=str(status)).inc()
                metrics.http.api_seconds.labels(route=self.path).observe(
                    max(0.0, node.runtime.clock.monotonic() - started)
                )
        return response
