"""An HTTP client for one address of the backend: no redirects, no cookies, no compression, bounded replies."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

_CHUNK = 16_384
MAX_DESCRIPTION = 200
"""Characters of what is shown of an error; the rest is cut off."""
_HEADERS = {
    "User-Agent": "tidewire",
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
}
_BROKEN = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
"""Raised for a kept connection that the backend has closed meanwhile. The request is sent again, with the same id."""


class ClosedError(Exception):
    """The client is closed."""


class LargeReplyError(Exception):
    """The body of a reply is larger than allowed."""


class BackendClient:
    """Sends POST requests to one address. The session opens with the first request and ends with `close`."""

    def __init__(self, url: str, ca: Path | None, *, connections: int) -> None:
        """`ca`: PEM file of the certificate authorities; None: those of the system. `connections`: at once, at most."""
        self._url = url
        self._ca = ca
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    @asynccontextmanager
    async def post(self, headers: Mapping[str, str], body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """Sends a request, again if a kept connection was closed meanwhile. Yields the response, whose body is not read.

        Raises ClosedError, aiohttp.ClientError, OSError, ValueError. Has no timeout of its own.
        """
        response = await self._send(headers, body)
        try:
            yield response
        finally:
            response.close() if not response.content.at_eof() else response.release()

    async def close(self) -> None:
        """Ends the connections."""
        self._is_closed = True
        if self._session is not None:
            await self._session.close()

    async def _send(self, headers: Mapping[str, str], body: bytes) -> aiohttp.ClientResponse:
        try:
            return await self._send_once(headers, body)
        except _BROKEN as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                raise
            return await self._send_once(headers, body)

    async def _send_once(self, headers: Mapping[str, str], body: bytes) -> aiohttp.ClientResponse:
        return await self._open().post(self._url, data=body, headers=headers, allow_redirects=False)

    def _open(self) -> aiohttp.ClientSession:
        if self._is_closed:
            raise ClosedError("the service ends")
        if self._session is None:  # not in __init__: a session belongs to the running loop
            context = True if self._ca is None else ssl.create_default_context(cafile=self._ca)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, ssl=context),
                timeout=aiohttp.ClientTimeout(),  # the caller has the deadline
                cookie_jar=aiohttp.DummyCookieJar(),
                # A reply is not compressed, so a small one cannot unpack into a large one.
                auto_decompress=False,
                headers=_HEADERS,
            )
        return self._session


def describe(error: Exception) -> str:
    """Returns why a request has failed, in one line. Never shows the path or query of the address, which may be secret."""
    if isinstance(error, aiohttp.ClientResponseError):  # its text has the address, and what the backend has sent
        text = (
            f"{error.message.splitlines()[0].rstrip(':')}: this is no HTTP response"
            if error.message
            else "no HTTP response"
        )
    elif isinstance(error, aiohttp.InvalidURL):
        text = "the address is no URL"
    else:
        text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:MAX_DESCRIPTION]}"


async def read_body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Returns the body of a response. Raises LargeReplyError."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        body += chunk
        if len(body) > max_bytes:
            raise LargeReplyError(f"the reply is larger than {max_bytes} bytes")
    return bytes(body)
