"""The ways in which a client gets events, with one interface: WebSocket, `POST /stream`, `GET /sse` and `POST /poll`.

A transport connects as often as its client asks it to, and keeps what lasts from one connection to the next: the receipt of
polls, the last id of an EventSource.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping
from time import monotonic
from typing import ClassVar, Protocol, TypeAlias

import msgspec

from tests.support.http_wire import HttpWire, Response, open_http
from tests.support.wire import ABNORMAL, Refused, Wire, connect, reader

Since: TypeAlias = dict[str, object] | None
"""A position, as messages give it; None to begin now."""
RESTARTED = 0
"""In place of a close code: the client itself has ended the connection, or the node has asked it to come back at once."""
POLL_WAIT = 15.0
"""Seconds that a poll waits; below SILENCE in client.py."""


class _Control(msgspec.Struct):
    """As much of a message as a transport needs."""

    type: str
    code: int | str = ""


class _PollAnswer(msgspec.Struct):
    messages: msgspec.Raw
    receipt: str | None = None


_read = reader(_Control)
_read_answer = msgspec.json.Decoder(_PollAnswer)


class Listener(Protocol):
    """What a transport tells its client."""

    def received(self, frame: bytes) -> None:
        """A message or an array of messages."""

    def gone(self, code: int) -> None:
        """The connection has ended: a close code, or RESTARTED."""

    def refused(self, refusal: Refused) -> None:
        """A request of an open connection was refused, and the connection has ended."""

    def continued(self, *, resumed: bool) -> None:
        """A response goes on with the session; its messages follow. `resumed`: the first one of a connection, and nothing is
        missing."""


class ClientTransport(ABC):
    """See the module."""

    name: ClassVar[str]
    is_connection: ClassVar[bool] = True
    """False where every response ends what the node knows as a connection."""
    shows_life: ClassVar[bool] = True
    """False where the client sends nothing after its request, so that a node learns only from TCP that it is gone."""

    def __init__(self, bearer: str, listener: Listener, *, receive_buffer: int | None = None) -> None:
        self.heard = 0.0
        """When bytes came last."""
        self._bearer = bearer
        self._listener = listener
        self._receive_buffer = receive_buffer

    @property
    @abstractmethod
    def wire(self) -> Wire | HttpWire | None:
        """The open connection; None if there is none."""

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self.wire is not None

    @abstractmethod
    async def connect(self, port: int, wanted: Mapping[str, Since]) -> dict[str, str | None]:
        """Connects, and asks for channels. Returns the ids of the requests; None where the answer has none.

        Raises Refused, OSError.
        """

    @abstractmethod
    def subscribe(self, channel: str, since: Since, *, leaves: bool) -> str | None:
        """Asks for a channel again, which the client `leaves` before if the node counts it as subscribed.

        Returns the id of the request; None where the answer has none.
        """

    def ping(self) -> None:  # noqa: B027  # most have no message for it
        """Asks for a sign of life, where the protocol has a message for it."""

    def leave(self) -> None:
        """Ends the connection, in good form if there is one."""
        self.abort()

    def abort(self) -> None:
        """Cuts the connection."""
        if self.wire is not None:
            self.wire.abort()

    def read(self, on: bool) -> None:
        """Stops or resumes reading."""
        if self.wire is not None:
            self.wire.read(on)


class WebSocketTransport(ClientTransport):
    """A WebSocket."""

    name = "websocket"
    _wire: Wire | None = None
    _serial = 0

    @property
    def wire(self) -> Wire | None:
        return self._wire

    async def connect(self, port: int, wanted: Mapping[str, Since]) -> dict[str, str | None]:
        wire = await connect(port, self._text, self._gone, bearer=self._bearer, receive_buffer=self._receive_buffer)
        if not wire.is_open:
            wire.abort()
            raise Refused("closed at once")
        self._wire = wire
        self.heard = monotonic()
        wire.send({"type": "ready"})
        return {channel: self._subscribe(channel, since) for channel, since in wanted.items()}

    def subscribe(self, channel: str, since: Since, *, leaves: bool) -> str | None:
        assert self._wire is not None
        if leaves:
            self._wire.send({"type": "unsubscribe", "id": f"u{self._serial}", "channel": channel})
        return self._subscribe(channel, since)

    def _subscribe(self, channel: str, since: Since) -> str:
        assert self._wire is not None
        self._serial += 1
        request = f"s{self._serial}"
        position = {"since": since} if since is not None else {}
        self._wire.send({"type": "subscribe", "id": request, "channel": channel, **position})
        return request

    def ping(self) -> None:
        if self._wire is not None:
            self._wire.send({"type": "ping"})

    def leave(self) -> None:
        if self._wire is not None:
            self._wire.leave()

    def _text(self, frame: bytes) -> None:
        self.heard = monotonic()
        self._listener.received(frame)

    def _gone(self, code: int) -> None:
        if self._wire is not None:  # else it never opened; `connect` deals with it
            self._wire = None
            self._listener.gone(code)


class HttpTransport(ClientTransport):
    """What streams and polls have in common."""

    _wire: HttpWire | None = None
    """Set once the first response is 200."""
    _opening: HttpWire | None = None
    _answered: asyncio.Future[None] | None = None
    _code = ABNORMAL

    @property
    def wire(self) -> HttpWire | None:
        return self._wire

    async def connect(self, port: int, wanted: Mapping[str, Since]) -> dict[str, str | None]:
        wire = await open_http(port, self._responded, self._chunk, self._lost, receive_buffer=self._receive_buffer)
        if wire.transport is None:
            raise Refused("closed at once")
        self._code = ABNORMAL
        self._opening, self._answered = wire, asyncio.get_running_loop().create_future()
        try:
            self._ask(wire, wanted)
            await self._answered
        except BaseException:
            wire.abort()
            raise
        finally:
            self._opening = self._answered = None
        return dict.fromkeys(wanted)

    @abstractmethod
    def _ask(self, wire: HttpWire, wanted: Mapping[str, Since]) -> None:
        """Sends the first request."""

    def subscribe(self, channel: str, since: Since, *, leaves: bool) -> str | None:
        """Connects again: a stream gets no commands."""
        self._code = RESTARTED
        self.abort()
        return None

    def _responded(self, response: Response) -> None:
        self.heard = monotonic()
        if response.status != 200:
            self._refuse(response.refusal())
            return
        if self._answered is not None and not self._answered.done():
            self._wire = self._opening
            self._answered.set_result(None)
        self._accept(response)

    def _refuse(self, refusal: Refused) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(refusal)
        else:
            self._end()
            self._listener.refused(refusal)

    def _accept(self, response: Response) -> None:
        """Takes a response with status 200."""

    def _chunk(self, data: bytes) -> None:
        """Takes a part of a body without a length."""

    def _end(self) -> None:
        """Ends the connection, of which nothing more is told."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()

    def _lost(self) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(Refused("the connection ended before the response"))
        elif self._wire is not None:
            self._wire = None
            self._listener.gone(self._code)

    def _watch(self, messages: bytes) -> str | None:
        """Takes the code of `closed`. Returns the type of the message that ends the connection."""
        found = None
        if b'"closed"' in messages or b'"reconnect"' in messages:
            for message in _read(messages):
                if message.type == "closed" and isinstance(message.code, int):
                    self._code = message.code
                if message.type in ("closed", "reconnect"):
                    found = message.type
        return found


