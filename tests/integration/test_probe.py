"""The latency probe: it takes the way of events, shows faults there, and affects no client."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.core.broker import PublishResult
from service.core.channel import ChannelKey
from service.core.event import Delivery, Event, Publication
from service.errors import ErrorCode, ServiceError
from service.realtime.connections.connection import Connection
from service.realtime.lifecycle import latency_probe
from service.realtime.lifecycle.latency_probe import LatencyProbe
from service.web.ws import loopback
from tests.integration.cluster import Member, cluster
from tests.stores import Flavour
from tests.support.api_client import post
from tests.support.clock import FakeClock
from tests.support.exported import exported
from tests.support.harness import API_KEY, DEADLINE, OTHER_API_KEY, Client, Running, eventually, serving
from tests.support.shared_broker import Bus, Line, RedisBus, SharedBroker

OFTEN: dict[str, Any] = {"interval": 0.01}
PATIENT: dict[str, Any] = {"interval": 0.01, "timeout": 60.0}
HASTY: dict[str, Any] = {"interval": 0.01, "timeout": 0.05}


def probe_of(server: Running) -> LatencyProbe:
    return server.service.node.lifecycle.probe


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[loopback.LoopbackConnection]:
    """The connections of all probes, the newest last."""
    made: list[loopback.LoopbackConnection] = []
    connect = loopback.connect

    async def recorded(*arguments: Any) -> loopback.LoopbackConnection:
        made.append(await connect(*arguments))
        return made[-1]

    monkeypatch.setattr(loopback, "connect", recorded)
    return made


def successes(server: Running) -> int:
    return int(exported(server.service.metrics, "probe_seconds_count"))


def failures(server: Running, reason: str) -> float:
    return server.service.metrics.probe.probe_failures.labels(reason).value


async def succeeds(server: Running) -> None:
    """Waits for three more: the first of them began after this did."""
    so_far = successes(server)
    await eventually(lambda: successes(server) >= so_far + 3)


async def loses_one(server: Running, line: Line) -> Event:
    """Cuts the line, and returns the probe's event that is lost first: its measurement waits for it."""
    line.lost.clear()
    line.cut()

    def lost() -> list[Event]:
        return [event for event in line.lost if event.channel == probe_of(server).channel]

    await eventually(lambda: bool(lost()))
    return lost()[0]


class Stuck(Line):
    """A line on which the probe's publishes hang while a test says so."""

    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self.hangs = False
        self.hanging = 0
        self.most = 0
        """That hung at the same time."""

    async def publish(self, publication: Publication) -> PublishResult:
        if self.hangs and publication.type == "node.probe":
            self.hanging += 1
            self.most = max(self.most, self.hanging)
            try:
                await asyncio.Event().wait()
            finally:
                self.hanging -= 1
        return await super().publish(publication)


async def test_probe_latency_is_exported() -> None:
    began = time.time()
    async with serving(probe=OFTEN) as server:
        await succeeds(server)
        metrics = await server.metrics()
        count = metrics["tidewire_probe_seconds_count"]
        assert count >= 3
        assert metrics['tidewire_probe_seconds_bucket{le="+Inf"}'] == count
        assert 0 < metrics["tidewire_probe_seconds_sum"] < time.time() - began
        assert began <= metrics["tidewire_probe_last_success_timestamp_seconds"] <= time.time()
        assert {reason: failures(server, reason) for reason in ("timeout", "publish", "connection")} == {
            "timeout": 0,
            "publish": 0,
            "connection": 0,
        }


async def test_probe_is_in_no_registry_and_no_client_metric() -> None:
    """Whatever operators read as clients' says that there are none."""
    async with serving(probe=OFTEN) as server:
        await succeeds(server)
        await server.at_rest()
        metrics = await server.metrics()
        told = ("messages", "bytes", "publish", "fanout", "connects", "closes", "presence", "native", "outbox", "limit")
        assert not {
            name: value
            for name, value in metrics.items()
            if value and name.startswith(tuple(f"tidewire_{one}" for one in told))
        }
        async with server.client() as client:
            await client.subscribe("room:1")
            before = await server.metrics()
            await succeeds(server)
            after = await server.metrics()
        for name in ("connections", "subscriptions", "channels"):
            assert before[f"tidewire_{name}"] == after[f"tidewire_{name}"] == 1


