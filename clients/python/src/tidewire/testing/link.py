"""A WebSocket of the service in memory."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from tidewire.codes import ERROR_CODES
from tidewire.errors import ApiError
from tidewire.events import Event
from tidewire.realtime.link import LinkClosedError
from tidewire.testing.store import Channel, Json, Store

if TYPE_CHECKING:
    from tidewire.testing.fake import FakeTidewire

FEATURES = [
    "calls",
    "echo",
    "event_removed",
    "if_rev",
    "presence_update",
    "removal",
    "subscription_token",
    "tail",
    "ttl",
]


class FakeLink:
    """One connection of a client."""

    user = "fake"
    _serial = 0

    def __init__(self, fake: FakeTidewire, lock: threading.RLock, store: Store) -> None:
        FakeLink._serial += 1
        self._id = f"fake-{FakeLink._serial}"
        self._fake = fake
        self._lock = lock
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[str | LinkClosedError] = asyncio.Queue()
        self._end: LinkClosedError | None = None
        self.channels: set[str] = set()
        self._calls: set[asyncio.Task[None]] = set()

    async def send(self, text: str) -> None:
        """Takes a frame of the client."""
        if self._end is not None:
            raise self._end
        content = json.loads(text)
        for message in content if isinstance(content, list) else [content]:
            await self._take(message)

    async def receive(self) -> str:
        """Returns the next frame for the client."""
        frame = await self._queue.get()
        if isinstance(frame, LinkClosedError):
            self._end = frame
            raise frame
        return frame

    async def close(self) -> None:
        """The client has closed."""
        self._end = LinkClosedError(1000)
        self._end_calls()
        self._fake.forget(self)

    def end(self, code: int) -> None:
        """The connection ends."""
        self._fake.forget(self)
        self.channels.clear()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end_calls)
        self._put(LinkClosedError(code))

    def _end_calls(self) -> None:
        for task in self._calls:
            task.cancel()

    def deliver(self, event: Event) -> None:
        """Sends an event, if the client has subscribed to its channel."""
        if event.channel in self.channels:
            self._say({"from": None, **msgspec.to_builtins(event)})

    def _say(self, message: Json) -> None:
        self._put(json.dumps(message))

    def _put(self, frame: str | LinkClosedError) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, frame)

    async def _take(self, message: Json) -> None:
        kind = message["type"]
        if kind in ("hello", "ready", "ping", "unsubscribe"):
            self._begin(kind, message)
            return
        fault = self._fake.take_fault()
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if kind == "call" and fault.code is None:
            task = self._loop.create_task(self._call(message, loses_reply=fault.loses_reply))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
            return
        with self._lock:
            if fault.code is not None:
                self._refuse(message, fault.code, ERROR_CODES[fault.code].meaning, fault.details)
                return
            try:
                reply = self._answer(kind, message)
            except ApiError as error:
                self._refuse(message, error.code, error.message, error.details)
                return
        if fault.loses_reply:
            self.end(1006)
        else:
            self._say({**reply, "id": message["id"]})

    async def _call(self, message: Json, *, loses_reply: bool) -> None:
        """Answers a call. Later messages do not wait for it."""
        try:
            data = await self._fake.answer_call(message)
        except ApiError as error:
            self._refuse(message, error.code, error.message, error.details)
            return
        if loses_reply:
            self.end(1006)
        else:
            self._say({"type": "reply", "id": message["id"], "data": data})

    def _begin(self, kind: str, message: Json) -> None:
        if kind == "hello":
            welcome = {"type": "welcome", "connection": self._id, "user": self.user, "heartbeat": 25.0}
            self._say({**welcome, "limits": {}, "features": FEATURES})
        elif kind == "ping":
            self._say({"type": "pong"})
        elif kind == "unsubscribe":
            self.channels.discard(message["channel"])
            self._say({"type": "unsubscribed", "channel": message["channel"], "code": "requested", "id": message["id"]})

    def _answer(self, kind: str, message: Json) -> Json:
        channel = message.get("channel", "")
        if kind == "subscribe":
            self.channels.add(channel)
            return self._subscribed(message)
        if kind == "history":
            return {"type": "history", **self._fake.history(channel, message)}
        if kind == "presence":
            return {"type": "presence", "channel": channel, "presence": self._fake.presence(channel)}
        if kind in ("refresh", "presence.update"):
            return {"type": "ack"}
        result, event = self._store.publish(channel, {**message, "from": self.user})
        if event is not None:
            self._fake.deliver(event)
        return {"type": "ack", **{name: one for name, one in result.items() if name != "epoch" and one is not False}}

    def _subscribed(self, message: Json) -> Json:
        kept = self._store.channel(message["channel"])
        state = [msgspec.to_builtins(event) for event in kept.values.values()]
        reply: Json = {"type": "subscribed", "channel": kept.name, **kept.position(), "events": [], "state": state}
        since = message.get("since")
        if since is not None:
            missed = _missed(kept, since)
            reply["recovered"] = missed is not None
            reply["events"] = [msgspec.to_builtins(event) for event in missed or []]
        if "tail" in message:
            reply["tail"] = [msgspec.to_builtins(event) for event in kept.page(None, None, message["tail"])[0]]
        return reply

    def _refuse(self, message: Json, code: str, text: str, details: Mapping[str, Any]) -> None:
        known = ERROR_CODES[code]
        self._say(
            {
                "type": "error",
                "id": message.get("id"),
                "code": code,
                "message": text,
                "retryable": known.retryable,
                "details": dict(details),
            }
        )


def _missed(kept: Channel, since: Mapping[str, Any]) -> list[Event] | None:
    """The events after a position; None if some are not kept."""
    if since["epoch"] != kept.epoch:
        return None
    found = [event for event in kept.events if (event.offset or 0) > since["offset"]]
    return found if len(found) == kept.offset - since["offset"] else None
