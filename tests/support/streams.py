"""A client of streams: reads `text/event-stream` as the HTML Living Standard says (section 9.2), and long polls."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.support.harness import DEADLINE, Running, token


def parse(text: str) -> list[tuple[str, str]]:
    """Returns the (id, data) of the events in a stream, as an EventSource dispatches them. `retry` and comments are left out.

    Lines end with CR LF, LF or CR. Data that no empty line follows is dropped.
    """
    events: list[tuple[str, str]] = []
    data: list[str] = []
    last_id = ""
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                events.append((last_id, "\n".join(data)))
            data = []
        elif name == "data":
            data.append(value)
        elif name == "id" and "\0" not in value:
            last_id = value
    return events


class Stream:
    """One open stream. `receive` returns single messages, even if they arrived in a batch."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last_id = ""
        self.retry: int | None = None
        """Milliseconds."""
        self.comments = 0
        self._waiting: deque[dict[str, Any]] = deque()
        self.welcome: dict[str, Any] = {}
        self.receipt = ""

    async def _read_block(self) -> None:
        """Reads up to the next empty line."""
        data: list[str] = []
        while line := await self.response.content.readuntil(b"\n"):
            if not line.endswith(b"\n"):
                break
            name, _, value = line[:-1].decode().partition(":")
            if not line.strip():
                self._waiting.extend(_messages("\n".join(data)) if data else ())
                return
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "id":
                self.last_id = value
            elif name == "retry":
                self.retry = int(value)
            elif not name:
                self.comments += 1
        raise EOFError

    async def receive(self) -> dict[str, Any]:
        """Returns the next message. Raises EOFError at the end of the stream."""
        async with asyncio.timeout(DEADLINE):
            while not self._waiting:
                await self._read_block()
        return self._waiting.popleft()

    async def expect(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Returns the next message, which must have this type and these fields."""
        message = await self.receive()
        assert message["type"] == kind, message
        for name, value in fields.items():
            assert message.get(name) == value, message
        return message

    async def until(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Returns the next message that matches, and skips those before it."""
        while True:
            message = await self.receive()
            if message["type"] == kind and all(message.get(k) == v for k, v in fields.items()):
                return message

    async def comment(self) -> None:
        """Waits for the next comment."""
        before = self.comments
        async with asyncio.timeout(DEADLINE):
            while self.comments == before:
                await self._read_block()

    async def closed(self) -> dict[str, Any]:
        """Returns `closed`, after which nothing may follow. Skips messages before it."""
        message = await self.until("closed")
        async with asyncio.timeout(DEADLINE):
            assert await self.response.content.read() == b""
        return message

    def close(self) -> None:
        """Cuts the connection."""
        self.response.close()


def _messages(data: str) -> list[dict[str, Any]]:
    content = json.loads(data)
    return content if isinstance(content, list) else [content]


def authorization(user: str = "ann", **claims: Any) -> dict[str, str]:
    """The header with a token of the user."""
    return {"Authorization": f"Bearer {token(user, **claims)}"}


@asynccontextmanager
async def stream(
    server: Running,
    *channels: str | Mapping[str, Any],
    user: str = "ann",
    headers: Mapping[str, str] | None = None,
    **fields: Any,
) -> AsyncIterator[Stream]:
    """A stream of `POST /stream` that has got `welcome` and a receipt. A channel is a name, or a subscription with `since`."""
    subscriptions = [{"channel": one} if isinstance(one, str) else one for one in channels]
    async with (
        server.http.post(
            f"{server.url}/stream",
            json={"subscriptions": subscriptions, **fields},
            headers=authorization(user) if headers is None else headers,
            timeout=aiohttp.ClientTimeout(),
        ) as response,
        _opened(response) as opened,
    ):
        yield opened


@asynccontextmanager
async def sse(
    server: Running, channels: Sequence[str], query: str = "", headers: Mapping[str, str] | None = None
) -> AsyncIterator[Stream]:
    """A stream of `GET /sse` that has got `welcome` and its first receipt. Without `headers`, with a token of ann."""
    async with (
        server.http.get(
            f"{server.url}/sse?channels={','.join(channels)}{query}",
            headers=authorization() if headers is None else headers,
            timeout=aiohttp.ClientTimeout(),
        ) as response,
        _opened(response) as opened,
    ):
        yield opened


@asynccontextmanager
async def _opened(response: aiohttp.ClientResponse) -> AsyncIterator[Stream]:
    assert response.status == 200, await response.text()
    opened = Stream(response)
    try:
        opened.welcome = await opened.expect("welcome")
        opened.receipt = (await opened.expect("receipt"))["receipt"]
        yield opened
    finally:
        opened.close()


async def refusal(server: Running, method: str, path: str, **request: Any) -> tuple[int, dict[str, Any]]:
    """Returns the status and the problem of a request that is refused."""
    async with server.http.request(method, f"{server.url}{path}", **request) as response:
        assert response.content_type == "application/problem+json", await response.text()
        problem: dict[str, Any] = json.loads(await response.text())
        return response.status, problem


async def stream_ticket(server: Running, *channels: str, user: str = "ann", **claims: Any) -> str:
    """A ticket for streams of these channels, for a token with these claims."""
    async with server.http.post(
        f"{server.url}/tickets", json={"channels": list(channels)}, headers=authorization(user, **claims)
    ) as response:
        assert response.status == 201, await response.text()
        return str((await response.json())["ticket"])


class Poller:
    """A client that polls in one session, at any of several servers."""

    def __init__(self, user: str = "ann", headers: Mapping[str, str] | None = None) -> None:
        self.headers = authorization(user) if headers is None else headers
        self.receipt: str | None = None

    async def poll(self, server: Running, *channels: str | Mapping[str, Any], **fields: Any) -> list[dict[str, Any]]:
        """Polls, with these channels or those of the last receipt. Returns the messages, and keeps the receipt."""
        body: dict[str, Any] = dict(fields)
        if channels:
            body["subscriptions"] = [{"channel": one} if isinstance(one, str) else one for one in channels]
        if self.receipt is not None:
            body["receipt"] = self.receipt
        async with (
            asyncio.timeout(DEADLINE),
            server.http.post(f"{server.url}/poll", json=body, headers=self.headers) as response,
        ):
            assert response.status == 200, await response.text()
            answer = await response.json()
        self.receipt = answer.get("receipt")
        messages: list[dict[str, Any]] = answer["messages"]
        return messages
