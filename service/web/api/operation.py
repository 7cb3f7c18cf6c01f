"""An operation of the backend API: how it is routed, checked, counted and described. One table of them serves both api.py,
which answers, and openapi.py, which describes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from weakref import finalize

import msgspec
from aiohttp import hdrs, web
from msgspec import Struct

from service.errors import ErrorCode, ServiceError
from service.realtime.connections.byte_budget import MAX_SMALL_REPLY, Account, HeldBytes
from service.web.api.call import Call
from service.web.api.messages import NoQuery
from service.web.http_config import NODE

ALWAYS = (
    ErrorCode.INVALID_REQUEST,
    ErrorCode.INVALID_API_KEY,
    ErrorCode.RATE_LIMITED,
    ErrorCode.BROKER_UNAVAILABLE,
    ErrorCode.OVERLOADED,
    ErrorCode.INTERNAL,
)
"""What every operation can be refused with."""

WITH_BODY = (
    ErrorCode.MALFORMED,
    ErrorCode.INVALID_MESSAGE,
    ErrorCode.DEADLINE,
    ErrorCode.TOO_BIG,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE,
)
"""What an operation with a body can be refused with besides."""

ON_CHANNEL = (ErrorCode.NOT_FOUND, ErrorCode.INVALID_CHANNEL, ErrorCode.UNKNOWN_CHANNEL)
"""What an operation on a channel can be refused with besides."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one resource."""

    name: str
    """Unique; the OpenAPI operationId."""
    method: str
    path: str
    """Also the metrics' label."""
    summary: str
    handle: Callable[[Call, Any], Awaitable[Struct]]
    """Gets the call and its query parameters, an instance of `query`; its result is the JSON body of a 200."""
    replies: tuple[type[Struct], ...]
    """What the result can be."""
    query: type[Struct] = NoQuery
    body: Any = None
    """The type of the JSON body, as msgspec decodes it; None if there is none."""
    body_required: bool = True
    idempotent: bool = False
    """Whether Idempotency-Key means something to it."""
    refusals: tuple[ErrorCode, ...] = ()
    """What it can be refused with, besides the above."""

    @property
    def all_refusals(self) -> tuple[ErrorCode, ...]:
        """Every code it can be refused with."""
        return ALWAYS + (WITH_BODY if self.body is not None else ()) + self.refusals

    def route(self) -> web.RouteDef:
        """Where the application finds it."""
        return web.route(self.method, self.path, self.answer)

    async def answer(self, request: web.Request) -> web.Response:
        """Checks the key and the query, lets the handler do its work, and counts the outcome."""
        node = request.app[NODE]
        started = node.runtime.clock.monotonic()
        status = ErrorCode.INTERNAL.status
        call: Call | None = None
        try:
            call = Call.of(request)
            result = await self.handle(call, call.query(self.query))
            response = _response(msgspec.json.encode(result), call.account)
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


def _response(body: bytes, account: Account) -> web.Response:
    """A 200 with this body. A large one is counted until the caller has read it. Raises ServiceError(OVERLOADED)."""
    kind = web.Response if len(body) <= MAX_SMALL_REPLY else _CountedResponse
    response = kind(body=body, content_type="application/json", headers={hdrs.CACHE_CONTROL: "no-store"})
    if isinstance(response, _CountedResponse):
        response.count(HeldBytes(account), len(body))
    return response


class _CountedResponse(web.Response):
    """Its body is counted, until it has been sent or never will be."""

    _release: Callable[[], object] | None = None

    def count(self, holding: HeldBytes, size: int) -> None:
        """Raises ServiceError(OVERLOADED)."""
        holding.add(size)
        self._release = finalize(self, holding.release)  # by itself where nothing could be sent

    async def write_eof(self, data: bytes = b"") -> None:
        """As web.Response: waits until the transport has little left."""
        try:
            await super().write_eof(data)
        finally:
            self.body = None  # aiohttp keeps the response until the next request of the connection
            if self._release is not None:
                self._release()
