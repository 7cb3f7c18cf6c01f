"""Gaps between the broker and a node: closed from the stream without the clients' noticing, or announced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.adapters.memory.broker import MemoryBroker
from service.core.broker import DeliveredHead, EventSink, Snapshot, StreamHead
from service.core.channel import ChannelKey
from service.core.event import Event
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from service.realtime.cluster.messages import REQUESTS
from service.realtime.streams import gap_recovery
from service.realtime.streams.gap_recovery import MAX_RETRY_INTERVAL, RETRY_INTERVAL
from service.realtime.streams.position_checker import IN_FLIGHT_DELAY
from tests.support.clock import FakeClock
from tests.support.harness import Client, Running, eventually, serving

ROOM = ChannelKey("default", "room:1")
BOARD = ChannelKey("default", "board:1")
CHECK = 10.0


class Lossy(MemoryBroker):
    """The in-memory broker behind a bad network: what it delivers can be lost, held up, or come twice."""

    delivers_synchronously = False

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock, idempotency_window=300, idempotency_entries=1000, channels=100, max_bytes=10_000_000)
        self.losing = False
        self.doubling = False
        self.held: list[Event] | None = None
        """What is held up; None while everything passes."""
        self.away: ServiceError | None = None
        self.gate: asyncio.Event | None = None
        """Snapshots wait for it, after they are read."""
        self.check_gate: asyncio.Event | None = None
        """Heads of streams wait for it, after they are read."""
        self.reads = 0
        self.known: list[DeliveredHead | None] = []
        """What the nodes have said that they know."""
        self.unreadable: ChannelKey | None = None

    async def start(self, sink: EventSink) -> None:
        self._far = sink
        await super().start(self)

    def deliver(self, event: Event) -> None:
        if event.channel.tenant == "" or not (self.losing or self.held is not None):
            for _ in range(1 + self.doubling):
                self._far.deliver(event)
        elif self.held is not None:
            self.held.append(event)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        self._far.interrupted(channels)

    def let_go(self) -> None:
        held, self.held = self.held or [], None
        for event in held:
            self._far.deliver(event)

    def begin_epoch(self, channel: ChannelKey, epoch: str) -> None:
        """As a store does that may have lost what it had accepted."""
        stored = self._channels.find(channel)
        assert stored is not None
        stored.epoch, stored.epoch_start = epoch, stored.offset

    def set_back(self, channel: ChannelKey, to: int) -> None:
        """As a store does of which a backup is put back."""
        stored = self._channels.find(channel)
        assert stored is not None
        while stored.offset > to:
            stored._stream.pop()
            stored.offset -= 1
        [last] = stored.newest(1)
        stored.last_id = last.id

    async def stream_heads(
        self, channels: Sequence[ChannelKey], known: Sequence[DeliveredHead | None] = ()
    ) -> Sequence[StreamHead | None]:
        if self.away is not None:
            raise self.away
        self.known += known
        for channel, what in zip(channels, known, strict=False):
            stored = self._channels.find(channel)
            if what is None or stored is None or stored.epoch != what.position.epoch:
                continue
            at = [entry.event.id for entry in stored._stream if entry.event.offset == what.position.offset]
            if stored.offset < what.position.offset or (at and what.position.id not in (None, *at)):
                self.begin_epoch(channel, f"{stored.epoch}-again")
        marks = await super().stream_heads(channels, known)
        if self.check_gate is not None:
            await self.check_gate.wait()
        return [None if channel == self.unreadable else mark for channel, mark in zip(channels, marks, strict=True)]

    async def snapshot(
        self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int, tail: int = 0
    ) -> Snapshot:
        if channel.tenant == "":
            return await super().snapshot(channel, since, max_events, max_bytes, tail)
        self.reads += 1
        if self.away is not None:
            raise self.away
        snapshot = await super().snapshot(channel, since, max_events, max_bytes, tail)
        if self.gate is not None:
            await self.gate.wait()
        return snapshot


class Stage:
    """A service on a lossy broker whose clock the test moves."""

    def __init__(self, server: Running, broker: Lossy, clock: FakeClock) -> None:
        self.server = server
        self.broker = broker
        self.clock = clock
        self._sent = 0

    async def publish(self, count: int = 1) -> None:
        """Publishes m-1, m-2, … in the room."""
        for _ in range(count):
            self._sent += 1
            event = {"type": "chat.message", "id": f"m-{self._sent}", "data": {"text": str(self._sent)}}
            assert (await self.server.publish("room:1", event))["offset"]
        self.clock.advance(0)

    async def lose(self, count: int) -> None:
        self.broker.losing = True
        await self.publish(count)
        self.broker.losing = False

    async def offsets(self, client: Client, count: int) -> list[int]:
        """The next events' offsets."""
        found = []
        for _ in range(count):
            await self.turn()
            message = await client.receive()
            while message["type"] == "presence.joined":
                message = await client.receive()
            assert message["type"] == "chat.message", message
            found.append(message["offset"])
        return found

    async def turn(self) -> None:
        """Lets what is due now happen: a flush is."""
        for _ in range(10):
            await asyncio.sleep(0)
            self.clock.advance(0)

    async def count(self, name: str, **labels: str) -> float:
        return await self.server.metric(name, **labels)

    @asynccontextmanager
    async def client(self, user: str, channel: str = "room:1") -> AsyncIterator[Client]:
        async with self.server.client(user, grants=["room:*", "board:*"]) as client:
            await client.subscribe(channel)
            while client.received:
                await client.receive()
            yield client


