"""Writes to queues of webhooks: what happens to an event whose publish takes so long that others may have given it up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import pytest
from msgspec import json

from service.adapters.memory.broker import MemoryBroker
from service.core.broker import PublishResult
from service.core.channel import ChannelKey
from service.core.event import Delivery, Event, Publication, Retention
from service.core.webhooks import Cursor, Entry, EntryType, WebhookEndpoint, WebhookLimits
from service.errors import ErrorCode, ServiceError
from service.realtime.runtime import Runtime
from service.realtime.webhooks.log import WebhookLog
from service.realtime.webhooks.records import ENTRY, INTENT, RESULTS, Target, queue_number
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock
from tests.support.harness import eventually, passes

ROOM = ChannelKey("default", "room:1")
QUEUE = Target("archive", "default").queue(0)


class _Nobody:
    def deliver(self, event: Event) -> None:
        """Ignores it."""

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """Ignores it."""


class Scene:
    """A log with one queue, on a broker of its own."""

    def __init__(self, queue_entries: int) -> None:
        self.clock = FakeClock()
        self.broker = MemoryBroker(
            self.clock, idempotency_window=300, idempotency_entries=1_000, channels=100, max_bytes=10_000_000
        )
        self.runtime = Runtime.create(self.clock, Metrics())
        endpoints = [WebhookEndpoint("archive", frozenset({"default"}))]
        self.log = WebhookLog(
            WebhookLimits(endpoints, queues=1, queue_entries=queue_entries), self.broker, self.runtime
        )

    async def records(self) -> list[tuple[str, dict[str, object]]]:
        """What stands in the queue: types and data."""
        page = await self.broker.history(QUEUE, 0, None, 100)
        return [(event.type, json.decode(event.data)) for event in page.events]

    def event(self, id: str = "m") -> Publication:
        """An event that is about to be published."""
        return Publication(
            ROOM, "chat.message", id, Delivery.DURABLE, b"{}", "ann", 7, retention=Retention(10, 3_600.0)
        )


@asynccontextmanager
async def scene(queue_entries: int = 100) -> AsyncIterator[Scene]:
    made = Scene(queue_entries)
    await made.broker.start(_Nobody())
    try:
        yield made
    finally:
        await made.runtime.tasks.close()
        await made.broker.close()


async def test_results_of_several_events_are_one_record() -> None:
    async with scene() as made:
        for id_ in ("a", "b"):
            reservation = await made.log.reserve("archive", made.event(id_))
            assert reservation is not None
            await reservation.settle(await made.broker.publish(made.event(id_)))
        await passes(made.clock, 1)
        found = await made.records()
        assert [type_ for type_, _ in found] == [INTENT, INTENT, RESULTS]
        results = found[-1][1]["results"]
        assert isinstance(results, list)
        assert [result["number"] for result in results] == [1, 2]


async def test_event_that_may_be_given_up_is_kept_whole_before_its_acknowledgement() -> None:
    async with scene() as made:
        reservation = await made.log.reserve("archive", made.event())
        assert reservation is not None
        made.clock.advance(11)
        await reservation.settle(PublishResult("m", "e", 4))
        [(first, _), (second, whole)] = await made.records()
        assert (first, second) == (INTENT, ENTRY)
        entry = whole["entry"]
        assert isinstance(entry, dict)
        assert (entry["event"]["id"], entry["event"]["offset"]) == ("m", 4)


async def test_frozen_process_is_noticed_by_the_wall_clock_too() -> None:
    async with scene() as made:
        reservation = await made.log.reserve("archive", made.event())
        assert reservation is not None
        made.clock.jump_wall(11)
        await reservation.settle(PublishResult("m", "e", 4))
        assert [type_ for type_, _ in await made.records()] == [INTENT, ENTRY]


async def test_late_event_is_not_acknowledged_if_it_cannot_be_kept() -> None:
    async with scene() as made:
        reservation = await made.log.reserve("archive", made.event())
        assert reservation is not None
        made.clock.advance(11)
        await made.broker.close()
        with pytest.raises(ServiceError) as caught:
            await reservation.settle(PublishResult("m", "e", 4))
        assert caught.value.code is ErrorCode.BROKER_UNAVAILABLE


async def test_entry_with_a_repeated_id_is_kept_once() -> None:
    async with scene() as made:
        entry = Entry("wh_1", EntryType.VACATED.value, 7, channel="room:1")
        for _ in range(2):
            await made.log.tell("archive", "default", "room:1", entry)
        await made.log.tell("archive", "other", "room:1", entry)
        assert [type_ for type_, _ in await made.records()] == [ENTRY]


async def test_full_queue_takes_entries_again_when_the_cursor_has_moved() -> None:
    async with scene(queue_entries=2) as made:
        for number in range(2):
            entry = Entry(f"wh_{number}", EntryType.CONNECTED.value, 7, user="ann")
            await made.log.tell("archive", "default", "ann", entry)
        last = Entry("wh_last", EntryType.CONNECTED.value, 7, user="ann")
        with pytest.raises(ServiceError) as caught:
            await made.log.tell("archive", "default", "ann", last)
        assert (caught.value.code, caught.value.details["endpoint"]) == (ErrorCode.OVERLOADED, "archive")
        state = made.log.state(QUEUE)
        state.cursor = Cursor(state.epoch, 1)
        await made.log.tell("archive", "default", "ann", last)
        assert len(await made.records()) == 3


async def test_last_results_are_written_when_the_log_is_closed() -> None:
    async with scene() as made:
        reservation = await made.log.reserve("archive", made.event())
        assert reservation is not None
        reservation.refuse()
        await passes(made.clock, 1)
        await made.log.close()
        await eventually(lambda: made.log.state(QUEUE).head == 2)


def test_queues_of_channels_are_the_same_on_all_nodes_and_spread() -> None:
    assert queue_number("room:42", 4) == 0
    found = [queue_number(f"room:{number}", 4) for number in range(1_000)]
    assert all(200 < found.count(queue) < 300 for queue in range(4))


def test_channels_of_endpoints_with_other_characters_are_names() -> None:
    targets = [Target(name, "default").queue(0).name for name in ("a b", "a/b", "x" * 256)]
    assert len(set(targets)) == 3
    assert all(len(name) < 100 and " " not in name and "/" not in name for name in targets)
