"""Small documents that several nodes change, for presence, tickets and quotas."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from service.adapters.nats.broker import NatsBroker
from service.adapters.nats.connection.jetstream import CONFLICT_BACKOFF, SequenceConflictError, Write
from service.adapters.nats.records import encode, event_record
from service.adapters.nats.subjects import Subjects
from service.adapters.store.errors import unavailable
from service.adapters.store.retry import retry
from service.core.backoff import Backoff
from service.core.event import Publication

MAX_PARALLEL = 64
"""Documents that one call changes at a time."""
EVENT_TTL = 1.0
"""Seconds that NATS stores an event which only has to be delivered. NATS allows no less."""

T = TypeVar("T")
R = TypeVar("R")


class DocumentUpdate(NamedTuple):
    """The new content of a document."""

    data: bytes | None
    """None leaves it unchanged."""
    ttl: float = 0.0
    """Seconds until it expires."""
    events: Sequence[Publication] = ()
    """Ephemeral events that are delivered if, and only if, the document is changed."""


class Documents:
    """Stores each document as one message, and changes it on condition that no other node has changed it meanwhile.

    Uses the broker's connection, so it works from the broker's `start` to its `close`. Every method raises
    ServiceError(BROKER_UNAVAILABLE) if NATS fails.
    """

    def __init__(self, broker: NatsBroker) -> None:
        self._broker = broker
        self.subjects: Subjects = broker.subjects

    async def check(self) -> None:
        """Returns if NATS answers now."""
        await self.read(self.subjects.document("nothing"))

    async def read(self, subject: str) -> bytes | None:
        """Returns a document as it is now; None if there is none."""
        async with self._broker.call():
            message = await self._broker.stream.get_last(subject)
        return None if message is None else message.data

    async def read_all(self, subjects: Sequence[str]) -> Mapping[str, bytes]:
        """Returns the documents that exist; a replica may answer with a slightly older version."""
        async with self._broker.call():
            messages = await self._broker.stream.get_last_of(subjects)
        return {subject: message.data for subject, message in messages.items()}

    async def change(self, subject: str, update: Callable[[bytes | None], tuple[DocumentUpdate, T]]) -> T:
        """Replaces a document by the first part of what `update` returns, and returns the second part.

        `update` is called again if another node has written first.
        """

        async def attempt() -> T:
            message = await self._broker.stream.get_last(subject)
            (data, ttl, events), result = update(None if message is None else message.data)
            if data is None:
                return result
            if len(data) > self._broker.max_bytes:
                raise unavailable("what nodes share of this channel or user has grown too large for NATS")
            writes = [
                Write(self.subjects.document_events(event.channel), encode(event_record(event, event.at)), EVENT_TTL)
                for event in events
            ]
            last_sequence = 0 if message is None else message.sequence
            document = Write(subject, data, ttl, is_rollup=True, last_sequence=last_sequence)
            await self._broker.stream.write([*writes, document])
            return result

        async with self._broker.call():
            return await retry(attempt, Backoff(*CONFLICT_BACKOFF), SequenceConflictError)


async def gather_limited(work: Callable[[T], Awaitable[R]], items: Iterable[T]) -> list[R]:
    """Returns the result of the work for each item, with at most `MAX_PARALLEL` at a time."""
    gate = asyncio.Semaphore(MAX_PARALLEL)

    async def run(item: T) -> R:
        async with gate:
            return await work(item)

    return await asyncio.gather(*map(run, items))
