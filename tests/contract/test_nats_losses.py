"""The Broker over a NATS that has lost what it had accepted, as after a loss of power: no subscriber takes the new for the old.

What a node heard is all that shows it. So each test says who heard what, and what has happened by the time that the node asks.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from service.adapters.nats.broker import NatsBroker
from service.adapters.nats.config import NatsConfig
from service.core import epoch as epochs
from service.core.broker import DeliveredHead
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from service.telemetry.metrics import Metrics
from tests.contract.broker_suite import MANY, MUCH, ROOM, Publisher
from tests.contract.nats_stage import ListeningSink, config, running
from tests.stores import NatsServer
from tests.stores.process import until
from tests.support.clock import FakeClock

pytestmark = pytest.mark.slow


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    async with NatsServer() as server:
        yield server


class Backup:
    """A copy of a server's files."""

    def __init__(self, server: NatsServer) -> None:
        self._files = server.folder / "jetstream"
        self._copy = server.folder / "copy"
        shutil.copytree(self._files, self._copy)

    def restore(self, files: Path | None = None) -> None:
        """Replaces the files of a stopped server."""
        files = files or self._files
        shutil.rmtree(files)
        shutil.copytree(self._copy, files)


async def publish_all(broker: NatsBroker, clock: FakeClock, *ids: str) -> None:
    for id in ids:
        await Publisher(broker, clock).durable(id=id)


async def back_up_after_one(server: NatsServer, where: NatsConfig, clock: FakeClock) -> Backup:
    """Returns a copy with one event of ROOM."""
    async with running(where, clock) as (broker, _):
        await publish_all(broker, clock, "m-1")
    server.kill()
    backup = Backup(server)
    await server.restart()
    return backup


@asynccontextmanager
async def subscriber(where: NatsConfig, clock: FakeClock) -> AsyncIterator[tuple[NatsBroker, ListeningSink]]:
    async with running(where, clock) as (broker, sink):
        await broker.subscribe(ROOM)
        yield broker, sink


async def test_nats_head_behind_seen_events_starts_new_epoch(server: NatsServer, clock: FakeClock) -> None:
    where = config(server)
    backup = await back_up_after_one(server, where, clock)
    async with subscriber(where, clock) as (broker, sink):
        await publish_all(broker, clock, "m-2", "m-3")
        old = sink.events[0].epoch
        server.kill()
        backup.restore()
        await server.restart()
        await sink.until(lambda: sink.interruptions == [None])
        [head] = await broker.stream_heads([ROOM])
        assert (head.epoch != old, head.offset) == (True, 1)
        assert [head] == list(await broker.stream_heads([ROOM])), "once"
        assert (await broker.snapshot(ROOM, Position(old, 3, "m-3"), MANY, MUCH)).recovered is False


async def test_nats_head_behind_read_position_starts_new_epoch(server: NatsServer, clock: FakeClock) -> None:
    where = config(server)
    backup = await back_up_after_one(server, where, clock)
    async with running(where, clock) as (publisher, _):
        await publish_all(publisher, clock, "m-2", "m-3")
    async with subscriber(where, clock) as (broker, sink):
        [before] = await broker.stream_heads([ROOM])
        server.kill()
        backup.restore()
        await server.restart()
        await sink.until(lambda: sink.interruptions == [None])
        [after] = await broker.stream_heads([ROOM])
        assert sink.events == []
        assert (before.offset, after.offset, after.epoch != before.epoch) == (3, 1, True)


async def test_nats_other_event_at_seen_offset_starts_new_epoch(server: NatsServer, clock: FakeClock) -> None:
    """Another node has published as many events as were lost, so only the id differs."""
    where = config(server)
    backup = await back_up_after_one(server, where, clock)
    async with subscriber(where, clock) as (broker, sink), NatsServer() as elsewhere:
        await publish_all(broker, clock, "m-2", "m-3")
        old = sink.events[0].epoch
        server.kill()
        elsewhere.kill()
        backup.restore(elsewhere.folder / "jetstream")
        await elsewhere.restart()
        async with running(config(elsewhere, prefix=where.prefix), clock) as (other, _):
            await publish_all(other, clock, "n-2", "n-3")
        elsewhere.kill()
        shutil.rmtree(server.folder / "jetstream")
        shutil.copytree(elsewhere.folder / "jetstream", server.folder / "jetstream")
        await server.restart()
        await sink.until(lambda: sink.interruptions == [None])
        [head] = await broker.stream_heads([ROOM])
        assert (head.epoch != old, head.offset) == (True, 3)


async def test_nats_repeated_offset_is_not_delivered(server: NatsServer, clock: FakeClock) -> None:
    """The publisher knows of no loss and goes on in the old epoch: nothing of that reaches a sink that would take it for more
    of what it had, not even once its offsets are ahead again."""
    where = config(server)
    backup = await back_up_after_one(server, where, clock)
    async with subscriber(where, clock) as (broker, sink):
        await publish_all(broker, clock, "m-2", "m-3")
        old = sink.events[0].epoch
        server.kill()
        backup.restore()
        await server.restart()
        async with running(where, clock) as (other, _):
            await sink.until(lambda: sink.interruptions == [None])
            await publish_all(other, clock, "n-2", "n-3", "n-4")
            await sink.until(lambda: [ROOM] in sink.interruptions)
            await broker.check()  # all published events have arrived
            assert sink.ids() == ["m-2", "m-3"]
            [head] = await broker.stream_heads([ROOM])
            assert (head.epoch != old, head.offset) == (True, 4)
            await publish_all(other, clock, "n-5")
            await sink.until(lambda: sink.ids() == ["m-2", "m-3", "n-5"])
            assert (sink.events[-1].epoch, sink.events[-1].offset) == (head.epoch, 5)


