"""A service that a test plays message by message, over links in memory; and a transport that loses replies."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import httpx
from tests.support.harness import DEADLINE

from tidewire import AsyncTidewire, TidewireError
from tidewire.realtime.link import Link, LinkClosedError

WELCOME: dict[str, Any] = {
    "type": "welcome",
    "connection": "c-1",
    "user": "ann",
    "heartbeat": 25.0,
    "limits": {},
    "features": ["calls", "echo", "if_rev", "presence_update", "removal", "subscription_token", "tail", "ttl"],
}


class Peer:
    """The service's end of one connection, and the client's link."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._to_client: asyncio.Queue[str | LinkClosedError] = asyncio.Queue()
        self._to_service: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._end: LinkClosedError | None = None
        self.is_closed = False
        self.may_subscribe = asyncio.Event()
        """While it is not set, the client waits in the send of a subscribe."""
        self.may_subscribe.set()

    # the client's link

    async def send(self, text: str) -> None:
        if self._end is not None:
            raise self._end
        content = json.loads(text)
        if isinstance(content, dict) and content["type"] == "subscribe":
            await self.may_subscribe.wait()
        for message in content if isinstance(content, list) else [content]:
            self._to_service.put_nowait(message)

    async def receive(self) -> str:
        frame = await self._to_client.get()
        if isinstance(frame, LinkClosedError):
            self._end = frame
            raise frame
        return frame

    async def close(self) -> None:
        self.is_closed = True

    # the service

    def say(self, *messages: Any) -> None:
        """Sends each message in a frame; a list as one frame."""
        for message in messages:
            self._to_client.put_nowait(message if isinstance(message, str) else json.dumps(message))

    def end(self, code: int = 1006, reason: str = "") -> None:
        """Closes."""
        self._to_client.put_nowait(LinkClosedError(code, reason))

    async def expect(self, kind: str) -> dict[str, Any]:
        """The next message of the client, which has this type."""
        message = await asyncio.wait_for(self._to_service.get(), DEADLINE)
        assert message["type"] == kind, message
        return message

    async def welcome(self, **fields: Any) -> dict[str, Any]:
        """Answers hello; returns it."""
        hello = await self.expect("hello")
        self.say({**WELCOME, **fields})
        assert await self.expect("ready") == {"type": "ready"}
        return hello

    async def subscribe(self, **fields: Any) -> dict[str, Any]:
        """Answers the next subscribe; returns it."""
        request = await self.expect("subscribe")
        self.say(subscribed(request, **fields))
        return request


class Service:
    """Accepts connections of a client."""

    def __init__(self, *refusals: TidewireError) -> None:
        self._came: asyncio.Queue[Peer] = asyncio.Queue()
        self._refusals = list(refusals)
        self.dialed = 0

    async def dial(self, url: str) -> Link:
        """What a client calls to connect."""
        self.dialed += 1
        if self._refusals:
            raise self._refusals.pop(0)
        peer = Peer(url)
        self._came.put_nowait(peer)
        return peer

    async def peer(self) -> Peer:
        """The next connection."""
        return await asyncio.wait_for(self._came.get(), DEADLINE)

    def client(self, **options: Any) -> AsyncTidewire:
        """A client that connects here, and does not wait between tries."""
        client = AsyncTidewire("http://service.test", dial=self.dial, **{"token": "token-1", **options})
        client._random = lambda: 0.0
        return client


def subscribed(request: dict[str, Any], offset: int = 0, **fields: Any) -> dict[str, Any]:
    """The reply to a subscribe."""
    reply = {"type": "subscribed", "id": request["id"], "channel": request["channel"], "epoch": "e1", "offset": offset}
    last = {"last": f"m-{offset}"} if offset else {}
    return {**reply, "events": [], "state": [], **last, **fields}


def event(offset: int | None, **fields: Any) -> dict[str, Any]:
    """An event in room:1."""
    place = {} if offset is None else {"offset": offset}
    base = {"type": "chat.message", "channel": "room:1", "id": f"m-{offset}", "at": 1, "from": None, "data": {}}
    return {**base, **place, **fields}


class Losing(httpx.HTTPTransport):
    """Loses every third reply: the service has carried out the request."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if next(self._numbers) % 3 == 0:
            response.close()
            raise httpx.ReadError("the reply is lost")
        return response
