"""A backend that hooks ask: a real HTTP server that checks each signature and answers as the test says."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook

SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSBiYWNrZW5kIGZvciB0ZXN0cyE="
Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Backend:
    """Records questions. `reply` is what it answers: JSON, or a function that makes the response."""

    def __init__(self) -> None:
        self.secrets = [SECRET]
        self.reply: Any = {"allow": True}
        self.questions: list[dict[str, Any]] = []
        self.requests: list[web.Request] = []
        self.asked = asyncio.Event()
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Checks the signature, records the question, answers."""
        body = await request.read()
        for secret in self.secrets:
            Webhook(secret).verify(body, dict(request.headers))
        self.questions.append(json.loads(body))
        self.requests.append(request)
        self.asked.set()
        if callable(self.reply):
            response: web.StreamResponse = await self.reply(request)
            return response
        return web.json_response(self.reply)

    def endpoint(self, name: str = "moderation", **more: Any) -> dict[str, Any]:
        """The endpoint for the settings."""
        return {"name": name, "url": self.url, "tenants": ["default"], "secrets": [SECRET], **more}


@asynccontextmanager
async def serving_backend(*, tls: ssl.SSLContext | None = None) -> AsyncIterator[Backend]:
    """Runs a backend for the length of the block."""
    backend = Backend()
    app = web.Application()
    app.router.add_post("/hooks", backend.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    backend.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/hooks"
    try:
        yield backend
    finally:
        await runner.cleanup()


BOMB = gzip.compress(b" " * 10_000_000)
"""A small body that unpacks into a large one."""


async def reply_text(text: str | bytes, **more: Any) -> web.StreamResponse:
    """A response with this body, whether or not it is JSON."""
    body = text.encode() if isinstance(text, str) else text
    return web.Response(body=body, content_type="application/json", **more)


async def endless(request: web.Request) -> web.StreamResponse:
    """A response that never ends."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65_536)


async def hang(request: web.Request) -> web.StreamResponse:
    """No response."""
    await asyncio.Event().wait()
    raise AssertionError
