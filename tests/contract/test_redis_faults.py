"""The Broker on Redis while Redis fails: accepted events, reported interruptions, and recovery."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from service.adapters.redis.broker import RedisBroker
from service.adapters.redis.connections.link import LinkLost
from service.aio.pending import Pending
from service.core.broker import PublishResult
from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication, Retention
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from tests.contract.begun import Begun
from tests.contract.broker_suite import MANY, MUCH, OTHER_ROOM, ROOM, RecordingSink
from tests.contract.test_redis_broker import new_prefix, only, redis_broker, settled
from tests.stores import FLAVOURS, Certificates, Flavour, RedisServer, shared_redis
from tests.stores.process import free_port, until

pytestmark = pytest.mark.slow

KEEP = Retention(entries=2_000, ttl=60.0)
FAST: dict[str, Any] = {"call_timeout": 1.5, "ping_interval": 0.2, "silence_timeout": 0.6, "start_timeout": 2.0}
"""Short timeouts."""


def durable(id: str, channel: ChannelKey = ROOM) -> Publication:
    return Publication(channel, "chat.message", id, Delivery.DURABLE, b"{}", "ann", 0, retention=KEEP)


def latest(id: str, key: str, channel: ChannelKey = ROOM) -> Publication:
    return Publication(channel, "ticker.price", id, Delivery.LATEST, b"1", None, 0, key, KEEP)


class Sink(RecordingSink):
    """A sink that a test can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.has_news = asyncio.Event()

    def interrupted(self, channels: Any = None) -> None:
        super().interrupted(channels)
        self.has_news.set()

    async def was_interrupted(self, within: float = 10.0) -> None:
        async with asyncio.timeout(within):
            await self.has_news.wait()
        self.has_news.clear()


@asynccontextmanager
async def running(url: str, prefix: str | None = None, **settings: Any) -> AsyncIterator[tuple[RedisBroker, Sink]]:
    broker, sink = redis_broker(url, prefix or new_prefix(), **settings), Sink()
    await broker.start(sink)
    try:
        yield broker, sink
    finally:
        await broker.close()


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as alone:
        yield alone


async def insist(broker: RedisBroker, publication: Publication, within: float = 20.0) -> PublishResult:
    """Publishes until it is accepted, as a client does."""
    async with asyncio.timeout(within):
        while True:
            try:
                return await broker.publish(publication)
            except ServiceError as error:
                if error.code is not ErrorCode.BROKER_UNAVAILABLE:
                    raise
                await asyncio.sleep(0.02)


async def well(broker: RedisBroker, within: float = 10.0) -> None:
    async def fit() -> bool:
        with suppress(ServiceError):
            await broker.check()
            return True
        return False

    await until(fit, "the broker is well again", within=within)


async def refused(call: Awaitable[object]) -> ServiceError:
    with pytest.raises(ServiceError) as error:
        await call
    assert error.value.code is ErrorCode.BROKER_UNAVAILABLE
    return error.value


async def stream(broker: RedisBroker, channel: ChannelKey = ROOM) -> list[str]:
    page = await broker.history(channel, None, None, 5_000)
    assert [event.offset for event in page.events] == list(range(1, len(page.events) + 1))
    assert page.position.offset == len(page.events)
    return [event.id for event in page.events]


def dense(results: Sequence[PublishResult]) -> None:
    assert sorted(result.offset or 0 for result in results) == list(range(1, len(results) + 1))
    assert len({result.epoch for result in results}) == 1


# --- calls ------------------------------------------------------------------------------------------------------------


async def test_redis_flushed_scripts_are_reloaded_under_load(server: RedisServer) -> None:
    async with running(server.url) as (broker, _):
        results: list[PublishResult] = []
        for burst in range(5):
            await server.command("SCRIPT", "FLUSH")
            results += await asyncio.gather(*(broker.publish(durable(f"m-{burst}-{n}")) for n in range(100)))
        dense(results)
        assert not any(result.duplicate for result in results)
        # Not once for each call that missed it.
        stats = await server.info("commandstats")
        assert int(stats["cmdstat_script|load"].split("calls=")[1].split(",")[0]) < 20