async def test_nats_lost_value_starts_new_epoch(server: NatsServer, clock: FakeClock) -> None:
    where = config(server)
    backup = await back_up_after_one(server, where, clock)
    async with subscriber(where, clock) as (broker, sink):
        await Publisher(broker, clock).latest("k")
        old = sink.events[0].epoch
        server.kill()
        backup.restore()
        await server.restart()
        await sink.until(lambda: sink.interruptions == [None])
        [head] = await broker.stream_heads([ROOM])
        assert (head.epoch != old, head.offset, head.state_version) == (True, 1, 0)


async def test_nats_restart_without_loss_keeps_epoch(server: NatsServer, clock: FakeClock) -> None:
    where = config(server)
    async with subscriber(where, clock) as (broker, sink):
        await publish_all(broker, clock, "m-1")
        await Publisher(broker, clock).latest("k")
        before = await broker.stream_heads([ROOM])
        await server.restart()
        await sink.until(lambda: sink.interruptions == [None])
        assert await broker.stream_heads([ROOM]) == before


async def well(broker: NatsBroker) -> None:
    async def fit() -> bool:
        with suppress(ServiceError):
            await broker.check()
            return True
        return False

    await until(fit, "the broker is well again", within=20)


async def test_nats_head_behind_own_publishes_starts_new_epoch(server: NatsServer, clock: FakeClock) -> None:
    where = config(server)
    backup = await back_up_after_one(server, where, clock)
    async with running(where, clock) as (broker, _):
        publish = Publisher(broker, clock)
        old = (await publish.durable(id="m-2")).epoch
        await publish.durable(id="m-3")
        server.kill()
        backup.restore()
        await server.restart()
        await well(broker)
        after = await publish.durable(id="m-4")
        assert (after.epoch != old, after.offset) == (True, 2)
        assert (await publish.durable(id="m-5")).epoch == after.epoch, "once"
        assert (await broker.snapshot(ROOM, Position(old, 1, "m-1"), MANY, MUCH)).recovered is False


@pytest.mark.parametrize("word", ["known", "since"])
async def test_nats_head_behind_client_position_starts_new_epoch(
    server: NatsServer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setattr(epochs, "MIN_EPOCH_AGE", 0.0)
    where = config(server)
    backup = await back_up_after_one(server, where, clock)
    async with running(where, clock) as (broker, _):
        await publish_all(broker, clock, "m-2", "m-3")
        top = (await broker.snapshot(ROOM, None, MANY, MUCH)).position
    server.kill()
    backup.restore()
    await server.restart()
    async with running(where, clock) as (broker, _):
        if word == "known":
            [head] = await broker.stream_heads([ROOM], [DeliveredHead(top, 0)])
            assert [head] == list(await broker.stream_heads([ROOM], [DeliveredHead(top, 0)])), "once"
        else:
            snapshot = await broker.snapshot(ROOM, top, MANY, MUCH)
            head = snapshot.head
            assert (snapshot.recovered, snapshot.epoch_start) == (False, 1)
        assert (head.epoch != top.epoch, head.offset) == (True, 1)
        monkeypatch.setattr(epochs, "MIN_EPOCH_AGE", 60.0)
        again = await broker.snapshot(ROOM, Position(head.epoch, 70, "m-70"), MANY, MUCH)
        assert (again.recovered, again.position.epoch) == (False, head.epoch), (
            "an epoch that has just begun is left alone"
        )


# --- servers that are not what is needed ------------------------------------------------------------------------------


async def refusal(where: NatsConfig) -> str:
    """Returns the message of a start that fails."""
    broker = NatsBroker(where, FakeClock(), Metrics())
    with pytest.raises(ServiceError) as error:
        await broker.start(ListeningSink())
    await broker.close()
    assert error.value.code is ErrorCode.BROKER_UNAVAILABLE
    return error.value.message


async def test_nats_start_without_jetstream_fails_and_says_so() -> None:
    async with PlainServer() as server:
        message = await refusal(config(server, start_timeout=0.2, call_timeout=1.0))
    assert message == "JetStream does not answer: it is not enabled, has no leader or is still starting"


class PlainServer(NatsServer):
    """NATS without JetStream."""

    def _prepare(self) -> None:
        lines = {"host": "127.0.0.1", "port": self.port, "server_name": self._identity}
        (self.folder / "server.conf").write_text("\n".join(f"{name}: {json.dumps(it)}" for name, it in lines.items()))

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection(*self.address)
        except OSError:
            return False
        try:
            return self._identity.encode() in await reader.readline()
        finally:
            writer.transport.abort()


@pytest.mark.parametrize("version", ["2.10.26", "2.11.0", "2.12.0"])
async def test_nats_start_with_old_server_fails_and_names_version(version: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO " + json.dumps({"version": version, "max_payload": 1_048_576}).encode() + b"\r\n")
        while line := await reader.readline():
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
        writer.close()

    old = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with old:
        port = old.sockets[0].getsockname()[1]
        message = await refusal(NatsConfig((f"nats://127.0.0.1:{port}",), start_timeout=20.0))
    assert message == f"NATS is version {version}; 2.12.1 or newer is needed"