@asynccontextmanager
async def staged(**limits: int) -> AsyncIterator[Stage]:
    clock = FakeClock(time.time())
    broker = Lossy(clock)
    async with serving(broker=broker, clock=clock, repair={"check": CHECK, **limits}) as server:
        yield Stage(server, broker, clock)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged() as stage:
        yield stage


async def test_missed_events_are_delivered_before_the_event_after_the_gap(stage: Stage) -> None:
    async with stage.client("ann") as ann, stage.client("ben") as ben:
        await stage.publish()
        await stage.lose(3)
        await stage.publish()
        assert await stage.offsets(ann, 5) == await stage.offsets(ben, 5) == [1, 2, 3, 4, 5]
        await ann.silence()
        assert await stage.count("gaps_total", cause="jump") == 1
        assert await stage.count("repairs_total", outcome="repaired") == 1
        assert await stage.count("repaired_events_total") == 4
    await stage.server.at_rest()


async def test_interruption_is_recovered_without_another_event(stage: Stage) -> None:
    async with stage.client("ann") as ann:
        await stage.lose(2)
        stage.broker.interrupted()
        await eventually(lambda: bool(stage.broker.reads))
        assert await stage.offsets(ann, 1) == [1]
        assert [event["offset"] for event in ann.received] == [2], "both come in one batch"
        assert await stage.count("gaps_total", cause="interruption") == 1


async def test_interruption_without_loss_reads_no_stream(stage: Stage) -> None:
    async with stage.client("ann") as ann:
        await stage.publish()
        assert await stage.offsets(ann, 1) == [1]
        reads = stage.broker.reads
        stage.broker.interrupted([ROOM])
        await stage.turn()
        await stage.publish()
        assert await stage.offsets(ann, 1) == [2]
        assert stage.broker.reads == reads
        assert await stage.count("interruptions_total") == 1
        assert await stage.count("control_readings_total") == 0, "events of other channels were not interrupted"
        stage.broker.interrupted([REQUESTS])
        await stage.turn()
        assert await stage.count("control_readings_total") == 1


async def test_silent_loss_is_found_by_the_position_check(stage: Stage) -> None:
    async with stage.client("ann") as ann:
        for loss in (1, 2):
            await stage.lose(1)
            stage.clock.advance(CHECK)
            await stage.turn()
            await ann.silence()
            stage.clock.advance(IN_FLIGHT_DELAY)
            assert await stage.offsets(ann, 1) == [loss]
            assert await stage.count("gaps_total", cause="check") == loss


async def test_room_without_live_members_is_not_recovered(stage: Stage) -> None:
    async with stage.client("ann") as ann, stage.server.client("ben", ready=False) as ben:
        await ben.send(type="subscribe", id="s", channel="room:1")
        await ben.silence()
        assert (await ann.ask("unsubscribe", channel="room:1"))["type"] == "unsubscribed"
        await stage.publish()
        stage.broker.interrupted([ROOM])
        await stage.turn()
        assert await stage.count("interruptions_total") == 1
        assert await stage.count("gaps_total", cause="interruption") == 0
        await ben.send(type="ready")
        reply = await ben.until("subscribed", id="s")
        assert [event["offset"] for event in reply["events"]] == [1]


