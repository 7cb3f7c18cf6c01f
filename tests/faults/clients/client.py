"""A client that follows docs/protocol.md and docs/streams.md to the letter, over any transport, cheap by the thousand. It writes
down what it applies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from time import monotonic

from tests.faults.books import CrowdBooks, Key, Trouble
from tests.faults.clients.follow import Follow, Message
from tests.faults.clients.transports import RESTARTED, TRANSPORTS, ClientTransport
from tests.faults.tokens import token
from tests.support.wire import ABNORMAL, Refused, reader

CONNECT = 10.0
"""Seconds that a connection may take to open; the protocol leaves it to the client."""
BACKOFF, BACKOFF_MOST = 0.25, 5.0
"""Seconds of the first pause at most, and of any: full jitter between 0 and that."""
SILENCE, ANSWER = 25.0, 10.0
"""docs/protocol.md, Heartbeat: a ping after so many seconds of silence; after so many more the connection counts as broken."""
UNAVAILABLE = "broker_unavailable"
"""The code of a request that any node would refuse."""

_read = reader(Message)


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
        transport: str = "websocket",
    ) -> None:
        self.number = number
        self.tenant = tenant
        self.user = f"user-{number}"
        self.follows = {name: Follow(number, Key(tenant, name)) for name in channels}
        self.port = 0
        """Where it is, or was last."""
        self.transport: ClientTransport = TRANSPORTS[transport](token(self.user, tenant), self)
        self.leaving = False
        self._ports = ports
        self._books = books
        self._random = random
        self._spawn = spawn
        self._home = home
        self._failures = 0
        self._told: float | None = None
        """The pause that `reconnect`, or a refusal, asked for."""
        self._pinged = False

    # --- the connection -----------------------------------------------------------------------------------------------

    @property
    def is_joined(self) -> bool:
        """Whether it is connected and in all its channels."""
        return self.transport.is_open and all(follow.joined for follow in self.follows.values())

    async def connect(self) -> None:
        """Opens a connection to the node whose turn it is, and joins; failing that, tries again later."""
        self.port = self._ports[self._home % len(self._ports)]
        self._books.tries.append(monotonic())
        self._pinged = False
        for follow in self.follows.values():
            follow.request = None
        try:
            async with asyncio.timeout(CONNECT):
                requests = await self.transport.connect(
                    self.port, {name: follow.since() for name, follow in self.follows.items()}
                )
        except Refused as refusal:
            self.refused(refusal)
        except (OSError, TimeoutError) as error:
            self._trouble(f"unreachable {type(error).__name__}")
            self._home += 1
            self._return()
        else:
            for name, request in requests.items():
                self.follows[name].request = request
            if self.leaving:
                self.transport.abort()

    def refused(self, refusal: Refused) -> None:
        """Tries another node, unless the store is away for all."""
        self._leave_channels()
        if refusal.retry_after is not None:
            self._told = refusal.retry_after + self._random.random()
        if UNAVAILABLE in str(refusal):
            self._trouble(f"error {UNAVAILABLE}")
        else:
            self._trouble(f"refused {refusal}")
            self._home += 1
        self._return()

    def gone(self, code: int) -> None:
        """Comes back, unless it is leaving."""
        self._leave_channels()
        if self.leaving:
            return
        if code != RESTARTED:
            self._trouble(f"closed {code}")
        if code == ABNORMAL:  # what a balancer would do: the same node may be gone
            self._home += 1
        self._return()

    def continued(self, *, resumed: bool) -> None:
        """Is in its channels again: a poll goes on where the receipt says."""
        self._failures = 0
        for follow in self.follows.values():
            follow.joined = follow.stretch is not None
        if resumed:
            self._resumed()

    def _leave_channels(self) -> None:
        for follow in self.follows.values():
            follow.joined = False

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
        if not self.transport.is_open:
            return
        silent = now - self.transport.heard
        if silent <= SILENCE:
            self._pinged = False
        elif silent > SILENCE + ANSWER:
            self._trouble("silent")
            self.transport.abort()
        elif not self._pinged:
            self._pinged = True
            self.transport.ping()

    def leave(self) -> None:
        """Goes for good."""
        self.leaving = True
        self.transport.leave()

    def come_back(self) -> None:
        """Returns after `leave` or `abort`."""
        self.leaving = False
        self._spawn(self, 0.0)

    def abort(self) -> None:
        """Goes at once."""
        self.leaving = True
        self.transport.abort()

    # --- messages -----------------------------------------------------------------------------------------------------

    def received(self, frame: bytes) -> None:
        """Does what each message says."""
        now = monotonic()
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
                self._count(self._books.told_by)
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
            self._subscribe(follow, leaves=True)

    def _apply(self, follow: Follow, event: Message, now: float) -> None:
        follow.apply(event)
        self._books.deliveries += 1
        slowest = self._books.slowest_by
        if event.data is not None and now - event.data.at > slowest.get(self.transport.name, 0.0):
            slowest[self.transport.name] = now - event.data.at

    def _subscribed(self, message: Message, now: float) -> None:
        follow = self.follows.get(message.channel)
        if follow is None:
            return
        if message.id is None and follow.joined:
            self._books.pushed += self.transport.is_connection  # a poll gets it for whatever came since the last one
        elif message.id != follow.request or follow.joined:
            return  # the answer to a request that another one has replaced
        self._failures = 0
        if message.recovered is True and self.transport.is_connection:
            self._resumed()
        if message.recovered is False:
            self._trouble("recovered false")
        for event in follow.start(message, now):
            self._apply(follow, event, now)
        follow.move(message.offset or 0, message.last)
        follow.joined = True

    def _error(self, message: Message) -> None:
        self._trouble(f"error {message.code}")
        for name, follow in self.follows.items():
            if message.id == follow.request and message.channel in ("", name) and not follow.joined:
                if message.code == "already_subscribed":
                    self._subscribe(follow, leaves=True)
                elif message.retryable:
                    pause = self._random.uniform(0.05, 2 * BACKOFF)
                    asyncio.get_running_loop().call_later(pause, self._again, follow, message.id, self.transport.wire)

    def _again(self, follow: Follow, request: str | None, wire: object) -> None:
        is_same = wire is not None and self.transport.wire is wire and follow.request == request
        if is_same and not follow.joined and not self.leaving:
            self._subscribe(follow, leaves=False)

    def _unsubscribed(self, message: Message) -> None:
        follow = self.follows.get(message.channel)
        if follow is None or message.id is not None:
            return  # the answer to our own
        self._trouble(f"unsubscribed {message.code}")
        follow.joined = False
        if message.code == "resync":
            self._subscribe(follow, leaves=False)

    def _subscribe(self, follow: Follow, *, leaves: bool) -> None:
        follow.joined = False
        follow.request = self.transport.subscribe(follow.diary.key.channel, follow.since(), leaves=leaves)

    def _resumed(self) -> None:
        self._count(self._books.resumed_by)

    def _count(self, by_transport: dict[str, int]) -> None:
        name = self.transport.name
        by_transport[name] = by_transport.get(name, 0) + 1

    def _trouble(self, what: str) -> None:
        self._books.troubles.append(Trouble(monotonic(), what, self.number, self.transport.name))