async def test_redis_publishes_in_flight_on_killed_connection_are_accepted_once(server: RedisServer) -> None:
    async with running(server.url, call_timeout=60.0) as (broker, _):
        for burst in range(5):
            begun = [asyncio.ensure_future(broker.publish(durable(f"m-{burst}-{n}"))) for n in range(200)]
            await asyncio.sleep(random.uniform(0, 0.004))  # somewhere in the middle of them
            await server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            began = time.monotonic()
            results = await asyncio.gather(*begun)
            assert time.monotonic() - began < 20, "as soon as there is a connection again"
            for n, result in enumerate(results):
                again = await broker.publish(durable(f"m-{burst}-{n}"))
                assert (again.duplicate, again.offset, again.epoch) == (True, result.offset, result.epoch)
        ids = await stream(broker)
        assert len(ids) == len(set(ids)) == 1_000


class Ends:
    """The ends of publishes that were started without a coroutine."""

    def __init__(self, broker: RedisBroker) -> None:
        self._broker = broker
        self.results: dict[str, PublishResult] = {}
        self.errors: dict[str, Exception] = {}

    def start(self, id: str, then: str | None = None) -> None:
        """Starts a publish, and another one as soon as it has ended."""
        self._broker.start_publish(durable(id)).add_done_callback(partial(self._add, id, then))

    def _add(self, id: str, then: str | None, done: Pending[PublishResult]) -> None:
        if then is not None:
            self.start(then)
        assert id not in self.results, "it is called back once"
        assert id not in self.errors, "it is called back once"
        if done.error is None:
            self.results[id] = done.result()
        else:
            self.errors[id] = done.error

    async def count(self, expected: int) -> None:
        await until(lambda: self._have(expected), "all publishes have ended")

    async def _have(self, expected: int) -> bool:
        return len(self.results) + len(self.errors) == expected


async def test_redis_started_publishes_on_killed_connection_are_accepted_once(server: RedisServer) -> None:
    async with running(server.url, call_timeout=60.0) as (broker, _):
        ends = Ends(broker)
        for n in range(200):
            ends.start(f"m-{n}")
        await asyncio.sleep(random.uniform(0, 0.004))  # somewhere in the middle of them
        await server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await ends.count(200)
        assert ends.errors == {}
        for id, result in ends.results.items():
            again = await broker.publish(durable(id))
            assert (again.duplicate, again.offset, again.epoch) == (True, result.offset, result.epoch)
        assert broker.executor.pending == 0


async def test_redis_publish_started_by_the_end_of_another_waits_for_its_own_reply(server: RedisServer) -> None:
    """A client's next message is handled as soon as its last one has failed: while the link still fails others."""
    async with running(server.url, **FAST | {"call_timeout": 0.3, "silence_timeout": 60.0}) as (broker, _):
        ends = Ends(broker)
        await server.command("CLIENT", "PAUSE", "60000", "WRITE")
        for n in range(3):
            ends.start(f"m-{n}", then=f"next-{n}")
        await ends.count(6)
        assert len(ends.errors) == 6
        assert {error.code for error in ends.errors.values() if isinstance(error, ServiceError)} == {
            ErrorCode.BROKER_UNAVAILABLE
        }
        await server.command("CLIENT", "UNPAUSE")
        for n in range(3):
            await insist(broker, durable(f"next-{n}"))
        assert broker.executor.pending == 0


@pytest.mark.parametrize("server_is", ["paused", "away"])
async def test_redis_close_ends_started_publishes(server: RedisServer, server_is: str) -> None:
    async with running(server.url, call_timeout=60.0) as (broker, _):
        ends = Ends(broker)
        if server_is == "paused":
            await server.command("CLIENT", "PAUSE", "60000", "ALL")
        else:
            server.kill()
            await until(lambda: gone(broker), "the link is lost")
        for n in range(3):
            ends.start(f"m-{n}")
        await broker.close()
        await ends.count(3)
        assert ends.results == {}
        assert broker.executor.pending == 0


async def test_redis_calls_on_lost_connection_do_not_block_event_loop(server: RedisServer) -> None:
    """Retrying on the same dead connection must not starve other tasks."""
    async with running(server.url) as (broker, _):
        await server.command("CLIENT", "PAUSE", "300", "ALL")
        begun = [asyncio.ensure_future(broker.publish(durable(f"m-{n}"))) for n in range(50)]
        longest, before = 0.0, time.monotonic()
        link = only(broker).commands.link
        assert link is not None
        link.abort()
        while not all(call.done() for call in begun):
            await asyncio.sleep(0)
            now = time.monotonic()
            longest, before = max(longest, now - before), now
        assert longest < 5, "others had their turns"
        dense([call.result() for call in begun])