async def test_failed_position_check_is_retried_and_logged(stage: Stage) -> None:
    async with stage.client("ann") as ann:
        with capture_logs() as logs:
            stage.broker.away = ServiceError(ErrorCode.BROKER_UNAVAILABLE, "the broker does not answer")
            await stage.lose(1)
            stage.clock.advance(CHECK)
            for _ in range(5):
                await stage.turn()
                stage.clock.advance(MAX_RETRY_INTERVAL)
            stage.broker.away = None
            await stage.turn()
            stage.clock.advance(MAX_RETRY_INTERVAL)
            await stage.turn()
            stage.clock.advance(IN_FLIGHT_DELAY)
            assert await stage.offsets(ann, 1) == [1]
        events = [entry["event"] for entry in logs if entry["event"].startswith("position_check")]
        assert events == ["position_check_failed", "position_check_recovered"]


async def test_event_in_flight_is_no_gap_for_the_position_check(stage: Stage) -> None:
    async with stage.client("ann") as ann:
        stage.broker.held = []
        await stage.publish()
        stage.clock.advance(CHECK)
        await stage.turn()
        stage.broker.let_go()
        stage.clock.advance(IN_FLIGHT_DELAY)
        assert await stage.offsets(ann, 1) == [1]
        assert await stage.count("gaps_total", cause="check") == 0


async def test_duplicate_event_is_delivered_once(stage: Stage) -> None:
    async with stage.client("ann") as ann:
        stage.broker.doubling = True
        await stage.publish(3)
        assert await stage.offsets(ann, 3) == [1, 2, 3]
        await ann.silence()
        assert await stage.count("repeats_total") == 3
        for _ in range(2):
            stage.broker.interrupted([ROOM])
            await stage.turn()
        known = [head for head in stage.broker.known if head is not None][-1]
        assert (known.position.offset, known.lowest_repeat) == (3, None), "a check found the stream unchanged"


async def test_events_during_a_recovery_are_delivered_after_it(stage: Stage) -> None:
    async with stage.client("ann") as ann:
        await stage.lose(1)
        stage.broker.gate = asyncio.Event()
        await stage.publish(1)
        await eventually(lambda: bool(stage.broker.reads))
        await stage.publish(2)
        await stage.lose(1)  # a second gap, behind the first
        await stage.publish(1)
        await ann.silence()
        stage.broker.gate.set()
        assert await stage.offsets(ann, 6) == [1, 2, 3, 4, 5, 6]
        await ann.silence()


async def test_recovery_retries_while_the_broker_is_away(stage: Stage) -> None:
    async with stage.client("ann") as ann:
        stage.broker.away = ServiceError(ErrorCode.BROKER_UNAVAILABLE, "the broker does not answer")
        await stage.lose(1)
        reads = stage.broker.reads
        await stage.publish()
        await eventually(lambda: stage.broker.reads > reads)
        await ann.silence()
        stage.broker.away = None
        await stage.turn()
        stage.clock.advance(RETRY_INTERVAL)
        assert await stage.offsets(ann, 2) == [1, 2]
        assert await stage.count("repair_failures_total") == 1


async def test_streams_above_the_maximum_wait_for_a_read_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_recovery, "MAX_CONCURRENT_READS", 2)
    async with staged() as stage, stage.server.client("ann", grants=["room:*"]) as ann:
        rooms = {"room:1", "room:2", "room:3"}
        for room in rooms:
            await ann.subscribe(room)
        stage.broker.losing = True
        for room in rooms:
            await stage.server.publish(room, {"type": "chat.message", "data": {"text": "x"}})
        stage.broker.losing = False
        gate = stage.broker.gate = asyncio.Event()
        reads = stage.broker.reads
        stage.broker.interrupted()
        await stage.turn()
        assert stage.broker.reads == reads + 2
        gate.set()
        await eventually(lambda: stage.broker.reads == reads + 3)
        for _ in range(3):
            await stage.turn()
            rooms.remove((await ann.until("chat.message"))["channel"])


