"""Sends requests with httpx: pooled connections, a bounded number of calls, and a deadline for each.

httpx's transports are used without its client: the client logs every URL, follows redirects and keeps cookies.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tidewire.errors import ConfigurationError, TidewireError, TooManyWaitingError, UnexpectedResponseError
from tidewire.http.address import Address
from tidewire.http.flow import Call, Credential, Response, Send, failed, late
from tidewire.version import __version__

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
"""Bytes of a response; above this it is refused."""
KEEPALIVE = 50.0
"""Seconds that an idle connection is kept; the service ends it after a minute (docs/reference/listeners.md)."""


@dataclass(frozen=True)
class HttpOptions:
    """How requests are sent."""

    address: Address
    api_key: str | None = field(repr=False)
    max_connections: int
    max_waiting: int
    verify: bool | ssl.SSLContext
    proxy: str | None

    def limits(self) -> httpx.Limits:
        """The bounds of the pool."""
        return httpx.Limits(
            max_connections=self.max_connections,
            max_keepalive_connections=self.max_connections,
            keepalive_expiry=KEEPALIVE,
        )

    def request(self, send: Send, token: str | None) -> httpx.Request:
        """Returns the request, with its credential."""
        call = send.call
        headers = {"User-Agent": f"tidewire-python/{__version__}", "Accept": "application/json"}
        if call.credential is Credential.API_KEY:
            if self.api_key is None:
                raise ConfigurationError("this call needs an API key: pass api_key to the client")
            headers["Authorization"] = f"Bearer {self.api_key}"
        elif call.credential is Credential.TOKEN:
            if token is None:
                raise ConfigurationError("this call needs a token: pass token to the client")
            headers["Authorization"] = f"Bearer {token}"
        if call.body is not None:
            headers["Content-Type"] = "application/json"
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), send.timeout)
        return httpx.Request(
            call.method,
            f"{self.address.http}{call.path}",
            headers=headers,
            content=call.body,
            extensions={"timeout": timeouts},
        )


class CallCounter:
    """Bounds the calls that run or wait."""

    def __init__(self, max_waiting: int) -> None:
        self._max = max_waiting
        self._running = 0
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Counts one call. Raises TooManyWaitingError. The calls of a parent do not count in its fork."""
        if self._pid != os.getpid():
            self._pid, self._running, self._lock = os.getpid(), 0, threading.Lock()
        with self._lock:
            if self._running >= self._max:
                raise TooManyWaitingError(f"{self._max} calls of this client run or wait already")
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1


def _response(response: httpx.Response, body: bytes) -> Response:
    headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
    return Response(response.status_code, headers, body)


def _error(error: Exception, send: Send, address: Address) -> TidewireError:
    if isinstance(error, httpx.TimeoutException):
        return late(send.call, send.timeout)
    return failed(error, send.call, address.http)


def _too_large(call: Call[Any]) -> UnexpectedResponseError:
    return UnexpectedResponseError(f"{call}: the response has more than {MAX_RESPONSE_BYTES} bytes")


class SyncTransport:
    """For threads. After a fork, the child opens connections of its own."""

    def __init__(self, options: HttpOptions, transport: httpx.BaseTransport | None = None) -> None:
        self.options = options
        self._given = transport
        self._lock = threading.Lock()
        self._pool: httpx.BaseTransport | None = None
        self._pid = 0
        self.is_closed = False

    def send(self, send: Send, token: str | None = None) -> Response | TidewireError:
        """Sends one request; returns its response, or the error that it failed with."""
        request = self.options.request(send, token)
        end = time.monotonic() + send.timeout
        try:
            response = self._transport().handle_request(request)
            try:
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if time.monotonic() > end:
                        return late(send.call, send.timeout)
                    if len(body) > MAX_RESPONSE_BYTES:
                        return _too_large(send.call)
            finally:
                response.close()
        except (httpx.HTTPError, OSError) as error:
            return _error(error, send, self.options.address)
        return _response(response, bytes(body))

    def _transport(self) -> httpx.BaseTransport:
        if self.is_closed:
            raise ConfigurationError("the client is closed")
        if self._given is not None:
            return self._given
        with self._lock:
            if self._pool is None or self._pid != os.getpid():
                self._pid = os.getpid()
                self._pool = httpx.HTTPTransport(
                    verify=self.options.verify, limits=self.options.limits(), proxy=self.options.proxy
                )
            return self._pool

    def close(self) -> None:
        """Closes the connections."""
        self.is_closed = True
        pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.close()
        if self._given is not None:
            self._given.close()


class AsyncTransport:
    """For one event loop."""

    def __init__(self, options: HttpOptions, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.options = options
        self._given = transport
        self._pool: httpx.AsyncBaseTransport | None = None
        self.is_closed = False

    async def send(self, send: Send, token: str | None = None) -> Response | TidewireError:
        """Sends one request; returns its response, or the error that it failed with."""
        request = self.options.request(send, token)
        try:
            return await asyncio.wait_for(self._exchange(request, send), send.timeout)
        except asyncio.TimeoutError:
            return late(send.call, send.timeout)
        except (httpx.HTTPError, OSError) as error:
            return _error(error, send, self.options.address)

    async def _exchange(self, request: httpx.Request, send: Send) -> Response | TidewireError:
        response = await self._transport().handle_async_request(request)
        try:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_RESPONSE_BYTES:
                    return _too_large(send.call)
        finally:
            await response.aclose()
        return _response(response, bytes(body))

    def _transport(self) -> httpx.AsyncBaseTransport:
        if self.is_closed:
            raise ConfigurationError("the client is closed")
        if self._given is not None:
            return self._given
        if self._pool is None:
            self._pool = httpx.AsyncHTTPTransport(
                verify=self.options.verify, limits=self.options.limits(), proxy=self.options.proxy
            )
        return self._pool

    async def close(self) -> None:
        """Closes the connections."""
        self.is_closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()
        if self._given is not None:
            await self._given.aclose()
