"""The service in memory: what applications and their tests call."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote

import httpx
import msgspec

from tidewire.async_client import AsyncTidewire
from tidewire.client import Tidewire
from tidewire.codes import ERROR_CODES
from tidewire.errors import ApiError, ConnectionFailedError, api_error
from tidewire.events import Event, NewEvent
from tidewire.realtime.link import Link
from tidewire.testing.link import FakeLink
from tidewire.testing.store import Json, Store, not_found

URL = "http://tidewire.test"


@dataclass(frozen=True, slots=True)
class Request:
    """A request that the fake has got."""

    method: str
    path: str
    body: Any = None


@dataclass(frozen=True, slots=True)
class Called:
    """A call that the fake has got."""

    name: str
    id: str
    data: Any


CallHandler: TypeAlias = "Callable[[Any], Any | Awaitable[Any]]"
"""Gets the data of a call, and returns that of the reply. CallFailedError and other errors of the service reach the client."""


@dataclass(slots=True)
class _Fault:
    times: int
    code: str | None = None
    details: Json = field(default_factory=dict)
    delay: float = 0.0
    loses_reply: bool = False


class FakeTidewire(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A service in memory. Threads and event loops may share it."""

    def __init__(self, *, latest: Mapping[str, str] | None = None, ephemeral: Iterable[str] = ()) -> None:
        """Args: `latest`: event types that keep one value for each key, and the field of `data` that is the key. `ephemeral`:
        event types that are not kept. All others are durable."""
        self._lock = threading.RLock()
        self._store = Store(dict(latest or {}), frozenset(ephemeral))
        self._links: set[FakeLink] = set()
        self._faults: list[_Fault] = []
        self._unreachable = 0
        self.requests: list[Request] = []
        """Every request of the backend API, also those that were refused."""
        self.calls: list[Called] = []
        """Every call, also those that were refused."""
        self._handlers: dict[str, CallHandler] = {}

    def client(self, **options: Any) -> Tidewire:
        """Returns a client for threads."""
        return Tidewire(URL, **{"api_key": "fake", "token": "fake", "transport": self, "dial": self.dial, **options})

    def async_client(self, **options: Any) -> AsyncTidewire:
        """Returns a client for asyncio."""
        return AsyncTidewire(
            URL, **{"api_key": "fake", "token": "fake", "transport": self, "dial": self.dial, **options}
        )

    # --- what a test looks at -------------------------------------------------------------------------------------

    def events(self, channel: str | None = None, type: str | None = None) -> list[Event]:
        """Returns the events that were accepted: each once, in order."""
        with self._lock:
            return [
                event
                for event in self._store.published
                if channel in (None, event.channel) and type in (None, event.type)
            ]

    @property
    def subscribers(self) -> dict[str, int]:
        """The number of subscriptions of each channel."""
        with self._lock:
            names = [name for link in self._links for name in link.channels]
        return {name: names.count(name) for name in names}

    # --- what a test does -----------------------------------------------------------------------------------------

    def publish(self, channel: str, type: str, data: Any, **fields: Any) -> Event | None:
        """Publishes as somebody else does: `sender`, `id`, `key`. Returns None for a duplicate. Raises ApiError."""
        event = NewEvent(channel, type, data, **fields)
        return self._publish(channel, msgspec.to_builtins(event))[1]

    def on_call(self, name: str, handler: CallHandler) -> None:
        """Answers calls in the place of the backend: `fake.on_call("order.quote", lambda data: {"price": 5})`.

        The handler may be a coroutine function. To fail, it raises `call_failed("sold_out")`. Any other exception is a backend
        without an answer: the client gets `hook_unavailable`.
        """
        self._handlers[name] = handler

    async def answer_call(self, message: Json) -> Any:
        """Returns the data of the reply to a message `call`. Raises ApiError."""
        name = message["call"]
        with self._lock:
            self.calls.append(Called(name, message["id"], message["data"]))
            handler = self._handlers.get(name)
        if handler is None:
            raise _refusal("unknown_call", {"path": "$.call"})
        try:
            reply = handler(message["data"])
            if inspect.isawaitable(reply):
                reply = await reply
            return msgspec.to_builtins(reply)
        except ApiError:
            raise
        except Exception as error:
            raise _refusal("hook_unavailable", {"reason": "status"}) from error

    def refuse(self, code: str, *, times: int = 1, **details: Any) -> None:
        """Refuses the next requests and messages with a code, such as `rate_limited` with `retry_after=0.1`."""
        if code not in ERROR_CODES:
            raise ValueError(f"{code} is no error code of the service")
        self._add(_Fault(times, code, details))

    def delay(self, seconds: float, *, times: int = 1) -> None:
        """Answers the next requests later."""
        self._add(_Fault(times, delay=seconds))

    def lose_replies(self, times: int = 1) -> None:
        """Carries out the next requests, and breaks the connection before the reply."""
        self._add(_Fault(times, loses_reply=True))

    def cut(self, refused_connections: int = 0) -> None:
        """Breaks all WebSockets, and refuses the next ones."""
        with self._lock:
            self._unreachable = refused_connections
            links = tuple(self._links)
        for link in links:
            link.end(1006)

    def restart(self) -> None:
        """Loses all that is kept, as a service without a store does, and breaks all WebSockets."""
        with self._lock:
            for name in tuple(self._store.channels):
                self._store.purge(name)
        self.cut()

    def _add(self, fault: _Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def take_fault(self) -> _Fault:
        """Returns what happens to the next request."""
        with self._lock:
            if not self._faults:
                return _Fault(1)
            fault = self._faults[0]
            fault.times -= 1
            if fault.times <= 0:
                self._faults.pop(0)
            return fault

    # --- WebSockets -----------------------------------------------------------------------------------------------

    async def dial(self, url: str) -> Link:
        """Opens a WebSocket in memory."""
        with self._lock:
            if self._unreachable:
                self._unreachable -= 1
                raise ConnectionFailedError("the fake refuses the connection")
            link = FakeLink(self, self._lock, self._store)
            self._links.add(link)
        return link

    def forget(self, link: FakeLink) -> None:
        """A link has ended."""
        with self._lock:
            self._links.discard(link)

    def _publish(self, channel: str, fields: Mapping[str, Any]) -> tuple[Json, Event | None]:
        with self._lock:
            result, event = self._store.publish(channel, fields)
            if event is not None:
                self.deliver(event)
            return result, event

    def deliver(self, event: Event) -> None:
        """Sends an event to the subscribers of its channel."""
        for link in tuple(self._links):
            link.deliver(event)

    # --- HTTP -----------------------------------------------------------------------------------------------------

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answers a request of a client for threads."""
        fault = self.take_fault()
        if fault.delay:
            time.sleep(fault.delay)
        return self._respond(request, request.read(), fault)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answers a request of a client for asyncio."""
        fault = self.take_fault()
        if fault.delay:
            await asyncio.sleep(fault.delay)
        return self._respond(request, await request.aread(), fault)

    def _respond(self, request: httpx.Request, content: bytes, fault: _Fault) -> httpx.Response:
        target = request.url.raw_path.decode()
        body = json.loads(content) if content else None
        with self._lock:
            self.requests.append(Request(request.method, target, body))
            try:
                if fault.code is not None:
                    raise _refusal(fault.code, fault.details)
                reply = self._route(request.method, target, body)
            except ApiError as error:
                return _problem(error)
        if fault.loses_reply:
            raise httpx.ReadError("the fake has lost the reply")
        return httpx.Response(200, json=reply)

    def _route(self, method: str, target: str, body: Any) -> Any:
        path, _, query = target.partition("?")
        options = {name: values[0] for name, values in parse_qs(query).items()}
        match (method, [unquote(part) for part in path.strip("/").split("/")][2 if path.startswith("/api/") else 0 :]):
            case ("POST", ["channels", channel, "events"]):
                return self._publish(channel, body)[0]
            case ("POST", ["events"]):
                return {"results": [self._publish_one(event) for event in body]}
            case ("GET", ["channels"]):
                found = [name for name in sorted(self._store.channels) if name.startswith(options.get("prefix", ""))]
                return {"channels": [self._listed(name) for name in found], "more": False, "complete": True}
            case ("GET", ["channels", name]):
                return {**self._listed(name), "complete": True, "contract": {}}
            case ("GET", ["channels", name, "history"]):
                return self.history(name, {key: int(value) for key, value in options.items()})
            case ("GET", ["channels", name, "state"]):
                kept = self._store.channel(name)
                values = [msgspec.to_builtins(event) for event in kept.values.values()]
                return {"channel": name, **kept.position(), "state": values, "more": False}
            case ("GET", ["channels", name, "presence"]):
                return {"channel": name, "presence": self.presence(name)}
            case ("POST", ["presence", "counts"]):
                return {"counts": [{"channel": one, "count": self.presence(one)["count"]} for one in body["channels"]]}
            case ("DELETE", ["channels", name, "events", id]):
                return self._store.remove_event(name, id, int(options["offset"]) if "offset" in options else None)
            case ("DELETE", ["channels", name, "history"]):
                return {"channel": name, **self._store.purge(name).position()}
            case ("POST", ["users", _, "disconnect"]):
                return {"connections": 0, "nodes": 1, "complete": True}
            case ("POST", ["users", _, "subscribe" | "unsubscribe"]):
                return {"subscriptions": 0, "nodes": 1, "complete": True}
            case ("POST", ["users", _, "revoke"]):
                return {"before": time.time(), "until": time.time() + 86_400}
            case ("DELETE", ["users", _]):
                return {"removed": 0, "channels": len(self._store.channels)}
            case ("POST", ["tokens", "revoke"]):
                return {"until": time.time() + 86_400}
            case ("POST", ["tickets"]):
                return {"ticket": "fake", "expires_in": 30.0}
        raise not_found(f"the fake does not know {method} {path}")

    def _publish_one(self, event: Json) -> Json:
        try:
            return self._publish(event["channel"], event)[0]
        except ApiError as error:
            fields = {"code": error.code, "message": error.message, "details": dict(error.details)}
            return {"error": {**fields, "retryable": error.retryable}}

    def _listed(self, name: str) -> Json:
        return {"channel": name, **self._store.channel(name).position(), "subscribers": self.subscribers.get(name, 0)}

    def history(self, name: str, options: Mapping[str, Any]) -> Json:
        """A page of a channel's history."""
        kept = self._store.channel(name)
        page, more = kept.page(options.get("after"), options.get("before"), options.get("limit", 50))
        events = [msgspec.to_builtins(event) for event in page]
        return {"channel": name, **kept.position(), "events": events, "more": more}

    def presence(self, name: str) -> Json:
        """Who is in a channel: each connection counts as the user of the fake."""
        count = self.subscribers.get(name, 0)
        members = [{"user": FakeLink.user, "connections": count}] if count else []
        return {"count": len(members), "members": members}


def call_failed(reason: str, message: str = "", **details: Any) -> ApiError:
    """Returns the error with which a handler of a call fails; `data=…` is what the client gets with it."""
    text = message or f"the backend answers with the error {reason}"
    return api_error("call_failed", text, status=422, details={"reason": reason, **details})


def _refusal(code: str, details: Mapping[str, Any]) -> ApiError:
    known = ERROR_CODES[code]
    return api_error(code, known.meaning, status=known.status, retryable=known.retryable, details=details)


def _problem(error: ApiError) -> httpx.Response:
    body = {
        "type": "about:blank",
        "title": error.code,
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "details": dict(error.details),
        "retryable": error.retryable,
    }
    return httpx.Response(error.status, json=body, headers={"Content-Type": "application/problem+json"})
