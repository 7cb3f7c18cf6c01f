"""Fetches small documents over HTTP: an issuer's keys."""

from __future__ import annotations

import aiohttp

from service.core.descriptors import EXHAUSTED, is_exhaustion

USER_AGENT = "tidewire"


class FetchError(Exception):
    """The document could not be fetched; the message says why and names no secret."""


class HttpFetch:
    """Fetches documents, with limits of time and size. Follows no redirects, because another host could answer; uses no
    cookies and no proxies.

    The session opens with the first call and ends with `close`.
    """

    def __init__(self, *, timeout: float = 5.0, max_bytes: int = 262_144) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._max_bytes = max_bytes
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    async def __call__(self, url: str) -> bytes:
        """Returns the body of a 200 answer. Raises FetchError."""
        try:
            async with self._open().get(url, allow_redirects=False) as response:
                if response.status != 200:
                    raise FetchError(f"answered {response.status}, not 200")
                return await self._read(response)
        except TimeoutError as error:
            raise FetchError(f"no answer within {self._timeout.total:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if is_exhaustion(error):
                raise FetchError(EXHAUSTED) from error
            raise FetchError(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Ends the session; later calls raise FetchError."""
        self._is_closed = True
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._is_closed:
            raise FetchError("the client is closed")
        if self._session is None:  # not in __init__: a session belongs to the running loop
            self._session = aiohttp.ClientSession(
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT, "Accept": "application/json"},
            )
        return self._session

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(16_384):
            body += chunk  # counted after decompression, so a small answer cannot unpack into a large one
            if len(body) > self._max_bytes:
                raise FetchError(f"the answer is larger than {self._max_bytes} bytes")
        return bytes(body)
