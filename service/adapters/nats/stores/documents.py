"""Small documents that nodes change in turn: beside the broker, what they share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from service.adapters.nats.broker import NatsBroker
from service.adapters.nats.config import Subjects
from service.adapters.nats.connection.jetstream import PAUSES, Conflict, Write
from service.adapters.nats.connection.link import unavailable
from service.adapters.nats.records import encode, entry
from service.core.backoff import Backoff
from service.core.event import Publication

AT_ONCE = 64
"""Documents of one call that are changed side by side."""
EVENT_TTL = 1.0
"""Seconds that NATS keeps an event that has only to be heard: the least that it can."""

T = TypeVar("T")
R = TypeVar("R")


class Draft(NamedTuple):
    """What a document is to become."""

    data: bytes | None
    """None leaves it as it is."""
    ttl: float = 0.0
    """Seconds until it goes by itself."""
    tell: Sequence[Publication] = ()
    """Ephemeral events that are delivered if, and only if, the document is changed."""


class Documents:
    """One message a document, each change on condition that it is still what was read. Uses the broker's connection, so it
    works between the broker's `start` and `close`; raises ServiceError(BROKER_UNAVAILABLE) if it can't."""

    def __init__(self, broker: NatsBroker) -> None:
        self._broker = broker
        self.subjects: Subjects = broker.subjects

    async def check(self) -> None:
        """Returns if NATS answers now."""
        await self.read(self.subjects.apart("nothing"))

    async def read(self, subject: str) -> bytes | None:
        """As it is now; None if there is none."""
        async with self._broker.call():
            kept = await self._broker.stream.last(subject)
        return None if kept is None else kept.data

    async def read_all(self, subjects: Sequence[str]) -> Mapping[str, bytes]:
        """Those that are there, as they are or were a moment ago."""
        async with self._broker.call():
            kept = await self._broker.stream.several(subjects)
        return {subject: one.data for subject, one in kept.items()}

    async def change(self, subject: str, draft: Callable[[bytes | None], tuple[Draft, T]]) -> T:
        """Changes it to what `draft` makes of it, which is asked again if another node comes in between; returns what it says
        beside."""
        backoff = Backoff(*PAUSES)
        async with self._broker.call():
            while True:
                kept = await self._broker.stream.last(subject)
                (data, ttl, tell), result = draft(None if kept is None else kept.data)
                if data is None:
                    return result
                if len(data) > self._broker.most_bytes:
                    raise unavailable("what nodes share of this channel or user has grown too large for NATS")
                told = [Write(self.subjects.told(one.channel), encode(entry(one, one.at)), EVENT_TTL) for one in tell]
                document = Write(subject, data, ttl, only=True, after=0 if kept is None else kept.sequence)
                try:
                    await self._broker.stream.write([*told, document])
                except Conflict:
                    await asyncio.sleep(backoff.next())
                else:
                    return result


async def each(work: Callable[[T], Awaitable[R]], items: Iterable[T]) -> list[R]:
    """What the work comes to for each item, so many side by side."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(item: T) -> R:
        async with gate:
            return await work(item)

    return await asyncio.gather(*map(one, items))