@pytest.mark.parametrize("returns", [True, False], ids=["and it returns", "for good"])
async def test_redis_publish_started_outside_of_task_during_outage_waits_or_is_refused(
    server: RedisServer, returns: bool
) -> None:
    async with running(server.url, call_timeout=5.0 if returns else 0.3) as (broker, _):
        server.kill()
        await until(lambda: gone(broker), "the link is lost")
        ephemeral = Publication(ROOM, "chat.typing", "e-1", Delivery.EPHEMERAL, b"{}", None, 0)
        messages = (durable("m-1"), latest("v-1", "k"), ephemeral, durable("m-2"))
        calls = [Begun(broker.publish(message)) for message in messages]
        for call in calls:
            await call.begun()
        calls.pop().close()
        assert broker.executor.pending == len(calls)
        if returns:
            await server.restart()
            assert [(await call).id for call in calls] == ["m-1", "v-1", "e-1"]
        else:
            for call in calls:
                await refused(call)
        assert broker.executor.pending == 0


async def gone(broker: RedisBroker) -> bool:
    return only(broker).commands.link is None


async def test_redis_calls_above_limit_are_refused_at_once(server: RedisServer) -> None:
    async with running(server.url, max_calls=50, call_timeout=60.0) as (broker, _):
        await server.command("CLIENT", "PAUSE", "60000", "WRITE")
        waiting = [asyncio.ensure_future(broker.publish(durable(f"m-{n}"))) for n in range(50)]
        await asyncio.sleep(0)
        error = await refused(broker.publish(durable("one too many")))
        assert not any(call.done() for call in waiting), "it did not wait for its turn"
        assert "broker.queue" in error.message
        await server.command("CLIENT", "UNPAUSE")
        dense(await asyncio.gather(*waiting))
        assert (await broker.publish(durable("one too many"))).offset == 51


async def test_redis_paused_server_fails_calls_in_time_and_recovers(server: RedisServer) -> None:
    async with running(server.url, **FAST | {"call_timeout": 0.8}) as (broker, sink):
        await broker.subscribe(ROOM)
        await server.command("CLIENT", "PAUSE", "3000", "ALL")
        # In time: they would have been accepted at the end of the pause.
        errors = await asyncio.gather(*(refused(broker.publish(durable(f"m-{n}"))) for n in range(20)))
        assert all(error.retryable for error in errors)
        await sink.was_interrupted()
        await well(broker)
        for n in range(20):
            await insist(broker, durable(f"m-{n}"))
        assert len(await stream(broker)) == 20


async def test_redis_stopped_server_fails_calls_in_time_and_recovers(server: RedisServer) -> None:
    async with running(server.url, **FAST) as (broker, sink):
        await broker.subscribe(ROOM)
        first = await broker.publish(durable("m-1"))
        server.stop_()
        began = time.monotonic()
        slow = asyncio.ensure_future(refused(broker.publish(durable("m-2"))))
        noticed = None
        async with asyncio.timeout(10):
            while noticed is None:
                try:
                    await broker.check()
                except ServiceError as error:
                    noticed = error.message
                await asyncio.sleep(0.02)
            assert "answer" in noticed
            await slow
        await asyncio.sleep(max(0.0, began + FAST["call_timeout"] + FAST["silence_timeout"] + 0.5 - time.monotonic()))
        began = time.monotonic()
        for call in (
            broker.publish(durable("m-3")),
            broker.subscribe(OTHER_ROOM),
            broker.snapshot(ROOM, None, MANY, MUCH),
            broker.stream_heads([ROOM]),
        ):
            await refused(call)
        assert time.monotonic() - began < 2 * FAST["call_timeout"], "at once: four would wait twice as long"
        server.cont()
        await sink.was_interrupted()
        await well(broker)
        # It may have waited in the server's buffers, and been accepted before we were subscribed again.
        again = await insist(broker, durable("m-2"))
        assert (again.offset, again.epoch) == (2, first.epoch)
        assert (await broker.publish(durable("m-3"))).offset == 3
        await settled(broker)
        assert sink.ids()[-1] == "m-3"
        assert await server.command("PUBSUB", "CHANNELS") == [broker.keys(ROOM).events.decode()]


# --- deliveries -------------------------------------------------------------------------------------------------------