async def test_probe_opens_no_port_to_others() -> None:
    """The service listens where it says, and nowhere else; the probe's own two ends are connected to each other."""
    listening_before, connected_before = _sockets()
    async with serving(probe=OFTEN) as server:
        await succeeds(server)
        listening, connected = _sockets()
        assert listening - listening_before == {int(url.rpartition(":")[2]) for url in (server.url, server.ops_url)}
        [(one, other), (far, near)] = connected - connected_before
        assert (one, other) == (near, far)


def _sockets() -> tuple[set[int], set[tuple[int, int]]]:
    """The local ports on which this process listens, and the local and the remote ports of its connections."""
    mine = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            mine.add(str(entry.readlink()))
    listening, connected = set[int](), set[tuple[int, int]]()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if Path(table).exists() else ():
            fields = line.split()
            if f"socket:[{fields[9]}]" in mine:
                port, peer = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
                if fields[3] == "0A":
                    listening.add(port)
                else:
                    connected.add((port, peer))
    return listening, connected


async def test_foreign_connection_to_the_probes_port_is_refused(
    monkeypatch: pytest.MonkeyPatch, connections: list[loopback.LoopbackConnection]
) -> None:
    """While the connection is made somebody else on the machine may be faster."""
    strangers: list[socket.socket] = []

    class Overheard(socket.socket):
        def listen(self, backlog: int = 128, /) -> None:
            super().listen(8)
            strangers.append(socket.create_connection(self.getsockname()))

    async with serving(probe=OFTEN) as server:
        await succeeds(server)
        monkeypatch.setattr(socket, "socket", Overheard)
        connections[-1].cut()
        await eventually(lambda: bool(strangers))
        monkeypatch.undo()
        await succeeds(server)
        loop = asyncio.get_running_loop()
        for stranger in strangers:
            stranger.setblocking(False)
            assert await loop.sock_recv(stranger, 1) == b""
            stranger.close()


async def test_each_node_receives_its_own_probe_only(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, probe=OFTEN) as nodes:
        one, other = nodes.members
        assert probe_of(one.server).channel != probe_of(other.server).channel
        heard = _heard(one)
        for member in nodes.members:
            await succeeds(member.server)
        assert heard == {probe_of(one.server).channel}
        await loses_one(other.server, other.line)
        await succeeds(one.server)


def _heard(member: Member) -> set[object]:
    """The channels that the node's probe is given events of, from now on."""
    heard = set[object]()
    probe = probe_of(member.server)
    deliver = probe.deliver

    class Tap:
        def deliver(self, event: Any) -> None:
            heard.add(event.channel)
            deliver(event)

        def interrupted(self, channels: Any = None) -> None: ...

    member.server.service.node.streams.relay.subscribe_internally(probe.channel, Tap())
    return heard


async def test_lost_probe_is_a_timeout_and_refused_probe_a_failed_publish(
    connections: list[loopback.LoopbackConnection],
) -> None:
    async with cluster(SharedBroker, nodes=1, probe=HASTY) as nodes:
        [member] = nodes.members
        server, line = member.server, member.line
        await succeeds(server)
        suspect = connections[-1]
        line.cut()
        await eventually(lambda: failures(server, "timeout") >= 3)
        assert connections[-1] is not suspect, "the connection may have been at fault"
        last = await server.metric("probe_last_success_timestamp_seconds")
        line.go_away()
        await eventually(lambda: failures(server, "publish") >= 3)
        assert await server.metric("probe_last_success_timestamp_seconds") == last
        line.come_back()
        await succeeds(server)
        assert await server.metric("probe_last_success_timestamp_seconds") > last


