"""A site of its own origin, whose one page runs a module with the JavaScript client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from service.assets import client_folder
from tests.support import harness

PAGE = '<!doctype html><link rel="icon" href="data:,"><script type="module">%s</script>'


@dataclass(frozen=True, slots=True)
class Site:
    """A site that serves; `/token?user=` has a token of any user, `&ttl=` for so many seconds."""

    origin: str


@asynccontextmanager
async def site(script: str) -> AsyncIterator[Site]:
    """Serves a page with that module script, and the files of the client."""

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text=PAGE % script, content_type="text/html")

    async def token(request: web.Request) -> web.Response:
        return web.Response(text=harness.token(request.query["user"], ttl=float(request.query.get("ttl", 3600))))

    application = web.Application()
    application.add_routes([web.get("/", page), web.get("/token", token), web.static("/", client_folder())])
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Site(f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()