async def test_redis_killed_subscriptions_are_restored_and_report_interruption(server: RedisServer) -> None:
    async with running(server.url) as (broker, sink), running(server.url) as (other, _):
        del other
        channels = [ChannelKey("acme", f"room:{n}") for n in range(700)]  # more than go into one SUBSCRIBE
        await asyncio.gather(*(broker.subscribe(channel) for channel in channels))
        assert not sink.interruptions
        before = await broker.snapshot(channels[0], None, MANY, MUCH)
        publishing = asyncio.ensure_future(_publish_all(broker, channels[0], 200))
        assert await server.command("CLIENT", "KILL", "TYPE", "pubsub") >= 1
        await sink.was_interrupted()
        await publishing
        interrupted = [channel for some in sink.interruptions for channel in some or ()]
        assert sorted(interrupted) == sorted(channels)
        assert len(await server.command("PUBSUB", "CHANNELS")) == 700
        snapshot = await broker.snapshot(channels[0], before.position, MANY, MUCH)
        assert snapshot.recovered
        assert [event.id for event in snapshot.missed] == [f"m-{n}" for n in range(200)]
        await broker.publish(durable("after", channels[0]))
        await settled(broker)
        assert sink.events[-1].id == "after"


async def _publish_all(broker: RedisBroker, channel: ChannelKey, count: int) -> None:
    for n in range(count):
        await broker.publish(durable(f"m-{n}", channel))


async def test_redis_read_after_interruption_leaves_no_gap(server: RedisServer) -> None:
    async with running(server.url) as (broker, sink):
        await broker.subscribe(ROOM)
        publishing = asyncio.ensure_future(_publish_all(broker, ROOM, 600))
        seen: dict[int, str] = {}
        for _ in range(5):
            await asyncio.sleep(0.03)
            sink.events.clear()
            await server.command("CLIENT", "KILL", "TYPE", "pubsub")
            await sink.was_interrupted()
            snapshot = await broker.history(ROOM, None, None, 2_000)
            seen = {event.offset or 0: event.id for event in snapshot.events}
        await publishing
        await settled(broker)
        seen |= {event.offset or 0: event.id for event in sink.events}
        assert seen == {n + 1: f"m-{n}" for n in range(600)}


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"d",
        b"d\n",
        b"dx y\n\x90",
        b"l\xff 1\n",
        b"e",
        b"e\xc1",
        b"x1 2\n",
        b"d" + b"9" * 5_000 + b"\n",
        b"d1 1\n\x96\xa0",
    ],
)
async def test_redis_unreadable_message_is_skipped(message: bytes) -> None:
    server = await shared_redis()
    async with running(server.url) as (broker, sink):
        await broker.subscribe(ROOM)
        assert await server.command("PUBLISH", broker.keys(ROOM).events, message) == 1
        await broker.publish(durable("m-1"))
        await settled(broker)
        assert sink.ids() == ["m-1"]
        assert not sink.interruptions


async def test_redis_subscribes_and_kills_at_random_leave_exact_subscriptions(server: RedisServer) -> None:
    chance = random.Random(7)
    channels = [ChannelKey("acme", f"room:{n}") for n in range(12)]
    wanted: dict[ChannelKey, bool] = dict.fromkeys(channels, False)
    async with running(server.url, call_timeout=5.0) as (broker, sink):

        async def visitor(channel: ChannelKey) -> None:
            for _ in range(40):
                if chance.random() < 0.6:
                    call = asyncio.ensure_future(broker.subscribe(channel))
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                    if chance.random() < 0.5 and call.cancel():
                        await asyncio.gather(call, return_exceptions=True)
                        continue
                    await call
                    wanted[channel] = True
                else:
                    await broker.unsubscribe(channel)
                    wanted[channel] = False

        visited = asyncio.Event()

        async def killer() -> None:
            while not visited.is_set():
                await asyncio.sleep(0.02)
                await server.command("CLIENT", "KILL", "TYPE", "pubsub")

        async def survived() -> bool:
            await well(broker)
            with suppress(LinkLost):  # by the last kill
                await settled(broker)
                return True
            return False

        killing = asyncio.ensure_future(killer())
        async with asyncio.timeout(20):
            await asyncio.gather(*map(visitor, channels))
        visited.set()
        await killing  # not cancelled: the server could still run its last command later
        await until(survived, "the connection outlives the last kill")
        expected = sorted(broker.keys(channel).events.decode() for channel, is_wanted in wanted.items() if is_wanted)
        assert sorted(await server.command("PUBSUB", "CHANNELS")) == expected
        sink.events.clear()
        for channel in channels:
            await broker.publish(durable("last", channel))
        await settled(broker)
        assert sorted(event.channel for event in sink.events) == sorted(one for one in channels if wanted[one])
        assert not any(shard.subscriber.waiting for shard in broker.shards)


