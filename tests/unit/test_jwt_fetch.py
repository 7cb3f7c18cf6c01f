"""The HTTP client for an issuer's keys, with a real server."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from service.adapters.http_fetch import FetchError, HttpFetch

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """A local server; a test sets its answer."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.handler: Handler = self.answer
        application = web.Application()
        application.router.add_get("/{path:.*}", self._dispatch)
        self.server = TestServer(application, host="127.0.0.1")

    @property
    def url(self) -> str:
        return str(self.server.make_url("/keys"))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=b'{"keys": []}')

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return await self.handler(request)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    await site.server.start_server()
    yield site
    await site.server.close()


@pytest.fixture
async def fetch() -> AsyncIterator[HttpFetch]:
    fetch = HttpFetch(timeout=5, max_bytes=1000)
    yield fetch
    await fetch.close()


async def test_fetch_returns_body_of_200(site: Site, fetch: HttpFetch) -> None:
    assert await fetch(site.url) == b'{"keys": []}'
    assert await fetch(site.url) == b'{"keys": []}'
    assert site.requests[0].headers["User-Agent"] == "tidewire"


async def test_fetch_redirect_is_not_followed(site: Site, fetch: HttpFetch) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    site.handler = redirect
    with pytest.raises(FetchError, match="answered 302"):
        await fetch(site.url)
    assert [request.path for request in site.requests] == ["/keys"]


async def test_fetch_cookies_are_not_kept(site: Site, fetch: HttpFetch) -> None:
    async def bake(request: web.Request) -> web.StreamResponse:
        return web.Response(headers={"Set-Cookie": "a=b"})

    site.handler = bake
    await fetch(site.url)
    await fetch(site.url)
    assert "Cookie" not in site.requests[1].headers


@pytest.mark.parametrize("status", [204, 404, 500])
async def test_fetch_other_status_fails(site: Site, fetch: HttpFetch, status: int) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    site.handler = refuse
    with pytest.raises(FetchError, match=f"answered {status}"):
        await fetch(site.url)


@pytest.mark.parametrize("size", [1000, 1001])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "compressed"])
async def test_fetch_size_is_limited_after_decompression(site: Site, fetch: HttpFetch, size: int, packed: bool) -> None:
    async def large(request: web.Request) -> web.StreamResponse:
        body = b"x" * size
        if packed:
            return web.Response(body=zlib.compress(body), headers={"Content-Encoding": "deflate"})
        return web.Response(body=body)

    site.handler = large
    if size <= 1000:
        assert await fetch(site.url) == b"x" * size
    else:
        with pytest.raises(FetchError, match="larger than 1000 bytes"):
            await fetch(site.url)


async def test_fetch_missing_answer_times_out(site: Site) -> None:
    gone = asyncio.Event()

    async def silent(request: web.Request) -> web.StreamResponse:
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()
        raise AssertionError("nothing sets that event")

    site.handler = silent
    fetch = HttpFetch(timeout=0.05)
    async with asyncio.timeout(5):
        with pytest.raises(FetchError, match=r"no answer within 0\.05 s"):
            await fetch(site.url)
    await fetch.close()


async def test_fetch_without_listener_fails(fetch: HttpFetch) -> None:
    with pytest.raises(FetchError, match="Connect"):
        await fetch(f"http://127.0.0.1:{unused_port()}/keys")


async def test_fetch_invalid_url_fails(fetch: HttpFetch) -> None:
    with pytest.raises(FetchError, match="InvalidUrl"):
        await fetch("http://")


async def test_fetch_after_close_fails(site: Site, fetch: HttpFetch) -> None:
    await fetch(site.url)
    await fetch.close()
    await fetch.close()
    with pytest.raises(FetchError, match="closed"):
        await fetch(site.url)
    assert len(site.requests) == 1
