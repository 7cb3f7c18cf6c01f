"""Responses with a JSON body that is counted as long as this process holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from weakref import finalize

from aiohttp import web

from service.realtime.connections.byte_budget import MAX_SMALL_REPLY, Account, HeldBytes


def json_response(
    body: bytes,
    account: Account,
    headers: Mapping[str, str],
    *,
    stall_timeout: float | None = None,
    on_stall: Callable[[], None] | None = None,
) -> web.Response:
    """A 200 with this body. A large body is counted until the caller has read it. Raises ServiceError(OVERLOADED).

    If the caller does not read a large body within `stall_timeout` seconds, `on_stall` is called and the connection is cut.
    """
    response_type = web.Response if len(body) <= MAX_SMALL_REPLY else _CountedResponse
    response = response_type(body=body, content_type="application/json", headers=headers)
    if isinstance(response, _CountedResponse):
        response.count(HeldBytes(account), len(body))
        response.stall_timeout, response.on_stall = stall_timeout, on_stall
    return response


class _CountedResponse(web.Response):
    """A response whose body is counted until it is sent or dropped."""

    stall_timeout: float | None = None
    on_stall: Callable[[], None] | None = None
    _release: Callable[[], object] | None = None

    def count(self, holding: HeldBytes, size: int) -> None:
        """Counts the body. Raises ServiceError(OVERLOADED)."""
        holding.add(size)
        self._release = finalize(self, holding.release)  # releases the bytes if the response is never sent

    async def write_eof(self, data: bytes = b"") -> None:
        """Sends the body, waits until the transport has little left, and releases the bytes."""
        request = self._req
        try:
            async with asyncio.timeout(self.stall_timeout):
                await super().write_eof(data)
        except TimeoutError:
            if self.on_stall is not None:
                self.on_stall()
            if request is not None and request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the caller did not read the response") from None
        finally:
            self.body = None  # aiohttp keeps the response until the connection's next request
            if self._release is not None:
                self._release()
