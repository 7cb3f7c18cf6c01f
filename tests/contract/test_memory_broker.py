"""The in-memory Broker: the port's contract, and the bounds that are its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count

import pytest

from service.adapters.memory.broker import SWEEP_CHANNELS, SWEEP_SECONDS, MemoryBroker
from service.adapters.memory.channel_store import CHANNEL_BYTES, STATE_ENTRY_BYTES, STREAM_ENTRY_BYTES
from service.core.broker import Broker
from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication, Retention
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from tests.contract import broker_machine
from tests.contract.broker_machine import MACHINE_SETTINGS, BrokerMachine
from tests.contract.broker_suite import KEEP, MANY, MUCH, ROOM, TTL, WINDOW, BrokerSuite, Publisher, RecordingSink
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


class TestMemoryBroker(BrokerSuite):
    async def open(self, clock: FakeClock) -> Broker:
        return memory_broker(clock)


class RoomyMachine(BrokerMachine):
    """Nothing is ever forgotten before its time."""

    may_forget_empty = True

    async def open(self, clock: FakeClock) -> Broker:
        return memory_broker(clock, idempotency_window=broker_machine.WINDOW)


class FewChannelsMachine(BrokerMachine):
    """Two channels of four fit: those without subscribers push each other out all the time."""

    may_forget = True
    most_subscribed = 1

    async def open(self, clock: FakeClock) -> Broker:
        return memory_broker(clock, idempotency_window=broker_machine.WINDOW, channels=2)


class FewBytesMachine(BrokerMachine):
    """One full channel fits, and little more: others push each other out, or are refused while that one has subscribers."""

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


async def test_the_least_recently_used_channel_makes_room_and_comes_back_with_a_new_epoch(
    small: MemoryBroker, clock: FakeClock
) -> None:
    publish = Publisher(small, clock)
    receipts = [await publish.durable(room(n)) for n in range(3)]
    await publish.durable(room(0))
    await publish.durable(room(3))  # pushes out room 1
    assert small.stats().channels == 3
    assert small.stats().evicted == 1
    assert await epoch(small, room(0)) == receipts[0].epoch
    assert await epoch(small, room(2)) == receipts[2].epoch
    snapshot = await small.snapshot(room(1), Position(receipts[1].epoch, 1, "m-2"), MANY, MUCH)
    assert snapshot.recovered is False
    assert snapshot.position.epoch != receipts[1].epoch


async def test_a_channel_with_subscribers_is_never_pushed_out(
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


async def test_making_channels_does_not_push_out_history(small: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(small, clock)
    kept = [await publish.durable(room(0)), await publish.latest("k", room(1))]
    for n in range(10, 60):
        await small.subscribe(room(n))
        await small.unsubscribe(room(n))
        await small.history(room(n + 100), None, None, 10)
        await small.snapshot(room(n + 200), None, MANY, MUCH)
    assert [await epoch(small, room(n)) for n in (0, 1)] == [receipt.epoch for receipt in kept]


async def test_ephemeral_events_make_no_channels(small: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(small, clock)
    for n in range(10):
        await publish.ephemeral(room(n))
    assert small.stats().channels == 0


async def test_when_all_channels_have_subscribers_another_is_refused(
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


async def test_a_retry_after_eviction_does_not_enter_the_new_stream(small: MemoryBroker, clock: FakeClock) -> None:
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


async def test_the_least_recently_used_channel_makes_room_for_bytes(tight: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(tight, clock)
    receipts = [await publish.durable(room(n), data=BIG) for n in (0, 0, 1, 2)]
    assert tight.stats().evicted == 0
    await publish.durable(room(1), data=BIG)
    assert tight.stats().evicted == 1
    assert tight.stats().events == 3
    assert await epoch(tight, room(1)) == receipts[2].epoch
    assert await epoch(tight, room(2)) == receipts[3].epoch
    assert await epoch(tight, room(0)) != receipts[0].epoch


async def test_a_channel_does_not_make_room_for_itself(tight: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(tight, clock)
    for _ in range(4):
        await publish.durable(room(0), data=BIG, retention=NO_LIMIT)
    before = tight.stats()
    with pytest.raises(ServiceError) as full:
        await publish.durable(room(0), data=BIG, retention=NO_LIMIT)
    assert full.value.code is ErrorCode.BROKER_UNAVAILABLE
    assert tight.stats() == before
    assert [event.offset for event in (await tight.history(room(0), None, None, 10)).events] == [1, 2, 3, 4]


async def test_when_subscribers_hold_all_bytes_more_is_refused_and_nothing_given_up_in_vain(
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


async def test_a_refused_publish_trims_nothing(tight: MemoryBroker, clock: FakeClock) -> None:
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


async def test_the_oldest_receipt_is_forgotten_first(clock: FakeClock, sink: RecordingSink) -> None:
    broker = await started(memory_broker(clock, idempotency_entries=3), sink)
    publish = Publisher(broker, clock)
    for n in range(4):
        await publish.durable(id=f"r-{n}")
    assert (await publish.durable(id="r-1")).duplicate
    assert not (await publish.durable(id="r-0")).duplicate
    await broker.close()


# --- accounts ---------------------------------------------------------------------------------------------------------


async def test_stats_tell_what_is_held(small: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(small, clock)
    assert small.stats() == type(small.stats())(0, 0, 0, 0, 0)
    await publish.durable(room(0), id="abc", data=b"12345")
    await publish.latest("key", room(0), id="d", data=b"1234567")
    await small.subscribe(room(1))
    stats = small.stats()
    assert (stats.channels, stats.events, stats.state_entries, stats.evicted) == (2, 1, 1, 0)
    assert stats.bytes == 2 * CHANNEL_BYTES + STREAM_ENTRY_BYTES + 3 + 5 + STATE_ENTRY_BYTES + 3 + 1 + 7


async def test_what_expires_is_let_go_of_without_being_asked_for(small: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(small, clock)
    await small.subscribe(room(0))
    await publish.durable(room(0), data=BIG)
    await publish.latest("k", room(1), data=BIG)
    clock.advance(TTL + SWEEP_SECONDS)
    assert small.stats() == type(small.stats())(2, 0, 0, 2 * CHANNEL_BYTES, 0)


async def test_what_has_expired_is_not_shown_between_two_sweeps(small: MemoryBroker, clock: FakeClock) -> None:
    publish = Publisher(small, clock)
    briefly = Retention(entries=10, ttl=SWEEP_SECONDS / 4)
    await publish.durable(room(0), retention=briefly)
    await publish.latest("k", room(0), retention=briefly)
    clock.advance(SWEEP_SECONDS / 2)
    assert not await small.list_channels("acme", "", 10)
    await publish.durable(room(0), retention=briefly)
    assert [event.offset for event in (await small.history(room(0), None, None, 10)).events] == [2]
    clock.advance(SWEEP_SECONDS / 4)
    snapshot = await small.snapshot(room(0), None, MANY, MUCH)
    assert (snapshot.position.offset, list(snapshot.state)) == (2, [])
    assert not (await small.history(room(0), None, None, 10)).events


async def test_one_sweep_looks_through_a_bounded_number_of_channels(clock: FakeClock, sink: RecordingSink) -> None:
    broker = await started(memory_broker(clock, channels=10 * SWEEP_CHANNELS), sink)
    publish = Publisher(broker, clock)
    ticks = 3
    for n in range(ticks * SWEEP_CHANNELS):
        await publish.durable(room(n), retention=Retention(entries=1, ttl=SWEEP_SECONDS / 2))
    for left in reversed(range(ticks)):
        clock.advance(SWEEP_SECONDS)
        assert broker.stats().events == left * SWEEP_CHANNELS
    await broker.close()


async def test_the_estimate_stays_exact_through_everything(clock: FakeClock, sink: RecordingSink) -> None:
    """Whatever happened, when all is gone nothing is counted but the channels themselves."""
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
    clock.advance(TTL + SWEEP_SECONDS)
    stats = broker.stats()
    assert stats.evicted > 0
    assert (stats.events, stats.state_entries, stats.bytes) == (0, 0, stats.channels * CHANNEL_BYTES)
    await broker.close()


async def test_close_lets_everything_go(clock: FakeClock, sink: RecordingSink) -> None:
    broker = await started(memory_broker(clock), sink)
    await Publisher(broker, clock).durable()
    assert clock.pending == 1
    await broker.close()
    assert clock.pending == 0
    assert broker.stats() == type(broker.stats())(0, 0, 0, 0, 0)


async def test_a_jump_of_the_wall_clock_expires_nothing(small: MemoryBroker, clock: FakeClock) -> None:
    await Publisher(small, clock).durable()
    clock.jump_wall(10 * TTL)
    assert len((await small.history(ROOM, None, None, 10)).events) == 1


@pytest.mark.parametrize("delivery", [Delivery.DURABLE, Delivery.LATEST])
async def test_a_kept_event_without_a_retention_is_the_callers_fault(small: MemoryBroker, delivery: Delivery) -> None:
    publication = Publication(ROOM, "a.b", "1", delivery, b"1", None, 0, key="k")
    with pytest.raises(ValueError, match="needs a retention"):
        await small.publish(publication)


def test_every_stream_gets_an_epoch_of_its_own_at_random(clock: FakeClock) -> None:
    assert KEEP.entries > 0
    broker = memory_broker(clock)
    epochs = {broker._channels.open(room(n), 0.0).epoch for n in range(50)}
    assert len(epochs) == 50
    assert all(len(epoch) == 16 and int(epoch, 16) >= 0 for epoch in epochs)


async def test_channel_that_is_only_named_is_forgotten_after_a_minute(clock: FakeClock) -> None:
    broker = memory_broker(clock, channels=10_000)
    await broker.start(RecordingSink())
    for number in range(2_000):
        channel = ChannelKey("acme", f"named:{number}")
        await broker.subscribe(channel)
        await broker.snapshot(channel, None, 0, 0)
        await broker.unsubscribe(channel)
    await broker.subscribe(ROOM)
    told = (await broker.snapshot(ROOM, None, 0, 0)).position
    assert broker.stats().channels == 2_001
    assert [info.name for info in await broker.list_channels("acme", "", 10)] == [ROOM.name]
    clock.advance(EMPTY_SECONDS + SWEEP_SECONDS)
    stats = broker.stats()
    assert (stats.channels, stats.evicted, stats.bytes) == (1, 0, CHANNEL_BYTES)
    assert (await broker.snapshot(ROOM, told, MANY, MUCH)).recovered, "it has a subscriber"
    await broker.close()


async def test_listing_follows_what_is_there(clock: FakeClock) -> None:
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