async def test_new_epoch_resyncs_the_subscription_in_place(stage: Stage) -> None:
    async with stage.client("ann") as ann, stage.client("ben") as ben:
        await stage.publish(2)
        assert await stage.offsets(ann, 2) == await stage.offsets(ben, 2) == [1, 2]
        stage.broker.begin_epoch(ROOM, "second")
        await stage.publish()
        for client in (ann, ben):
            await stage.turn()
            told = await client.until("subscribed", id=None, epoch="second", offset=2, last="m-2", recovered=False)
            assert (told["events"], told["state"]) == ([], [])
            assert "presence" not in told
            assert await stage.offsets(client, 1) == [3], "published in the new epoch, before anybody was told of it"
        await stage.publish()
        assert await stage.offsets(ann, 1) == await stage.offsets(ben, 1) == [4]
        assert await stage.count("epoch_changes_total") == 1
        assert await stage.count("repairs_total", outcome="announced") == 1
        reply = await ben.ask("unsubscribe", channel="room:1")
        assert reply["type"] == "unsubscribed"
        since = {"epoch": "second", "offset": 3, "id": "m-3"}
        assert (await ben.subscribe("room:1", since=since))["recovered"] is True


async def test_member_without_history_and_presence_gets_recovered_events(stage: Stage) -> None:
    """What a node missed comes to a member as live events do: they belong to subscribing."""
    grant = {"channel": "room:*", "rights": ["subscribe"]}
    async with stage.client("ann") as ann, stage.server.client("ben", grants=[grant]) as ben:
        await stage.publish()
        await stage.offsets(ann, 1)
        reply = await ben.subscribe("room:1", since={"epoch": "another", "offset": 0})
        assert (reply["recovered"], reply["events"], reply["offset"]) == (False, [], 1)
        await stage.lose(3)
        await stage.publish()
        assert await stage.offsets(ann, 4) == await stage.offsets(ben, 4) == [2, 3, 4, 5]
        stage.broker.begin_epoch(ROOM, "second")
        await stage.publish()
        await stage.turn()
        told = await ben.expect("subscribed", id=None, epoch="second", recovered=False)
        assert told["events"] == []
        assert "presence" not in told
        await ben.expect("chat.message", offset=6)
        await ann.until("subscribed", id=None, epoch="second")


async def test_join_during_a_recovery_shows_no_history_without_the_right(stage: Stage) -> None:
    grant = {"channel": "room:*", "rights": ["subscribe"]}
    async with stage.client("ann") as ann, stage.server.client("ben", grants=[grant]) as ben:
        await stage.publish()
        await stage.offsets(ann, 1)
        await stage.lose(2)
        stage.broker.gate = asyncio.Event()
        await stage.publish()  # a jump: the stream is being read, and ben's snapshot too
        await stage.turn()
        await ben.send(type="subscribe", id="s", channel="room:1")
        await stage.turn()
        stage.broker.gate.set()
        stage.broker.gate = None
        reply = await ben.until("subscribed", id="s")
        assert (reply["events"], reply["offset"]) == ([], 4)
        assert await stage.offsets(ann, 3) == [2, 3, 4]
        await stage.publish()
        assert await stage.offsets(ann, 1) == await stage.offsets(ben, 1) == [5]


async def test_member_that_joins_in_a_new_epoch_is_not_resynced(stage: Stage) -> None:
    async with stage.client("ann") as ann:
        await stage.publish(2)
        assert await stage.offsets(ann, 2) == [1, 2]
        stage.broker.begin_epoch(ROOM, "second")
        async with stage.server.client("ben") as ben:
            assert (await ben.subscribe("room:1"))["epoch"] == "second"
            while ben.received:
                await ben.expect("presence.joined")
            await stage.publish()
            await ann.until("subscribed", epoch="second", offset=2, recovered=False)
            await stage.publish()
            assert await stage.offsets(ben, 2) == [3, 4]
            assert [(await ann.until("chat.message"))["offset"] for _ in range(2)] == [3, 4]


