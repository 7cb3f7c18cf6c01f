"""Clients of the service for the demo's backend: the HTTP API to publish, one WebSocket to listen."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import count
from typing import Any

import aiohttp

SUBPROTOCOL = "tidewire.v1"
REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=5)

Event = dict[str, Any]


class Publisher:
    """Publishes over the HTTP API in call order. Every event has an id, so a retry is delivered once."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session = session
        self._url = f"{url}/api/v1/events"
        self._headers = {"Authorization": f"Bearer {key}"}
        self._ids = (f"{os.urandom(6).hex()}-{n}" for n in count())
        self._queue: deque[Event] = deque(maxlen=2_000)  # an outage must not fill the memory
        self._filled = asyncio.Event()

    def publish(self, channel: str, kind: str, data: dict[str, Any], sender: str | None = None) -> None:
        """Queues an event; queued events are sent together."""
        event = {"channel": channel, "type": kind, "id": next(self._ids), "data": data}
        self._queue.append(event if sender is None else {**event, "from": sender})
        self._filled.set()

    async def run(self) -> None:
        """Sends until cancelled; retries with backoff while the service is unavailable."""
        pause = 0.25
        while True:
            await self._filled.wait()
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), 100))]
            if not self._queue:
                self._filled.clear()
            while not await self._send(batch):
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
            pause = 0.25

    async def _send(self, batch: list[Event]) -> bool:
        """Sends a batch. Returns False if it must be sent again."""
        try:
            async with self._session.post(
                self._url, json=batch, headers=self._headers, timeout=REQUEST_TIMEOUT
            ) as response:
                if response.status == 429 or response.status >= 500:
                    return False
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError):
            return False
        results = answer.get("results", []) if response.status == 200 else [{"error": answer}]
        for result in results:
            if error := result.get("error"):
                print(
                    f"demo: refused: {error.get('code')}: {error.get('message', error.get('detail'))}", file=sys.stderr
                )
        return True


class Listener:
    """Listens to rooms over one WebSocket, and resumes each room from its last event after a reconnect."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str) -> None:
        self._session = session
        self._url = f"{url}/ws"
        self._headers = {"Authorization": f"Bearer {token}"}
        self._rooms: dict[str, dict[str, Any] | None] = {}
        """The position of each room; None before its first `subscribed`."""
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._ids = (f"bot-{n}" for n in count())

    async def join(self, room: str) -> None:
        """Listens to a room from now on."""
        self._rooms[room] = None
        await self._say({"type": "subscribe", "id": next(self._ids), "channel": room})

    async def leave(self, room: str) -> None:
        """Stops listening to a room."""
        if self._rooms.pop(room, self) is not self:
            await self._say({"type": "unsubscribe", "id": next(self._ids), "channel": room})

    async def events(self) -> AsyncIterator[Event | None]:
        """Yields every durable event of every room, and None after each connect."""
        pause = 0.25
        while True:
            with suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                async with self._session.ws_connect(
                    self._url, protocols=(SUBPROTOCOL,), headers=self._headers, heartbeat=20
                ) as socket:
                    async for event in self._listen(socket):
                        pause = 0.25
                        yield event
            self._socket = None
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[Event | None]:
        async for frame in socket:
            if frame.type is not aiohttp.WSMsgType.TEXT:
                continue
            content = json.loads(frame.data)
            for message in content if isinstance(content, list) else [content]:
                if message["type"] == "welcome":
                    self._socket = socket  # set first: a room joined during this send must send its own subscribe
                    await socket.send_json([self._subscribe(room) for room in self._rooms] + [{"type": "ready"}])
                    yield None
                for event in self._apply(message):
                    yield event

    def _subscribe(self, room: str) -> dict[str, Any]:
        since = self._rooms[room]
        request = {"type": "subscribe", "id": next(self._ids), "channel": room}
        return request if since is None else {**request, "since": since}

    def _apply(self, message: dict[str, Any]) -> Iterator[Event]:
        """Applies the client rule: yields new events in order and moves the position."""
        room = message.get("channel", "")
        if room not in self._rooms:
            return
        if message["type"] == "subscribed":
            yield from message["events"]
            position = {"epoch": message["epoch"], "offset": message["offset"]}
            self._rooms[room] = position if message.get("last") is None else {**position, "id": message["last"]}
        elif (offset := message.get("offset")) and (since := self._rooms[room]) and offset > since["offset"]:
            self._rooms[room] = {"epoch": since["epoch"], "offset": offset, "id": message["id"]}
            yield message

    async def _say(self, message: dict[str, Any]) -> None:
        if self._socket is not None and not self._socket.closed:
            with suppress(ConnectionError, aiohttp.ClientError):  # then the next connection sends it
                await self._socket.send_json(message)
