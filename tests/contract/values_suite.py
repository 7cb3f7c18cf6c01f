"""The guarantee of the Broker port for values that end, as tests. Each broker's class derives from `ValuesSuite`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from service.core.broker import Broker, PublishResult
from service.core.event import Event, Retention
from service.errors import ErrorCode, ServiceError
from tests.contract.broker_suite import MANY, MUCH, OTHER_ROOM, ROOM, TTL, BrokerSuite, Publisher, RecordingSink
from tests.support.clock import FakeClock


async def state_of(broker: Broker) -> list[Event]:
    return list((await broker.snapshot(ROOM, None, MANY, MUCH)).state)


async def conflict(publishing: Awaitable[object]) -> int:
    """Returns the state version that a refused publish reports."""
    with pytest.raises(ServiceError) as refused:
        await publishing
    assert refused.value.code is ErrorCode.CONFLICT
    assert refused.value.details["path"] == "$.if_rev"
    return int(refused.value.details["rev"])


class ValuesSuite(BrokerSuite):
    """The tests of every broker."""

    async def test_value_with_ttl_is_delivered_and_read_with_remaining_milliseconds(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        await publish.latest("a", ttl=20.0)
        await publish.latest("b")
        await self.settled(broker)
        assert [(event.key, event.ttl) for event in sink.events] == [("a", 20_000), ("b", None)]
        ended, kept = await state_of(broker)
        assert ended.ttl is not None
        assert 10_000 < ended.ttl <= 20_000
        assert kept.ttl is None

    async def test_value_with_ttl_is_not_read_after_it(
        self, broker: Broker, publish: Publisher, clock: FakeClock
    ) -> None:
        await publish.latest("a", ttl=20.0)
        await publish.latest("b")
        await publish.latest("c", ttl=50.0)
        await self.advance(clock, 10.0)
        remaining = [event.ttl for event in await state_of(broker) if event.ttl is not None]
        assert [5_000 < ttl <= limit for ttl, limit in zip(remaining, (10_000, 40_000), strict=True)] == [True, True]
        await self.advance(clock, 10.0)
        assert [event.key for event in await state_of(broker)] == ["b", "c"]
        await self.advance(clock, 30.0)
        assert [event.key for event in await state_of(broker)] == ["b"]

    async def test_value_with_ttl_starts_anew_with_each_publish(
        self, broker: Broker, publish: Publisher, clock: FakeClock
    ) -> None:
        await publish.latest("a", ttl=20.0)
        await publish.latest("b", ttl=20.0)
        await publish.latest("c", ttl=20.0)
        await self.advance(clock, 10.0)
        await publish.latest("a", ttl=20.0)
        await publish.latest("b")  # the contract has changed
        await self.advance(clock, 10.0)
        assert [event.key for event in await state_of(broker)] == ["a", "b"]
        await self.advance(clock, 10.0)
        assert [event.key for event in await state_of(broker)] == ["b"]

    async def test_newest_value_that_has_ended_leaves_others_and_the_version(
        self, broker: Broker, publish: Publisher, clock: FakeClock
    ) -> None:
        await publish.latest("a")
        last = await publish.latest("b", ttl=5.0)
        await self.advance(clock, 5.0)
        snapshot = await broker.snapshot(ROOM, None, MANY, MUCH)
        assert [event.key for event in snapshot.state] == ["a"]
        assert snapshot.state_version == last.state_version == 2
        assert (await publish.latest("b", ttl=5.0)).state_version == 3

    async def test_state_that_has_ended_expires_again_after_later_values(
        self, broker: Broker, publish: Publisher, clock: FakeClock
    ) -> None:
        await publish.latest("a", ttl=5.0)
        await self.advance(clock, 5.0)
        assert await state_of(broker) == []
        assert await broker.list_channels("acme", "", MANY) == [] or not self.lists_exactly
        await publish.latest("b")
        assert [info.name for info in await broker.list_channels("acme", "", MANY)] == [ROOM.name]
        await self.advance(clock, TTL)
        assert await state_of(broker) == []

    async def test_ended_values_make_room_for_others(
        self, broker: Broker, publish: Publisher, clock: FakeClock
    ) -> None:
        keep = Retention(entries=3, ttl=TTL)
        await publish.latest("old", retention=keep)
        for key in ("a", "b"):
            await publish.latest(key, ttl=5.0, retention=keep)
        await self.advance(clock, 5.0)
        await publish.latest("c", ttl=5.0, retention=keep)
        assert [event.key for event in await state_of(broker)] == ["old", "c"]

    async def test_repeated_id_of_ended_value_does_not_restore_it(
        self, broker: Broker, publish: Publisher, clock: FakeClock
    ) -> None:
        first = await publish.latest("a", id="v-1", ttl=5.0)
        await self.advance(clock, 5.0)
        again = await publish.latest("a", id="v-1", ttl=5.0)
        assert (again.duplicate, again.state_version) == (True, first.state_version)
        assert await state_of(broker) == []

    # --- removal ------------------------------------------------------------------------------------------------------

    async def test_removal_takes_the_value_out_of_the_state_and_has_a_version(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        for key in ("a", "b"):
            await publish.latest(key)
        removed = await publish.remove("a")
        snapshot = await broker.snapshot(ROOM, None, MANY, MUCH)
        assert [event.key for event in snapshot.state] == ["b"]
        assert (removed.state_version, removed.offset, snapshot.state_version) == (3, None, 3)
        await self.settled(broker)
        last = sink.events[-1]
        assert (last.type, last.key, last.id, last.sender) == ("ticker.price", "a", removed.id, "ann")
        assert (last.removed, last.data, last.state_version, last.epoch) == (True, b"", 3, removed.epoch)
        assert [event.removed for event in sink.events] == [False, False, True]

    async def test_removals_after_a_version_are_read_in_order(self, broker: Broker, publish: Publisher) -> None:
        assert await broker.removed_values(ROOM, 0) == []
        for key in ("a", "b", "c"):
            await publish.latest(key)
        results = [await publish.remove(key) for key in ("b", "a", "never set")]
        await publish.latest("b")
        await publish.remove("elsewhere", OTHER_ROOM)
        found = await broker.removed_values(ROOM, 0)
        assert [(event.key, event.state_version) for event in found] == [("b", 4), ("a", 5), ("never set", 6)] or (
            [(event.key, event.state_version) for event in found] == [("a", 5), ("never set", 6)]
        ), "the removal of a key may be forgotten once the key has a value"
        assert {(event.epoch, event.removed, event.type) for event in found} == {
            (results[0].epoch, True, "ticker.price")
        }
        assert [event.key for event in await broker.removed_values(ROOM, 5)] == ["never set"]
        assert await broker.removed_values(ROOM, 7) == []
        assert [event.key for event in await state_of(broker)] == ["c", "b"]

    async def test_removal_repeated_id_returns_first_result_and_removes_nothing(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        await publish.latest("a")
        first = await publish.remove("a", id="r-1")
        await publish.latest("a")
        again = await publish.remove("a", id="r-1")
        assert (again.duplicate, again.state_version, again.epoch) == (True, first.state_version, first.epoch)
        assert [event.key for event in await state_of(broker)] == ["a"]
        await self.settled(broker)
        assert [event.state_version for event in sink.events] == [1, 2, 3]

    async def test_removal_of_only_value_leaves_a_state_that_expires_again(
        self, broker: Broker, publish: Publisher, clock: FakeClock
    ) -> None:
        await publish.latest("a")
        await publish.remove("a")
        assert await state_of(broker) == []
        assert await broker.list_channels("acme", "", MANY) == [] or not self.lists_exactly
        assert (await publish.latest("b")).state_version == 3
        assert [info.name for info in await broker.list_channels("acme", "", MANY)] == [ROOM.name]
        await self.advance(clock, TTL)
        assert await state_of(broker) == []

    async def test_removals_do_not_push_values_out(self, broker: Broker, publish: Publisher) -> None:
        keep = Retention(entries=3, ttl=TTL)
        await publish.latest("old", retention=keep)
        for number in range(2):
            await publish.latest(f"k-{number}", retention=keep)
            await publish.remove(f"k-{number}", retention=keep)
        assert [event.key for event in await state_of(broker)] == ["old"]
        assert [event.key for event in await broker.removed_values(ROOM, 0)] == ["k-0", "k-1"]

    # --- conditional publishes ------------------------------------------------------------------------------------------

    async def test_conditional_publish_succeeds_only_with_the_present_version(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        assert await conflict(publish.latest("a", if_version=1)) == 0
        assert (await publish.latest("a", if_version=0)).state_version == 1
        assert await conflict(publish.latest("a", if_version=0)) == 1
        assert (await publish.latest("b")).state_version == 2
        assert await conflict(publish.latest("a", if_version=2)) == 1
        assert (await publish.latest("a", if_version=1)).state_version == 3
        assert await conflict(publish.latest("a", if_version=1)) == 3
        assert (await publish.latest("a", type="ticker.volume", if_version=0)).state_version == 4
        await self.settled(broker)
        assert [event.state_version for event in sink.events] == [1, 2, 3, 4]

    async def test_conditional_removal_succeeds_only_with_the_present_version(
        self, broker: Broker, publish: Publisher
    ) -> None:
        await publish.latest("a")
        assert await conflict(publish.remove("a", if_version=7)) == 1
        assert (await publish.remove("a", if_version=1)).state_version == 2
        assert await conflict(publish.latest("a", if_version=1)) == 0
        assert await conflict(publish.latest("a", if_version=2)) == 0
        assert (await publish.latest("a", if_version=0)).state_version == 3

    async def test_value_that_has_ended_counts_as_none(
        self, broker: Broker, publish: Publisher, clock: FakeClock
    ) -> None:
        await publish.latest("a", ttl=5.0)
        await publish.latest("b")
        assert await conflict(publish.latest("a", ttl=5.0, if_version=0)) == 1
        await self.advance(clock, 5.0)
        assert await conflict(publish.latest("a", if_version=1)) == 0
        assert (await publish.latest("a", ttl=5.0, if_version=0)).state_version == 3
        await self.advance(clock, TTL)
        assert await conflict(publish.latest("b", if_version=2)) == 0
        assert (await publish.latest("b", if_version=0)).state_version == 4

    async def test_conditional_publish_repeated_id_returns_first_result(
        self, broker: Broker, publish: Publisher, sink: RecordingSink
    ) -> None:
        await broker.subscribe(ROOM)
        await publish.latest("a")
        first = await publish.latest("a", id="v-1", if_version=1)
        assert await conflict(publish.latest("a", id="v-2", if_version=1)) == 2
        await publish.latest("a")
        for _ in range(2):
            again = await publish.latest("a", id="v-1", if_version=1)
            assert (again.duplicate, again.state_version, again.epoch) == (True, first.state_version, first.epoch)
        # A conflict is not remembered.
        assert (await publish.latest("a", id="v-2", if_version=3)).state_version == 4
        await self.settled(broker)
        assert [event.state_version for event in sink.events] == [1, 2, 3, 4]

    async def test_of_conditional_publishes_at_once_one_succeeds(self, broker: Broker, publish: Publisher) -> None:
        version = 0
        for _ in range(5):
            results = await asyncio.gather(
                *(publish.latest("a", if_version=version) for _ in range(4)),
                *(publish.latest(f"k-{number}") for number in range(3)),
                return_exceptions=True,
            )
            accepted = [result for result in results[:4] if isinstance(result, PublishResult)]
            refused = [result for result in results[:4] if isinstance(result, ServiceError)]
            assert (len(accepted), {error.code for error in refused}) == (1, {ErrorCode.CONFLICT})
            version = accepted[0].state_version or 0
            assert {error.details["rev"] for error in refused} == {version}
            assert all(isinstance(result, PublishResult) for result in results[4:])
