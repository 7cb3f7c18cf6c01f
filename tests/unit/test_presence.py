"""Presence of one node over a store that can be away and can lose what it has: nobody who stays is told to have left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from msgspec import Raw
from structlog.testing import capture_logs

from service.adapters.memory.broker import MemoryBroker
from service.adapters.memory.presence import MemoryPresence
from service.core.channel import ChannelKey
from service.core.event import Event, Publication, accepted_event
from service.core.presence import LeaveEventFactory, PresenceChange, PresenceEntry, PresenceJoin, updated_info
from service.errors import ErrorCode, ServiceError
from service.protocol.messages import PresenceMember
from service.realtime.presence.events import JOINED, LEFT
from service.realtime.presence.lease import RETRY_INTERVAL
from service.realtime.presence.presence import Presence
from service.realtime.runtime import Runtime
from service.telemetry.metrics import Metrics
from tests.contract.presence_suite import event
from tests.support.clock import FakeClock
from tests.support.exported import exported

ROOM = ChannelKey("acme", "room:1")
DEBOUNCE, TTL = 5.0, 30.0


class Store(MemoryPresence):
    """As in memory, but it can be away, can lose everything, can answer late, and says when it swept."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(self._tell, max_announced_users=10)
        self.clock = clock
        self.events: list[tuple[str, str | None]] = []
        self.published: list[Publication] = []
        self.away = False
        self.sweeps: list[float] = []
        self.renewed: list[PresenceEntry] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.update_gate = asyncio.Event()
        self.update_gate.set()
        self.waiting = asyncio.Event()
        """Set when an update has reached its gate."""

    async def _tell(self, event: Publication) -> None:
        self.events.append((event.type, event.sender))
        self.published.append(event)

    def story(self) -> list[tuple[str, str | None]]:
        events = list(self.events)
        self.events.clear()
        return events

    def lose(self) -> None:
        self._channels.clear()

    def _there(self) -> None:
        if self.away:
            raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "away")

    async def join(self, entrance: PresenceJoin) -> PresenceChange:
        self._there()
        return await super().join(entrance)

    async def update(self, entrance: PresenceJoin) -> PresenceChange | None:
        self._there()
        self.waiting.set()
        await self.update_gate.wait()
        return await super().update(entrance)

    async def leave(self, entry: PresenceEntry, left: Publication) -> PresenceChange:
        self._there()
        await self.gate.wait()
        return await super().leave(entry, left)

    async def renew(self, entries: Sequence[PresenceEntry]) -> Sequence[PresenceEntry]:
        self._there()
        self.renewed = list(entries)
        return await super().renew(entries)

    async def remove_expired(
        self, channels: Sequence[ChannelKey], leave_event: LeaveEventFactory
    ) -> Sequence[tuple[ChannelKey, PresenceChange]]:
        self._there()
        assert list(channels) == [ROOM]
        self.sweeps.append(self.clock.monotonic())
        return ()


class Stage:
    """One node, its time and its store."""

    def __init__(self, store: Store | None = None) -> None:
        self.clock = FakeClock()
        self.store = Store(self.clock) if store is None else store
        self.metrics = Metrics()
        self.delivered: list[tuple[str, str | None]] = []
        self.runtime = Runtime.create(self.clock, self.metrics)
        broker = MemoryBroker(self.clock, idempotency_window=1, idempotency_entries=1, channels=1, max_bytes=10_000)
        self.presence = Presence(
            self.store,
            broker,
            self.runtime,
            lambda: [ROOM],
            self.deliver,
            debounce=DEBOUNCE,
            max_members=10,
            ttl=TTL,
            is_shared=True,
        )
        self.presence.start()

    def deliver(self, event: Event) -> None:
        """The relay: presence observes all that goes out."""
        self.presence.observe(event)
        self.delivered.append((event.type, event.key))

    def hear(self) -> None:
        """The broker delivers what was published."""
        for kind, user in self.store.story():
            told = event(kind, ROOM, str(user))
            self.presence.observe(Event(told.channel, told.type, told.id, told.delivery, told.data, user, 0, key=user))

    async def join(self, *users: str) -> None:
        for user in users:
            await self.presence.join(ROOM, user, f"c-{user}", None)

    def leave(self, user: str) -> None:
        self.presence.leave(ROOM, user, f"c-{user}")

    async def pass_time(self, seconds: float) -> None:
        """Moves time in steps of half a second, and lets tasks end between two steps."""
        for _ in range(round(seconds * 2)):
            self.clock.advance(0.5)
            await self.rest()

    async def rest(self) -> None:
        """Waits until no task runs."""
        while running := self.runtime.tasks.running:
            await asyncio.wait(running)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    stage.presence.close()
    await stage.runtime.tasks.close()
    assert stage.clock.pending == 0
    assert not stage.metrics.process.supervised_task_deaths.children


