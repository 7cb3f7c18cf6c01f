"""The in-memory Broker: the guarantee of the port, and its own limits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count

import pytest

from service.adapters.memory.broker import MAX_SWEPT_CHANNELS, SWEEP_INTERVAL, MemoryBroker
from service.adapters.memory.stored_channel import CHANNEL_BYTES, STREAM_ENTRY_BYTES
from service.adapters.memory.stored_state import STATE_ENTRY_BYTES
from service.core.broker import Broker
from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication, Retention
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from tests.contract import broker_machine
from tests.contract.broker_machine import MACHINE_SETTINGS, BrokerMachine
from tests.contract.broker_suite import MANY, MUCH, ROOM, TTL, WINDOW, Publisher, RecordingSink
from tests.contract.values_suite import ValuesSuite, state_of
from tests.support.clock import FakeClock

EMPTY_SECONDS = 60.0
"""`broker.empty_ttl`, as it is without a setting."""


def memory_broker(
    clock: FakeClock,
    *,
    idempotency_window: float = WINDOW,
    idempotency_entries: int = 1_000,
    channels: int = 100,
    max_bytes: int = 10_000_000,
) -> MemoryBroker:
    return MemoryBroker(
        clock,
        idempotency_window=idempotency_window,
        idempotency_entries=idempotency_entries,
        channels=channels,
        max_bytes=max_bytes,
    )


class TestMemoryBroker(ValuesSuite):
    async def open(self, clock: FakeClock) -> Broker:
        return memory_broker(clock)


class RoomyMachine(BrokerMachine):
    """Limits that are never reached."""

    may_forget_empty = True

    async def open(self, clock: FakeClock) -> Broker:
        return memory_broker(clock, idempotency_window=broker_machine.WINDOW)


class FewChannelsMachine(BrokerMachine):
    """Two of four channels fit: those without subscribers evict each other all the time."""

    may_forget = True
    most_subscribed = 1

    async def open(self, clock: FakeClock) -> Broker:
        return memory_broker(clock, idempotency_window=broker_machine.WINDOW, channels=2)


class FewBytesMachine(BrokerMachine):
    """Little more than one full channel fits: others evict each other, or are refused while it has subscribers."""

    may_forget = True
    may_refuse = True

    async def open(self, clock: FakeClock) -> Broker:
        full = CHANNEL_BYTES + 5 * (STREAM_ENTRY_BYTES + 50) + 5 * (STATE_ENTRY_BYTES + 10)
        return memory_broker(clock, idempotency_window=broker_machine.WINDOW, max_bytes=full + CHANNEL_BYTES)


TestRoomy = RoomyMachine.TestCase
TestFewChannels = FewChannelsMachine.TestCase
TestFewBytes = FewBytesMachine.TestCase
TestRoomy.settings = TestFewChannels.settings = TestFewBytes.settings = MACHINE_SETTINGS


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


async def started(broker: MemoryBroker, sink: RecordingSink) -> MemoryBroker:
    await broker.start(sink)
    return broker


@pytest.fixture
async def small(clock: FakeClock, sink: RecordingSink) -> AsyncIterator[MemoryBroker]:
    """Three channels fit."""
    broker = await started(memory_broker(clock, channels=3), sink)
    yield broker
    await broker.close()


def room(n: int) -> ChannelKey:
    return ChannelKey("acme", f"room:{n}")


async def epoch(broker: Broker, channel: ChannelKey) -> str:
    return (await broker.history(channel, None, None, 1)).position.epoch


# --- at most so many channels -----------------------------------------------------------------------------------------


async def test_memory_broker_full_evicts_least_recently_used_channel(small: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(small, clock)
    results = [await publish.durable(room(n)) for n in range(3)]
    await publish.durable(room(0))
    await publish.durable(room(3))  # pushes out room 1
    assert small.stats().channels == 3
    assert small.stats().evicted == 1
    assert await epoch(small, room(0)) == results[0].epoch
    assert await epoch(small, room(2)) == results[2].epoch
    snapshot = await small.snapshot(room(1), Position(results[1].epoch, 1, "m-2"), MANY, MUCH)
    assert snapshot.recovered is False
    assert snapshot.position.epoch != results[1].epoch


async def test_memory_broker_full_keeps_subscribed_channel(
    small: MemoryBroker, sink: RecordingSink, clock: FakeClock
) -> None:
    publish = Publisher(small, clock)
    await small.subscribe(room(0))
    first = await publish.durable(room(0))
    for n in range(1, 50):
        await publish.durable(room(n))
    assert await epoch(small, room(0)) == first.epoch
    await publish.durable(room(0))
    assert len(sink.events) == 2


async def test_memory_broker_empty_channels_are_evicted_before_history(small: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(small, clock)
    kept = [await publish.durable(room(0)), await publish.latest("k", room(1))]
    for n in range(10, 60):
        await small.subscribe(room(n))
        await small.unsubscribe(room(n))
        await small.history(room(n + 100), None, None, 10)
        await small.snapshot(room(n + 200), None, MANY, MUCH)
    assert [await epoch(small, room(n)) for n in (0, 1)] == [result.epoch for result in kept]


async def test_memory_broker_ephemeral_event_creates_no_channel(small: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(small, clock)
    for n in range(10):
        await publish.ephemeral(room(n))
    assert small.stats().channels == 0


async def test_memory_broker_full_of_subscribed_channels_refuses_another(
    small: MemoryBroker, sink: RecordingSink, clock: FakeClock
) -> None:
    publish = Publisher(small, clock)
    for n in range(3):
        await small.subscribe(room(n))
    for refused in (small.subscribe(room(3)), publish.durable(room(3), id="same")):
        with pytest.raises(ServiceError, match="its 3 channels are taken") as full:
            await refused
        assert full.value.code is ErrorCode.BROKER_UNAVAILABLE
        assert full.value.retryable
    await publish.durable(room(0))  # what needs no more room still works
    await small.check()
    await small.unsubscribe(room(1))
    again = await publish.durable(room(3), id="same")
    assert (again.offset, again.duplicate) == (1, False)
    assert small.stats().channels == 3


async def test_memory_broker_retry_after_eviction_is_duplicate(small: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(small, clock)
    first = await publish.durable(room(0), id="same")
    for n in range(1, 4):
        await publish.durable(room(n))
    assert await epoch(small, room(0)) != first.epoch
    again = await publish.durable(room(0), id="same")
    assert (again.epoch, again.offset, again.duplicate) == (first.epoch, 1, True)
    assert not (await small.history(room(0), None, None, 10)).events


# --- at most so many bytes --------------------------------------------------------------------------------------------

BIG = b'"' + b"x" * 9_998 + b'"'
BIG_EVENT = STREAM_ENTRY_BYTES + len(BIG) + len("m-1")
NO_LIMIT = Retention(entries=1_000, ttl=TTL)


@pytest.fixture
async def tight(clock: FakeClock, sink: RecordingSink) -> AsyncIterator[MemoryBroker]:
    """Four big events in three channels fit."""
    broker = await started(memory_broker(clock, max_bytes=4 * BIG_EVENT + 3 * CHANNEL_BYTES + 10), sink)
    yield broker
    await broker.close()


async def test_memory_broker_full_bytes_evict_least_recently_used_channel(
    tight: MemoryBroker, clock: FakeClock
) -> None:
    publish = Publisher(tight, clock)
    results = [await publish.durable(room(n), data=BIG) for n in (0, 0, 1, 2)]
    assert tight.stats().evicted == 0
    await publish.durable(room(1), data=BIG)
    assert tight.stats().evicted == 1
    assert tight.stats().events == 3
    assert await epoch(tight, room(1)) == results[2].epoch
    assert await epoch(tight, room(2)) == results[3].epoch
    assert await epoch(tight, room(0)) != results[0].epoch


async def test_memory_broker_full_bytes_do_not_evict_published_channel(tight: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(tight, clock)
    for _ in range(4):
        await publish.durable(room(0), data=BIG, retention=NO_LIMIT)
    before = tight.stats()
    with pytest.raises(ServiceError) as full:
        await publish.durable(room(0), data=BIG, retention=NO_LIMIT)
    assert full.value.code is ErrorCode.BROKER_UNAVAILABLE
    assert tight.stats() == before
    assert [event.offset for event in (await tight.history(room(0), None, None, 10)).events] == [1, 2, 3, 4]


async def test_memory_broker_full_of_subscribed_bytes_refuses_and_evicts_nothing(
    tight: MemoryBroker, sink: RecordingSink, clock: FakeClock
) -> None:
    publish = Publisher(tight, clock)
    idle = await publish.durable(room(1), data=b"1")
    await tight.subscribe(room(0))
    for _ in range(4):
        await publish.durable(room(0), data=BIG, retention=NO_LIMIT)
    delivered = len(sink.events)
    with pytest.raises(ServiceError, match="bytes are taken by channels that have subscribers") as full:
        await publish.durable(room(0), id="same", data=BIG, retention=NO_LIMIT)
    assert full.value.code is ErrorCode.BROKER_UNAVAILABLE
    assert len(sink.events) == delivered
    assert await epoch(tight, room(1)) == idle.epoch
    await tight.check()

    # A stream at its bound replaces its oldest event, and that needs no room.
    await publish.durable(room(0), data=BIG, retention=Retention(entries=4, ttl=TTL))
    clock.advance(TTL)
    retried = await publish.durable(room(0), id="same", data=BIG, retention=NO_LIMIT)
    assert (retried.offset, retried.duplicate) == (6, False)


async def test_memory_broker_refused_publish_trims_nothing(tight: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(tight, clock)
    await tight.subscribe(room(0))
    for n in range(5):
        await publish.durable(room(0), data=BIG if n else b"1", retention=Retention(entries=5, ttl=TTL))
    await publish.latest("k", room(0), data=b"1")
    for refused in (
        publish.durable(room(0), data=BIG, retention=Retention(entries=5, ttl=TTL)),
        publish.latest("k", room(0), data=BIG),
        publish.latest("l", room(0), data=BIG, retention=Retention(entries=1, ttl=TTL)),
    ):
        with pytest.raises(ServiceError):
            await refused
    assert len((await tight.history(room(0), None, None, 10)).events) == 5
    assert [event.data for event in (await tight.snapshot(room(0), None, MANY, MUCH)).state] == [b"1"]


# --- the idempotency window -------------------------------------------------------------------------------------------


async def test_memory_broker_full_idempotency_cache_evicts_oldest(clock: FakeClock, sink: RecordingSink) -> None:
    broker = await started(memory_broker(clock, idempotency_entries=3), sink)
    publish = Publisher(broker, clock)
    for n in range(4):
        await publish.durable(id=f"r-{n}")
    assert (await publish.durable(id="r-1")).duplicate
    assert not (await publish.durable(id="r-0")).duplicate
    await broker.close()


# --- accounts ---------------------------------------------------------------------------------------------------------


async def test_memory_broker_stats_count_holdings(small: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(small, clock)
    assert small.stats() == type(small.stats())(0, 0, 0, 0, 0)
    await publish.durable(room(0), id="abc", data=b"12345")
    await publish.latest("key", room(0), id="d", data=b"1234567")
    await small.subscribe(room(1))
    stats = small.stats()
    assert (stats.channels, stats.events, stats.state_entries, stats.evicted) == (2, 1, 1, 0)
    assert stats.bytes == 2 * CHANNEL_BYTES + STREAM_ENTRY_BYTES + 3 + 5 + STATE_ENTRY_BYTES + 3 + 1 + 7


async def test_memory_broker_sweep_drops_expired_entries(small: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(small, clock)
    await small.subscribe(room(0))
    await publish.durable(room(0), data=BIG)
    await publish.latest("k", room(1), data=BIG)
    clock.advance(TTL + SWEEP_INTERVAL)
    assert small.stats() == type(small.stats())(2, 0, 0, 2 * CHANNEL_BYTES, 0)


async def test_memory_broker_expired_entries_are_hidden_before_sweep(small: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(small, clock)
    briefly = Retention(entries=10, ttl=SWEEP_INTERVAL / 4)
    await publish.durable(room(0), retention=briefly)
    await publish.latest("k", room(0), retention=briefly)
    clock.advance(SWEEP_INTERVAL / 2)
    assert not await small.list_channels("acme", "", 10)
    await publish.durable(room(0), retention=briefly)
    assert [event.offset for event in (await small.history(room(0), None, None, 10)).events] == [2]
    clock.advance(SWEEP_INTERVAL / 4)
    snapshot = await small.snapshot(room(0), None, MANY, MUCH)
    assert (snapshot.position.offset, list(snapshot.state)) == (2, [])
    assert not (await small.history(room(0), None, None, 10)).events


async def test_memory_broker_sweep_checks_limited_number_of_channels(clock: FakeClock, sink: RecordingSink) -> None:
    broker = await started(memory_broker(clock, channels=10 * MAX_SWEPT_CHANNELS), sink)
    publish = Publisher(broker, clock)
    ticks = 3
    for n in range(ticks * MAX_SWEPT_CHANNELS):
        await publish.durable(room(n), retention=Retention(entries=1, ttl=SWEEP_INTERVAL / 2))
    for left in reversed(range(ticks)):
        clock.advance(SWEEP_INTERVAL)
        assert broker.stats().events == left * MAX_SWEPT_CHANNELS
    await broker.close()


async def test_memory_broker_byte_count_returns_to_zero(clock: FakeClock, sink: RecordingSink) -> None:
    broker = await started(memory_broker(clock, channels=5, max_bytes=60_000), sink)
    publish = Publisher(broker, clock)
    for n, step in zip(range(400), count(), strict=False):
        channel = room(step * 7 % 9)
        if n % 5 == 0 and n % 9 < 3:
            await broker.subscribe(channel)
        if n % 5 == 1:
            await broker.unsubscribe(channel)
        size = n * 37 % 900
        await publish.durable(channel, data=b"x" * size, retention=Retention(entries=1 + n % 4, ttl=TTL))
        await publish.latest(f"k-{n % 3}", channel, data=b"x" * size, retention=Retention(entries=1 + n % 3, ttl=TTL))
        assert broker.stats().channels <= 5
        assert broker.stats().bytes <= 60_000
    clock.advance(TTL + SWEEP_INTERVAL)
    stats = broker.stats()
    assert stats.evicted > 0
    assert (stats.events, stats.state_entries, stats.bytes) == (0, 0, stats.channels * CHANNEL_BYTES)
    await broker.close()


async def test_memory_broker_close_drops_everything(clock: FakeClock, sink: RecordingSink) -> None:
    broker = await started(memory_broker(clock), sink)
    await Publisher(broker, clock).durable()
    assert clock.pending == 1
    await broker.close()
    assert clock.pending == 0
    assert broker.stats() == type(broker.stats())(0, 0, 0, 0, 0)


async def test_memory_broker_wall_clock_jump_expires_nothing(small: MemoryBroker, clock: FakeClock) -> None:
    await Publisher(small, clock).durable()
    clock.jump_wall(10 * TTL)
    assert len((await small.history(ROOM, None, None, 10)).events) == 1


@pytest.mark.parametrize("delivery", [Delivery.DURABLE, Delivery.LATEST])
async def test_memory_broker_publish_without_retention_raises_value_error(
    small: MemoryBroker, delivery: Delivery
) -> None:
    publication = Publication(ROOM, "a.b", "1", delivery, b"1", None, 0, key="k")
    with pytest.raises(ValueError, match="needs a retention"):
        await small.publish(publication)


async def test_memory_broker_epochs_are_random(clock: FakeClock, sink: RecordingSink) -> None:
    broker = await started(memory_broker(clock), sink)
    epochs = {(await broker.snapshot(room(n), None, 0, 0)).position.epoch for n in range(50)}
    await broker.close()
    assert len(epochs) == 50
    assert all(len(epoch) == 16 and int(epoch, 16) >= 0 for epoch in epochs)


async def test_memory_broker_empty_channel_is_forgotten_after_empty_ttl(clock: FakeClock) -> None:
    broker = memory_broker(clock, channels=10_000)
    await broker.start(RecordingSink())
    for number in range(2_000):
        channel = ChannelKey("acme", f"named:{number}")
        await broker.subscribe(channel)
        await broker.snapshot(channel, None, 0, 0)
        await broker.unsubscribe(channel)
    await broker.subscribe(ROOM)
    position = (await broker.snapshot(ROOM, None, 0, 0)).position
    assert broker.stats().channels == 2_001
    assert [info.name for info in await broker.list_channels("acme", "", 10)] == [ROOM.name]
    clock.advance(EMPTY_SECONDS + SWEEP_INTERVAL)
    stats = broker.stats()
    assert (stats.channels, stats.evicted, stats.bytes) == (1, 0, CHANNEL_BYTES)
    assert (await broker.snapshot(ROOM, position, MANY, MUCH)).recovered, "it has a subscriber"
    await broker.close()


async def test_memory_broker_list_channels_follows_contents(clock: FakeClock) -> None:
    broker = memory_broker(clock)
    publish = Publisher(broker, clock)
    await broker.start(RecordingSink())
    rooms = [ChannelKey("acme", name) for name in ("b", "a", "c:1", "c:2")]
    for room in rooms[:3]:
        await publish.durable(room, retention=Retention(5, TTL))
    await broker.subscribe(rooms[3])

    async def listed(prefix: str = "", limit: int = 10) -> list[str]:
        return [info.name for info in await broker.list_channels("acme", prefix, limit)]

    assert await listed() == ["a", "b", "c:1", "c:2"]
    assert await listed("c:", 1) == ["c:1"]
    clock.advance(TTL + 1)
    assert await listed() == ["c:2"]
    await broker.unsubscribe(rooms[3])
    assert await listed() == []
    await publish.durable(rooms[0])
    assert await listed() == ["b"]
    await broker.close()


async def test_memory_values_that_have_ended_free_their_bytes_without_a_read() -> None:
    clock = FakeClock()
    broker = memory_broker(clock)
    await broker.start(RecordingSink())
    publish = Publisher(broker, clock)
    await publish.latest("kept")
    before = broker.stats()
    for _ in range(500):  # more often than values, so that the list of expiries is made anew
        for key in ("a", "b", "c"):
            await publish.latest(key, ttl=5.0)
    assert broker.stats().state_entries == 4
    clock.advance(5.0 + SWEEP_INTERVAL)
    assert broker.stats() == before
    assert [event.key for event in await state_of(broker)] == ["kept"]
    await broker.close()
