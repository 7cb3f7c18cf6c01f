"""The guarantee of the Broker port (service/core/broker.py) as tests. A subclass opens the broker.

class TestMyBroker(BrokerSuite):
    async def open(self, clock): ...
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from functools import partial
from itertools import count
from typing import ClassVar

import pytest
from msgspec.structs import replace

from service.core.broker import Broker, PublishResult, Snapshot, StreamHead
from service.core.channel import ChannelKey
from service.core.clock import milliseconds
from service.core.event import Delivery, Event, Publication, Retention
from service.core.position import Position
from service.core.removal import is_tombstone, tombstone
from service.errors import ErrorCode, ServiceError
from service.realtime.ids import new_connection_id
from tests.contract.begun import Begun, finish
from tests.support.clock import FakeClock

ROOM = ChannelKey("acme", "room:1")
OTHER_ROOM = ChannelKey("acme", "room:2")
SAME_ROOM_OF_ANOTHER_TENANT = ChannelKey("other", "room:1")

WINDOW = 300.0
"""The idempotency window of the brokers under test, in seconds."""
TTL = 60.0
KEEP = Retention(entries=10, ttl=TTL)
MANY = 1_000
MUCH = 1_000_000


EVENT = Event(ROOM, "chat.message", "m-1", Delivery.DURABLE, b"{}", "ann", 0, offset=1, epoch="e")


class RecordingSink:
    """An EventSink that records its calls."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.interruptions: list[Collection[ChannelKey] | None] = []

    def deliver(self, event: Event) -> None:
        self.events.append(event)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        self.interruptions.append(channels)

    def ids(self, channel: ChannelKey = ROOM) -> list[str]:
        return [event.id for event in self.events if event.channel == channel]


class Publisher:
    """Publishes with the ids m-1, m-2, … unless a test gives one."""

    def __init__(self, broker: Broker, clock: FakeClock) -> None:
        self._broker = broker
        self._clock = clock
        self._ids = count(1)
        self._is_now = False
        """Every second publish does not wait, if the broker need not."""

    async def durable(
        self,
        channel: ChannelKey = ROOM,
        *,
        id: str | None = None,
        data: bytes = b"{}",
        sender: str | None = "ann",
        retention: Retention = KEEP,
    ) -> PublishResult:
        return await self._publish(Delivery.DURABLE, channel, id, "chat.message", data, sender, None, retention)

    async def latest(
        self,
        key: str,
        channel: ChannelKey = ROOM,
        *,
        id: str | None = None,
        type: str = "ticker.price",
        data: bytes = b"{}",
        retention: Retention = KEEP,
        ttl: float | None = None,
        if_version: int | None = None,
    ) -> PublishResult:
        milliseconds = None if ttl is None else round(ttl * 1000)
        return await self._publish(
            Delivery.LATEST, channel, id, type, data, None, key, retention, milliseconds, if_version=if_version
        )

    async def remove(
        self,
        key: str,
        channel: ChannelKey = ROOM,
        *,
        id: str | None = None,
        retention: Retention = KEEP,
        if_version: int | None = None,
    ) -> PublishResult:
        type = "ticker.price"
        return await self._publish(
            Delivery.LATEST, channel, id, type, b"", "ann", key, retention, removed=True, if_version=if_version
        )

    async def ephemeral(
        self, channel: ChannelKey = ROOM, *, id: str | None = None, key: str | None = None
    ) -> PublishResult:
        return await self._publish(Delivery.EPHEMERAL, channel, id, "chat.typing", b"{}", "ann", key, None)

    async def _publish(
        self,
        delivery: Delivery,
        channel: ChannelKey,
        id: str | None,
        type: str,
        data: bytes,
        sender: str | None,
        key: str | None,
        retention: Retention | None,
        ttl: int | None = None,
        *,
        removed: bool = False,
        if_version: int | None = None,
    ) -> PublishResult:
        publication = Publication(
            channel=channel,
            type=type,
            id=id or f"m-{next(self._ids)}",
            delivery=delivery,
            data=data,
            sender=sender,
            at=milliseconds(self._clock),
            key=key,
            retention=retention,
            ttl=ttl,
            removed=removed,
            if_version=if_version,
        )
        self._is_now = not self._is_now
        started = self._broker.start_publish(publication) if self._is_now else None
        if started is None:
            return await self._broker.publish(publication)
        return started if isinstance(started, PublishResult) else await started


def ids(events: object) -> list[str]:
    assert isinstance(events, list | tuple)
    return [event.id for event in events]