async def test_late_event_does_not_end_the_next_measurement(connections: list[loopback.LoopbackConnection]) -> None:
    async with cluster(SharedBroker, nodes=1, probe=PATIENT) as nodes:
        [member] = nodes.members
        probe = probe_of(member.server)
        await succeeds(member.server)
        lost = await loses_one(member.server, member.line)
        so_far, near = successes(member.server), connections[-1].transport
        near.has_received = False
        probe.deliver(Event(probe.channel, "node.probe", "late", Delivery.EPHEMERAL, b"{}", None, at=0))
        await eventually(lambda: near.has_received)
        assert successes(member.server) == so_far
        probe.deliver(lost)
        await eventually(lambda: successes(member.server) == so_far + 1)


async def test_hanging_measurement_delays_the_next() -> None:
    bus = SharedBroker()
    await bus.start()
    line = Stuck(bus.line())
    async with serving(broker=line, probe=HASTY) as server:
        await succeeds(server)
        line.hangs = True
        so_far = failures(server, "timeout")
        await eventually(lambda: failures(server, "timeout") >= so_far + 5)
        assert line.most == 1
        line.hangs = False
        await succeeds(server)
    await bus.close()


@pytest.mark.parametrize("end", ["near", "far"])
async def test_broken_probe_connection_is_replaced(
    end: str, connections: list[loopback.LoopbackConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency_probe, "RECONNECT_INTERVAL", 0.01)
    earlier = _all_connections()  # held, so that no id of theirs is used again
    async with cluster(SharedBroker, nodes=1, probe=PATIENT) as nodes:
        [member] = nodes.members
        server = member.server
        await succeeds(server)
        await loses_one(server, member.line)
        member.line.hear_again()
        near = connections[-1].transport
        if end == "near":
            near.abort()
        else:
            with _far_end(near.fd) as far:
                far.shutdown(socket.SHUT_RDWR)
        await eventually(lambda: failures(server, "connection") == 1)
        await succeeds(server)
        assert len(connections) == 2
        new = {id(one) for one in _all_connections()} - {id(one) for one in earlier}
        assert len(new) == 1, "nothing holds the broken one"


def _all_connections() -> list[Connection]:
    """Every connection of this process that something holds, also those that earlier tests have left."""
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, Connection)]


def _far_end(near: int) -> socket.socket:
    """The socket of this process to which this descriptor's socket is connected."""
    with socket.socket(fileno=os.dup(near)) as this:
        peer = this.getpeername()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            other = socket.socket(fileno=os.dup(int(entry.name)))
            if other.getsockname() == peer:
                return other
            other.close()
    raise AssertionError("the other end is not in this process")


async def test_failed_probe_connection_is_retried_with_backoff(
    monkeypatch: pytest.MonkeyPatch, connections: list[loopback.LoopbackConnection]
) -> None:
    clock = FakeClock()
    with capture_logs() as logs:
        async with serving(clock=clock, probe={"interval": 0.01}) as server:
            monkeypatch.setattr(loopback, "HOST", "192.0.2.1")  # nobody's (RFC 5737)
            connections[-1].cut()
            waits = []
            for count in range(1, 9):
                began = clock.monotonic()
                async with asyncio.timeout(DEADLINE):
                    while failures(server, "connection") < count:
                        clock.advance(0.5)
                        for _ in range(10):
                            await asyncio.sleep(0)
                waits.append(clock.monotonic() - began)
            assert waits[-1] >= 30, waits
            assert max(waits) <= 61
            monkeypatch.undo()
            clock.advance(60)
            await eventually(lambda: successes(server) == 1)
    assert [entry["event"] for entry in logs if entry.get("event", "").startswith("probe_")][-1] == "probe_recovered"


async def test_node_starts_without_a_probe_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback, "HOST", "192.0.2.1")
    async with serving(probe=PATIENT) as server:
        assert failures(server, "connection") >= 1
        async with server.client() as client:
            await client.silence()


