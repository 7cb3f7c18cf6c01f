"""The Broker on NATS: the guarantee of the port with a real server, and its own behaviour."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import nats
import pytest
from hypothesis import settings

from service.adapters.nats.broker import NatsBroker
from service.adapters.nats.records import SEGMENT_SIZE
from service.adapters.store.errors import unavailable
from service.core.broker import Broker, PublishResult
from service.core.channel import ChannelKey
from service.core.clock import milliseconds
from service.core.event import Retention
from service.core.position import Position
from service.core.removal import removal_notice, tombstone
from service.errors import ErrorCode, ServiceError
from service.telemetry.metrics import Metrics
from tests.contract import broker_machine
from tests.contract.broker_machine import MACHINE_SETTINGS, BrokerMachine
from tests.contract.broker_suite import KEEP, MANY, MUCH, ROOM, TTL, Publisher
from tests.contract.nats_stage import ListeningSink, config, running
from tests.contract.values_suite import ValuesSuite
from tests.stores import Certificates, NatsServer
from tests.support.clock import FakeClock
from tests.support.examples import examples

pytestmark = pytest.mark.slow

NOTICED = 15.0
"""Seconds until a silent server counts as lost."""


@pytest.fixture(scope="module", autouse=True)
def shared() -> Iterator[NatsServer]:
    """A server for all tests that do not stop it."""
    server = NatsServer()
    asyncio.run(server.start())
    NatsMachine.server = server
    yield server
    server.end()


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    """A server for one test."""
    async with NatsServer() as server:
        yield server


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def subjects(server: NatsServer, prefix: str) -> dict[str, int]:
    """Reads the stream with another client."""
    witness = await nats.connect(server.url)
    try:
        question = json.dumps({"subjects_filter": ">"}).encode()
        answer = await witness.request(f"$JS.API.STREAM.INFO.{prefix}", question, timeout=5)
        held: dict[str, int] = json.loads(answer.data)["state"].get("subjects") or {}
        return held
    finally:
        await witness.close()


async def until_available(call: Callable[[], Awaitable[object]], within: float = 20.0) -> None:
    """Repeats a call until it succeeds."""
    async with asyncio.timeout(within):
        while True:
            try:
                await call()
            except ServiceError:
                await asyncio.sleep(0.05)
            else:
                return


def refused(error: pytest.ExceptionInfo[ServiceError]) -> str:
    assert error.value.code is ErrorCode.BROKER_UNAVAILABLE
    return error.value.message


class TestNatsBroker(ValuesSuite):
    lists_exactly = False

    @pytest.fixture(autouse=True)
    def _server(self, shared: NatsServer) -> None:
        self.server = shared

    async def open(self, clock: FakeClock) -> Broker:
        return NatsBroker(config(self.server), clock, Metrics())


class NatsMachine(BrokerMachine):
    """Each example has its own stream."""

    may_be_set_back = True
    server: NatsServer

    async def open(self, clock: FakeClock) -> Broker:
        return NatsBroker(config(self.server, idempotency_window=broker_machine.WINDOW), clock, Metrics())


TestMachine = NatsMachine.TestCase
TestMachine.settings = settings(MACHINE_SETTINGS, max_examples=examples(10), stateful_step_count=50)


# --- many nodes -------------------------------------------------------------------------------------------------------


async def test_nats_two_nodes_publishing_in_one_channel_give_dense_offsets(
    shared: NatsServer, clock: FakeClock
) -> None:
    each = 60
    where = config(shared)
    async with running(where, clock) as (one, heard_by_one), running(where, clock) as (two, heard_by_two):
        for broker in (one, two):
            await broker.subscribe(ROOM)
        publishers = [Publisher(one, clock), Publisher(two, clock)]
        keep = Retention(entries=MANY, ttl=TTL)
        results: list[PublishResult] = await asyncio.gather(
            *(
                publisher.durable(id=f"{node}-{n}", retention=keep)
                for n in range(each)
                for node, publisher in enumerate(publishers)
            )
        )
        assert sorted(result.offset or 0 for result in results) == list(range(1, 2 * each + 1))
        assert not any(result.duplicate for result in results)
        assert len({result.epoch for result in results}) == 1
        kept = (await two.history(ROOM, None, None, MANY)).events
        assert {event.id: event.offset for event in kept} == {result.id: result.offset for result in results}
        for sink in (heard_by_one, heard_by_two):
            await sink.until(lambda sink=sink: len(sink.events) == 2 * each)  # type: ignore[misc]  # bound early
            assert [event.id for event in sink.events] == [event.id for event in kept]
            assert sink.interruptions == []


async def test_nats_one_id_published_on_two_nodes_is_stored_once(shared: NatsServer, clock: FakeClock) -> None:
    where = config(shared)
    async with running(where, clock) as (one, _), running(where, clock) as (two, _):
        publishers = [Publisher(one, clock), Publisher(two, clock)]
        for n in range(10):
            results = await asyncio.gather(
                *(publisher.durable(id=f"same-{n}") for publisher in publishers * 3),
                *(publisher.latest("k", id=f"value-{n}") for publisher in publishers * 2),
            )
            assert sum(not result.duplicate for result in results) == 2
            assert {result.offset for result in results} == {n + 1, None}
            assert {result.state_version for result in results} == {n + 1, None}


async def test_nats_publishing_in_many_channels_at_once_succeeds(shared: NatsServer, clock: FakeClock) -> None:
    where = config(shared)
    rooms = [ChannelKey("acme", f"room:{n}") for n in range(40)]
    async with running(where, clock) as (one, _), running(where, clock) as (two, _):
        publishers = [Publisher(one, clock), Publisher(two, clock)]
        results = await asyncio.gather(
            *(
                publisher.durable(room, id=f"{node}-{n}")
                for n in range(3)
                for room in rooms
                for node, publisher in enumerate(publishers)
            )
        )
        assert len(results) == 6 * len(rooms)
        assert [mark.offset for mark in await one.stream_heads(rooms)] == [6] * len(rooms)
        assert len(await two.list_channels("acme", "room:", MANY)) == len(rooms)


async def test_nats_values_of_one_key_published_at_once_leave_the_last(shared: NatsServer, clock: FakeClock) -> None:
    async with running(config(shared), clock) as (broker, sink):
        await broker.subscribe(ROOM)
        publish = Publisher(broker, clock)
        results = await asyncio.gather(*(publish.latest("k") for _ in range(30)))
        assert [result.state_version for result in results] == list(range(1, 31))
        assert [event.state_version for event in (await broker.snapshot(ROOM, None, MANY, MUCH)).state] == [30]
        assert [event.state_version for event in sink.events] == list(range(1, 31))


# --- names and what is kept -------------------------------------------------------------------------------------------


async def test_nats_channel_names_with_wildcards_stay_apart(shared: NatsServer, clock: FakeClock) -> None:
    keys = [ChannelKey(*names) for names in (("a.b", "c"), ("a", "b.c"), ("a", "b:c"), ("a", "b%2Ec"), ("a%2Eb", "c"))]
    async with running(config(shared), clock) as (broker, sink):
        publish = Publisher(broker, clock)
        for n, key in enumerate(keys):
            await broker.subscribe(key)
            assert (await publish.durable(key, id=f"only-{n}")).offset == 1
            await publish.latest("a.*.>", key)
            await publish.ephemeral(key)
        assert [event.channel for event in sink.events] == [key for key in keys for _ in range(3)]
        assert [info.name for info in await broker.list_channels("a", "", MANY)] == sorted(["b.c", "b:c", "b%2Ec"])


async def test_nats_stream_purges_what_retention_does_not_cover(shared: NatsServer, clock: FakeClock) -> None:
    where = config(shared)
    async with running(where, clock) as (broker, _):
        publish = Publisher(broker, clock)
        for n in range(10 * SEGMENT_SIZE):
            await publish.durable()
            await publish.latest(f"k-{n}")
        await broker.check()  # NATS has dealt with what was asked for before
        held = await subjects(shared, where.prefix)
        most = KEEP.entries + SEGMENT_SIZE
        assert sum(number for subject, number in held.items() if ".d." in subject) <= most
        assert sum(number for subject, number in held.items() if ".l." in subject) <= most
        assert sum(number for subject, number in held.items() if f"{where.prefix}.h." in subject) == 1
        assert len((await broker.history(ROOM, None, None, MANY)).events) == KEEP.entries


# --- faults -----------------------------------------------------------------------------------------------------------


async def test_nats_killed_server_reports_interruption_and_loses_nothing(server: NatsServer, clock: FakeClock) -> None:
    async with running(config(server), clock) as (broker, sink):
        publish = Publisher(broker, clock)
        await broker.subscribe(ROOM)
        first = await publish.durable()
        await publish.latest("k")
        server.kill()
        with pytest.raises(ServiceError) as gone:
            await publish.durable(id="in between")
        refused(gone)
        await server.restart()
        await sink.until(lambda: sink.interruptions == [None])
        again = await publish.durable(id="in between")
        assert (again.epoch, again.offset) == (first.epoch, 2), "NATS keeps what it accepted when it is killed"
        snapshot = await broker.snapshot(ROOM, Position(first.epoch, 1, "m-1"), MANY, MUCH)
        assert ([event.id for event in snapshot.missed], snapshot.recovered) == (["in between"], True)
        assert [event.id for event in snapshot.state] == ["m-2"]
        assert sink.ids() == ["m-1", "m-2", "in between"], "the subscription is in force again"


async def test_nats_events_published_during_outage_are_in_stream(server: NatsServer, clock: FakeClock) -> None:
    where = config(server)
    async with running(where, clock) as (one, sink), running(where, clock) as (two, _):
        await one.subscribe(ROOM)
        publish = Publisher(two, clock)
        keep = Retention(entries=MANY, ttl=TTL)
        start = await publish.durable(id="n-0", retention=keep)
        for n in range(1, 31):
            if n % 10 == 0:
                await server.restart()
            await until_available(lambda n=n: publish.durable(id=f"n-{n}", retention=keep))  # type: ignore[misc]
        await sink.until(lambda: len(sink.interruptions) >= 1)
        missed = (await one.snapshot(ROOM, Position(start.epoch, 1, "n-0"), MANY, MUCH)).missed
        assert [event.id for event in missed] == [f"n-{n}" for n in range(1, 31)]
        assert [event.offset for event in missed] == list(range(2, 32))
        heard = [event.offset or 0 for event in sink.events]
        assert heard == sorted(set(heard))


async def test_nats_stalled_server_fails_calls_in_time(server: NatsServer, clock: FakeClock) -> None:
    async with running(config(server, call_timeout=1.0, max_calls=3), clock) as (broker, sink):
        publish = Publisher(broker, clock)
        await broker.subscribe(ROOM)
        await publish.durable()
        server.stop_()
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(_refusal(publish.durable)) for _ in range(4)]
        messages = [call.result() for call in calls]
        assert time.monotonic() - began < 15
        assert messages == ["NATS did not answer within 1 s"] * 3 + ["3 calls wait for NATS already (broker.queue)"]
        async with asyncio.timeout(NOTICED):
            while await _refusal(broker.check) != "there is no connection to NATS":
                pass
        server.cont()
        await sink.until(lambda: sink.interruptions == [None])
        assert (await publish.durable(id="m-2")).offset == 2
        await broker.check()


async def _refusal(call: Callable[[], Awaitable[object]]) -> str:
    with pytest.raises(ServiceError) as error:
        await call()
    return refused(error)


async def test_nats_without_connection_calls_fail_at_once(server: NatsServer, clock: FakeClock) -> None:
    async with running(config(server, call_timeout=60.0), clock) as (broker, _):
        server.kill()
        publish = Publisher(broker, clock)
        await _refusal(broker.check)
        began = time.monotonic()
        for call in (publish.durable, publish.ephemeral, lambda: broker.stream_heads([ROOM]), broker.check):
            assert await _refusal(call) == "there is no connection to NATS"
        assert time.monotonic() - began < 20, "none waited"


async def test_nats_server_with_lost_events_starts_new_epoch(server: NatsServer, clock: FakeClock) -> None:
    """Simulates a power loss; NATS syncs its files every two minutes."""
    async with running(config(server), clock) as (broker, sink):
        publish = Publisher(broker, clock)
        await broker.subscribe(ROOM)
        first = await publish.durable()
        server.kill()
        files, copy = server.folder / "jetstream", server.folder / "copy"
        shutil.copytree(files, copy)
        await server.restart()
        await sink.until(lambda: len(sink.interruptions) == 1)
        for _ in range(3):
            await publish.durable()
        server.kill()
        shutil.rmtree(files)
        shutil.move(copy, files)
        await server.restart()
        await sink.until(lambda: len(sink.interruptions) == 2)
        snapshot = await broker.snapshot(ROOM, Position(first.epoch, 4, "m-4"), MANY, MUCH)
        assert snapshot.recovered is False
        assert snapshot.position.offset == 1
        assert snapshot.position.epoch != first.epoch
        after = await publish.durable()
        assert (after.offset, after.epoch) == (2, snapshot.position.epoch)


async def test_nats_deleted_stream_is_created_with_new_epochs(server: NatsServer, clock: FakeClock) -> None:
    where = config(server)
    async with running(where, clock) as (broker, _):
        publish = Publisher(broker, clock)
        first = await publish.durable()
        witness = await nats.connect(server.url)
        await witness.jetstream().delete_stream(where.prefix)
        await witness.close()
        assert "JetStream does not answer" in await _refusal(publish.durable)
        await broker.check()
        again = await publish.durable()
        assert again.offset == 1
        assert again.epoch != first.epoch


# --- who is let in ----------------------------------------------------------------------------------------------------


async def test_nats_start_waits_for_missing_server(server: NatsServer, clock: FakeClock) -> None:
    server.kill()
    broker = NatsBroker(config(server, start_timeout=20.0), clock, Metrics())
    async with asyncio.TaskGroup() as tasks:
        start = tasks.create_task(broker.start(ListeningSink()))
        await asyncio.sleep(0)
        assert not start.done()
        await server.restart()
    await broker.check()
    await broker.close()


async def test_nats_start_without_server_fails_at_timeout(server: NatsServer, clock: FakeClock) -> None:
    server.kill()
    broker = NatsBroker(config(server, start_timeout=0.2), clock, Metrics())
    message = await _refusal(lambda: broker.start(ListeningSink()))
    assert message.startswith("NATS cannot be reached: ")
    await broker.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "NATS says: Authorization Violation"),
        ({"user": "tidewire", "password": "wrong"}, "NATS says: Authorization Violation"),
    ],
)
async def test_nats_start_with_refused_login_fails_at_once(
    clock: FakeClock, changes: dict[str, object], message: str
) -> None:
    async with NatsServer(user="tidewire", password="right") as server:
        began = time.monotonic()
        broker = NatsBroker(config(server, start_timeout=60.0, **changes), clock, Metrics())
        assert await _refusal(lambda: broker.start(ListeningSink())) == message
        assert time.monotonic() - began < 20
        await broker.close()
        async with running(config(server, user="tidewire", password="right"), clock) as (good, _):
            await good.check()


async def test_nats_tls_with_client_certificate_connects(
    tmp_path_factory: pytest.TempPathFactory, clock: FakeClock
) -> None:
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    async with NatsServer(tls=certificates, client_certificates=True) as server:
        shown = {
            "ca": certificates.ca,
            "certificate": certificates.client_certificate,
            "private_key": certificates.client_key,
        }
        async with running(config(server, **shown), clock) as (broker, sink):
            await broker.subscribe(ROOM)
            publish = Publisher(broker, clock)
            await publish.durable(data=b'"' + b"x" * 60_000 + b'"')
            assert sink.ids() == ["m-1"]
            await server.restart()
            await sink.until(lambda: sink.interruptions == [None])
            assert (await publish.durable()).offset == 2
        plain = NatsBroker(config(server, servers=(server.url.replace("tls", "nats"),)), clock, Metrics())
        assert "write tls:// in broker.url" in await _refusal(lambda: plain.start(ListeningSink()))
        strange = NatsBroker(config(server, start_timeout=0.1), clock, Metrics())
        assert "NATS cannot be reached" in await _refusal(lambda: strange.start(ListeningSink()))
        for broker in (plain, strange):
            await broker.close()


async def test_nats_start_with_unsuitable_stream_fails_and_names_it(shared: NatsServer, clock: FakeClock) -> None:
    where = config(shared)
    witness = await nats.connect(shared.url)
    await witness.jetstream().add_stream(name=where.prefix, subjects=[f"{where.prefix}.e.>"])
    await witness.close()
    broker = NatsBroker(where, clock, Metrics())
    message = await _refusal(lambda: broker.start(ListeningSink()))
    assert message.startswith(f"the stream {where.prefix} is not made for this service: see ")
    assert "allow_atomic" in message
    assert "republish" in message
    await broker.close()


async def test_nats_denied_subscription_is_refused(clock: FakeClock) -> None:
    rules = """authorization { users: [{ user: "tidewire", password: "right",
      permissions: { publish: ">", subscribe: { allow: ["_INBOX.>", "*.live.acme.>"] } } }] }"""
    async with (
        NatsServer(config=rules) as server,
        running(config(server, user="tidewire", password="right"), clock) as (broker, sink),
    ):
        await broker.subscribe(ROOM)
        assert "does not permit" in await _refusal(lambda: broker.subscribe(ChannelKey("other", "room:1")))
        await Publisher(broker, clock).durable()
        assert sink.ids() == ["m-1"]


# --- taking back ---------------------------------------------------------------------------------------------------------


async def test_nats_remove_event_leaves_no_message_with_its_data(shared: NatsServer, clock: FakeClock) -> None:
    where = config(shared)
    async with running(where, clock) as (broker, _):
        publish = Publisher(broker, clock)
        for _ in range(3):
            await publish.durable(data=b'"a secret"')
        events = (await broker.history(ROOM, None, None, MANY)).events
        await broker.remove_events(ROOM, [events[1]])
        stored = [one.data for one in await broker.stream.get_all([broker.subjects.durable(ROOM)])]
        assert len(stored) == 3
        assert sum(b"a secret" in data for data in stored) == 2


async def test_nats_remove_event_after_failed_erase_is_completed(
    shared: NatsServer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(config(shared), clock) as (broker, _):
        await Publisher(broker, clock).durable(data=b'"a secret"')
        [event] = (await broker.history(ROOM, None, None, MANY)).events

        async def fail(sequence: int) -> None:
            raise unavailable("the answer is lost")

        with monkeypatch.context() as patch:
            patch.setattr(broker.stream, "erase", fail)
            with pytest.raises(ServiceError):
                await broker.remove_events(ROOM, [event])
        assert list((await broker.history(ROOM, None, None, MANY)).events) == [tombstone(event)]
        assert list(await broker.remove_events(ROOM, [event])) == [True]
        assert list((await broker.history(ROOM, None, None, MANY)).events) == [tombstone(event)]
        [left] = await broker.stream.get_all([broker.subjects.durable(ROOM)])
        assert b"a secret" not in left.data
        await broker.stream.erase(left.sequence + 1_000)  # a message that is gone


async def test_nats_trim_after_removals_keeps_the_whole_retention(shared: NatsServer, clock: FakeClock) -> None:
    keep = Retention(entries=64, ttl=TTL)
    async with running(config(shared), clock) as (broker, _):
        publish = Publisher(broker, clock)
        for _ in range(64):
            await publish.durable(retention=keep)
        events = (await broker.history(ROOM, 0, None, 40)).events
        assert all(await broker.remove_events(ROOM, events))
        await broker.publish(removal_notice(ROOM, events, keep, milliseconds(clock)))
        for _ in range(31):
            await publish.durable(retention=keep)
        page = await broker.history(ROOM, None, None, MANY)
        assert [event.offset for event in page.events] == list(range(33, 97))
        for _ in range(128):
            await publish.durable(retention=keep)
        async with asyncio.timeout(10):  # the deletion is not waited for
            while len(await broker.stream.get_all([broker.subjects.durable(ROOM)])) > 64 + SEGMENT_SIZE:
                await broker.check()
