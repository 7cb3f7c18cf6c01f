"""A channel for asyncio: an iterator over its events, and what a user may do in it."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec

from tidewire.errors import (
    ConfigurationError,
    DeadlineExceededError,
    EventsMissedError,
    SubscriptionEndedError,
    TidewireError,
    api_error,
)
from tidewire.events import Event, Position, new_id
from tidewire.realtime.backoff import Backoff
from tidewire.realtime.connection import Connection, Message, log
from tidewire.realtime.stream import ChannelStream, Gap, Item, Missed
from tidewire.results import History, Presence, Published

MAX_QUEUE = 1000
"""Events of a channel that wait for the application."""
SUBSCRIBE_TIMEOUT = 15.0
"""Seconds until a subscribe without a reply is sent again."""
MAX_TAIL = 100

OnMissed: TypeAlias = Callable[["EventsMissedError"], "Awaitable[None] | None"]
GetToken: TypeAlias = Callable[[], Awaitable[str]]


class ChannelCore:
    """Follows one channel. Events wait in a bounded queue until `take`.

    When the queue is full, the channel is left, and subscribed again from its position when there is place: durable events and
    values come later, and ephemeral events are lost and counted.
    """

    def __init__(
        self,
        connection: Connection,
        channel: str,
        *,
        since: Position | None,
        tail: int,
        get_token: GetToken | None,
        presence: bool,
        max_queue: int,
        deadline: float,
    ) -> None:
        if not 0 <= tail <= MAX_TAIL:
            raise ConfigurationError(f"tail is 0 to {MAX_TAIL}")
        if max_queue < 2:
            raise ConfigurationError("max_queue is at least 2")
        self.channel = channel
        self.connection = connection
        self.deadline = deadline
        self.handled = since
        """The position of the last event that the application has handled."""
        self.dropped = 0
        """Ephemeral events that were lost because the queue was full."""
        self.stream = ChannelStream(connection.is_own, since)
        self._tail = tail
        self._get_token = get_token
        self._shows_presence = presence
        self._max_queue = max_queue
        self._queue: deque[Item] = deque()
        self._handling: Position | None = None
        self._arrived = asyncio.Event()
        self._live = asyncio.Event()
        self._request: str | None = None
        self._is_started = False
        self._is_paused = False
        self._error: TidewireError | None = None
        self._is_closed = False
        self._backoff = Backoff()
        self._gap_at: Position | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None

    # --- for the application --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Subscribes, if that has not happened."""
        if self._is_closed:
            raise ConfigurationError(f"the channel {self.channel} is closed")
        if not self._is_started:
            self._error = None
            self.connection.add(self)
            self._is_started = True

    async def ready(self, timeout: float) -> None:
        """Waits until the channel is subscribed."""
        self.start()
        try:
            await asyncio.wait_for(self._live.wait(), timeout)
        except asyncio.TimeoutError:
            raise DeadlineExceededError(f"{self.channel}: not subscribed within {timeout:g} s") from None
        if self._error is not None:
            raise self._error

    async def take(self) -> Event | Missed | None:
        """Returns what comes next; None when the channel is closed. The one before counts as handled."""
        if self._handling is not None:
            self.handled, self._handling = self._handling, None
        if not self._is_closed and self._error is None:
            self.start()
        while True:
            while self._queue:
                item = self._queue.popleft()
                if self._is_paused and len(self._queue) <= self._max_queue // 2:
                    self._is_paused = False
                    self._subscribe()
                if item.content is not None:
                    self._handling = item.position
                    return item.content
                self.handled = item.position or self.handled
            if self._is_closed:
                return None
            if self._error is not None:
                error, self._error, self._is_started = self._error, None, False  # the next call subscribes again
                self._live.clear()
                raise error
            self._arrived.clear()
            await self._arrived.wait()

    async def close(self) -> None:
        """Unsubscribes."""
        if self._is_closed:
            return
        self._is_closed = True
        self._stop_timers()
        if self._is_started:
            self.connection.remove(self)
            if self._live.is_set() or self._request is not None:
                self.connection.post([self._unsubscribe()])
        self._queue.clear()
        self._live.clear()
        self._arrived.set()

    async def request(self, message: Message, *, event_id: str | None = None, deadline: float | None = None) -> Message:
        """Sends a request about the channel. If it is subscribed, waits for that first: some rights need it."""
        seconds = self.deadline if deadline is None else deadline
        if self._is_started and not self._live.is_set() and not self._is_paused:
            await self.ready(seconds)
        return await self.connection.request({**message, "channel": self.channel}, seconds, event_id=event_id)

    # --- for the connection ---------------------------------------------------------------------------------------

    def opened(self) -> list[Message]:
        """Returns the subscribe."""
        if self._is_paused:
            return []
        self._stop_retry()
        if self._get_token is not None and self.connection.offers("subscription_token"):
            self.connection.spawn(self._subscribe_with_token(self._get_token))
            return []
        return [self._subscribe_message()]

    def interrupted(self) -> None:
        """The connection has ended."""
        self._stop_retry()
        self._request = None
        self._live.clear()

    def ended(self, error: TidewireError) -> None:
        """No connection follows."""
        self._stop_timers()
        self._request = None
        if self.connection.is_closed:
            self._is_closed = True  # by the application: iterations end
        self._error = error
        self._arrived.set()
        self._live.set()  # `ready` raises the error

    def received(self, message: Message) -> None:
        """Handles a message about the channel."""
        kind = message["type"]
        now = asyncio.get_running_loop().time()
        if kind == "subscribed":
            self._on_subscribed(message, now)
        elif kind == "unsubscribed":
            if "id" not in message and self._live.is_set():
                self.connection.remove(self)
                self.ended(SubscriptionEndedError(self.channel, str(message.get("code"))))
        elif not self._live.is_set():
            return  # before `subscribed`, which has it or comes after it
        elif kind == "presence":
            self.stream.replace_presence(message.get("presence"))
        elif kind.startswith("presence."):
            event = self.stream.update_presence(message)
            if event is not None and self._shows_presence:
                self._put_ephemeral(Item(event))
        else:
            self._on_event(message, now)

    def refused(self, message: Message) -> bool:
        """Handles an error that answers the subscribe."""
        if self._request is None or message.get("id") != self._request:
            return False
        self._stop_retry()
        self._request = None
        code = str(message.get("code"))
        details = message.get("details")
        error = api_error(
            code,
            f"{self.channel}: {message.get('message')}",
            retryable=message.get("retryable") is True,
            details=details if isinstance(details, dict) else {},
        )
        if code == "already_subscribed":
            self.connection.post([self._unsubscribe()])
            self._retry(self._backoff.next())
        elif error.retryable:
            after = error.retry_after
            self._retry(self._backoff.next() if after is None else after + self._backoff.next() / 10)
        else:
            self.connection.remove(self)
            self.ended(error)
        return True

    async def refresh(self) -> None:
        """Replaces the subscription's own token."""
        if self._get_token is None:
            return
        token = await self._get_token()
        message = {"type": "refresh", "id": self.connection.next_id("refresh"), "token": token}
        await self.request(message)

    # --- subscribing ----------------------------------------------------------------------------------------------

    async def _subscribe_with_token(self, get_token: GetToken) -> None:
        try:
            token = await get_token()
        except Exception as error:  # the application's own function
            log.warning("%s: the function `token` failed: %s: %s", self.channel, type(error).__name__, error)
            self._retry(self._backoff.next())
            return
        if self._request is None and not self._live.is_set():
            self.connection.post([self._subscribe_message(token)])

    def _subscribe(self) -> None:
        if self.connection.is_ready:
            self.connection.post(self.opened())

    def _subscribe_message(self, token: str | None = None) -> Message:
        self._request = self.connection.next_id("subscribe")
        message: Message = {"type": "subscribe", "id": self._request, "channel": self.channel}
        position = self.stream.position
        if position is not None:
            message["since"] = {"epoch": position.epoch, "offset": position.offset}
            if position.id is not None:
                message["since"]["id"] = position.id
        elif self._tail and self.connection.offers("tail"):
            message["tail"] = self._tail
        if token is not None:
            message["token"] = token
        self._timer = asyncio.get_running_loop().call_later(SUBSCRIBE_TIMEOUT, self._again)
        return message

    def _unsubscribe(self) -> Message:
        return {"type": "unsubscribe", "id": self.connection.next_id("unsubscribe"), "channel": self.channel}

    def _again(self) -> None:
        """Leaves and subscribes again, from the position."""
        self._live.clear()
        if self.connection.is_ready:
            self.connection.post([self._unsubscribe(), *self.opened()])

    def _retry(self, wait: float) -> None:
        self._stop_retry()
        self._timer = asyncio.get_running_loop().call_later(wait, self._subscribe)

    def _stop_retry(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_timers(self) -> None:
        self._stop_retry()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    # --- events ---------------------------------------------------------------------------------------------------

    def _on_subscribed(self, message: Message, now: float) -> None:
        is_reply = self._request is not None and message.get("id") == self._request
        is_resync = self._live.is_set() and message.get("id") is None
        if not is_reply and not is_resync:
            return
        items = self.stream.start(message, now)
        if is_reply:
            self._stop_retry()
            self._request = None
            self._backoff.reset()
            self._live.set()
        self._put(items)
        self._watch_values(now)

    def _on_event(self, message: Message, now: float) -> None:
        is_ephemeral = message.get("offset") is None and message.get("rev") is None
        if len(self._queue) >= self._max_queue and not is_ephemeral:
            self._pause()
            return
        try:
            item = self.stream.event(message, now)
        except Gap:
            self._on_gap()
            return
        if item is None:
            return
        if is_ephemeral:
            self._put_ephemeral(item)
        else:
            self._put([item])
            self._watch_values(now)

    def _on_gap(self) -> None:
        position = self.stream.position
        if position != self._gap_at:
            self._gap_at = position
            self._again()
        else:  # the same gap again: not at once
            self._live.clear()
            self.connection.post([self._unsubscribe()])
            self._retry(self._backoff.next())

    def _pause(self) -> None:
        self._is_paused = True
        self._live.clear()
        self._stop_retry()
        self.connection.post([self._unsubscribe()])

    def _put(self, items: list[Item]) -> None:
        self._queue.extend(items)
        self._arrived.set()

    def _put_ephemeral(self, item: Item) -> None:
        if len(self._queue) >= self._max_queue:
            self.dropped += 1
        else:
            self._put([item])

    def _watch_values(self, now: float) -> None:
        end = self.stream.next_end
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if end is not None:
            self._expiry = asyncio.get_running_loop().call_later(max(0.0, end - now), self._expire)

    def _expire(self) -> None:
        self._expiry = None
        now = asyncio.get_running_loop().time()
        items = self.stream.expire(now)
        if items:
            self._put(items)
        self._watch_values(now)


def missed_error(channel: str, missed: Missed) -> EventsMissedError:
    """Returns the error for missed events."""
    return EventsMissedError(channel, f"{channel}: events are missing before the position {missed.position}")


def publish_message(type: str, data: Any, id: str, key: str | None, if_rev: int | None) -> Message:
    """Returns the message of an event."""
    optional = {"key": key, "if_rev": if_rev}
    return {"type": type, "id": id, "data": data, **{name: one for name, one in optional.items() if one is not None}}


def to_published(reply: Message, epoch: str | None) -> Published:
    """Reads `ack`."""
    return msgspec.convert({**reply, "epoch": epoch if "offset" in reply or "rev" in reply else None}, Published)


class AsyncChannel:
    """A channel of a client for asyncio, made by `AsyncTidewire.channel`.

    >>> async for event in client.channel("room:42"):
    ...     print(event.type, event.data)
    """

    def __init__(self, core: ChannelCore, on_missed: OnMissed | None) -> None:
        self._core = core
        self._on_missed = on_missed

    def __repr__(self) -> str:
        return f"AsyncChannel({self._core.channel!r})"

    @property
    def name(self) -> str:
        """The name of the channel."""
        return self._core.channel

    @property
    def position(self) -> Position | None:
        """The position of the last event that has been handled: keep it, and pass it as `since` to continue there."""
        return self._core.handled

    @property
    def present(self) -> Presence | None:
        """Who is in the channel, while subscribed; None if it has no presence, or the token does not allow to see it."""
        return self._core.stream.presence

    @property
    def dropped(self) -> int:
        """Ephemeral events that were lost because `max_queue` events waited."""
        return self._core.dropped

    def __aiter__(self) -> AsyncChannel:
        return self

    async def __anext__(self) -> Event:
        """Returns the next event. The one before counts as handled.

        Raises EventsMissedError where durable events may be missing, unless there is `on_missed`.
        """
        while True:
            taken = await self._core.take()
            if taken is None:
                raise StopAsyncIteration
            if isinstance(taken, Event):
                return taken
            error = missed_error(self.name, taken)
            if self._on_missed is None:
                raise error
            result = self._on_missed(error)
            if inspect.isawaitable(result):
                await result

    async def next(self, timeout: float) -> Event:
        """Returns the next event. Raises DeadlineExceededError if none comes in time."""
        try:
            return await asyncio.wait_for(self.__anext__(), timeout)
        except asyncio.TimeoutError:
            raise DeadlineExceededError(f"{self.name}: no event within {timeout:g} s") from None

    async def ready(self, timeout: float = 10.0) -> None:
        """Subscribes, and waits until that is done. An iteration subscribes by itself."""
        await self._core.ready(timeout)

    async def __aenter__(self) -> AsyncChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Unsubscribes. Iterations end."""
        await self._core.close()

    async def publish(
        self,
        type: str,
        data: Any,
        *,
        id: str | None = None,
        key: str | None = None,
        if_rev: int | None = None,
        deadline: float | None = None,
    ) -> Published:
        """Publishes an event as the user of the token, over the connection. It is sent again with its id until it has a reply."""
        event_id = id or new_id()
        message = publish_message(type, data, event_id, key, if_rev)
        reply = await self._core.request(message, event_id=event_id, deadline=deadline)
        return to_published(reply, None)

    async def remove_value(
        self,
        type: str,
        key: str,
        *,
        id: str | None = None,
        if_rev: int | None = None,
        deadline: float | None = None,
    ) -> Published:
        """Removes the value of a key, as the user of the token."""
        event_id = id or new_id()
        message: Message = {"type": type, "id": event_id, "key": key, "removed": True}
        if if_rev is not None:
            message["if_rev"] = if_rev
        reply = await self._core.request(message, event_id=event_id, deadline=deadline)
        return to_published(reply, None)

    async def history(
        self,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int = 50,
        deadline: float | None = None,
    ) -> History:
        """Reads a page of durable events: the first after the offset `after`, or the last before `before`."""
        message: Message = {"type": "history", "id": self._core.connection.next_id("history"), "limit": limit}
        message |= {name: value for name, value in (("after", after), ("before", before)) if value is not None}
        return msgspec.convert(await self._core.request(message, deadline=deadline), History)

    async def presence(self, *, deadline: float | None = None) -> Presence:
        """Asks who is in the channel."""
        message = {"type": "presence", "id": self._core.connection.next_id("presence")}
        reply = await self._core.request(message, deadline=deadline)
        return msgspec.convert(reply["presence"], Presence)

    async def set_presence(self, info: Any, *, deadline: float | None = None) -> None:
        """Sets what presence shows of the user in this channel."""
        message = {"type": "presence.update", "id": self._core.connection.next_id("update"), "data": info}
        await self._core.request(message, deadline=deadline)