class Unwilling(Line):
    """A line that does not deliver the probe's channel while a test says so."""

    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self.refuses = True

    async def subscribe(self, channel: ChannelKey) -> None:
        if self.refuses and channel.name.startswith("probe"):
            raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "no permission for this channel")
        await super().subscribe(channel)


async def test_node_starts_though_the_broker_does_not_deliver_the_probes_channel() -> None:
    bus = SharedBroker()
    await bus.start()
    line = Unwilling(bus.line())
    async with serving(broker=line, probe=OFTEN) as server:
        await eventually(lambda: failures(server, "subscribe") >= 2)
        async with server.client() as client:
            await client.subscribe("room:1")
        line.refuses = False
        await succeeds(server)


async def test_fault_of_the_probe_is_counted_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*args: object) -> Any:
        raise RuntimeError("a fault of this code")

    with monkeypatch.context() as patch:
        patch.setattr(loopback, "connect", broken)
        async with serving(probe=OFTEN) as server:
            await eventually(lambda: failures(server, "fault") >= 3)
            assert await server.metric("supervised_task_deaths_total", task="probe") == 0


async def test_probe_opens_its_descriptors_at_the_start() -> None:
    async with serving(probe=PATIENT) as server:
        before = _descriptors()
        await succeeds(server)
        assert _descriptors() == before


async def test_probe_continues_while_the_node_drains() -> None:
    async with serving(probe=OFTEN, deadlines={"shutdown": 30.0}, outbox={"close_grace": 30.0}) as server:
        client = await Client.open(server)  # it reads nothing, so its end is awaited
        drain = asyncio.create_task(server.service.node.lifecycle.drain())
        await eventually(lambda: server.service.node.admission.is_draining)
        await succeeds(server)
        assert not drain.done()
        assert await client.closed() == 1012
        await drain
        await succeeds(server)


@pytest.mark.parametrize("moment", ["resting", "hanging"])
async def test_probe_ends_with_the_node(moment: str) -> None:
    before = _descriptors()
    bus = SharedBroker()
    await bus.start()
    async with serving(broker=bus.line(), probe=PATIENT) as server:
        await succeeds(server)
        if moment == "hanging":
            line = server.service.broker
            assert isinstance(line, Line)
            await loses_one(server, line)
    await bus.close()
    assert failures(server, "connection") == failures(server, "timeout") == 0
    await eventually(lambda: _descriptors() == before, _descriptors)


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_probe_does_not_count_in_the_bound_on_channels() -> None:
    async with serving(broker_settings={"channels": 1}, probe=OFTEN) as server, server.client() as ann:
        await ann.subscribe("room:1")
        await succeeds(server)
        for key in (API_KEY, OTHER_API_KEY):
            await post(server, "/tokens/revoke", {"jti": "t"}, key=key)
        assert (await ann.ask("subscribe", channel="room:2"))["code"] == "broker_unavailable"


async def test_disabled_probe_does_not_exist(connections: list[loopback.LoopbackConnection]) -> None:
    bus = SharedBroker()
    await bus.start()
    clock = FakeClock()
    async with serving(broker=bus.line(clock), clock=clock, probe={"interval": 0}) as server:
        probe = probe_of(server)
        assert probe.channel not in bus.nodes[0].channels
        clock.advance(60)
        assert not any(task.get_name() == "probe" for task in asyncio.all_tasks())
        assert not connections
        assert await server.metric("probe_last_success_timestamp_seconds") == 0
    await bus.close()


@pytest.mark.parametrize("flavour", ["redis", "valkey"])
async def test_probe_stores_nothing(flavour: Flavour) -> None:
    bus = RedisBus(flavour)
    await bus.start()
    async with serving(broker=bus.line(), probe=OFTEN) as server:
        probe = probe_of(server)
        await succeeds(server)
        assert not [key for key in await bus.server.keys(f"{bus.prefix}*") if "probe" in key]
    channels = await bus.server.command("PUBSUB", "CHANNELS", f"*{probe.channel.name}*")
    assert not channels
    await bus.close()
