"""An endpoint of webhooks: a real HTTP server that checks each signature, records entries and answers as the test says."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from tests.support.backend import SECRET

Reply = Callable[[web.Request, Mapping[str, Any]], Awaitable[web.StreamResponse]]


class Receiver:
    """Records deliveries. `reply` is the status that it answers, or a function that makes the response."""

    def __init__(self) -> None:
        self.secrets = [SECRET]
        """Those that it knows. A delivery signed with none of them is refused with 401."""
        self.reply: int | Reply = 204
        self.deliveries: list[dict[str, Any]] = []
        """The bodies of all deliveries, whatever the answer was."""
        self.requests: list[web.Request] = []
        self.entries: list[dict[str, Any]] = []
        """Those that were accepted, in order, repeats included."""
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._tls: ssl.SSLContext | None = None

    async def start(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        """Listens: on a free port, unless one is given."""
        app = web.Application(client_max_size=64_000_000)
        app.router.add_post("/webhooks", self.handle)
        self._tls = tls
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=tls).start()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._runner.addresses[0][1]}/webhooks"

    async def stop(self) -> None:
        """Ends all connections, and refuses new ones."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def start_again(self) -> None:
        """Listens again, on the same port."""
        await self.start(int(self.url.rpartition(":")[2].partition("/")[0]), self._tls)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Checks the signature, records the delivery, answers."""
        body = await request.read()
        if not any(_is_signed(secret, body, request.headers) for secret in self.secrets):
            return web.Response(status=401)
        delivery = json.loads(body)
        self.deliveries.append(delivery)
        self.requests.append(request)
        if callable(self.reply):
            response = await self.reply(request, delivery)
        else:
            response = web.Response(status=self.reply)
        if 200 <= response.status < 300:
            self.entries += delivery["entries"]
        return response

    def endpoint(self, name: str = "archive", **more: Any) -> dict[str, Any]:
        """The endpoint for the settings."""
        return {"name": name, "url": self.url, "tenants": ["default"], "secrets": [SECRET], **more}

    @property
    def once(self) -> list[dict[str, Any]]:
        """The accepted entries without repeats, as a receiver that deduplicates by id has them."""
        return list({entry["id"]: entry for entry in reversed(self.entries)}.values())[::-1]

    def offsets(self, channel: str) -> list[int]:
        """The offsets of a channel's events, in order, without repeats."""
        return [one["event"]["offset"] for one in self.once if one.get("channel") == channel and "event" in one]


def _is_signed(secret: str, body: bytes, headers: Mapping[str, str]) -> bool:
    try:
        Webhook(secret).verify(body, dict(headers))
    except WebhookVerificationError:
        return False
    return True


@asynccontextmanager
async def receiving(*, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """Runs a receiver for the length of the block."""
    receiver = Receiver()
    await receiver.start(tls=tls)
    try:
        yield receiver
    finally:
        await receiver.stop()