async def test_join_of_a_new_epoch_during_a_recovery_starts_no_second_read(stage: Stage) -> None:
    async with stage.client("ann") as ann, stage.server.client("ben") as ben:
        await stage.publish()
        assert await stage.offsets(ann, 1) == [1]
        stage.broker.begin_epoch(ROOM, "second")
        gate = stage.broker.gate = asyncio.Event()
        reads = stage.broker.reads
        await stage.publish()
        await eventually(lambda: stage.broker.reads == reads + 1)
        stage.broker.gate = None
        assert (await ben.subscribe("room:1"))["epoch"] == "second"
        await stage.publish()
        gate.set()
        await stage.turn()
        await ann.until("subscribed", id=None, epoch="second")
        assert await stage.offsets(ann, 2) == [2, 3]
        assert stage.broker.reads == reads + 2, "ann's and ben's; the event that waited is not read again"
        assert [await stage.count("gaps_total", cause=cause) for cause in ("jump", "check")] == [1, 0]


async def test_gap_larger_than_the_stream_resyncs(stage: Stage) -> None:
    async with stage.client("ann") as ann:
        await stage.publish()
        assert await stage.offsets(ann, 1) == [1]
        await stage.lose(60)
        await stage.publish()
        await stage.turn()
        await ann.expect("subscribed", id=None, offset=62, recovered=False)
        await stage.publish()
        assert await stage.offsets(ann, 1) == [63]
        assert await stage.count("publish_to_write_seconds_sum") < 60, "the announcement is timed from when it was made"


async def test_lost_state_change_is_recovered_with_the_newest_values(stage: Stage) -> None:
    async def price(symbol: str, value: float) -> None:
        event = {"type": "ticker.price", "data": {"symbol": symbol, "price": value}}
        await stage.server.publish("board:1", event)

    async with stage.client("ann", "board:1") as ann:
        await price("A", 1)
        stage.clock.advance(1)
        await ann.expect("ticker.price", rev=1)
        stage.broker.losing = True
        await price("A", 2)
        await price("B", 1)
        await price("A", 3)
        stage.broker.losing = False
        await price("B", 2)
        got: list[dict[str, Any]] = []
        for _ in range(2):
            await stage.turn()
            stage.clock.advance(1)
            got.append(await ann.expect("ticker.price"))
        assert [(event["key"], event["rev"], event["data"]["price"]) for event in got] == [("A", 4, 3), ("B", 5, 2)]


async def test_channel_without_history_resyncs_without_a_loss(stage: Stage) -> None:
    async with stage.client("ann", "board:1") as ann:
        event = {"type": "ticker.price", "data": {"symbol": "A", "price": 1}}
        await stage.server.publish("board:1", event)
        stage.clock.advance(1)
        await ann.expect("ticker.price")
        stage.broker.begin_epoch(BOARD, "second")
        await stage.server.publish("board:1", event)
        await stage.turn()
        told = await ann.expect("subscribed", id=None, epoch="second")
        assert "recovered" not in told
        assert [value["rev"] for value in told["state"]] == [2]


async def test_snapshot_ahead_of_its_room_delivers_nothing_twice(stage: Stage) -> None:
    """The reply to a subscribe may overtake the messages that are on their way to the node."""
    async with stage.client("ann") as ann:
        await stage.publish()
        assert await stage.offsets(ann, 1) == [1]
        stage.broker.held = []
        await stage.publish(2)
        async with stage.server.client("ben") as ben:
            assert (await ben.subscribe("room:1"))["offset"] == 3
            stage.broker.let_go()
            await stage.publish()
            assert [(await ann.until("chat.message"))["offset"] for _ in range(3)] == [2, 3, 4]
            assert (await ben.until("chat.message"))["offset"] == 4
            await ben.silence()
            assert await stage.count("gaps_total", cause="check") == 0


async def test_snapshot_ahead_of_its_room_recovers_a_silent_loss(stage: Stage) -> None:
    async with stage.client("ann") as ann, stage.server.client("ben") as ben:
        await stage.lose(1)
        assert (await ben.subscribe("room:1"))["offset"] == 1
        stage.clock.advance(IN_FLIGHT_DELAY)
        assert await stage.offsets(ann, 1) == [1]
        await ben.silence(but="presence.joined")
        assert await stage.count("gaps_total", cause="check") == 1