async def test_redis_subscribe_while_first_is_cancelled_loses_nothing(server: RedisServer) -> None:
    async with running(server.url) as (broker, sink):
        for turn in range(100):
            first = asyncio.ensure_future(broker.subscribe(ROOM))
            for _ in range(turn % 7):
                await asyncio.sleep(0)
            second = asyncio.ensure_future(broker.subscribe(ROOM))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await second
            await broker.publish(durable(f"m-{turn}"))
            await settled(broker)
            assert sink.ids()[-1:] == [f"m-{turn}"]
            await broker.unsubscribe(ROOM)
        assert len(sink.ids()) == 100


async def test_redis_cancelled_calls_keep_replies_apart(server: RedisServer) -> None:
    chance = random.Random(11)
    async with running(server.url) as (broker, _):
        for burst in range(10):
            calls: list[tuple[int, asyncio.Task[Any]]] = []
            for n in range(60):
                channel = ChannelKey("acme", f"room:{n}")
                work: Sequence[Callable[[], Any]] = (
                    lambda c=channel, b=burst: broker.publish(durable(f"m-{b}", c)),  # type: ignore[misc]  # bound early
                    lambda c=channel: broker.snapshot(c, None, MANY, MUCH),  # type: ignore[misc]  # the same
                    lambda c=channel: broker.stream_heads([c]),  # type: ignore[misc]  # the same
                )
                calls.append((n % 3, asyncio.ensure_future(work[n % 3]())))
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            for _, call in calls:
                if chance.random() < 0.5:
                    call.cancel()
            results = await asyncio.gather(*(call for _, call in calls), return_exceptions=True)
            for (kind, _), result in zip(calls, results, strict=True):
                if not isinstance(result, asyncio.CancelledError):
                    assert type(result).__name__ == ("PublishResult", "Snapshot", "list")[kind], result
        assert broker.executor.pending == 0
        for n in range(0, 60, 3):
            channel = ChannelKey("acme", f"room:{n}")
            ids = await stream(broker, channel)
            assert len(ids) == len(set(ids))


async def test_redis_close_with_calls_in_flight_leaves_nothing(server: RedisServer) -> None:
    async with running(server.url) as (broker, _):
        await server.command("CLIENT", "PAUSE", "1000", "ALL")
        calls: list[Awaitable[object]] = [broker.publish(durable(f"m-{n}")) for n in range(20)]
        calls += [
            broker.subscribe(ROOM),
            broker.snapshot(ROOM, None, MANY, MUCH),
            broker.stream_heads([ROOM, OTHER_ROOM]),
        ]
        begun = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0.05)
        await broker.close()
        async with asyncio.timeout(10):
            for error in await asyncio.gather(*begun, return_exceptions=True):
                assert isinstance(error, ServiceError)
                assert "closed" in error.message


async def test_redis_close_during_outage_fails_waiting_calls(server: RedisServer) -> None:
    async with running(server.url) as (broker, _):
        server.kill()
        begun = [asyncio.ensure_future(call) for call in (broker.publish(durable("m-1")), broker.subscribe(ROOM))]
        await asyncio.sleep(0.1)
        await broker.close()
        async with asyncio.timeout(10):
            errors = await asyncio.gather(*begun, return_exceptions=True)
        assert all(isinstance(error, ServiceError) and "closed" in error.message for error in errors)


# --- epochs -----------------------------------------------------------------------------------------------------------


async def test_redis_restart_starts_one_epoch_and_continues_offsets() -> None:
    async with (
        RedisServer(persistence="always") as server,
        running(server.url, prefix := new_prefix()) as (one, sink),
        running(server.url, prefix) as (two, _),
    ):
        await one.subscribe(ROOM)
        await one.publish(durable("m-1"))
        before = await two.publish(durable("m-2"))
        value = await two.publish(latest("v-1", "k"))
        server.kill()
        await server.restart()
        await sink.was_interrupted()
        # The same id at the same offset does not make it the same stream: what came after may be gone.
        snapshot = await one.snapshot(ROOM, Position(before.epoch, 2, "m-2"), MANY, MUCH)
        assert snapshot.recovered is False
        assert (snapshot.position.offset, snapshot.state_version) == (2, value.state_version)
        assert snapshot.position.epoch != before.epoch
        results = await asyncio.gather(
            *(insist(broker, durable(f"n-{n}-{of}")) for of, broker in enumerate((one, two)) for n in range(50))
        )
        assert {result.epoch for result in results} == {snapshot.position.epoch}
        assert sorted(result.offset or 0 for result in results) == list(range(3, 103))
        assert (await one.publish(durable("m-2"))).duplicate