@pytest.fixture
async def other(stage: Stage) -> AsyncIterator[Stage]:
    """Another node with the same store."""
    other = Stage(stage.store)
    yield other
    other.presence.close()
    await other.runtime.tasks.close()


async def test_leave_is_published_after_the_debounce_unless_the_user_returns(stage: Stage) -> None:
    await stage.join("ann", "ben")
    stage.leave("ann")
    stage.leave("ben")
    await stage.pass_time(DEBOUNCE - 0.5)
    await stage.join("ben")
    assert stage.store.story() == [(JOINED, "ann"), (JOINED, "ben")]
    await stage.pass_time(1)
    assert stage.store.story() == [(LEFT, "ann")]
    await stage.pass_time(2 * TTL)
    assert stage.store.story() == []


async def test_renewal_covers_entries_until_they_leave(stage: Stage) -> None:
    await stage.join("ann", "ben")
    stage.leave("ben")
    await stage.pass_time(TTL / 3)
    assert stage.store.renewed == [PresenceEntry(ROOM, "ann", "c-ann")]
    assert stage.store.story()[-1] == (LEFT, "ben")


async def test_leave_is_repeated_after_the_store_was_away(stage: Stage) -> None:
    await stage.join("ann")
    stage.leave("ann")
    stage.store.away = True
    await stage.pass_time(DEBOUNCE + 1)
    assert await stage.store.count(ROOM) == 1
    stage.store.away = False
    await stage.pass_time(RETRY_INTERVAL + TTL / 6)
    assert stage.store.story() == [(JOINED, "ann"), (LEFT, "ann")]


async def test_interruption_adds_lost_entries_again_at_once(stage: Stage) -> None:
    await stage.join("ann", "ben")
    await stage.pass_time(1)
    stage.store.lose()
    stage.presence.interrupted(None)
    await stage.pass_time(RETRY_INTERVAL)
    assert await stage.store.count(ROOM) == 2
    assert stage.store.story() == [(JOINED, "ann"), (JOINED, "ben")] * 2
    assert exported(stage.metrics, "presence_reentered_total") == 2


async def test_entries_lost_during_an_outage_are_added_again_after_it(stage: Stage) -> None:
    await stage.join("ann")
    stage.store.away = True
    await stage.pass_time(60)
    stage.store.lose()
    stage.store.away = False
    await stage.pass_time(RETRY_INTERVAL)
    assert stage.store.story() == [(JOINED, "ann")] * 2


async def test_repeated_interruptions_cause_one_check_a_second(stage: Stage) -> None:
    await stage.join("ann")
    checks = 0
    for _ in range(40):
        stage.store.renewed = []
        stage.presence.interrupted(None)
        await stage.pass_time(0.5)
        checks += bool(stage.store.renewed)
    assert 15 <= checks <= 21


async def test_expired_entries_are_kept_for_a_ttl_after_an_outage(stage: Stage) -> None:
    await stage.pass_time(20)
    assert len(stage.store.sweeps) == 4
    stage.store.away = True
    await stage.pass_time(TTL / 2 + 1)
    stage.store.away = False
    back = stage.clock.monotonic()
    del stage.store.sweeps[:]
    await stage.pass_time(2 * TTL)
    assert back + TTL <= stage.store.sweeps[0] <= back + TTL + TTL / 6 + RETRY_INTERVAL


async def test_node_that_was_suspended_removes_no_entries(stage: Stage) -> None:
    """Its own entries have expired by then."""
    await stage.pass_time(20)
    del stage.store.sweeps[:]
    stage.clock.advance(2 * TTL)  # timers that fell due run after it
    await stage.rest()
    assert stage.store.sweeps == []


async def test_short_outage_does_not_delay_removal_of_expired_entries(stage: Stage) -> None:
    await stage.pass_time(20)
    stage.store.away = True
    await stage.pass_time(TTL / 6)
    stage.store.away = False
    del stage.store.sweeps[:]
    await stage.pass_time(TTL / 3)
    assert stage.store.sweeps