async def test_first_snapshot_starts_the_cursor_of_the_room(stage: Stage) -> None:
    await stage.publish(3)
    stage.broker.gate = asyncio.Event()
    async with stage.server.client("ann") as ann:
        await ann.send(type="subscribe", id="s", channel="room:1")
        await eventually(lambda: bool(stage.broker.reads))
        await stage.publish()
        await stage.lose(1)
        await stage.publish()
        stage.broker.gate.set()
        await stage.turn()
        await ann.until("subscribed", offset=3)
        assert [(await ann.until("chat.message"))["offset"] for _ in range(3)] == [4, 5, 6]


async def test_recovery_ends_when_all_members_have_left(stage: Stage) -> None:
    stage.broker.away = None
    async with stage.client("ann") as ann:
        await stage.lose(1)
        stage.broker.away = ServiceError(ErrorCode.BROKER_UNAVAILABLE, "the broker does not answer")
        reads = stage.broker.reads
        await stage.publish()
        await eventually(lambda: stage.broker.reads > reads)
        assert (await ann.ask("unsubscribe", channel="room:1"))["type"] == "unsubscribed"
        stage.clock.advance(RETRY_INTERVAL)
        await stage.turn()
        assert stage.broker.reads == reads + 1
        stage.broker.away = None
        assert (await ann.subscribe("room:1"))["offset"] == 2
        await stage.publish()
        assert await stage.offsets(ann, 1) == [3]


async def test_snapshot_older_than_its_room_is_read_again(stage: Stage) -> None:
    """Of two who join a quiet channel the first may be answered last, with a snapshot from before an event."""
    async with stage.server.client("ann") as ann, stage.server.client("ben") as ben:
        gate = stage.broker.gate = asyncio.Event()
        await ann.send(type="subscribe", id="s", channel="room:1")
        await eventually(lambda: stage.broker.reads == 1)
        stage.broker.gate = None
        await stage.publish()
        assert (await ben.subscribe("room:1"))["offset"] == 1
        gate.set()
        assert (await ann.until("subscribed", id="s"))["offset"] == 1
        await stage.publish()
        assert (await ann.until("chat.message"))["offset"] == 2
        assert (await ben.until("chat.message"))["offset"] == 2


async def test_recovery_larger_than_an_outbox_closes_no_connection(stage: Stage) -> None:
    async with stage.client("ann") as ann:
        stage.broker.losing = True
        for _ in range(40):
            await stage.server.publish("room:1", {"type": "chat.message", "data": {"text": "x" * 20_000}})
        stage.broker.losing = False
        await stage.publish()
        assert await stage.offsets(ann, 41) == list(range(1, 42))
        assert await stage.count("slow_consumers_total") == 0


async def test_unreadable_channel_does_not_delay_other_recoveries(stage: Stage) -> None:
    async with stage.client("ann") as ann, stage.server.client("ben") as ben:
        await ben.subscribe("room:bad")
        stage.broker.unreadable = ChannelKey("default", "room:bad")
        stage.broker.losing = True
        await stage.server.publish("room:bad", {"type": "chat.message", "data": {"text": "x"}})
        await stage.publish()
        stage.broker.losing = False
        stage.broker.interrupted()
        assert await stage.offsets(ann, 1) == [1]
        stage.broker.unreadable = None
        stage.clock.advance(CHECK)
        await stage.turn()
        stage.clock.advance(IN_FLIGHT_DELAY)
        assert (await ben.until("chat.message"))["offset"] == 1


async def test_events_of_a_new_epoch_follow_the_resync(stage: Stage) -> None:
    async with stage.client("ann") as ann:
        await stage.publish(2)
        assert await stage.offsets(ann, 2) == [1, 2]
        stage.broker.begin_epoch(ROOM, "second")
        await stage.lose(5)
        stage.broker.interrupted([ROOM])
        await stage.turn()
        await ann.until("subscribed", epoch="second", offset=2, last="m-2", recovered=False)
        assert await stage.offsets(ann, 5) == [3, 4, 5, 6, 7]
        assert await stage.count("repairs_total", outcome="announced") == 1


