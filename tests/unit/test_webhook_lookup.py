"""Looking up events without a result: found, certainly not there, or nobody can tell."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from msgspec.structs import replace

from service.adapters.memory.broker import MemoryBroker
from service.core.channel import ChannelKey
from service.core.event import Delivery, Event, Publication, Retention
from service.realtime.webhooks.lookup import MAX_SKEW, PAGE_EVENTS, EventLookup
from service.realtime.webhooks.order import OpenIntent
from service.realtime.webhooks.records import Result, intent_of
from tests.support.clock import FakeClock

ROOM = ChannelKey("t", "room:1")
AT = 1_795_374_000_000
KEPT = Retention(10_000, 3_600.0)


class _Nobody:
    def deliver(self, event: Event) -> None:
        """Ignores it."""

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """Ignores it."""


@asynccontextmanager
async def store() -> AsyncIterator[MemoryBroker]:
    broker = MemoryBroker(
        FakeClock(), idempotency_window=300, idempotency_entries=10_000, channels=100, max_bytes=100_000_000
    )
    await broker.start(_Nobody())
    try:
        yield broker
    finally:
        await broker.close()


def durable(id: str, *, at: int = AT, sender: str = "ann", kept: Retention = KEPT) -> Publication:
    return Publication(ROOM, "chat.message", id, Delivery.DURABLE, b"{}", sender, at, retention=kept)


def latest(id: str, *, at: int = AT, key: str = "red", removed: bool = False) -> Publication:
    data = b"" if removed else b"{}"
    return Publication(ROOM, "score", id, Delivery.LATEST, data, "ann", at, key, KEPT, removed=removed)


async def look_up(broker: MemoryBroker, publication: Publication) -> str:
    """What became of it: its number, `refused` or `lost`."""
    intent = OpenIntent("i", 1, publication.at, intent_of(publication))
    result = await EventLookup(broker).find(ROOM.tenant, intent)
    assert result.intent == "i"
    if result.is_lost:
        return "lost"
    return str(result.number) if result != Result("i") else "refused"


async def test_durable_event_is_found_however_many_came_after_it() -> None:
    async with store() as broker:
        await broker.publish(durable("wanted"))
        for number in range(PAGE_EVENTS + 5):
            await broker.publish(durable(str(number)))
        assert await look_up(broker, durable("wanted")) == "1"


async def test_event_of_another_sender_with_the_same_id_is_another_event() -> None:
    async with store() as broker:
        await broker.publish(durable("same", sender="bob"))
        assert await look_up(broker, durable("same")) == "refused"


async def test_channel_without_events_never_had_it() -> None:
    async with store() as broker:
        assert await look_up(broker, durable("wanted")) == "refused"
        assert await look_up(broker, latest("wanted")) == "refused"


async def test_stream_that_goes_back_long_enough_never_had_it() -> None:
    async with store() as broker:
        kept = Retention(2, 3_600.0)
        await broker.publish(durable("first", at=AT - 3 * MAX_SKEW, kept=kept))
        await broker.publish(durable("old", at=AT - 2 * MAX_SKEW, kept=kept))
        await broker.publish(durable("new", kept=kept))
        assert await look_up(broker, durable("wanted")) == "refused"


async def test_nobody_can_tell_of_a_trimmed_stream() -> None:
    async with store() as broker:
        kept = Retention(2, 3_600.0)
        for number in range(3):
            await broker.publish(durable(str(number), kept=kept))
        assert await look_up(broker, durable("wanted")) == "lost"


async def test_nobody_can_tell_of_a_stream_that_keeps_nothing() -> None:
    async with store() as broker:
        await broker.publish(durable("gone", kept=Retention(0, 3_600.0)))
        assert await look_up(broker, durable("wanted")) == "lost"


async def test_latest_value_is_found_by_its_id() -> None:
    async with store() as broker:
        await broker.publish(latest("other", key="blue"))
        await broker.publish(latest("wanted"))
        assert await look_up(broker, latest("wanted")) == "2"


async def test_older_value_shows_that_it_was_never_replaced() -> None:
    async with store() as broker:
        await broker.publish(latest("old", at=AT - 2 * MAX_SKEW))
        assert await look_up(broker, latest("wanted")) == "refused"
        assert await look_up(broker, latest("wanted", removed=True)) == "refused"


async def test_nobody_can_tell_of_a_value_that_another_has_replaced() -> None:
    async with store() as broker:
        await broker.publish(latest("later", at=AT + 5))
        assert await look_up(broker, latest("wanted")) == "lost"


async def test_removal_is_found_while_it_is_kept() -> None:
    async with store() as broker:
        await broker.publish(latest("value"))
        await broker.publish(latest("wanted", removed=True))
        assert await look_up(broker, latest("wanted", removed=True)) == "2"
        assert await look_up(broker, replace(latest("other", removed=True))) == "lost"