async def test_leave_after_data_loss_waits_until_other_nodes_have_renewed(stage: Stage) -> None:
    await stage.join("ann")
    await stage.pass_time(1)
    stage.store.lose()
    stage.presence.interrupted(None)
    await stage.pass_time(RETRY_INTERVAL)
    stage.leave("ann")
    await stage.pass_time(DEBOUNCE + 1)
    # The user has another connection, on a node that renews later.
    await MemoryPresence.join(
        stage.store, PresenceJoin(PresenceEntry(ROOM, "ann", "elsewhere"), None, event(JOINED, ROOM, "ann"))
    )
    await stage.pass_time(TTL)
    assert stage.store.story() == [(JOINED, "ann")] * 2
    assert (await stage.store.members(ROOM, 1))[1][0].connections == 1


async def test_leave_during_a_renewal_does_not_count_as_a_loss(stage: Stage) -> None:
    await stage.join("ann", "ben")
    stage.leave("ben")
    await stage.pass_time(DEBOUNCE - 0.5)
    stage.store.gate.clear()
    stage.clock.advance(0.5)  # ben's leave is on its way
    await asyncio.sleep(0)
    await MemoryPresence.leave(stage.store, PresenceEntry(ROOM, "ben", "c-ben"), _left("ben"))  # and has arrived
    stage.clock.advance(TTL / 3)
    await asyncio.sleep(0)
    stage.store.gate.set()
    await stage.rest()
    assert exported(stage.metrics, "presence_reentered_total") == 0
    assert stage.store.sweeps


def _left(user: str) -> Publication:
    return event(LEFT, ROOM, user)


async def test_join_waits_for_the_leave_before_it(stage: Stage) -> None:
    await stage.join("ann")
    stage.leave("ann")
    stage.store.gate.clear()
    stage.clock.advance(DEBOUNCE)
    await asyncio.sleep(0)
    back = asyncio.create_task(stage.presence.join(ROOM, "ann", "c-ann", None))
    await asyncio.sleep(0)
    stage.store.gate.set()
    await back
    assert await stage.store.count(ROOM) == 1
    assert stage.store.story() == [(JOINED, "ann"), (LEFT, "ann"), (JOINED, "ann")]
    await stage.pass_time(TTL)
    assert stage.store.renewed == [PresenceEntry(ROOM, "ann", "c-ann")]


async def test_failed_join_is_not_renewed_and_still_left(stage: Stage) -> None:
    stage.store.away = True
    with pytest.raises(ServiceError):
        await stage.join("ann")
    stage.leave("ann")
    stage.store.away = False
    # It may have happened all the same.
    await MemoryPresence.join(stage.store, PresenceJoin(PresenceEntry(ROOM, "ann", "c-ann"), None, _left("ann")))
    stage.store.story()
    await stage.pass_time(DEBOUNCE)
    assert stage.store.story() == [(LEFT, "ann")]
    assert exported(stage.metrics, "presence_reentered_total") == 0


async def test_leave_during_a_drain_lets_the_entry_expire(stage: Stage) -> None:
    await stage.join("ann", "ben", "eve")
    stage.leave("eve")
    stage.presence.drain()
    stage.leave("ann")
    await stage.pass_time(TTL)
    assert stage.store.renewed == [PresenceEntry(ROOM, "ben", "c-ben")]
    assert stage.store.story()[3:] == [(LEFT, "eve")], "who left before it has left"


async def test_users_missed_in_an_interruption_are_delivered_afterwards(stage: Stage) -> None:
    await stage.join("ann", "ben")
    await stage.presence.view(ROOM)
    stage.hear()
    await stage.join("eve")
    stage.leave("ben")
    await stage.pass_time(DEBOUNCE)
    assert stage.store.story() == [(JOINED, "eve"), (LEFT, "ben")], "which nobody here has heard"
    stage.presence.interrupted([ROOM])
    await stage.pass_time(RETRY_INTERVAL)
    assert sorted(stage.delivered) == [(JOINED, "eve"), (LEFT, "ben")]
    del stage.delivered[:]
    stage.presence.interrupted([ROOM])
    await stage.pass_time(RETRY_INTERVAL)
    assert stage.delivered == [], "they know by now"


async def test_info_missed_in_an_interruption_is_delivered_afterwards(stage: Stage) -> None:
    await stage.join("ann", "ben")
    await stage.presence.view(ROOM)
    stage.hear()
    await stage.presence.update(ROOM, "ben", "c-ben", b'{"n":2}')
    assert stage.store.story() == [(JOINED, "ben")], "which nobody here has heard"
    for told in ([(JOINED, "ben")], []):
        stage.presence.interrupted([ROOM])
        await stage.pass_time(RETRY_INTERVAL)
        assert stage.delivered == told
        del stage.delivered[:]