async def test_new_epoch_without_its_start_resyncs_at_its_head(stage: Stage) -> None:
    async with stage.client("ann") as ann:
        await stage.publish(1)
        assert await stage.offsets(ann, 1) == [1]
        stage.broker.begin_epoch(ROOM, "second")
        await stage.lose(60)  # the channel keeps 50
        await stage.publish()
        await stage.turn()
        await ann.expect("subscribed", epoch="second", offset=62, recovered=False)
        await ann.silence()


async def test_new_epoch_with_too_many_bytes_resyncs_at_its_head() -> None:
    async with staged(bytes=1_024) as stage, stage.client("ann") as ann:
        await stage.publish(1)
        assert await stage.offsets(ann, 1) == [1]
        stage.broker.begin_epoch(ROOM, "second")
        stage.broker.losing = True
        for _ in range(3):
            await stage.server.publish("room:1", {"type": "chat.message", "data": {"text": "x" * 500}})
        stage.broker.losing = False
        await stage.publish()
        await stage.turn()
        await ann.expect("subscribed", epoch="second", offset=5, recovered=False)
        await ann.silence()


async def test_different_event_at_a_delivered_offset_checks_the_stream(stage: Stage) -> None:
    """The store was set back: the new event is not the one that was delivered."""
    async with stage.client("ann") as ann:
        await stage.publish(3)
        assert await stage.offsets(ann, 3) == [1, 2, 3]
        stage.broker.set_back(ROOM, to=1)
        await stage.publish()
        await stage.turn()
        told = await ann.until("subscribed", id=None, recovered=False)
        assert (told["offset"], told["last"]) == (2, "m-4")
        await stage.publish()
        assert await stage.offsets(ann, 1) == [3]
        known = [head for head in stage.broker.known if head is not None][-1]
        assert (known.position.offset, known.lowest_repeat) == (3, 2)


async def test_events_behind_a_repeated_offset_do_not_hide_the_set_back(stage: Stage) -> None:
    """The check asked about the newest event, which the store had. One offset had two events, and no client was told."""
    async with stage.client("ann") as ann:
        await stage.publish(3)
        assert await stage.offsets(ann, 3) == [1, 2, 3]
        stage.broker.set_back(ROOM, to=2)
        stage.broker.held = []
        await stage.publish(2)
        stage.broker.let_go()  # both arrive before the check
        await stage.turn()
        await ann.until("subscribed", id=None, recovered=False)
        known = [head for head in stage.broker.known if head is not None and head.lowest_repeat is not None]
        assert (known[0].position.id, known[0].lowest_repeat) == ("m-3", 3)


async def test_repeat_during_a_check_is_checked_again(stage: Stage) -> None:
    async with stage.client("ann") as ann:
        await stage.publish(1)
        assert await stage.offsets(ann, 1) == [1]
        stage.broker.doubling = True
        checks = len(stage.broker.known)
        stage.broker.check_gate = asyncio.Event()
        await stage.publish(1)
        await eventually(lambda: len(stage.broker.known) == checks + 1)
        await stage.publish(1)
        stage.broker.check_gate.set()
        await eventually(lambda: len(stage.broker.known) == checks + 2)
        assert await stage.offsets(ann, 2) == [2, 3]


async def test_join_of_a_stream_that_was_set_back_does_not_wait(stage: Stage) -> None:
    async with stage.client("ann") as ann:
        await stage.publish(3)
        assert await stage.offsets(ann, 3) == [1, 2, 3]
        stage.broker.set_back(ROOM, to=1)
        async with stage.server.client("ben") as ben:
            reply = await ben.subscribe("room:1")
            assert reply["offset"] == 1
            told = await ann.until("subscribed", id=None, recovered=False)
            assert told["epoch"] == reply["epoch"] or (await ben.until("subscribed"))["epoch"] == told["epoch"]
            reads = stage.broker.reads
            assert reads < 10, "it is not read again and again"


async def test_check_of_one_room_does_not_postpone_the_check_of_all(stage: Stage) -> None:
    async with stage.client("ann") as ann, stage.server.client("ben") as ben:
        await ben.subscribe("room:2")
        await stage.lose(1)
        for _ in range(4):
            stage.clock.advance(CHECK / 4)
            stage.broker.interrupted([ChannelKey("default", "room:2")])
            await stage.turn()
        stage.clock.advance(IN_FLIGHT_DELAY)
        assert await stage.offsets(ann, 1) == [1]
