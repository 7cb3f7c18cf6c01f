"""Several nodes that share a broker: what is asked of one is done by all, once, whatever happens to their lines."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import pytest
import structlog

from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication, Retention
from service.errors import ErrorCode, ServiceError
from service.protocol.close import CloseCode
from service.realtime import control
from service.realtime.control_messages import COMMANDS, CONTROL, NODES, REVOCATIONS, Disconnect, encode
from service.telemetry import log
from tests.harness import API_KEY, DEADLINE, Client, Running, eventually, serving, token
from tests.integration.api_client import ask, get, post
from tests.shared_broker import Bus, Line, NatsBus, RedisBus, SharedBroker

SOON = 2.0
"""Seconds within which every node has done what one was asked."""

BUSES: dict[str, Callable[[], Bus]] = {"memory": SharedBroker, "redis": partial(RedisBus, "redis"), "nats": NatsBus}


@dataclass(frozen=True, slots=True)
class Member:
    """One node of a cluster."""

    server: Running
    line: Line

    @property
    def commands(self) -> Any:
        """How often a kind of command was carried out here."""
        counter = self.server.service.metrics.control_commands
        return lambda kind: counter.labels(kind=kind)._value.get()


class Cluster:
    """Nodes that share a bus."""

    def __init__(self, bus: Bus, stack: AsyncExitStack) -> None:
        self.bus = bus
        self._stack = stack
        self.members: list[Member] = []

    async def join(self, **groups: Any) -> Member:
        """Starts one more node, and waits until all know of it."""
        line = self.bus.line()
        server = await self._stack.enter_async_context(serving(broker=line, **groups))
        member = Member(server, line)
        self.members.append(member)
        wanted = len(self.members) - 1
        await eventually(lambda: all(len(one.server.service.node.control.others) >= wanted for one in self.members))
        return member


@pytest.fixture(params=BUSES)
def make_bus(request: pytest.FixtureRequest) -> Callable[[], Bus]:
    return BUSES[request.param]


@asynccontextmanager
async def cluster(make_bus: Callable[[], Bus], nodes: int = 2, **groups: Any) -> AsyncIterator[Cluster]:
    bus = make_bus()
    async with AsyncExitStack() as stack:
        await bus.start()
        stack.push_async_callback(bus.close)
        made = Cluster(bus, stack)
        for _ in range(nodes):
            await made.join(**groups)
        yield made


async def refused(server: Running, offered: str) -> None:
    """Fails the test if the token still opens a connection."""
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        await Client.open(server, hello=False, headers={"Authorization": f"Bearer {offered}"})


def ends(*clients: Client) -> asyncio.Future[list[int]]:
    """The close codes, awaited from now on: aiohttp's client forgets the code that it has not read when the line goes."""
    return asyncio.gather(*(client.closed() for client in clients))


def old(user: str = "ann", **claims: Any) -> str:
    return token(user, iat=int(time.time()) - 60, **claims)


# --- commands ------------------------------------------------------------------------------------------------------------


async def test_disconnect_reaches_every_node_and_counts_on_all(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, 3) as nodes:
        first, second, third = (member.server for member in nodes.members)
        async with first.client() as a, second.client() as b, second.client() as c, third.client("ben") as ben:
            codes = ends(a, b, c)
            began = time.monotonic()
            answer = await post(first, "/users/ann/disconnect", {"reason": "moved out"})
            assert answer == {"connections": 3, "nodes": 3, "complete": True}
            assert time.monotonic() - began < control.PATIENCE, "it does not wait when all have answered"
            assert await codes == [4403] * 3
            await ben.silence()
        assert [member.commands("disconnect") for member in nodes.members] == [1, 1, 1]