async def test_info_update_is_repeated_after_an_outage(stage: Stage) -> None:
    await stage.join("ann", "ben")
    stage.store.away = True
    await stage.presence.update(ROOM, "ann", "c-ann", b'{"n":1}')
    await stage.presence.update(ROOM, "ann", "c-ann", b'{"n":2}')
    await stage.presence.update(ROOM, "ben", "c-ben", b"{}")
    stage.leave("ben")
    await stage.pass_time(RETRY_INTERVAL)
    stage.store.story()
    stage.store.away = False
    await stage.pass_time(TTL / 6 + RETRY_INTERVAL)
    assert stage.store.story()[0] == (JOINED, "ann")
    assert (await stage.store.members(ROOM, 1))[1][0].info == b'{"n":2}'
    await stage.pass_time(TTL)
    assert (JOINED, "ann") not in stage.store.story(), "once"


async def test_lost_entry_is_added_again_with_its_present_info(stage: Stage) -> None:
    await stage.join("ann")
    await stage.presence.update(ROOM, "ann", "c-ann", b"{}")
    stage.store.lose()
    stage.presence.interrupted(None)
    await stage.pass_time(RETRY_INTERVAL)
    assert (await stage.store.members(ROOM, 1))[1][0].info == b"{}"


async def test_reconciliation_waits_until_other_nodes_have_renewed(stage: Stage) -> None:
    await stage.join("ann")
    await MemoryPresence.join(
        stage.store, PresenceJoin(PresenceEntry(ROOM, "ben", "elsewhere"), None, event(JOINED, ROOM, "ben"))
    )
    await MemoryPresence.join(
        stage.store, PresenceJoin(PresenceEntry(ROOM, "eve", "killed"), None, event(JOINED, ROOM, "eve"))
    )
    stage.hear()
    stage.store.lose()
    stage.presence.interrupted(None)
    await stage.pass_time(RETRY_INTERVAL)
    stage.hear()
    assert stage.delivered == []
    await MemoryPresence.join(
        stage.store, PresenceJoin(PresenceEntry(ROOM, "ben", "elsewhere"), None, event(JOINED, ROOM, "ben"))
    )
    stage.hear()
    await stage.pass_time(TTL / 3 + TTL / 6)
    assert stage.delivered == [(LEFT, "eve")]