class BrokerSuite(ABC):
    """One subclass for each implementation."""

    @abstractmethod
    async def open(self, clock: FakeClock) -> Broker:
        """Returns a broker before `start`, with empty streams and an idempotency window of WINDOW seconds."""

    async def advance(self, clock: FakeClock, seconds: float) -> None:
        """Moves the broker's time."""
        clock.advance(seconds)

    lists_exactly: ClassVar[bool] = True
    """Whether a channel is no longer listed once all its values have ended, also if its state would last longer."""

    async def settled(self, broker: Broker) -> None:  # noqa: B027  # what most brokers have to do: nothing
        """Returns when all accepted events have reached the sink; at once for a synchronous broker."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def sink(self) -> RecordingSink:
        return RecordingSink()

    @pytest.fixture
    async def broker(self, clock: FakeClock, sink: RecordingSink) -> AsyncIterator[Broker]:
        broker = await self.open(clock)
        await broker.start(sink)
        yield broker
        await broker.close()

    @pytest.fixture
    def publish(self, broker: Broker, clock: FakeClock) -> Publisher:
        return Publisher(broker, clock)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def test_check_after_start_succeeds(self, broker: Broker) -> None:
        await broker.check()

    @pytest.mark.parametrize("started", [False, True], ids=["before start", "after close"])
    async def test_every_method_before_start_and_after_close_raises(
        self, clock: FakeClock, sink: RecordingSink, started: bool
    ) -> None:
        broker = await self.open(clock)
        if started:
            await broker.start(sink)
            await broker.close()
        publisher = Publisher(broker, clock)
        calls: list[Callable[[], Awaitable[object]]] = [
            broker.check,
            publisher.durable,
            lambda: publisher.latest("k"),
            publisher.ephemeral,
            lambda: broker.subscribe(ROOM),
            lambda: broker.unsubscribe(ROOM),
            lambda: broker.snapshot(ROOM, None, MANY, MUCH),
            lambda: broker.history(ROOM, None, None, 10),
            lambda: broker.list_channels("acme", "", 10),
            lambda: broker.remove_events(ROOM, [EVENT]),
            lambda: broker.purge(ROOM),
        ]
        for call in calls:
            with pytest.raises(ServiceError) as refused:
                await call()
            assert refused.value.code is ErrorCode.BROKER_UNAVAILABLE
        await broker.close()

    async def test_start_second_call_raises(self, broker: Broker) -> None:
        with pytest.raises(ServiceError):
            await broker.start(RecordingSink())

    # --- publish ------------------------------------------------------------------------------------------------------

    async def test_publish_started_outside_of_task_succeeds(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        calls = [Begun(publish.durable()), Begun(publish.latest("k")), Begun(publish.ephemeral())]
        async with asyncio.timeout(10):
            durable, latest, ephemeral = [await call for call in calls]
        assert (durable.offset, latest.state_version, ephemeral.epoch) == (1, 1, "")
        await self.settled(broker)
        assert sorted(sink.ids()) == ["m-1", "m-2", "m-3"]

    async def test_other_methods_started_outside_of_task_succeed(self, broker: Broker, publish: Publisher) -> None:
        async with asyncio.timeout(10):
            await Begun(broker.subscribe(ROOM))
            first = await publish.durable()
            await publish.durable()
            since = Position(first.epoch, 1, first.id)
            assert ids((await Begun(broker.snapshot(ROOM, since, 10, 1000))).missed) == ["m-2"]
            assert ids((await Begun(broker.history(ROOM, None, None, 1))).events) == ["m-2"]
            [mark] = await Begun(broker.stream_heads([ROOM]))
            assert mark is not None
            assert mark.offset == 2
            assert [info.name for info in await Begun(broker.list_channels(ROOM.tenant, "", 10))] == [ROOM.name]
            await Begun(broker.check())
            await Begun(broker.unsubscribe(ROOM))

    async def test_publish_of_synchronous_broker_has_delivered_on_return(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        for make in (publish.durable, partial(publish.latest, "k"), publish.ephemeral):
            result = await make()
            if not broker.delivers_synchronously:
                await self.settled(broker)
            assert result.id in sink.ids()

    async def test_publish_started_outside_of_task_can_be_abandoned(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        makers = (publish.durable, partial(publish.latest, "k"), publish.ephemeral)
        dropped, cancelled = ([Begun(make()) for make in makers] for _ in range(2))
        for call in (*dropped, *cancelled):
            await call.begun()
        for call in dropped:
            call.close()
        tasks = [asyncio.create_task(finish(call)) for call in cancelled]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks, return_exceptions=True)
            last = await publish.durable(id="last")
        await self.settled(broker)
        offsets = [event.offset for event in sink.events if event.offset is not None]
        assert offsets == list(range(1, (last.offset or 0) + 1))
        assert sink.ids()[-1] == "last"

    async def test_publish_durable_gives_dense_offsets_from_one(self, publish: Publisher) -> None:
        results = [await publish.durable() for _ in range(25)]  # more than are kept
        assert [result.offset for result in results] == list(range(1, 26))
        assert len({result.epoch for result in results}) == 1
        assert all(result.epoch and result.state_version is None and not result.duplicate for result in results)

    async def test_publish_latest_gives_dense_state_versions_and_no_offset(self, publish: Publisher) -> None:
        results = [await publish.latest(key) for key in ("a", "b", "a", "c")]
        assert [result.state_version for result in results] == [1, 2, 3, 4]
        assert all(result.offset is None for result in results)
        assert (await publish.durable()).offset == 1

    async def test_publish_ephemeral_enters_no_stream(self, broker: Broker, publish: Publisher) -> None:
        result = await publish.ephemeral(id="e-1")
        assert result == PublishResult("e-1", epoch="")
        assert (await publish.durable()).offset == 1
        snapshot = await broker.snapshot(ROOM, None, MANY, MUCH)
        assert not snapshot.state
        assert ids((await broker.history(ROOM, None, None, 10)).events) == ["m-1"]

    async def test_publish_in_two_channels_counts_offsets_apart(self, publish: Publisher) -> None:
        first, second = await publish.durable(ROOM), await publish.durable(OTHER_ROOM)
        assert (first.offset, second.offset) == (1, 1)
        assert first.epoch != second.epoch

    async def test_publish_delivers_and_stores_event_unchanged(
        self, broker: Broker, publish: Publisher, sink: RecordingSink, clock: FakeClock
    ) -> None:
        await broker.subscribe(ROOM)
        await publish.durable(id="d", data='{"text":"ä\\u0000"}'.encode(), sender="ann")
        state_version = (await publish.latest("key", id="l", data=b"[1]")).state_version
        await publish.ephemeral(id="e", key="k")
        at = milliseconds(clock)
        epoch = (await broker.snapshot(ROOM, None, MANY, MUCH)).position.epoch
        durable = Event(
            ROOM,
            "chat.message",
            "d",
            Delivery.DURABLE,
            '{"text":"ä\\u0000"}'.encode(),
            "ann",
            at,
            offset=1,
            epoch=epoch,
        )
        latest = Event(
            ROOM,
            "ticker.price",
            "l",
            Delivery.LATEST,
            b"[1]",
            None,
            at,
            state_version=state_version,
            key="key",
            epoch=epoch,
        )
        ephemeral = Event(ROOM, "chat.typing", "e", Delivery.EPHEMERAL, b"{}", "ann", at, key="k")
        await self.settled(broker)
        assert sink.events == [durable, latest, ephemeral]
        assert list((await broker.history(ROOM, None, None, 10)).events) == [durable]
        assert list((await broker.snapshot(ROOM, None, MANY, MUCH)).state) == [latest]

    async def test_publish_with_exclude_delivers_and_stores_it(
        self, broker: Broker, sink: RecordingSink, clock: FakeClock
    ) -> None:
        await broker.subscribe(ROOM)
        exclude = new_connection_id("ann")
        durable = Publication(ROOM, "a.b", "d", Delivery.DURABLE, b"{}", "ann", 1, None, KEEP, exclude=exclude)
        latest = replace(durable, id="l", delivery=Delivery.LATEST, key="k")
        ending = replace(latest, id="t", key="ending", ttl=10_000)
        for publication in (durable, latest, ending, replace(durable, id="e", delivery=Delivery.EPHEMERAL)):
            await broker.publish(publication)
        await broker.publish(replace(durable, id="n", exclude=None))
        await self.settled(broker)
        expected = [("d", exclude), ("l", exclude), ("t", exclude), ("e", exclude), ("n", None)]
        assert [(event.id, event.exclude) for event in sink.events] == expected
        history = (await broker.history(ROOM, None, None, MANY)).events
        assert [(event.id, event.exclude) for event in history] == [("d", exclude), ("n", None)]
        state = (await broker.snapshot(ROOM, None, MANY, MUCH)).state
        assert [(event.id, event.exclude) for event in state] == [("l", exclude), ("t", exclude)]
        assert all(await broker.remove_events(ROOM, history[:1]))
        assert (await broker.history(ROOM, None, None, 2)).events[0].exclude is None
        await self.advance(clock, 10)
        await broker.publish(replace(ending, id="u"))
        assert ids((await broker.snapshot(ROOM, None, MANY, MUCH)).state) == ["l", "u"]

    # --- idempotency --------------------------------------------------------------------------------------------------

    async def test_publish_repeated_id_returns_first_result_and_delivers_nothing(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        first = await publish.durable(id="same", data=b"1")
        await publish.durable()
        again = await publish.durable(id="same", data=b"2")
        assert again == PublishResult("same", first.epoch, first.offset, duplicate=True)
        await self.settled(broker)
        assert sink.ids() == ["same", "m-1"]
        assert (await publish.durable()).offset == 3
        assert [event.data for event in (await broker.history(ROOM, None, 2, 10)).events] == [b"1"]

    async def test_publish_repeated_id_does_not_restore_older_value(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        first = await publish.latest("k", id="same", data=b"1")
        await publish.latest("k", data=b"2")
        again = await publish.latest("k", id="same", data=b"1")
        assert again == PublishResult("same", first.epoch, state_version=first.state_version, duplicate=True)
        assert [event.data for event in (await broker.snapshot(ROOM, None, MANY, MUCH)).state] == [b"2"]
        await self.settled(broker)
        assert len(sink.events) == 2

    async def test_publish_same_id_of_other_tenant_channel_or_sender_is_accepted(self, publish: Publisher) -> None:
        await publish.durable(ROOM, id="same", sender="ann")
        for channel, sender in ((OTHER_ROOM, "ann"), (SAME_ROOM_OF_ANOTHER_TENANT, "ann"), (ROOM, "ben"), (ROOM, None)):
            assert not (await publish.durable(channel, id="same", sender=sender)).duplicate

    async def test_publish_repeated_ephemeral_id_is_accepted(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        await publish.ephemeral(id="same")
        assert not (await publish.ephemeral(id="same")).duplicate
        assert not (await publish.durable(id="same")).duplicate
        await self.settled(broker)
        assert sink.ids() == ["same"] * 3

    async def test_publish_repeated_id_after_window_is_accepted(self, publish: Publisher, clock: FakeClock) -> None:
        await publish.durable(id="same")
        await self.advance(clock, WINDOW - 1)  # long after the event itself has expired
        assert await publish.durable(id="same") == PublishResult(
            "same", (await publish.durable()).epoch, offset=1, duplicate=True
        )
        await self.advance(clock, 1)
        forgotten = await publish.durable(id="same")
        assert (forgotten.offset, forgotten.duplicate) == (3, False)

    async def test_publish_repeated_id_does_not_extend_window(self, publish: Publisher, clock: FakeClock) -> None:
        await publish.durable(id="same")
        await self.advance(clock, WINDOW / 2)
        assert (await publish.durable(id="same")).duplicate
        await self.advance(clock, WINDOW / 2)
        assert not (await publish.durable(id="same")).duplicate

    # --- delivery -----------------------------------------------------------------------------------------------------

    async def test_subscribe_delivers_every_event_in_order_until_unsubscribe(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await publish.durable(id="before")
        await broker.subscribe(ROOM)
        expected = []
        for n in range(30):
            publish_one = (publish.durable, partial(publish.latest, "k"), publish.ephemeral)[n * n % 3 + n % 2]
            expected.append((await publish_one()).id)
        await self.settled(broker)
        await broker.unsubscribe(ROOM)
        await publish.durable(id="after")
        await self.settled(broker)
        assert sink.ids() == expected

    async def test_subscribe_delivers_no_other_channel(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        for channel in (OTHER_ROOM, SAME_ROOM_OF_ANOTHER_TENANT):
            await publish.durable(channel)
            await publish.latest("k", channel)
            await publish.ephemeral(channel)
        await self.settled(broker)
        assert sink.events == []

    async def test_subscribe_twice_delivers_once(self, broker: Broker, publish: Publisher, sink: RecordingSink) -> None:
        await broker.subscribe(ROOM)
        await broker.subscribe(ROOM)
        await publish.durable()
        await self.settled(broker)
        await broker.unsubscribe(ROOM)
        await publish.durable()
        await self.settled(broker)
        assert sink.ids() == ["m-1"]

    async def test_unsubscribe_without_subscription_does_nothing(self, broker: Broker, publish: Publisher) -> None:
        await broker.unsubscribe(ROOM)
        await publish.durable()
        await broker.unsubscribe(ROOM)
        assert (await publish.durable()).offset == 2

    # --- retention ----------------------------------------------------------------------------------------------------

    async def test_history_keeps_newest_entries_of_retention(self, broker: Broker, publish: Publisher) -> None:
        for _ in range(25):
            await publish.durable()
        page = await broker.history(ROOM, None, None, MANY)
        assert [event.offset for event in page.events] == list(range(16, 26))

    async def test_history_events_expire_one_by_one(self, broker: Broker, publish: Publisher, clock: FakeClock) -> None:
        await publish.durable()
        await self.advance(clock, TTL / 2)
        await publish.durable()
        await self.advance(clock, TTL / 2 - 1)
        assert len((await broker.history(ROOM, None, None, MANY)).events) == 2
        await self.advance(clock, 1)
        assert ids((await broker.history(ROOM, None, None, MANY)).events) == ["m-2"]

    async def test_position_outlives_expired_events(self, broker: Broker, publish: Publisher, clock: FakeClock) -> None:
        results = [await publish.durable() for _ in range(3)]
        await self.advance(clock, TTL * 100)
        top = Position(results[0].epoch, 3, "m-3")
        assert await broker.snapshot(ROOM, None, MANY, MUCH) == Snapshot(top, [], (), None, epoch_start=0)
        assert await broker.stream_heads([ROOM]) == [StreamHead(top.epoch, 3, 0)]
        page = await broker.history(ROOM, None, None, MANY)
        assert (page.position, list(page.events), page.has_more) == (top, [], False)
        assert (await publish.durable()).offset == 4

    async def test_history_retention_of_newest_publish_applies_to_all(
        self, broker: Broker, publish: Publisher, clock: FakeClock
    ) -> None:
        for _ in range(5):
            await publish.durable()
        await publish.durable(retention=Retention(entries=2, ttl=10))
        assert ids((await broker.history(ROOM, None, None, MANY)).events) == ["m-5", "m-6"]
        await self.advance(clock, 10)
        assert not (await broker.history(ROOM, None, None, MANY)).events

    async def test_history_with_retention_of_zero_is_empty(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        results = [await publish.durable(retention=Retention(entries=0, ttl=TTL)) for _ in range(2)]
        assert [result.offset for result in results] == [1, 2]
        assert not (await broker.history(ROOM, None, None, MANY)).events
        await self.settled(broker)
        assert sink.ids() == ["m-1", "m-2"]

    async def test_state_is_newest_event_of_every_type_and_key_by_version(
        self, broker: Broker, publish: Publisher
    ) -> None:
        for key in ("a", "b", "a"):
            await publish.latest(key)
        await publish.latest("b", type="ticker.volume")
        state = (await broker.snapshot(ROOM, None, MANY, MUCH)).state
        assert [(event.type, event.key, event.id) for event in state] == [
            ("ticker.price", "b", "m-2"),
            ("ticker.price", "a", "m-3"),
            ("ticker.volume", "b", "m-4"),
        ]

    async def test_state_keeps_newest_keys_of_retention(self, broker: Broker, publish: Publisher) -> None:
        for n in range(12):
            await publish.latest(f"k-{n}")
        await publish.latest("k-2")
        await publish.latest("k-12")
        state = (await broker.snapshot(ROOM, None, MANY, MUCH)).state
        assert [event.key for event in state] == [f"k-{n}" for n in (4, 5, 6, 7, 8, 9, 10, 11, 2, 12)]

    async def test_state_values_expire_one_by_one(self, broker: Broker, publish: Publisher, clock: FakeClock) -> None:
        await publish.latest("a")
        await publish.latest("b")
        await self.advance(clock, TTL / 2)
        renewed = await publish.latest("a")
        await self.advance(clock, TTL / 2)
        state = (await broker.snapshot(ROOM, None, MANY, MUCH)).state
        assert [(event.key, event.id) for event in state] == [("a", "m-3")]
        await self.advance(clock, TTL)
        assert not (await broker.snapshot(ROOM, None, MANY, MUCH)).state
        after = await publish.latest("a")
        assert after.state_version is not None
        assert renewed.state_version is not None
        assert after.state_version > renewed.state_version

    # --- snapshot -----------------------------------------------------------------------------------------------------

    async def test_snapshot_of_new_channel_is_at_offset_zero_of_its_epoch(
        self, broker: Broker, publish: Publisher
    ) -> None:
        snapshot = await broker.snapshot(ROOM, None, MANY, MUCH)
        assert (snapshot.position.offset, snapshot.position.id, snapshot.recovered) == (0, None, None)
        assert (await publish.durable()).epoch == snapshot.position.epoch

    async def test_snapshot_since_position_returns_exactly_missed_events(
        self, broker: Broker, publish: Publisher
    ) -> None:
        start = (await broker.snapshot(ROOM, None, MANY, MUCH)).position
        epoch = start.epoch
        for _ in range(10):
            await publish.durable()
        positions = [start, *(Position(epoch, n, f"m-{n}") for n in range(1, 11))]
        for position in positions:
            snapshot = await broker.snapshot(ROOM, position, MANY, MUCH)
            assert snapshot.recovered is True
            assert snapshot.position == positions[-1]
            assert [event.offset for event in snapshot.missed] == list(range(position.offset + 1, 11))

    async def test_snapshot_since_newest_position_recovers_without_entries(
        self, broker: Broker, publish: Publisher, clock: FakeClock
    ) -> None:
        result = await publish.durable()
        await self.advance(clock, TTL)
        top = Position(result.epoch, 1, result.id)
        snapshot = await broker.snapshot(ROOM, top, MANY, MUCH)
        assert (snapshot.position, list(snapshot.missed), snapshot.recovered) == (top, [], True)

    @pytest.mark.parametrize(
        "doubtful",
        [
            pytest.param({"epoch": "another"}, id="another epoch"),
            pytest.param({"id": "another"}, id="another id there"),
            pytest.param({"id": None}, id="no id"),
            pytest.param({"offset": 26, "id": "m-26"}, id="ahead of the stream"),
            pytest.param({"offset": 25}, id="another id at the top"),
            pytest.param({"offset": 15, "id": "m-15"}, id="its entry trimmed"),
            pytest.param({"offset": 3, "id": "m-3"}, id="events after it trimmed"),
            pytest.param({"offset": 0, "id": None}, id="the beginning, trimmed"),
        ],
    )
    async def test_snapshot_since_position_with_possible_gap_is_not_recovered(
        self, broker: Broker, publish: Publisher, doubtful: dict[str, object]
    ) -> None:
        first = await publish.durable()
        for _ in range(24):
            await publish.durable()
        good: dict[str, object] = {"epoch": first.epoch, "offset": 20, "id": "m-20"}
        assert (await broker.snapshot(ROOM, Position(**good), MANY, MUCH)).recovered is True  # type: ignore[arg-type]  # spelled as changes
        snapshot = await broker.snapshot(ROOM, Position(**(good | doubtful)), MANY, MUCH)  # type: ignore[arg-type]  # the same
        assert (snapshot.recovered, list(snapshot.missed), snapshot.position.offset) == (False, [], 25)

    async def test_snapshot_above_max_events_is_not_recovered(self, broker: Broker, publish: Publisher) -> None:
        first = await publish.durable()
        for _ in range(4):
            await publish.durable()
        since = Position(first.epoch, 2, "m-2")
        assert (await broker.snapshot(ROOM, since, 3, MUCH)).recovered is True
        snapshot = await broker.snapshot(ROOM, since, 2, MUCH)
        assert (snapshot.recovered, list(snapshot.missed)) == (False, [])

    async def test_snapshot_above_max_bytes_is_not_recovered(self, broker: Broker, publish: Publisher) -> None:
        data = b'"' + b"x" * 98 + b'"'
        first = await publish.durable(data=data)
        for _ in range(2):
            await publish.durable(data=data)
        since = Position(first.epoch, 1, "m-1")
        assert (await broker.snapshot(ROOM, since, MANY, 200)).recovered is True
        snapshot = await broker.snapshot(ROOM, since, MANY, 199)
        assert (snapshot.recovered, list(snapshot.missed)) == (False, [])

    @pytest.mark.parametrize(
        ("published", "tail", "expected"),
        [
            pytest.param(0, 3, [], id="nothing published"),
            pytest.param(2, 3, ["m-1", "m-2"], id="fewer than asked for"),
            pytest.param(5, 3, ["m-3", "m-4", "m-5"], id="more than asked for"),
            pytest.param(25, 20, [f"m-{n}" for n in range(16, 26)], id="more than are kept"),
            pytest.param(5, 0, [], id="not asked for"),
        ],
    )
    async def test_snapshot_tail_has_last_kept_events(
        self, broker: Broker, publish: Publisher, published: int, tail: int, expected: list[str]
    ) -> None:
        for _ in range(published):
            await publish.durable()
        await publish.latest("k")
        snapshot = await broker.snapshot(ROOM, None, MANY, MUCH, tail)
        assert (ids(list(snapshot.tail)), snapshot.position.offset) == (expected, published)
        assert (snapshot.recovered, list(snapshot.missed)) == (None, [])

    async def test_snapshot_tail_with_position_has_missed_events_too(self, broker: Broker, publish: Publisher) -> None:
        first = await publish.durable()
        for _ in range(4):
            await publish.durable()
        snapshot = await broker.snapshot(ROOM, Position(first.epoch, 4, "m-4"), MANY, MUCH, 3)
        assert (ids(list(snapshot.missed)), ids(list(snapshot.tail))) == (["m-5"], ["m-3", "m-4", "m-5"])
        snapshot = await broker.snapshot(ROOM, Position("another", 4, "m-4"), MANY, MUCH, 1)
        assert (snapshot.recovered, ids(list(snapshot.tail))) == (False, ["m-5"])

    async def test_snapshot_tail_of_many_large_events_begins_where_bytes_suffice(
        self, broker: Broker, publish: Publisher
    ) -> None:
        many = Retention(entries=200, ttl=TTL)
        data = b'"' + b"x" * 98 + b'"'
        for _ in range(120):
            await publish.durable(data=data, retention=many)
        whole = await broker.snapshot(ROOM, None, MANY, MUCH, 100)
        assert ids(list(whole.tail)) == [f"m-{n}" for n in range(21, 121)]
        assert len((await broker.snapshot(ROOM, None, MANY, 7_000, 100)).tail) == 70
        assert len((await broker.snapshot(ROOM, None, MANY, 200, 100)).tail) == 2
        assert len((await broker.snapshot(ROOM, None, MANY, 199, 100)).tail) == 1
        assert ids(list((await broker.snapshot(ROOM, None, MANY, 1, 100)).tail)) == ["m-120"]

    async def test_snapshot_tail_shows_tombstones_and_no_expired_events(
        self, broker: Broker, publish: Publisher, clock: FakeClock
    ) -> None:
        for _ in range(3):
            await publish.durable()
        kept = (await broker.history(ROOM, None, None, 10)).events
        assert list(await broker.remove_events(ROOM, [kept[2]])) == [True]
        tail = (await broker.snapshot(ROOM, None, MANY, MUCH, 2)).tail
        assert ids(list(tail)) == ["m-2", "m-3"]
        assert [is_tombstone(event) for event in tail] == [False, True]
        await self.advance(clock, TTL)
        assert not (await broker.snapshot(ROOM, None, MANY, MUCH, 2)).tail

    async def test_snapshot_always_has_state(self, broker: Broker, publish: Publisher) -> None:
        last = await publish.durable()
        await publish.latest("k")
        for since in (None, Position(last.epoch, 1, "m-1"), Position("another", 1, "m-1")):
            assert ids((await broker.snapshot(ROOM, since, MANY, MUCH)).state) == ["m-2"]

    async def test_stream_heads_return_heads_and_create_no_channel(
        self, broker: Broker, publish: Publisher, clock: FakeClock
    ) -> None:
        result = await publish.durable()
        for _ in range(2):
            await publish.durable()
            await publish.latest("k")
        other = await publish.latest("k", OTHER_ROOM)
        nobodys = ChannelKey("acme", "room:nobodys")
        expected = [StreamHead(other.epoch, 0, 1), StreamHead("", 0, 0), StreamHead(result.epoch, 3, 2)]
        assert list(await broker.stream_heads([OTHER_ROOM, nobodys, ROOM])) == expected
        assert list(await broker.stream_heads([nobodys])) == [StreamHead("", 0, 0)]
        assert list(await broker.stream_heads([])) == []
        snapshot = await broker.snapshot(ROOM, None, MANY, MUCH)
        assert snapshot.head == expected[2]
        await self.advance(clock, TTL)  # a mark outlives what it counts
        assert (await broker.snapshot(ROOM, None, MANY, MUCH)).head == expected[2]

    # --- history ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("after", "before", "limit", "offsets", "more"),
        [
            (None, None, 3, [18, 19, 20], True),
            (None, None, 10, list(range(11, 21)), False),
            (None, None, 50, list(range(11, 21)), False),
            (None, 15, 2, [13, 14], True),
            (None, 15, 4, [11, 12, 13, 14], False),
            (None, 11, 5, [], False),
            (None, 0, 5, [], False),
            (None, 99, 2, [19, 20], True),
            (15, None, 2, [16, 17], True),
            (15, None, 5, [16, 17, 18, 19, 20], False),
            (20, None, 5, [], False),
            (99, None, 5, [], False),
            (0, None, 3, [11, 12, 13], True),
            (12, 16, 2, [13, 14], True),
            (12, 16, 3, [13, 14, 15], False),
            (12, 13, 3, [], False),
            (16, 12, 3, [], False),
            (0, 99, 50, list(range(11, 21)), False),
        ],
    )
    async def test_history_pages_have_requested_bounds(
        self,
        broker: Broker,
        publish: Publisher,
        after: int | None,
        before: int | None,
        limit: int,
        offsets: list[int],
        more: bool,
    ) -> None:
        first = await publish.durable()
        for _ in range(19):  # 11 to 20 are kept
            await publish.durable()
        page = await broker.history(ROOM, after, before, limit)
        assert ([event.offset for event in page.events], page.has_more) == (offsets, more)
        assert page.position == Position(first.epoch, 20, "m-20")

    async def test_history_of_new_channel_is_empty(self, broker: Broker) -> None:
        page = await broker.history(ROOM, None, None, 10)
        assert (list(page.events), page.has_more, page.position.offset, page.position.id) == ([], False, 0, None)

    # --- channels -----------------------------------------------------------------------------------------------------

    async def test_list_channels_returns_used_channels_by_name(
        self, broker: Broker, publish: Publisher, clock: FakeClock
    ) -> None:
        await publish.latest("k", ChannelKey("acme", "room:c"))
        await broker.subscribe(ChannelKey("acme", "room:b"))
        result = await publish.durable(ChannelKey("acme", "room:a"))
        await publish.durable(ChannelKey("acme", "lobby"))
        await publish.durable(ChannelKey("other", "room:x"))
        await broker.history(ChannelKey("acme", "room:only-read"), None, None, 10)

        listed = await broker.list_channels("acme", "", 10)
        assert [info.name for info in listed] == ["lobby", "room:a", "room:b", "room:c"]
        assert listed[1].position == Position(result.epoch, 1, result.id)
        assert [info.name for info in await broker.list_channels("acme", "room:", 2)] == ["room:a", "room:b"]
        assert [info.name for info in await broker.list_channels("acme", "room:c", 2)] == ["room:c"]
        assert not await broker.list_channels("acme", "nowhere", 10)
        assert not await broker.list_channels("nobody", "", 10)

        await self.advance(clock, TTL)
        assert [info.name for info in await broker.list_channels("acme", "", 10)] == ["room:b"]

    async def test_list_channels_after_a_name_returns_the_next_page(self, broker: Broker, publish: Publisher) -> None:
        for name in ("room:a", "room:b", "room:c", "zoo"):
            await publish.durable(ChannelKey("acme", name))

        async def listed(prefix: str, limit: int, after: str) -> list[str]:
            return [info.name for info in await broker.list_channels("acme", prefix, limit, after)]

        assert await listed("", 2, "room:a") == ["room:b", "room:c"]
        assert await listed("room:", 9, "room:b") == ["room:c"]
        assert await listed("room:", 9, "lobby") == ["room:a", "room:b", "room:c"]
        assert await listed("room:", 9, "zoo") == []

    # --- taking back --------------------------------------------------------------------------------------------------

    async def test_remove_event_leaves_its_tombstone_in_history_and_resumes(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        for _ in range(5):
            await publish.durable(data=b'"secret"')
        kept = list((await broker.history(ROOM, None, None, MANY)).events)
        assert list(await broker.remove_events(ROOM, [kept[1], kept[3]])) == [True, True]
        expected = [kept[0], tombstone(kept[1]), kept[2], tombstone(kept[3]), kept[4]]
        page = await broker.history(ROOM, None, None, MANY)
        assert (list(page.events), page.has_more) == (expected, False)
        assert [event.data for event in page.events if is_tombstone(event)] == [
            b'{"id":"m-2","offset":2}',
            b'{"id":"m-4","offset":4}',
        ]
        assert list((await broker.history(ROOM, 1, None, 2)).events) == expected[1:3]
        assert list((await broker.history(ROOM, None, 5, 2)).events) == expected[2:4]
        for offset in range(6):
            since = Position(kept[0].epoch, offset, f"m-{offset}" if offset else None)
            snapshot = await broker.snapshot(ROOM, since, MANY, MUCH)
            assert (snapshot.recovered, list(snapshot.missed)) == (True, expected[offset:])
        await self.settled(broker)
        assert sink.ids() == ["m-1", "m-2", "m-3", "m-4", "m-5"]
        assert not sink.interruptions
        assert (await publish.durable()).offset == 6

    async def test_remove_event_twice_or_newest_or_oldest_keeps_the_stream(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        for _ in range(3):
            await publish.durable()
        kept = list((await broker.history(ROOM, None, None, MANY)).events)
        for _ in range(2):
            assert list(await broker.remove_events(ROOM, [kept[0], kept[2]])) == [True, True]
        assert (
            list(await broker.remove_events(ROOM, (await broker.history(ROOM, None, None, MANY)).events)) == [True] * 3
        )
        page = await broker.history(ROOM, None, None, MANY)
        assert list(page.events) == list(map(tombstone, kept))
        position = Position(kept[2].epoch, 3, "m-3")
        assert page.position == position
        assert (await broker.snapshot(ROOM, position, MANY, MUCH)).recovered is True
        assert (await publish.durable()).offset == 4
        assert ids((await broker.snapshot(ROOM, Position(kept[0].epoch, 1, "m-1"), MANY, MUCH)).missed) == [
            "m-2",
            "m-3",
            "m-4",
        ]

    async def test_remove_event_that_is_not_kept_is_false(self, broker: Broker, publish: Publisher) -> None:
        for _ in range(12):
            await publish.durable()
        kept = list((await broker.history(ROOM, None, None, MANY)).events)
        gone = [
            replace(kept[0], offset=1, id="m-1"),
            replace(kept[0], id="another"),
            replace(kept[0], offset=13, id="m-13"),
        ]
        assert list(await broker.remove_events(ROOM, gone)) == [False, False, False]
        assert list(await broker.remove_events(OTHER_ROOM, kept[:1])) == [False]
        assert list((await broker.history(ROOM, None, None, MANY)).events) == kept

    async def test_remove_event_repeated_publish_stays_duplicate(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        first = await publish.durable(id="same")
        await publish.durable()
        [event] = (await broker.history(ROOM, None, 2, 1)).events
        await broker.remove_events(ROOM, [event])
        again = await publish.durable(id="same", data=b'"secret"')
        assert again == PublishResult("same", first.epoch, first.offset, duplicate=True)
        await self.settled(broker)
        assert sink.ids() == ["same", "m-1"]

    async def test_remove_events_that_expire_or_are_trimmed_leave_history_whole(
        self, broker: Broker, publish: Publisher, clock: FakeClock
    ) -> None:
        for _ in range(10):
            await publish.durable()
        kept = list((await broker.history(ROOM, None, None, MANY)).events)
        await broker.remove_events(ROOM, [kept[0], kept[1], kept[4]])
        for _ in range(40):
            await publish.durable()
        page = await broker.history(ROOM, None, None, MANY)
        assert [event.offset for event in page.events] == list(range(41, 51))
        await broker.remove_events(ROOM, page.events[:3])
        await self.advance(clock, TTL / 2)
        await publish.durable()
        await self.advance(clock, TTL / 2)
        assert ids((await broker.history(ROOM, None, None, MANY)).events) == ["m-51"]
        await self.advance(clock, TTL)
        assert (await broker.history(ROOM, None, None, MANY)).events in ([], ())

    async def test_purge_drops_history_and_state_in_a_new_epoch(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        for _ in range(2):
            await publish.durable()
            await publish.latest("k")
        last = await publish.durable()
        await publish.latest("k")
        [event, *_] = (await broker.history(ROOM, None, None, MANY)).events
        await broker.remove_events(ROOM, [event])
        await publish.durable(OTHER_ROOM)
        position = await broker.purge(ROOM)
        assert position is not None
        assert (position.offset, position.epoch != last.epoch) == (3, True)
        snapshot = await broker.snapshot(ROOM, Position(last.epoch, 3, last.id), MANY, MUCH)
        assert (snapshot.position, list(snapshot.state), snapshot.recovered) == (position, [], False)
        assert (snapshot.state_version, snapshot.epoch_start) == (3, 3)
        page = await broker.history(ROOM, None, None, MANY)
        assert (list(page.events), page.has_more) == ([], False)
        assert len((await broker.history(OTHER_ROOM, None, None, MANY)).events) == 1
        await self.settled(broker)
        notice = sink.events[-1]
        assert (notice.channel, notice.epoch, notice.offset) == (ROOM, position.epoch, 3)
        after = await publish.durable()
        assert (after.offset, after.epoch) == (4, position.epoch)
        assert (await publish.latest("k")).state_version == 4
        assert ids((await broker.history(ROOM, None, None, MANY)).events) == [after.id]
        assert len((await broker.snapshot(ROOM, None, MANY, MUCH)).state) == 1

    async def test_purge_of_state_only_shows_the_new_epoch(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        await publish.latest("k")
        position = await broker.purge(ROOM)
        assert position is not None
        assert (position.offset, position.id) == (0, None)
        await self.settled(broker)
        assert (sink.events[-1].epoch, sink.events[-1].state_version) == (position.epoch, 1)
        assert [head and head.epoch for head in await broker.stream_heads([ROOM])] == [position.epoch]

    async def test_purge_twice_and_of_empty_channel_does_no_harm(self, broker: Broker, publish: Publisher) -> None:
        assert await broker.purge(ROOM) is None
        await broker.snapshot(ROOM, None, MANY, MUCH)
        assert await broker.purge(ROOM) is None
        await publish.durable()
        first, second = await broker.purge(ROOM), await broker.purge(ROOM)
        assert first is not None
        assert second is not None
        assert first.epoch != second.epoch
        assert (await publish.durable()).offset == 2

    async def test_purge_repeated_publish_stays_duplicate(self, broker: Broker, publish: Publisher) -> None:
        durable, latest = await publish.durable(id="same"), await publish.latest("k", id="value")
        await broker.purge(ROOM)
        assert await publish.durable(id="same") == PublishResult("same", durable.epoch, 1, duplicate=True)
        assert await publish.latest("k", id="value") == PublishResult(
            "value", latest.epoch, state_version=1, duplicate=True
        )
        assert not (await broker.history(ROOM, None, None, MANY)).events

    async def test_purge_history_expires_afterwards(self, broker: Broker, publish: Publisher, clock: FakeClock) -> None:
        await publish.durable()
        await broker.purge(ROOM)
        await publish.durable()
        await publish.latest("k")
        await self.advance(clock, TTL)
        assert not (await broker.history(ROOM, None, None, MANY)).events
        assert not (await broker.snapshot(ROOM, None, MANY, MUCH)).state
        assert not await broker.list_channels("acme", "", MANY)

    # --- tenants ------------------------------------------------------------------------------------------------------

    async def test_tenant_sees_nothing_of_another_tenant(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(SAME_ROOM_OF_ANOTHER_TENANT)
        mine = await publish.durable(ROOM)
        await publish.latest("k", ROOM)
        await publish.ephemeral(ROOM)
        theirs = await broker.snapshot(
            SAME_ROOM_OF_ANOTHER_TENANT, Position(mine.epoch, 0, None), max_events=MANY, max_bytes=MUCH
        )
        assert (theirs.position.offset, list(theirs.state), list(theirs.missed), theirs.recovered) == (0, [], [], False)
        assert theirs.position.epoch != mine.epoch
        assert not (await broker.history(SAME_ROOM_OF_ANOTHER_TENANT, None, None, 10)).events
        await self.settled(broker)
        assert sink.events == []