async def test_unsubscribe_reaches_every_node(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = (member.server for member in nodes.members)
        async with first.client() as here, second.client() as there, second.client("ben") as ben:
            for client in (here, there, ben):
                await client.subscribe("room:1")
            answer = await post(first, "/users/ann/unsubscribe", {"channel": "room:1"})
            assert answer == {"subscriptions": 2, "nodes": 2, "complete": True}
            for client in (here, there):
                await client.until("unsubscribed", channel="room:1", code="removed")
            await post(first, "/channels/room:1/events", {"type": "chat.message", "id": "m", "data": {"text": "x"}})
            await ben.until("chat.message", id="m")
            await here.silence()
            await there.silence()


async def test_listed_connections_are_closed_wherever_they_are(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = (member.server for member in nodes.members)
        async with first.client() as here, second.client() as there, second.client() as spared:
            ids = [here.welcome["connection"], there.welcome["connection"], "nobody"]
            codes = ends(here, there)
            tally = await first.service.node.control.close_connections(ids, CloseCode.REPLACED, "a newer session")
            assert (tally.counts, tally.nodes, tally.complete) == ([2], 2, True)
            assert await codes == [4409, 4409]
            await spared.silence()


async def test_subscribers_are_those_of_all_nodes_asked_for_once_a_page(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = (member.server for member in nodes.members)
        async with first.client() as ann, second.client("ben") as ben, second.client("eve", tenant="other") as eve:
            for name in ("room:1", "room:2"):
                await ann.subscribe(name)
            await ben.subscribe("room:1")
            await eve.subscribe("room:1")
            asked = 0
            publish = nodes.members[0].line.publish

            async def counted(publication: Publication) -> Any:
                nonlocal asked
                asked += publication.type == "control.question"
                return await publish(publication)

            nodes.members[0].line.publish = counted  # type: ignore[method-assign]
            listed = await get(first, "/channels")
            assert [(entry["channel"], entry["subscribers"]) for entry in listed["channels"]] == [
                ("room:1", 2),
                ("room:2", 1),
            ]
            assert (listed["complete"], asked) == (True, 1)
            shown = await get(second, "/channels/room:1")
            assert (shown["subscribers"], shown["complete"]) == (2, True)


async def test_a_tenants_key_reaches_nobody_elses_users_on_other_nodes(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = (member.server for member in nodes.members)
        async with second.client(tenant="other") as theirs:
            await theirs.subscribe("room:1")
            assert (await post(first, "/users/ann/disconnect", None))["connections"] == 0
            assert (await post(first, "/users/ann/unsubscribe", {"channel": "room:1"}))["subscriptions"] == 0
            await post(first, "/users/ann/revoke", None)
            assert (await get(first, "/channels/room:1"))["subscribers"] == 0
            await theirs.silence()
            assert [entry["channel"] for entry in (await get(first, "/channels"))["channels"]] == []


async def test_a_node_that_does_not_answer_in_time_makes_the_answer_incomplete(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        async with first.server.client() as ann:
            await ann.subscribe("room:1")
            second.line.cut()
            shown = await get(first.server, "/channels/room:1")
            assert (shown["subscribers"], shown["complete"]) == (1, False)
            answer = await post(first.server, "/users/ann/disconnect", None)
            assert answer == {"connections": 1, "nodes": 1, "complete": False}


async def test_a_closed_node_is_not_waited_for(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        server = nodes.members[0].server
        async with serving(broker=nodes.bus.line()):
            await eventually(lambda: len(server.service.node.control.others) == 2)
            assert await server.metric("nodes") == 3
        await eventually(lambda: len(server.service.node.control.others) == 1)
        answer = await post(server, "/users/ann/disconnect", None)
        assert answer == {"connections": 0, "nodes": 2, "complete": True}
        (other,) = server.service.node.control.others.values()
        assert (other.connections, other.gone) == (0, False)


async def test_without_the_broker_nothing_is_done_and_the_refusal_passes(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        async with first.server.client() as here, second.server.client() as there:
            first.line.go_away()
            for path, body in (
                ("/users/ann/disconnect", None),
                ("/users/ann/unsubscribe", {"channel": "room:1"}),
                ("/users/ann/revoke", None),
                ("/tokens/revoke", {"jti": "t"}),
            ):
                answer = await ask(first.server, "POST", path, body)
                answer.refused(503, "broker_unavailable")
                assert (answer.body["retryable"], answer.headers["Retry-After"]) == (True, "1")
            await here.silence()
            await there.silence()
            assert await first.server.metric("revocations") == 0
            first.line.come_back()
            assert (await post(first.server, "/users/ann/disconnect", None))["connections"] == 2


# --- lost deliveries -----------------------------------------------------------------------------------------------------


async def test_a_command_that_was_not_delivered_is_carried_out_after_the_interruption(
    make_bus: Callable[[], Bus],
) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        async with second.server.client() as ann, second.server.client("ben") as ben:
            await ben.subscribe("room:1")
            second.line.cut()
            await post(first.server, "/users/ann/disconnect", None)
            await post(first.server, "/users/ben/unsubscribe", {"channel": "room:1"})
            await ann.silence()
            codes = ends(ann)
            second.line.mend()
            async with asyncio.timeout(SOON):
                assert await codes == [4403]
                await ben.until("unsubscribed", code="removed")
            second.line.mend()
            second.line.mend()
            await post(first.server, "/users/nobody/disconnect", None)
        assert (second.commands("disconnect"), second.commands("unsubscribe")) == (2, 1), "each of them once"


async def test_a_command_is_carried_out_once_the_broker_can_be_read_again(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        async with second.server.client() as ann:
            second.line.go_away()
            await post(first.server, "/users/ann/disconnect", None)
            following = second.server.service.node.control._requests
            following.interrupted()  # a broker that comes back only halfway
            await eventually(lambda: following._behind)
            second.line.come_back()
            async with asyncio.timeout(SOON):
                assert await ann.closed() == 4403
        assert second.commands("disconnect") == 1


async def test_a_hole_in_the_deliveries_is_found_by_the_next_command(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        async with second.server.client() as ann, second.server.client("ben") as ben:
            second.line.cut()
            await post(first.server, "/users/ann/disconnect", None)
            second.line.hear_again()
            codes = ends(ann, ben)
            await post(first.server, "/users/ben/disconnect", None)
            async with asyncio.timeout(SOON):
                assert await codes == [4403, 4403]
        assert second.commands("disconnect") == 2


async def test_what_nobody_noticed_is_found_at_the_next_beat(
    make_bus: Callable[[], Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "BEAT", 0.1)
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        async with second.server.client() as ann, second.server.client("ben", jti="t") as ben:
            codes = ends(ann, ben)
            second.line.cut()  # calls still go through, and nobody tells of an interruption
            await post(first.server, "/users/ann/disconnect", None)
            await post(first.server, "/tokens/revoke", {"jti": "t"})
            async with asyncio.timeout(SOON):
                assert await codes == [4403, 4401]


async def test_a_node_ignores_commands_from_before_it_came(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, 1) as nodes:
        await post(nodes.members[0].server, "/users/ann/disconnect", None)
        late = await nodes.join()
        async with late.server.client() as ann:
            late.line.mend()
            await eventually(lambda: late.server.service.metrics.control_readings._value.get() >= 1)
            await nodes.bus.lose_everything()
            await post(nodes.members[0].server, "/users/ben/disconnect", None)
            await ann.silence()
        assert late.commands("disconnect") == 1


async def test_after_the_store_was_lost_commands_go_on(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        async with second.server.client() as ann, second.server.client("ben") as ben:
            await post(first.server, "/users/nobody/disconnect", None)
            second.line.cut()
            await nodes.bus.lose_everything()
            await post(first.server, "/users/ann/disconnect", None)
            second.line.mend()
            async with asyncio.timeout(SOON):
                assert await ann.closed() == 4403
            async with asyncio.timeout(SOON):  # before the next beat
                while len((await first.line.snapshot(NODES, None, 0, 0)).state) < 2:  # noqa: ASYNC110  # nobody tells
                    await asyncio.sleep(0.01)
            codes = ends(ben)
            answer = await post(first.server, "/users/ben/disconnect", None)
            assert answer == {"connections": 1, "nodes": 2, "complete": True}
            assert await codes == [4403]
        assert second.commands("disconnect") == 3


async def test_another_replica_brings_no_command_back() -> None:
    bus = SharedBroker()
    async with cluster(lambda: bus) as nodes:
        first, second = nodes.members
        await post(first.server, "/users/ann/disconnect", None)
        await post(first.server, "/users/ann/revoke", None)
        async with second.server.client(token_=token(iat=int(time.time()) + 3)) as ann:
            await bus.fail_over()
            await post(first.server, "/users/ben/disconnect", None)
            await ann.silence()
        assert second.commands("disconnect") == 2
        assert (await first.line.snapshot(REVOCATIONS, None, 0, 0)).rev == 1, "what is not lost is not put back"


async def test_a_command_that_this_version_does_not_know_stops_nothing(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        for number, data in enumerate((b'{"type":"levitate","asker":"x"}', b"no JSON", b'{"type":"close"}')):
            await first.line.publish(_command(f"odd-{number}", data))
        more = json.loads(encode(Disconnect(asker="x", tenant="default", user="ann", reason="")))
        async with second.server.client() as ann:
            await first.line.publish(_command("newer", json.dumps({**more, "because": 1}).encode()))
            assert await ann.closed() == 4403
            assert (await post(first.server, "/users/ben/disconnect", None))["complete"] is True


def _command(id: str, data: bytes) -> Publication:
    return Publication(CONTROL, "control.command", id, Delivery.DURABLE, data, None, 0, retention=COMMANDS)


# --- revocations ---------------------------------------------------------------------------------------------------------


async def test_a_revocation_reaches_every_node(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = (member.server for member in nodes.members)
        offered = old()
        async with (
            first.client(token_=offered) as here,
            second.client(token_=offered) as there,
            second.client("ben", jti="t") as ben,
            second.client("eve") as eve,
        ):
            codes = ends(here, there, ben)
            await post(first, "/users/ann/revoke", None)
            await post(first, "/tokens/revoke", {"jti": "t"})
            async with asyncio.timeout(SOON):
                assert await codes == [4401] * 3
            await eve.silence()
        await refused(first, offered)
        await refused(second, offered)
        await refused(second, token("ben", jti="t"))
        async with second.client(token_=token(iat=int(time.time()) + 3)) as again:
            await again.silence()
        assert (await first.metric("revocations"), await second.metric("revocations")) == (2, 2)


async def test_a_node_that_comes_later_knows_what_was_revoked(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, 1) as nodes:
        await post(nodes.members[0].server, "/users/ann/revoke", None)
        late = await nodes.join()
        await refused(late.server, old())


async def test_a_revocation_that_was_not_delivered_is_read_after_the_interruption(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        async with second.server.client(token_=old()) as ann:
            second.line.cut()
            await post(first.server, "/users/ann/revoke", {"reason": "stolen"})
            await ann.silence()
            second.line.mend()
            async with asyncio.timeout(SOON):
                assert await ann.closed() == 4401


def slow(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a publish take its time, so that nodes do the same at the same moment."""
    publish = line.publish

    async def later(publication: Publication) -> Any:
        await asyncio.sleep(0.005)
        return await publish(publication)

    monkeypatch.setattr(line, "publish", later)


async def test_revocations_that_the_broker_lost_are_put_back_once(
    make_bus: Callable[[], Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(make_bus, 3) as nodes:
        for number in range(20):
            await post(nodes.members[number % 3].server, "/tokens/revoke", {"jti": f"t{number}"})
        for member in nodes.members:
            slow(member.line, monkeypatch)
        await nodes.bus.lose_everything()

        line = nodes.members[0].line

        async def kept() -> int:
            return len((await line.snapshot(REVOCATIONS, None, 0, 0)).state)

        async with asyncio.timeout(DEADLINE):
            while await kept() < 20:  # noqa: ASYNC110  # nobody tells of the last one
                await asyncio.sleep(0.01)
        await eventually(lambda: all(not one.server.service.node.revocations._missing for one in nodes.members))
        assert (await line.snapshot(REVOCATIONS, None, 0, 0)).rev == 20, "not once a node"
        late = await nodes.join()
        await refused(late.server, token(jti="t7"))


async def test_what_could_not_be_put_back_is_put_back_later(
    make_bus: Callable[[], Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(make_bus, 1) as nodes:
        (member,) = nodes.members
        revocations = member.server.service.node.revocations
        await post(member.server, "/tokens/revoke", {"jti": "t"})
        publish = member.line.publish

        async def fails(publication: Publication) -> Any:
            if publication.channel == REVOCATIONS:
                raise away()
            return await publish(publication)

        monkeypatch.setattr(member.line, "publish", fails)
        await nodes.bus.lose_everything()
        await eventually(lambda: revocations._putting_back is not None and revocations._putting_back.done())
        assert revocations._missing
        monkeypatch.undo()
        revocations.tend()
        await eventually(lambda: not revocations._missing)
        assert (await member.line.snapshot(REVOCATIONS, None, 0, 0)).rev == 1


async def test_the_wider_of_two_revocations_at_the_same_moment_stays(make_bus: Callable[[], Bus]) -> None:
    """Each node looks at what it knows before it publishes; when neither knows of the other, the later one may be narrower."""
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        now = time.time()
        second.line.cut()
        await post(first.server, "/users/ann/revoke", {"before": now})
        second.line.hear_again()
        await post(second.server, "/users/ann/revoke", {"before": now - 3600})
        await eventually(lambda: not first.server.service.node.revocations._missing)
        late = await nodes.join()
        for member in nodes.members:
            await refused(member.server, old())
        assert await late.server.metric("revocations") == 1


async def test_a_revocation_is_forgotten_when_its_time_is_over(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, auth={"revocation_ttl": 0.2}) as nodes:
        await post(nodes.members[0].server, "/users/ann/revoke", None)
        for member in nodes.members:
            revocations = member.server.service.node.revocations

            def forgotten(revocations: Any = revocations) -> bool:
                revocations.tend()
                return len(revocations._table) == 0

            await eventually(forgotten)
            async with member.server.client(token_=old()) as ann:
                await ann.silence()


# --- one node, and the start --------------------------------------------------------------------------------------------


async def test_a_node_alone_waits_for_nobody(server: Running) -> None:
    async with server.client() as ann:
        await ann.subscribe("room:1")
        began = time.monotonic()
        assert (await get(server, "/channels/room:1"))["subscribers"] == 1
        answer = await post(server, "/users/ann/disconnect", None)
        assert answer == {"connections": 1, "nodes": 1, "complete": True}
        assert time.monotonic() - began < control.PATIENCE / 2
    assert await server.metric("nodes") == 1


@pytest.mark.parametrize("method", ["publish", "subscribe", "snapshot", "history"])
async def test_a_node_that_cannot_read_what_was_revoked_does_not_start(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing running: the fixture that looks for tasks would say so."""
    bus = SharedBroker()
    await bus.start()
    line = bus.line()

    async def fails(*arguments: Any) -> Any:
        raise away()

    monkeypatch.setattr(line, method, fails)
    with pytest.raises(ServiceError, match="does not answer"):
        async with serving(broker=line):
            pytest.fail("it has started")
    await bus.close()


async def test_what_comes_while_a_node_reads_at_its_start_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(SharedBroker, 1) as nodes:
        line = nodes.bus.line()
        snapshot, revoked = line.snapshot, asyncio.Event()

        async def meanwhile(channel: ChannelKey, *arguments: Any) -> Any:
            found = await snapshot(channel, *arguments)
            if channel == REVOCATIONS and not revoked.is_set():
                revoked.set()
                await post(nodes.members[0].server, "/users/ann/revoke", None)
            return found

        monkeypatch.setattr(line, "snapshot", meanwhile)
        async with serving(broker=line) as server:
            await eventually(lambda: len(server.service.node.revocations._table) == 1)
            await refused(server, old())


# --- secrecy ---------------------------------------------------------------------------------------------------------------


async def test_neither_tokens_nor_their_ids_are_logged(make_bus: Callable[[], Bus]) -> None:
    with _captured() as written:
        async with cluster(make_bus) as nodes:
            first, second = nodes.members
            offered = old(jti="canary-id")
            async with second.server.client(token_=offered) as ann:
                second.line.cut()
                await post(first.server, "/tokens/revoke", {"jti": "canary-id", "reason": "canary-reason"})
                await nodes.bus.lose_everything()
                second.line.mend()
                assert await ann.closed() == 4401
            await refused(second.server, offered)
            await first.line.publish(_command("odd", b'{"type":"canary-type","asker":"canary-asker"}'))
            odd = Retention(10, 60)
            await first.line.publish(
                Publication(REVOCATIONS, "r", "i", Delivery.LATEST, b'{"canary-field":1}', None, 0, "k", odd)
            )
            rendered = second.server.service.metrics.render().decode()
    assert "control event failed" in written.getvalue()
    assert "canary" not in written.getvalue() + rendered
    assert offered not in written.getvalue()


@contextmanager
def _captured() -> Any:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    log.configure("debug", "json", stream)
    try:
        yield stream
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
        root.setLevel(level)
        structlog.reset_defaults()


def away() -> ServiceError:
    return ServiceError(ErrorCode.BROKER_UNAVAILABLE, "the broker does not answer")


async def test_who_ends_connections_is_written_down(capsys: pytest.CaptureFixture[str]) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with serving() as server:
        for path, body in (("users/hal/disconnect", {"reason": "bye"}), ("tokens/revoke", {"jti": "t-1"})):
            async with server.http.post(f"{server.url}/api/v1/{path}", json=body, headers=headers) as response:
                assert response.status == 200
    logged = capsys.readouterr().out
    for part in ("disconnect", "by=tests", "user=hal", "revoke token"):
        assert part in logged, logged