async def test_user_who_joins_during_reconciliation_is_not_reported_as_left(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.join("ann")
    stage.hear()
    members = stage.store.members

    async def slowly(channel: ChannelKey, limit: int) -> Any:
        found = await members(channel, limit)
        await stage.join("ben")
        stage.hear()
        return found

    monkeypatch.setattr(Store, "members", staticmethod(slowly))
    stage.presence.interrupted([ROOM])
    await stage.pass_time(RETRY_INTERVAL)
    assert stage.delivered == []


@pytest.mark.parametrize("users", [(), ("ann",)], ids=["nothing to renew", "something to renew"])
async def test_outage_of_the_store_is_logged_once_with_its_end(stage: Stage, users: tuple[str, ...]) -> None:
    await stage.join(*users)
    with capture_logs() as logs:
        stage.store.away = True
        await stage.pass_time(30)
        stage.store.away = False
        await stage.pass_time(30)
    told = [(entry["event"], entry.get("entries")) for entry in logs if "renewal" in entry["event"]]
    assert told == [("presence_renewal_failed", len(users)), ("presence_renewal_recovered", len(users))]
    assert all(entry["seconds"] >= 15 for entry in logs if entry["event"] == "presence_renewal_recovered")


class TestUpdates:
    """The info that clients have set."""

    BUSY, FREE = updated_info(b'{"s":"busy"}'), updated_info(b'{"s":"free"}')

    @staticmethod
    async def join(node: Stage, connection: str, info: bytes | None = None) -> None:
        await node.presence.join(ROOM, "ann", connection, info, is_updatable=True)

    @staticmethod
    def hear(*nodes: Stage) -> None:
        """Each node gets what the others have published, too."""
        events = [accepted_event(one) for node in nodes for one in node.store.published]
        for node in nodes:
            node.store.published.clear()
            for one in events:
                node.presence.observe(one)

    @staticmethod
    async def info(store: Store) -> bytes | None:
        _, [member] = await store.members(ROOM, 10)
        return member.info

    async def test_update_while_the_store_is_away_is_postponed(self, stage: Stage) -> None:
        await self.join(stage, "c-1")
        stage.store.away = True
        await stage.presence.update(ROOM, "ann", "c-1", self.BUSY)
        await stage.presence.update(ROOM, "ann", "c-1", self.FREE)
        stage.store.away = False
        assert await self.info(stage.store) is None
        await stage.pass_time(TTL)
        assert await self.info(stage.store) == self.FREE
        assert stage.store.story() == [(JOINED, "ann")] * 2

    async def test_postponed_updates_of_two_connections_keep_their_order(self, stage: Stage) -> None:
        for connection in ("c-1", "c-2"):
            await self.join(stage, connection)
        stage.store.away = True
        for connection, info in (("c-1", b"1"), ("c-2", b"2"), ("c-1", b"3")):
            await stage.presence.update(ROOM, "ann", connection, updated_info(info))
        stage.store.away = False
        await stage.pass_time(TTL)
        assert await self.info(stage.store) == updated_info(b"3")

    async def test_update_of_a_lost_entry_is_restored_with_it(self, stage: Stage) -> None:
        await self.join(stage, "c-1", b'{"n":1}')
        await stage.presence.update(ROOM, "ann", "c-1", self.BUSY)
        stage.store.lose()
        await stage.pass_time(TTL)
        assert await self.info(stage.store) == self.BUSY

    async def test_info_is_restored_by_the_node_that_did_not_set_it(self, stage: Stage, other: Stage) -> None:
        await self.join(stage, "c-1", b'{"n":1}')
        await self.join(other, "c-2", b'{"n":2}')
        await stage.presence.update(ROOM, "ann", "c-1", self.BUSY)
        await other.presence.update(ROOM, "ann", "c-2", self.FREE)
        self.hear(stage, other)
        other.presence.close()  # as if the node had died
        stage.store.lose()
        await stage.pass_time(TTL)
        assert await self.info(stage.store) == self.FREE

    async def test_info_in_the_list_of_members_is_restored(self, stage: Stage, other: Stage) -> None:
        await self.join(stage, "c-1")
        await stage.presence.update(ROOM, "ann", "c-1", self.BUSY)
        await self.join(other, "c-2", b'{"n":2}')
        view = await other.presence.view(ROOM)
        assert view.members == [PresenceMember("ann", 2, Raw(b'{"s":"busy"}'), updated=True)]
        stage.presence.close()
        other.store.lose()
        await other.pass_time(TTL)
        assert await self.info(other.store) == self.BUSY

    async def test_same_token_again_keeps_the_info_of_the_client(self, stage: Stage) -> None:
        await self.join(stage, "c-1", b'{"n":1}')
        await stage.presence.update(ROOM, "ann", "c-1", self.BUSY)
        await stage.presence.replace_token(ROOM, "ann", "c-1", b'{"n":1}')
        assert await self.info(stage.store) == self.BUSY
        await stage.presence.replace_token(ROOM, "ann", "c-1", b'{"n":2}')
        assert await self.info(stage.store) == b'{"n":2}'

    async def test_update_of_two_calls_at_a_time_ends_with_the_newer(self, stage: Stage) -> None:
        await self.join(stage, "c-1")
        late = asyncio.Event()
        stage.store.update_gate, open_gate = late, stage.store.update_gate
        older = asyncio.ensure_future(stage.presence.update(ROOM, "ann", "c-1", self.BUSY))
        await stage.store.waiting.wait()
        stage.store.update_gate = open_gate
        await stage.presence.update(ROOM, "ann", "c-1", self.FREE)
        late.set()  # the older call arrives last
        await older
        assert await self.info(stage.store) == self.FREE

    async def test_update_at_once_needs_the_store_and_an_entry_of_any_node(self, stage: Stage, other: Stage) -> None:
        await self.join(stage, "c-1")
        for node, info in ((other, self.BUSY), (stage, self.FREE)):
            assert await node.presence.update_at_once(ROOM, "ann", "c-1", info)
            assert await self.info(stage.store) == info
        assert not await other.presence.update_at_once(ROOM, "ann", "c-9", self.BUSY)
        stage.store.away = True
        for node in (stage, other):
            with pytest.raises(ServiceError):
                await node.presence.update_at_once(ROOM, "ann", "c-1", self.BUSY)
        stage.store.away = False
        stage.store.lose()
        assert not await other.presence.update_at_once(ROOM, "ann", "c-1", self.BUSY)
        assert await stage.presence.update_at_once(ROOM, "ann", "c-1", self.BUSY)  # restored with the entry
        await stage.pass_time(TTL)
        assert await self.info(stage.store) == self.BUSY

    async def test_reconciler_tells_the_missed_info_once(self, stage: Stage) -> None:
        await self.join(stage, "c-1")
        await stage.presence.view(ROOM)
        await stage.presence.update(ROOM, "ann", "c-1", self.BUSY)
        stage.store.published.clear()  # the event is missed
        for _ in range(2):
            stage.presence.interrupted(None)
            await stage.pass_time(TTL)
        assert stage.delivered == [(JOINED, "ann")]
