"""Thousands of clients in one process, and the books they keep about what reaches them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from tests.support.harness import token
from tests.support.wire import Wire, connect

ADDRESSES = tuple(f"127.0.0.{number}" for number in range(2, 10))
"""Where the clients come from: ports are counted by address."""
WAVE = 100
"""Connections that are opened at the same time."""
PATIENCE = 120.0
"""Seconds that any one thing may take with thousands of clients on one core."""


class Message(msgspec.Struct):
    """As much of a message as the books need."""

    type: str
    offset: int | None = None
    code: str | None = None


_one = msgspec.json.Decoder(Message)
_batch = msgspec.json.Decoder(list[Message])


class Member:
    """One client in one room. Knows at every moment what it lacks."""

    __slots__ = ("_books", "code", "missing", "position", "reconnect_told", "room", "wire")

    def __init__(self, room: str, books: Books) -> None:
        self.room = room
        self.position = -1
        """The offset up to which it has seen events or gaps; -1 before it has joined."""
        self.missing: set[int] = set()
        self.wire: Wire | None = None
        self.reconnect_told = False
        self.code: int | None = None
        self._books = books

    def text(self, frame: bytes) -> None:
        """Takes a frame."""
        for message in _batch.decode(frame) if frame[:1] == b"[" else (_one.decode(frame),):
            kind = message.type
            if kind == "talk.line":
                assert message.offset is not None
                self._line(message.offset)
            elif kind == "subscribed":
                assert message.offset is not None
                self.position = message.offset
                self._books.joined()
            elif kind == "reconnect":
                self.reconnect_told = True
            elif kind == "error":
                self._books.refusals[message.code or ""] += 1

    def gone(self, code: int) -> None:
        """Takes the end."""
        self.code = code
        self._books.left()

    def _line(self, offset: int) -> None:
        books = self._books
        if self.code is not None or offset == self.position:
            books.duplicated += 1
        elif offset == self.position + 1:
            self.position = offset
        elif offset > self.position:
            self.missing.update(range(self.position + 1, offset))
            self.position = offset
        elif offset in self.missing:
            self.missing.discard(offset)
            books.reordered += 1
        else:
            books.duplicated += 1
        books.delivered()


@dataclass
class Books:
    """What has happened to all members together."""

    deliveries: int = 0
    duplicated: int = 0
    reordered: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    _present: int = 0
    _awaited: dict[str, tuple[int, asyncio.Event]] = field(default_factory=dict)

    def joined(self) -> None:
        self._present += 1
        self._reached("present", self._present)

    def left(self) -> None:
        self._present -= 1
        if self._present == 0:
            self._reached("gone", 0)

    def delivered(self) -> None:
        self.deliveries += 1
        self._reached("deliveries", self.deliveries)

    def expect(self, what: str, count: int) -> asyncio.Event:
        """The event that is set once there are `count` of them."""
        event = asyncio.Event()
        self._awaited[what] = (count, event)
        return event

    def _reached(self, what: str, count: int) -> None:
        awaited = self._awaited.get(what)
        if awaited is not None and count == awaited[0]:
            awaited[1].set()


class Swarm:
    """Members of rooms, all of one tenant."""

    def __init__(self, port: int, rooms: Sequence[str], each: int) -> None:
        self.books = Books()
        self.members = [Member(room, self.books) for room in rooms for _ in range(each)]
        self._port = port

    async def come(self) -> None:
        """Connects everyone and waits until everyone has joined its room."""
        joined = self.books.expect("present", len(self.members))
        numbered = list(enumerate(self.members))
        async with asyncio.timeout(PATIENCE):
            for start in range(0, len(numbered), WAVE):
                await asyncio.gather(*(self._connect(*pair) for pair in numbered[start : start + WAVE]))
            await joined.wait()

    async def _connect(self, number: int, member: Member) -> None:
        member.wire = await connect(
            self._port,
            member.text,
            member.gone,
            bearer=token(f"user-{number}"),
            source=ADDRESSES[number % len(ADDRESSES)],
        )
        member.wire.send({"type": "ready"}, {"type": "subscribe", "id": "s", "channel": member.room})

    def expect(self, deliveries: int) -> asyncio.Event:
        """The event that is set once so many more events have been delivered, to whomever."""
        return self.books.expect("deliveries", self.books.deliveries + deliveries)

    def lost(self, tops: dict[str, int]) -> int:
        """Durable events up to each room's `tops` that some member has not got."""
        return sum(len(member.missing) + tops[member.room] - member.position for member in self.members)

    def everyone_goes(self) -> asyncio.Event:
        """The event that is set once all connections have ended."""
        return self.books.expect("gone", 0)

    async def leave(self) -> None:
        """Ends every connection and waits until the service has answered."""
        gone = self.everyone_goes()
        for wire in self._wires():
            wire.leave()
        async with asyncio.timeout(PATIENCE):
            await gone.wait()

    def cut(self) -> None:
        """Ends whatever is still connected, for a test that failed."""
        for wire in self._wires():
            wire.abort()

    def _wires(self) -> Iterable[Wire]:
        return [member.wire for member in self.members if member.wire is not None]