async def test_redis_restart_without_data_starts_new_epochs(server: RedisServer) -> None:
    async with running(server.url) as (broker, sink):
        await broker.subscribe(ROOM)
        before = [await broker.publish(durable(f"m-{n}")) for n in range(3)]
        server.kill()
        await server.restart()
        await sink.was_interrupted()
        snapshot = await broker.snapshot(ROOM, Position(before[2].epoch, 3, "m-2"), MANY, MUCH)
        assert (snapshot.recovered, snapshot.position.offset) == (False, 0)
        after = await insist(broker, durable("m-0"))
        assert (after.offset, after.duplicate, after.epoch == before[0].epoch) == (1, False, False)


@pytest.mark.parametrize("is_known", [True, False], ids=["one node has it", "a node gets it later"])
async def test_redis_nodes_with_old_and_new_generation_start_one_epoch(server: RedisServer, is_known: bool) -> None:
    """The server changes its role and back, and no connection breaks."""
    prefix = new_prefix()
    epochs: list[str] = []
    async with running(server.url, prefix, call_timeout=60.0) as (old, _):
        for turn in range(4):
            await old.publish(durable(f"m-{turn}"))
            await server.command("REPLICAOF", "127.0.0.1", "1")  # there is no such master, so its data stays
            await server.command("REPLICAOF", "NO", "ONE")
            async with running(server.url, prefix, call_timeout=60.0) as (new, _):
                if is_known:
                    await new.publish(durable(f"n-{turn}"))
                calls = [
                    broker.publish(durable(f"m-{turn}-{n}-{broker is old}"))
                    for n in range(100)
                    for broker in (old, new)
                ]
                results = sorted(await asyncio.gather(*calls), key=lambda result: result.offset or 0)
                found = [epoch for epoch, _ in groupby(result.epoch for result in results)]
                # Until a node with the new generation calls, the server is unchanged to all. From then on there is one epoch.
                assert len(found) == 1 if is_known else 1 <= len(found) <= 2
                [mark] = await old.stream_heads([ROOM])
                assert mark is not None
                assert mark.epoch == found[-1]
                epochs.append(found[-1])
        assert len(await stream(old)) == 4 * (201 + is_known)
    assert len(set(epochs)) == 4