class StreamTransport(HttpTransport):
    """`POST /stream`: positions in the body."""

    name = "stream"
    shows_life = False
    _rest = b""

    def _ask(self, wire: HttpWire, wanted: Mapping[str, Since]) -> None:
        self._rest = b""
        wire.request("POST", "/stream", bearer=self._bearer, body={"subscriptions": _subscriptions(wanted)})

    def _chunk(self, data: bytes) -> None:
        self.heard = monotonic()
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            fields = dict(line.partition(b":")[::2] for line in block.split(b"\n"))  # one line of data in each event
            messages = fields.get(b"data", b"").removeprefix(b" ")
            if messages:
                self._watch(messages)
                self._listener.received(messages)
            if b"id" in fields:
                self._keep(fields[b"id"].removeprefix(b" ").decode())

    def _keep(self, last_id: str) -> None:
        """Takes the id of an event, after the event."""


class EventSourceTransport(StreamTransport):
    """`GET /sse`: positions in Last-Event-ID."""

    name = "sse"
    _last_id = ""

    def _ask(self, wire: HttpWire, wanted: Mapping[str, Since]) -> None:
        self._rest = b""
        headers = {"Last-Event-ID": self._last_id} if self._last_id else {}
        wire.request("GET", f"/sse?channels={','.join(wanted)}", bearer=self._bearer, headers=headers)

    def _keep(self, last_id: str) -> None:
        self._last_id = last_id


class PollTransport(HttpTransport):
    """`POST /poll`, again and again on one connection. The first poll of a connection does not wait, so that it shows at once
    whether the session goes on."""

    name = "poll"
    is_connection = False
    receipt: str | None = None
    _wanted: Mapping[str, Since] = {}
    _is_first = True

    def _ask(self, wire: HttpWire, wanted: Mapping[str, Since]) -> None:
        self._wanted, self._is_first = wanted, True
        if self.receipt is None:
            wire.request("POST", "/poll", bearer=self._bearer, body={"subscriptions": _subscriptions(wanted)})
        else:
            self._poll(wire, 0.0)

    def subscribe(self, channel: str, since: Since, *, leaves: bool) -> str | None:
        """Begins a new session: the receipt is ahead of the client."""
        self.receipt = None
        return super().subscribe(channel, since, leaves=leaves)

    def _poll(self, wire: HttpWire, wait: float) -> None:
        wire.request("POST", "/poll", bearer=self._bearer, body={"receipt": self.receipt, "wait": wait})

    def _refuse(self, refusal: Refused) -> None:
        if "invalid_receipt" in str(refusal):
            self.receipt = None
        super()._refuse(refusal)

    def _accept(self, response: Response) -> None:
        answer = _read_answer.decode(response.body)
        messages = bytes(answer.messages)
        is_first, self._is_first = self._is_first, False
        if self.receipt is not None:
            self._listener.continued(resumed=is_first and b'"recovered":false' not in messages)
        self.receipt = answer.receipt
        end = self._watch(messages)
        self._listener.received(messages)
        if end is not None:
            self._end()
            self._listener.gone(self._code if end == "closed" else RESTARTED)
        elif response.is_last:  # the node drains
            self._end()
            self._listener.gone(RESTARTED)
        elif self._wire is not None and self._code != RESTARTED:
            self._poll(self._wire, POLL_WAIT)


def _subscriptions(wanted: Mapping[str, Since]) -> list[dict[str, object]]:
    return [
        {"channel": channel, **({"since": since} if since is not None else {})} for channel, since in wanted.items()
    ]


TRANSPORTS: dict[str, type[ClientTransport]] = {
    kind.name: kind for kind in (WebSocketTransport, StreamTransport, EventSourceTransport, PollTransport)
}
"""By the names that a mix has."""
