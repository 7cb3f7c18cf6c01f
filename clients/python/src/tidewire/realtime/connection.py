"""The connection of a client: hello, ready, requests, heartbeat, and a new connection whenever one has ended.

All subscriptions of the client share it. It exists while there is something to do, until `close`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import msgspec

from tidewire.codes import CLOSE_CODES
from tidewire.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectionEndedError,
    ConnectionFailedError,
    DeadlineExceededError,
    NotFoundError,
    TidewireError,
    TooManyWaitingError,
    UnexpectedResponseError,
    api_error,
)
from tidewire.events import Event
from tidewire.http.flow import RetryPolicy
from tidewire.realtime.backoff import Backoff, Pacer
from tidewire.realtime.link import Dial, Link, LinkClosedError
from tidewire.version import __version__

Message: TypeAlias = "dict[str, Any]"
GetToken: TypeAlias = Callable[[], Awaitable["str | None"]]

FEATURES = (
    "calls", "echo", "event_removed", "history_pages", "if_rev", "presence_update", "removal", "server_subscriptions",
    "subscription_token", "tail", "ttl",
)  # fmt: skip
"""The features that this client knows (docs/protocol.md#versions-and-features)."""
WELCOME_TIMEOUT = 10.0
TOKEN_TIMEOUT = 15.0
PONG_TIMEOUT = 10.0
DEFAULT_HEARTBEAT = 25.0
DEFAULT_CALLS = 16
"""Calls of a connection under way, unless the service says another number."""
MAX_REFUSED_TOKENS = 3
"""Tokens in a row that the service may refuse, before the client stops."""
MAX_OWN_CONNECTIONS = 100
"""Connections whose own events are recognised."""
LONG_ENOUGH = 60.0
"""Seconds after which a connection counts as one without faults."""
_TOKEN_CODES = {"invalid_token", "token_expired", "unauthenticated"}

log = logging.getLogger("tidewire")


class Subscriber(Protocol):
    """One channel, as the connection sees it."""

    channel: str

    def opened(self) -> list[Message]:
        """A connection is ready. Returns the messages that subscribe."""

    def interrupted(self) -> None:
        """The connection has ended; another one follows."""

    def ended(self, error: TidewireError) -> None:
        """No connection follows."""

    def received(self, message: Message) -> None:
        """A message about the channel: `subscribed`, `unsubscribed`, `presence` without an id, or an event."""

    def refused(self, message: Message) -> bool:
        """An error; returns whether it answers the subscribe."""

    async def refresh(self) -> None:
        """The token of the subscription expires soon."""


@dataclass(frozen=True)
class RealtimeOptions:
    """How a client connects."""

    url: str
    get_token: GetToken = field(repr=False)
    renews: bool
    """Whether `get_token` can return another token."""
    dial: Dial = field(repr=False)
    max_waiting: int
    policy: RetryPolicy
    random: Callable[[], float] = field(default=random.random, repr=False)


@dataclass(slots=True)
class _Waiting:
    """A request without a reply."""

    future: asyncio.Future[Message] | None = None
    error: TidewireError | None = None
    """Why no connection follows."""
    is_sent: bool = False
    """Whether the service may have got it."""


class Connection:
    """Connects as long as it is wanted."""

    def __init__(self, options: RealtimeOptions) -> None:
        self._options = options
        self._subscribers: dict[str, Subscriber] = {}
        self._requests: dict[str, _Waiting] = {}
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._link: Link | None = None
        self._ready = asyncio.Event()
        self._backoff = Backoff(random=options.random)
        self._pacer = Pacer()
        self._order = asyncio.Lock()
        self._calls = asyncio.Semaphore(DEFAULT_CALLS)
        """The calls that this connection may have under way."""
        self._ids = itertools.count(1)
        self._refused_tokens = 0
        self._faults = 0
        self._opened = 0.0
        self._own: deque[str] = deque(maxlen=MAX_OWN_CONNECTIONS)
        self._delay: float | None = None
        self._heard = 0.0
        self.welcome: Mapping[str, Any] = {}
        """The last `welcome`."""
        self.reconnects = 0
        """How often the connection was opened again."""
        self.is_closed = False

    # --- what is wanted -------------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether a connection is open and authenticated."""
        return self._ready.is_set()

    def offers(self, feature: str) -> bool:
        """Whether the node of the open connection has a feature."""
        return feature in (self.welcome.get("features") or ())

    def is_own(self, event: Event) -> bool:
        """Whether an event came from a connection of this client, and asks not to be shown there."""
        if event.exclude is None or event.exclude not in self._own:
            return False
        return event.sender in (self.welcome.get("user"), f"anonymous-{event.exclude}")

    def add(self, subscriber: Subscriber) -> None:
        """Subscribes, now and after each new connection. Raises ConfigurationError."""
        if subscriber.channel in self._subscribers:
            raise ConfigurationError(f"this client has subscribed to {subscriber.channel} already: share its channel")
        self._subscribers[subscriber.channel] = subscriber
        self._start()
        if self.is_ready:
            self.post(subscriber.opened())

    def remove(self, subscriber: Subscriber) -> None:
        """Forgets a subscriber."""
        if self._subscribers.get(subscriber.channel) is subscriber:
            del self._subscribers[subscriber.channel]

    def next_id(self, prefix: str) -> str:
        """Returns an id for a request."""
        return f"{prefix}-{next(self._ids)}"

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs something beside the connection, until `close`."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.warning("%s", error, exc_info=None if isinstance(error, TidewireError) else error)

    def post(self, messages: list[Message]) -> None:
        """Sends messages whose replies come to a subscriber. They are lost with the connection."""
        if messages and self._link is not None:
            self.spawn(self._post(self._link, messages))

    async def _post(self, link: Link, messages: list[Message]) -> None:
        async with self._order:
            with suppress(LinkClosedError):
                for message in messages:
                    await link.send(encode(message))

    async def call(self, name: str, data: Any, deadline: float, *, id: str, repeats: bool) -> Any:
        """Calls the backend, and returns its data. As many calls are under way at once as the service allows; others wait.

        `repeats`: as `request` does. Otherwise it is sent once, because the backend may have acted. Raises TidewireError.
        """
        message = {"type": "call", "id": id, "call": name, "data": data}
        encode(message)  # a fault of the data is no fault of the connection
        return (await self.request(message, deadline, event_id=id, is_once=not repeats))["data"]

    async def request(
        self, message: Message, deadline: float, *, event_id: str | None = None, is_once: bool = False
    ) -> Message:
        """Sends a message with an `id` until it has a reply: again after a reconnect, and after an error that may pass.

        `is_once`: it is sent only once. Raises TidewireError.
        """
        if len(self._requests) >= self._options.max_waiting:
            raise TooManyWaitingError(f"{self._options.max_waiting} requests wait already", event_id=event_id)
        id = message["id"]
        if id in self._requests:
            raise ConfigurationError(f"a request with the id {id} waits already")
        self._start()
        waiting = self._requests[id] = _Waiting()
        try:
            work = self._until_answered(message, waiting, event_id, is_once=is_once)
            return await asyncio.wait_for(work, deadline)
        except asyncio.TimeoutError:
            raise DeadlineExceededError(
                f"no reply to {message['type']} within {deadline:g} s", event_id=event_id
            ) from None
        finally:
            del self._requests[id]

    async def _until_answered(
        self, message: Message, waiting: _Waiting, event_id: str | None, *, is_once: bool
    ) -> Message:
        attempt = 0
        while True:
            if waiting.error is not None:
                raise waiting.error
            self._start()
            await self._ready.wait()
            is_call = message["type"] == "call"
            if is_call and self._link is not None and not self.offers("calls"):
                raise NotFoundError("no_calls", "the service takes no calls: it is older", event_id=event_id)
            async with self._calls if is_call else nullcontext():
                reply = await self._exchange(message, waiting)
            if reply is None:
                if is_once and waiting.is_sent:
                    raise ConnectionFailedError("the connection was lost before the reply", event_id=event_id)
                continue
            if reply["type"] != "error":
                return reply
            error = _refusal(reply, event_id)
            attempt += 1
            if is_once or not error.retryable or attempt >= self._options.policy.max_attempts:
                raise error
            await asyncio.sleep(self._options.policy.wait(attempt - 1, error.retry_after))

    async def _exchange(self, message: Message, waiting: _Waiting) -> Message | None:
        """Sends a message over the present connection, and returns its reply; None if the connection has ended."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._pacer.take(loop.time()))
        link = self._link
        if link is None:
            return None
        waiting.future = loop.create_future()
        waiting.is_sent = True
        try:
            await link.send(encode(message))
            return await waiting.future
        except LinkClosedError:
            await asyncio.sleep(0)  # the reader learns of it, too
        except _InterruptedError:
            pass
        return None

    # --- connecting -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self.is_closed:
            raise ConfigurationError("the client is closed")
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        """Connects again and again, until a new connection would not help."""
        while True:
            error = await self._connection_end()
            stop = self._judge(error)
            if stop is not None:
                self._task = None  # the next call may connect again
                self._fail(stop)
                return
            wait = self._backoff.next() if self._delay is None else self._delay
            log.warning("no connection to %s: %s; next try in %.1f s", self._options.url, _text(error), wait)
            await asyncio.sleep(wait)
            self.reconnects += 1

    async def _connection_end(self) -> LinkClosedError | TidewireError:
        """Opens one connection, and serves it. Returns why it has ended."""
        self._delay = None
        try:
            await self._connect_and_serve()
        except (LinkClosedError, TidewireError) as error:
            return error
        except Exception as error:  # a message with a wrong field: `welcome` too is what the service says
            return self._fault(error)
        return LinkClosedError(1006)

    def _fault(self, error: Exception) -> TidewireError:
        self._faults += 1
        self._delay = self._options.random() * min(20.0, 2.0**self._faults)
        log.debug("a message of the service cannot be read", exc_info=error)
        return ConnectionFailedError(f"a message of the service has a wrong field: {type(error).__name__}: {error}")

    async def _connect_and_serve(self) -> None:
        token = await self._token()
        self._check_wanted()
        query = f"?client=tidewire-python/{__version__}&features={','.join(FEATURES)}"
        link = await self._options.dial(f"{self._options.url}{query}")
        try:
            await link.send(encode({"type": "hello"} if token is None else {"type": "hello", "token": token}))
            try:
                welcome, more = await asyncio.wait_for(_welcome(link), WELCOME_TIMEOUT)
            except asyncio.TimeoutError:
                raise ConnectionFailedError(f"no welcome within {WELCOME_TIMEOUT:g} s") from None
            self._check_wanted()
            self._open(link, welcome)
            await link.send(encode({"type": "ready"}))
            self._ready.set()  # from here on, `add` subscribes
            for subscriber in tuple(self._subscribers.values()):
                if self._subscribers.get(subscriber.channel) is subscriber:
                    for message in subscriber.opened():
                        await link.send(encode(message))
            for message in more:
                self._dispatch(message)
            await self._serve(link)
        finally:
            self._lost()
            with suppress(LinkClosedError):
                await link.close()

    def _check_wanted(self) -> None:
        """Ends the task if the client is closed. Before Python 3.12, `asyncio.wait_for` drops a cancellation that comes with its
        result."""
        if self.is_closed:
            raise asyncio.CancelledError

    def _open(self, link: Link, welcome: Message) -> None:
        now = asyncio.get_running_loop().time()
        found = welcome.get("limits")
        limits = found if isinstance(found, dict) else {}
        self._pacer.start(limits, now)
        calls = limits.get("calls")
        self._calls = asyncio.Semaphore(calls if isinstance(calls, int) and calls > 0 else DEFAULT_CALLS)
        self._link = link
        self._heard = self._opened = now
        self.welcome = welcome
        self._own.append(str(welcome.get("connection")))
        self._refused_tokens = 0

    def _lost(self) -> None:
        self._link = None
        if not self._ready.is_set():
            return
        self._ready.clear()
        if asyncio.get_running_loop().time() - self._opened > LONG_ENOUGH:
            self._faults = 0
        for subscriber in tuple(self._subscribers.values()):
            subscriber.interrupted()
        for waiting in self._requests.values():
            if waiting.future is not None and not waiting.future.done():
                _fail_future(waiting.future, _InterruptedError())

    async def _serve(self, link: Link) -> None:
        """Reads until the connection ends, and sends pings when it is silent."""
        reader = asyncio.ensure_future(self._read(link))
        pinger = asyncio.ensure_future(self._ping(link))
        try:
            await asyncio.wait({reader, pinger}, return_when=asyncio.FIRST_COMPLETED)
            for task in (reader, pinger):
                if task.done():
                    task.result()
        finally:
            for task in (reader, pinger):
                task.cancel()
            await asyncio.gather(reader, pinger, return_exceptions=True)

    async def _read(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        while True:
            text = await link.receive()
            self._heard = loop.time()
            for message in parse(text):
                self._dispatch(message)

    async def _ping(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        interval = self.welcome.get("heartbeat")
        interval = float(interval) if isinstance(interval, int | float) and interval > 0 else DEFAULT_HEARTBEAT
        while True:
            silent = loop.time() - self._heard
            if silent < interval:
                await asyncio.sleep(interval - silent)
                continue
            asked = loop.time()
            await link.send(encode({"type": "ping", "id": self.next_id("ping")}))
            await asyncio.sleep(PONG_TIMEOUT)
            if self._heard < asked:
                raise LinkClosedError(1006, "no pong")

    # --- messages of the service ----------------------------------------------------------------------------------

    def _dispatch(self, message: Message) -> None:
        """Handles a message. Unknown types and fields are ignored: the service may be newer."""
        kind = message["type"]
        id, channel = message.get("id"), message.get("channel")
        subscriber = self._subscribers.get(channel) if isinstance(channel, str) else None
        if "." in kind or kind in ("subscribed", "unsubscribed") or (kind == "presence" and id is None):
            self._backoff.reset()
            if subscriber is not None:
                subscriber.received(message)
        elif kind == "reconnect":
            after = message.get("after")
            self._delay = float(after) if isinstance(after, int | float) and 0 <= after <= 60 else None
        elif kind == "expiring":
            if subscriber is not None:
                self.spawn(subscriber.refresh())
            elif channel is None and self._options.renews:
                self.spawn(self._refresh())
        elif isinstance(id, str) and id in self._requests:
            self._backoff.reset()
            future = self._requests[id].future
            if future is not None and not future.done():
                future.set_result(message)
        elif kind == "error" and not any(one.refused(message) for one in tuple(self._subscribers.values())):
            log.warning("the service reports %s: %s", message.get("code"), message.get("message"))

    async def _refresh(self) -> None:
        """Replaces the token. If that fails, the service closes the connection, and the next one has a new token."""
        token = await self._token()
        if token is not None:
            await self.request({"type": "refresh", "id": self.next_id("refresh"), "token": token}, TOKEN_TIMEOUT)

    async def _token(self) -> str | None:
        try:
            return await asyncio.wait_for(self._options.get_token(), TOKEN_TIMEOUT)
        except TidewireError:
            raise
        except asyncio.TimeoutError:
            raise ConnectionFailedError(f"the function `token` has not returned within {TOKEN_TIMEOUT:g} s") from None
        except Exception as error:
            raise ConnectionFailedError(f"the function `token` failed: {type(error).__name__}: {error}") from error

    # --- the end --------------------------------------------------------------------------------------------------

    def _judge(self, error: LinkClosedError | TidewireError) -> TidewireError | None:
        """Returns the error with which the client stops; None if it connects again."""
        if isinstance(error, LinkClosedError):
            known = CLOSE_CODES.get(error.code)
            action = "reconnect" if known is None or error.code == 1000 else known.action
            text = error.reason or (known.meaning if known is not None else "")
            if action == "stop":
                return ConnectionEndedError(error.code, f"closed with {error.code}: {text}")
            if action == "refresh":
                return self._refused_token(AuthenticationError("invalid_token", f"closed with {error.code}: {text}"))
            return None
        if error.code in _TOKEN_CODES:
            return self._refused_token(error)
        if isinstance(error, UnexpectedResponseError) or error.retryable:  # a proxy's, or it passes
            if error.retry_after is not None:
                self._delay = error.retry_after + self._options.random()
            return None
        return error

    def _refused_token(self, error: TidewireError) -> TidewireError | None:
        self._refused_tokens += 1
        return None if self._options.renews and self._refused_tokens < MAX_REFUSED_TOKENS else error

    def _fail(self, error: TidewireError) -> None:
        for subscriber in tuple(self._subscribers.values()):
            subscriber.ended(error)
        self._subscribers.clear()
        for waiting in self._requests.values():
            waiting.error = error
            if waiting.future is not None and not waiting.future.done():
                _fail_future(waiting.future, error)
        self._ready.set()  # requests that wait for it see their error
        self._ready.clear()

    async def close(self) -> None:
        """Ends the connection, its subscriptions and requests."""
        if self.is_closed:
            return
        self.is_closed = True
        tasks = [*self._tasks, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail(ConnectionFailedError("the client is closed"))


def _fail_future(future: asyncio.Future[Message], error: Exception) -> None:
    future.set_exception(error)
    future.exception()  # a request that no longer waits is no mistake


class _InterruptedError(Exception):
    """The connection of a request has ended."""


async def _welcome(link: Link) -> tuple[Message, list[Message]]:
    """Returns `welcome`, and the messages that came with it. Raises TidewireError if the service refuses."""
    while True:
        messages = parse(await link.receive())
        for number, message in enumerate(messages):
            if message["type"] == "welcome":
                return message, messages[number + 1 :]
            if message["type"] == "error":
                raise _refusal(message, None)


def _refusal(message: Message, event_id: str | None) -> TidewireError:
    details = message.get("details")
    return api_error(
        str(message.get("code")),
        str(message.get("message")),
        retryable=message.get("retryable") is True,
        details=details if isinstance(details, dict) else {},
        event_id=event_id,
    )


def _text(error: LinkClosedError | TidewireError) -> str:
    return f"closed with {error.code} {error.reason}" if isinstance(error, LinkClosedError) else str(error)


def encode(message: Message) -> str:
    """Encodes a message. Raises ConfigurationError for what JSON cannot say."""
    try:
        return msgspec.json.encode(message).decode()
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise ConfigurationError(f"data cannot be encoded as JSON: {error}") from error


def parse(text: str) -> list[Message]:
    """Returns the messages of a frame; what is no message is left out. Raises ConnectionFailedError."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConnectionFailedError("a frame of the service is not JSON") from error
    messages = content if isinstance(content, list) else [content]
    return [one for one in messages if isinstance(one, dict) and isinstance(one.get("type"), str)]