async def test_redis_changed_role_is_noticed_without_publish(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.adapters.redis.connections.shard_map.CHECK_INTERVAL", 0.05)
    async with running(server.url) as (broker, _):
        before = await broker.publish(durable("m-1"))
        link = only(broker).commands.link
        assert link is not None
        generation = link.generation
        await server.command("REPLICAOF", "127.0.0.1", "1")
        await server.command("REPLICAOF", "NO", "ONE")

        async def learned() -> bool:
            current = only(broker).commands.link
            return current is not None and current.generation != generation

        await until(learned, "the broker learns the generation", within=5)
        assert (await broker.snapshot(ROOM, Position(before.epoch, 1, "m-1"), MANY, MUCH)).recovered is False


async def test_redis_demoted_server_gets_no_writes_until_promoted(server: RedisServer) -> None:
    async with RedisServer() as master, running(server.url, **FAST) as (broker, _):
        await broker.publish(durable("m-1"))
        await server.command("REPLICAOF", "127.0.0.1", str(master.port))
        error = await refused(broker.publish(durable("m-2")))
        assert "replica" in error.message
        await refused(broker.check())
        await server.command("REPLICAOF", "NO", "ONE")
        assert (await insist(broker, durable("m-2"))).offset is not None
        await well(broker)


# --- refusals ---------------------------------------------------------------------------------------------------------


async def test_redis_full_server_refuses_publish_as_a_whole(server: RedisServer) -> None:
    async with running(server.url) as (broker, sink):
        await broker.subscribe(ROOM)
        await broker.publish(durable("m-1"))
        await server.command("CONFIG", "SET", "maxmemory", "1")
        keys = await server.keys()
        for publication in (durable("m-2"), latest("v-1", "k"), durable("m-3", OTHER_ROOM)):
            assert "maxmemory" in (await refused(broker.publish(publication))).message
        assert await server.keys() == keys
        assert (await broker.snapshot(ROOM, None, MANY, MUCH)).position.offset == 1
        await server.command("CONFIG", "SET", "maxmemory", "128mb")
        assert (await broker.publish(durable("m-2"))).offset == 2
        assert (await broker.publish(latest("v-1", "k"))).state_version == 1
        await settled(broker)
        assert sink.ids() == ["m-1", "m-2", "v-1"]
        assert not sink.interruptions


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_redis_missing_right_is_named_in_error(flavour: Flavour) -> None:
    async with RedisServer(flavour) as server:
        for rules in ("+@all -xadd", "+@all -evalsha", "resetkeys +@all", "resetchannels +@all"):
            await server.command("ACL", "SETUSER", "some", "reset", "on", ">secret", "~*", "&*", *rules.split())
            async with running(server.url, user="some", password="secret") as (broker, _):
                assert "ACL rules" in (await refused(broker.publish(durable("m-1")))).message


async def test_redis_too_few_replicas_refuse_publish(server: RedisServer) -> None:
    async with running(server.url) as (broker, _):
        await broker.publish(durable("m-1"))
        await server.command("CONFIG", "SET", "min-replicas-to-write", "1")
        assert "min-replicas-to-write" in (await refused(broker.publish(durable("m-2")))).message
        await server.command("CONFIG", "SET", "min-replicas-to-write", "0")
        assert (await broker.publish(durable("m-2"))).offset == 2


async def test_redis_server_that_cannot_save_still_delivers(server: RedisServer) -> None:
    """The server answers even PING with an error."""
    async with running(server.url, **FAST) as (broker, sink):
        await broker.subscribe(ROOM)
        await broker.publish(durable("m-1"))
        await server.command("CONFIG", "SET", "save", "3600 1")
        (server.folder / "dump.rdb").mkdir()
        await server.command("BGSAVE")

        async def failed() -> bool:
            return (await server.info("persistence"))["rdb_last_bgsave_status"] == "err"

        await until(failed, "the save fails")
        assert "disk" in (await refused(broker.publish(durable("m-2")))).message
        await asyncio.sleep(3 * FAST["ping_interval"])  # pings and their answers
        await broker.check()
        assert (await broker.snapshot(ROOM, None, MANY, MUCH)).position.offset == 1
        assert not sink.interruptions


@pytest.mark.parametrize("part", ["meta", "stream", "state", "order"])
async def test_redis_key_of_another_type_refuses_publish_as_a_whole(part: str) -> None:
    server, prefix = await shared_redis(), new_prefix()
    async with running(server.url, prefix) as (broker, sink):
        await broker.subscribe(ROOM)
        await broker.publish(durable("m-1"))
        await broker.publish(latest("v-1", "k"))
        before = await broker.stream_heads([ROOM])
        key = f"{prefix}:{{acme:room:1}}:{part}"
        await server.command("RENAME", key, f"{key}-kept")
        await server.command("SET", key, "not ours")
        publication = durable("m-2") if part in ("meta", "stream") else latest("v-2", "k")
        for _ in range(3):
            await refused(broker.publish(publication))
        await server.command("RENAME", f"{key}-kept", key)
        assert await broker.stream_heads([ROOM]) == before
        result = await broker.publish(publication)
        assert (result.offset or result.state_version, result.duplicate) == (2, False)
        await settled(broker)
        assert sink.ids() == ["m-1", "v-1", publication.id]


async def test_redis_lost_position_starts_new_epoch_and_drops_leftovers() -> None:
    server, prefix = await shared_redis(), new_prefix()
    async with running(server.url, prefix) as (broker, _):
        before = [await broker.publish(durable(f"m-{n}")) for n in range(5)]
        await broker.publish(latest("v-1", "k"))
        assert await server.command("DEL", f"{prefix}:{{acme:room:1}}:meta") == 1
        snapshot = await broker.snapshot(ROOM, Position(before[4].epoch, 5, "m-4"), MANY, MUCH)
        assert (snapshot.recovered, snapshot.position.offset, snapshot.state_version, list(snapshot.state)) == (
            False,
            0,
            0,
            [],
        )
        after = await broker.publish(durable("new"))
        assert (after.offset, after.epoch == before[0].epoch) == (1, False)
        assert await stream(broker) == ["new"]


async def test_redis_unreadable_stored_data_is_refused() -> None:
    server, prefix = await shared_redis(), new_prefix()
    async with running(server.url, prefix) as (broker, _):
        await broker.publish(durable("m-1"))
        await broker.publish(latest("v-1", "k"))
        await server.command("DEL", f"{prefix}:{{acme:room:1}}:stream")
        await server.command(
            "XADD", f"{prefix}:{{acme:room:1}}:stream", f"1-{time.time_ns() // 1_000_000}", "b", "\x00"
        )
        assert "not written by this version" in (await refused(broker.history(ROOM, None, None, 10))).message
        await server.command("HSET", f"{prefix}:{{acme:room:1}}:state", "x", "y")
        assert "not written by this version" in (await refused(broker.snapshot(ROOM, None, MANY, MUCH))).message


# --- starting ---------------------------------------------------------------------------------------------------------


async def fails_to_start(url: str, **settings: Any) -> str:
    """Returns the message of a start that fails, long before a `start_timeout` of 60 s."""
    broker = redis_broker(url, new_prefix(), **{**FAST, "start_timeout": 60.0, **settings})
    began = time.monotonic()
    error = await refused(broker.start(RecordingSink()))
    assert time.monotonic() - began < 20
    return error.message


async def test_redis_start_with_permanent_refusal_fails_at_once(tmp_path: Path) -> None:
    users = {"nothing": "on >secret -@all", "no-scripts": "on >secret ~* &* +@all -script"}
    async with RedisServer(password="secret", users=users) as server:
        for settings, sentence in (
            ({}, "broker.password"),
            ({"password": "canary"}, "broker.password"),
            ({"user": "nobody", "password": "canary"}, "broker.user"),
            ({"user": "nothing", "password": "secret"}, "docs/guarantees.md"),
            ({"user": "no-scripts", "password": "secret"}, "docs/guarantees.md"),
        ):
            message = await fails_to_start(server.url, **settings)
            assert sentence in message
            assert "canary" not in message
        assert "database" in await fails_to_start(f"{server.url}/99", password="secret")
        cluster = server.url.replace("redis:", "redis+cluster:")
        assert "no Redis Cluster" in await fails_to_start(cluster, password="secret")
        assert "broker.password" in await fails_to_start(cluster, password="canary")
        sentinel = f"{server.url.replace('redis:', 'redis+sentinel:')}/main"
        assert "no Sentinel names a master" in await fails_to_start(sentinel, sentinel_password="canary")
    missing = tmp_path / "missing.pem"
    assert "broker.ca" in await fails_to_start("rediss://127.0.0.1:1", ca=missing)


async def test_redis_start_with_wrong_tls_fails_at_once(tmp_path: Path) -> None:
    for folder in ("ours", "strangers"):
        (tmp_path / folder).mkdir()
    files, strangers = Certificates(tmp_path / "ours"), Certificates(tmp_path / "strangers")
    async with RedisServer(tls=files, client_certificates=True) as server:
        shown: dict[str, Any] = {"certificate": files.client_certificate, "private_key": files.client_key}
        assert "broker.ca" in await fails_to_start(server.url, ca=strangers.ca, **shown)
        assert "TLS" in await fails_to_start(server.url, ca=files.ca)
        # What speaks without TLS says nothing to those who do, and the other way round.
        plain = (await shared_redis()).url.replace("redis:", "rediss:")
        assert "does not answer" in await fails_to_start(plain, start_timeout=0.8)
        await fails_to_start(server.url.replace("rediss:", "redis:"), start_timeout=0.3)
        async with running(server.url, ca=files.ca, **shown) as (broker, _):
            await broker.check()


async def test_redis_start_waits_for_unreachable_server(server: RedisServer) -> None:
    message = await fails_to_start(f"redis://127.0.0.1:{free_port()}", start_timeout=0.5)
    assert "cannot be reached" in message
    for kind, path in (("cluster", ""), ("sentinel", "/main")):
        message = await fails_to_start(f"redis+{kind}://127.0.0.1:{free_port()}{path}", start_timeout=0.5)
        assert "cannot be reached" in message
    async with RedisServer(config={"replicaof": f"127.0.0.1 {server.port}"}) as replica:
        assert "replica" in await fails_to_start(replica.url, start_timeout=0.5)
        broker = redis_broker(replica.url, new_prefix(), start_timeout=10.0)
        starting = asyncio.ensure_future(broker.start(RecordingSink()))
        await asyncio.sleep(0.1)
        assert not starting.done()
        await replica.command("REPLICAOF", "NO", "ONE")
        await starting
        await broker.close()


async def test_redis_start_can_be_cancelled(server: RedisServer) -> None:
    server.stop_()
    broker = redis_broker(server.url, new_prefix())
    starting = asyncio.ensure_future(broker.start(RecordingSink()))
    await asyncio.sleep(0.1)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    server.cont()
