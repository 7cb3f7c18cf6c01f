"""A client that follows docs/protocol.md to the letter, cheap by the thousand, and writes down what it applies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from time import monotonic

import msgspec

from tests.faults.books import CrowdBooks, Diary, Key, Stretch, Told, Top, Trouble
from tests.faults.tokens import token
from tests.support.wire import Refused, Wire, connect, reader

CONNECT = 10.0
"""Seconds that a connection may take to open; the protocol leaves it to the client."""
BACKOFF, BACKOFF_MOST = 0.25, 5.0
"""Seconds of the first pause at most, and of any: full jitter between 0 and that."""
SILENCE, ANSWER = 25.0, 10.0
"""docs/protocol.md, Heartbeat: a ping after so many seconds of silence; after so many more the connection counts as broken."""


class Data(msgspec.Struct):
    """The payload: where it belongs, what it is, and when it was first sent."""

    t: str = ""
    c: str = ""
    line: int = 0
    at: float = 0.0
    user: str = ""


class Message(msgspec.Struct):
    """As much of any message as a client needs."""

    type: str
    channel: str = ""
    id: str | None = None
    epoch: str = ""
    offset: int | None = None
    rev: int | None = None
    last: str | None = None
    recovered: bool | None = None
    events: list[Message] = []
    data: Data | None = None
    code: str = ""
    retryable: bool = False
    after: float = 0.0


_read = reader(Message)


class Follow:
    """One channel as one client sees it: the position, and the diary."""

    __slots__ = ("diary", "epoch", "joined", "last", "offset", "request", "stretch")

    def __init__(self, client: int, key: Key) -> None:
        self.diary = Diary(client, key)
        self.stretch: Stretch | None = None
        self.epoch = ""
        self.offset = 0
        self.last: str | None = None
        self.request = ""
        """The id of the `subscribe` under way."""
        self.joined = False

    def since(self) -> dict[str, object] | None:
        """The position, as `subscribe` gives it."""
        if self.stretch is None:
            return None
        return {"epoch": self.epoch, "offset": self.offset, **({"id": self.last} if self.last is not None else {})}

    def is_below(self, top: Top | None) -> bool:
        """Whether something is lacking up to there. Another epoch lacks nothing if it was told of later than that."""
        if top is None:
            return False
        if self.epoch == top.epoch:
            return self.offset < top.offset
        return self.stretch is None or self.stretch.at < top.at

    def start(self, message: Message, now: float) -> list[Message]:
        """Takes `subscribed`; returns the events to apply before its position holds."""
        offset = message.offset or 0
        missed = message.events
        continues = message.recovered is not False and self.stretch is not None and message.epoch == self.epoch
        if not continues:
            told = Told.KEPT
            if self.stretch is None:
                told = Told.FRESH
            elif message.recovered is False:
                told = Told.LOST
            base = missed[0].offset - 1 if missed and missed[0].offset else offset
            self.stretch = Stretch(message.epoch, base, told, now, base)
            self.diary.stretches.append(self.stretch)
            self.epoch, self.offset = message.epoch, base
        return [event for event in missed if (event.offset or 0) > self.offset]

    def apply(self, event: Message) -> None:
        """Does what an application would, then moves the position."""
        assert self.stretch is not None
        assert event.offset is not None
        data = event.data
        if data is None or data.t != self.diary.key.tenant or data.c != self.diary.key.channel:
            self.diary.foreign += 1
        self.stretch.offsets.append(event.offset)
        self.stretch.lines.append(data.line if data is not None else 0)
        self.move(event.offset, event.id)

    def move(self, offset: int, last: str | None) -> None:
        """Moves the position."""
        assert self.stretch is not None
        self.offset = self.stretch.top = offset
        self.last = last


class Client:
    """One user on one node at a time, in some channels. Comes back by itself until told to leave."""

    def __init__(
        self,
        number: int,
        tenant: str,
        channels: Sequence[str],
        ports: Sequence[int],
        home: int,
        books: CrowdBooks,
        random: Random,
        spawn: Callable[[Client, float], None],
    ) -> None:
        self.number = number
        self.tenant = tenant
        self.user = f"user-{number}"
        self.follows = {name: Follow(number, Key(tenant, name)) for name in channels}
        self.port = 0
        """Where it is, or was last."""
        self.wire: Wire | None = None
        self.leaving = False
        self.heard = 0.0
        self._ports = ports
        self._books = books
        self._random = random
        self._spawn = spawn
        self._home = home
        self._token = token(self.user, tenant)
        self._serial = 0
        self._failures = 0
        self._told: float | None = None
        """The pause that `reconnect`, or the refusal of an upgrade, asked for."""
        self._pinged = False

    # --- the connection -----------------------------------------------------------------------------------------------

    @property
    def is_joined(self) -> bool:
        """Whether it is connected and in all its channels."""
        return self.wire is not None and all(follow.joined for follow in self.follows.values())

    async def connect(self) -> None:
        """Opens a connection to the node whose turn it is, and joins; failing that, tries again later."""
        self.port = self._ports[self._home % len(self._ports)]
        self._books.tries.append(monotonic())
        try:
            async with asyncio.timeout(CONNECT):
                wire = await connect(self.port, self.receive, self._gone, bearer=self._token)
        except Refused as refusal:
            if refusal.retry_after is not None:
                self._told = refusal.retry_after + self._random.random()
            self._failed(f"refused {refusal}")
        except (OSError, TimeoutError) as error:
            self._failed(f"unreachable {type(error).__name__}")
        else:
            if self.leaving or not wire.is_open:
                wire.abort()
                self._failed("closed at once")
                return
            self.wire = wire
            self.heard = monotonic()
            self._pinged = False
            wire.send({"type": "ready"})
            for follow in self.follows.values():
                self.subscribe(follow)

    def _failed(self, what: str) -> None:
        self._trouble(what)
        self._home += 1
        self._return()

    def _gone(self, code: int) -> None:
        if self.wire is None:
            return  # it never opened; `connect` deals with it
        self.wire = None
        for follow in self.follows.values():
            follow.joined = False
        if not self.leaving:
            self._trouble(f"closed {code}")
            if code == 1006:  # what a balancer would do: the same node may be gone
                self._home += 1
            self._return()

    def _return(self) -> None:
        if self.leaving:
            return
        pause = self._told
        if pause is None:
            pause = self._random.uniform(0, min(BACKOFF_MOST, BACKOFF * 2**self._failures))
        self._told = None
        self._failures += 1
        self._spawn(self, pause)

    def look(self, now: float) -> None:
        """Finds out whether a silent connection still lives; called every second or so."""
        wire = self.wire
        if wire is None:
            return
        if self._pinged and now - self.heard > SILENCE + ANSWER:
            self._trouble("silent")
            wire.abort()
        elif not self._pinged and now - self.heard > SILENCE:
            self._pinged = True
            wire.send({"type": "ping"})

    def leave(self) -> None:
        """Goes for good."""
        self.leaving = True
        if self.wire is not None:
            self.wire.leave()

    def come_back(self) -> None:
        """Returns after `leave` or `abort`."""
        self.leaving = False
        self._spawn(self, 0.0)

    def abort(self) -> None:
        """Goes at once."""
        self.leaving = True
        if self.wire is not None:
            self.wire.abort()

    # --- messages -----------------------------------------------------------------------------------------------------

    def receive(self, frame: bytes) -> None:
        self.heard = now = monotonic()
        self._pinged = False
        for message in _read(frame):
            if message.offset is not None and message.type == "talk.line":
                self._durable(message, now)
            elif message.type == "subscribed":
                self._subscribed(message, now)
            elif message.type == "error":
                self._error(message)
            elif message.type == "unsubscribed":
                self._unsubscribed(message)
            elif message.type == "reconnect":
                self._told = message.after
                self._books.told += 1
            elif message.type.startswith("presence.") and message.data is not None:
                told = f"{message.type} {message.data.user}"
                self._books.presence[told] = self._books.presence.get(told, 0) + 1

    def _durable(self, event: Message, now: float) -> None:
        follow = self.follows.get(event.channel)
        if follow is None or not follow.joined:
            return
        assert event.offset is not None
        if event.offset == follow.offset + 1:
            self._apply(follow, event, now)
        elif event.offset <= follow.offset:
            self._books.repeats += 1
        else:
            self._books.gaps += 1
            self._rejoin(follow)

    def _apply(self, follow: Follow, event: Message, now: float) -> None:
        follow.apply(event)
        self._books.deliveries += 1
        if event.data is not None and now - event.data.at > self._books.slowest:
            self._books.slowest = now - event.data.at

    def _subscribed(self, message: Message, now: float) -> None:
        follow = self.follows.get(message.channel)
        if follow is None:
            return
        if message.id is None and follow.joined:
            self._books.pushed += 1
        elif message.id != follow.request or follow.joined:
            return  # the answer to a request that another one has replaced
        self._failures = 0
        self._books.resumed += message.recovered is True
        if message.recovered is False:
            self._trouble("recovered false")
        for event in follow.start(message, now):
            self._apply(follow, event, now)
        follow.move(message.offset or 0, message.last)
        follow.joined = True

    def _error(self, message: Message) -> None:
        self._trouble(f"error {message.code}")
        for follow in self.follows.values():
            if message.id == follow.request and not follow.joined:
                if message.code == "already_subscribed":
                    self._rejoin(follow)
                elif message.retryable:
                    loop = asyncio.get_running_loop()
                    loop.call_later(self._random.uniform(0.05, 2 * BACKOFF), self._again, follow, message.id, self.wire)

    def _again(self, follow: Follow, request: str, wire: Wire | None) -> None:
        if self.wire is wire and follow.request == request and not follow.joined and not self.leaving:
            self.subscribe(follow)

    def _unsubscribed(self, message: Message) -> None:
        follow = self.follows.get(message.channel)
        if follow is None or message.id is not None:
            return  # the answer to our own
        self._trouble(f"unsubscribed {message.code}")
        follow.joined = False
        if message.code == "resync":
            self.subscribe(follow)

    def _rejoin(self, follow: Follow) -> None:
        assert self.wire is not None
        self._serial += 1
        self.wire.send({"type": "unsubscribe", "id": f"u{self._serial}", "channel": follow.diary.key.channel})
        self.subscribe(follow)

    def subscribe(self, follow: Follow) -> None:
        assert self.wire is not None
        follow.joined = False
        self._serial += 1
        follow.request = f"s{self._serial}"
        since = follow.since()
        self.wire.send(
            {
                "type": "subscribe",
                "id": follow.request,
                "channel": follow.diary.key.channel,
                **({"since": since} if since is not None else {}),
            }
        )

    def _trouble(self, what: str) -> None:
        self._books.troubles.append(Trouble(monotonic(), what, self.number))
