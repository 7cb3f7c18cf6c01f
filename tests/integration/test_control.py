"""Requests to all nodes: each node runs each command once, whatever happens to its connection to the broker."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import structlog

from service.core.broker import PublishResult, StreamHead
from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication, Retention
from service.errors import ServiceError
from service.protocol.close import CloseCode
from service.realtime.cluster import heartbeat, requests
from service.realtime.cluster.messages import (
    COMMAND_RETENTION,
    NODES,
    REQUESTS,
    CloseConnections,
    Disconnect,
    decode_node_state,
    encode,
    revocations_channel,
)
from service.telemetry import log
from service.web.problem import MAX_RETRY_AFTER
from tests.integration.cluster import SOON, away, cluster, ends, old, refused, unheard
from tests.support.api_client import ask, get, post
from tests.support.exported import exported
from tests.support.harness import API_KEY, Running, eventually, serving, token
from tests.support.shared_broker import Bus, SharedBroker

pytestmark = pytest.mark.slow

REVOCATIONS = revocations_channel("default")

# --- commands ------------------------------------------------------------------------------------------------------------


async def test_disconnect_reaches_every_node_and_counts_on_all(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, 3) as nodes:
        first, second, third = (member.server for member in nodes.members)
        async with first.client() as a, second.client() as b, second.client() as c, third.client("ben") as ben:
            codes = ends(a, b, c)
            began = time.monotonic()
            answer = await post(first, "/users/ann/disconnect", {"reason": "moved out"})
            assert answer == {"connections": 3, "nodes": 3, "complete": True}
            assert time.monotonic() - began < requests.RESPONSE_TIMEOUT, "it does not wait when all have answered"
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


async def test_close_connections_reaches_every_node(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = (member.server for member in nodes.members)
        async with first.client() as here, second.client() as there, second.client() as spared:
            ids = [here.welcome["connection"], there.welcome["connection"], "nobody"]
            codes = ends(here, there)
            request = CloseConnections(connections=ids, code=CloseCode.REPLACED.name, reason="a newer session")
            closed = await first.service.node.cluster.requests.send(request)
            assert (closed.counts, closed.nodes, closed.is_complete) == ([2], 2, True)
            assert await codes == [4409, 4409]
            await spared.silence()


async def test_channel_list_counts_subscribers_of_all_nodes_with_one_query(make_bus: Callable[[], Bus]) -> None:
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


async def test_api_key_reaches_no_other_tenant_on_other_nodes(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = (member.server for member in nodes.members)
        async with second.client(tenant="other") as theirs:
            await theirs.subscribe("room:1")
            assert (await post(first, "/users/ann/disconnect", None))["connections"] == 0
            assert (await post(first, "/users/ann/unsubscribe", {"channel": "room:1"}))["subscriptions"] == 0
            await post(first, "/users/ann/revoke", None)
            assert (await get(first, "/channels/room:1"))["subscribers"] == 0
            await theirs.silence(but="presence.joined")  # of themselves, from the store in its own time
            assert [entry["channel"] for entry in (await get(first, "/channels"))["channels"]] == []


async def test_missing_response_makes_the_result_incomplete(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        async with first.server.client() as ann:
            await ann.subscribe("room:1")
            second.line.cut()
            with unheard():
                shown = await get(first.server, "/channels/room:1")
                assert (shown["subscribers"], shown["complete"]) == (1, False)
                answer = await post(first.server, "/users/ann/disconnect", None)
                assert answer == {"connections": 1, "nodes": 1, "complete": False}


async def test_closed_node_is_not_waited_for(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        server = nodes.members[0].server
        async with serving(broker=nodes.bus.line()):
            await eventually(lambda: len(server.service.node.cluster.membership.states()) == 2)
            assert await server.metric("nodes") == 3
        await eventually(lambda: len(server.service.node.cluster.membership.states()) == 1)
        answer = await post(server, "/users/ann/disconnect", None)
        assert answer == {"connections": 0, "nodes": 2, "complete": True}
        (other,) = server.service.node.cluster.membership.states().values()
        assert (other.connections, other.gone) == (0, False)


async def test_leave_is_the_last_report_of_a_node(make_bus: Callable[[], Bus], monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(make_bus, 1) as nodes:
        line = nodes.bus.line()
        publish, marks, held, words = line.publish, line.stream_heads, asyncio.Event(), list[bool]()

        async def slow_marks(channels: Sequence[ChannelKey]) -> Sequence[StreamHead | None]:
            await held.wait()
            return await marks(channels)

        async def noted(publication: Publication) -> PublishResult:
            receipt = await publish(publication)
            if publication.channel == NODES:
                words.append(decode_node_state(publication.data).gone)
                if words[-1]:  # a beat that was waiting goes on while this one is on its way
                    held.set()
                    for _ in range(20):
                        await asyncio.sleep(0)
            return receipt

        async with serving(broker=line) as leaving:
            monkeypatch.setattr(line, "stream_heads", slow_marks)
            monkeypatch.setattr(line, "publish", noted)
            leaving.service.node.cluster.heartbeat.report_soon()
        assert words == [True]


async def test_command_without_the_broker_is_refused_and_not_run(make_bus: Callable[[], Bus]) -> None:
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
                assert answer.body["retryable"] is True
                assert 1 <= int(answer.headers["Retry-After"]) <= MAX_RETRY_AFTER
            await here.silence()
            await there.silence()
            assert await first.server.metric("revocations") == 0
            first.line.come_back()
            assert (await post(first.server, "/users/ann/disconnect", None))["connections"] == 2


# --- lost deliveries -----------------------------------------------------------------------------------------------------


async def test_missed_command_runs_after_the_interruption(
    make_bus: Callable[[], Bus],
) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        async with second.server.client() as ann, second.server.client("ben") as ben:
            await ben.subscribe("room:1")
            second.line.cut()
            with unheard():
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


async def test_missed_command_runs_once_the_broker_is_back(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        async with second.server.client() as ann:
            second.line.go_away()
            with unheard():
                await post(first.server, "/users/ann/disconnect", None)
            read = partial(exported, second.server.service.metrics, "control_readings_total")
            before = read()
            second.server.service.node.cluster.requests.follower.interrupted()  # a broker that comes back only halfway
            await eventually(lambda: read() > before)
            second.line.come_back()
            async with asyncio.timeout(SOON):
                assert await ann.closed() == 4403
        assert second.commands("disconnect") == 1


async def test_missed_command_is_found_by_the_next_command(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        async with second.server.client() as ann, second.server.client("ben") as ben:
            second.line.cut()
            with unheard():
                await post(first.server, "/users/ann/disconnect", None)
            second.line.hear_again()
            codes = ends(ann, ben)
            await post(first.server, "/users/ben/disconnect", None)
            async with asyncio.timeout(SOON):
                assert await codes == [4403, 4403]
        assert second.commands("disconnect") == 2


async def test_missed_command_is_found_at_the_next_heartbeat(
    make_bus: Callable[[], Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL", 0.1)
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        async with second.server.client() as ann, second.server.client("ben", jti="t") as ben:
            codes = ends(ann, ben)
            second.line.cut()  # calls still go through, and nobody tells of an interruption
            await post(first.server, "/users/ann/disconnect", None)
            await post(first.server, "/tokens/revoke", {"jti": "t"})
            async with asyncio.timeout(SOON):
                assert await codes == [4403, 4401]


async def test_commands_from_before_the_start_are_ignored(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, 1) as nodes:
        await post(nodes.members[0].server, "/users/ann/disconnect", None)
        late = await nodes.join()
        async with late.server.client() as ann:
            late.line.mend()
            await eventually(lambda: exported(late.server.service.metrics, "control_readings_total") >= 1)
            await nodes.bus.lose_everything()
            await post(nodes.members[0].server, "/users/ben/disconnect", None)
            await ann.silence()
        assert late.commands("disconnect") == 1


async def test_commands_run_after_the_store_was_lost(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        async with second.server.client() as ann, second.server.client("ben") as ben:
            await post(first.server, "/users/nobody/disconnect", None)
            second.line.cut()
            await nodes.bus.lose_everything()
            with unheard():
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


async def test_fail_over_repeats_no_command() -> None:
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
        assert (await first.line.snapshot(REVOCATIONS, None, 0, 0)).state_version == 1, (
            "what is not lost is not put back"
        )


async def test_unknown_command_does_not_stop_later_ones(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        for number, data in enumerate((b'{"type":"levitate","asker":"x"}', b"no JSON", b'{"type":"close"}')):
            await first.line.publish(_command(f"odd-{number}", data))
        more = json.loads(encode(Disconnect(requester="x", tenant="default", user="ann", reason="")))
        async with second.server.client() as ann:
            await first.line.publish(_command("newer", json.dumps({**more, "because": 1}).encode()))
            assert await ann.closed() == 4403
            assert (await post(first.server, "/users/ben/disconnect", None))["complete"] is True


def _command(id: str, data: bytes) -> Publication:
    return Publication(REQUESTS, "control.command", id, Delivery.DURABLE, data, None, 0, retention=COMMAND_RETENTION)


# --- one node, and the start --------------------------------------------------------------------------------------------


async def test_single_node_waits_for_no_response(server: Running) -> None:
    async with server.client() as ann:
        await ann.subscribe("room:1")
        began = time.monotonic()
        assert (await get(server, "/channels/room:1"))["subscribers"] == 1
        answer = await post(server, "/users/ann/disconnect", None)
        assert answer == {"connections": 1, "nodes": 1, "complete": True}
        assert time.monotonic() - began < requests.RESPONSE_TIMEOUT / 2
    assert await server.metric("nodes") == 1


@pytest.mark.parametrize("method", ["publish", "subscribe", "snapshot", "history"])
async def test_node_does_not_start_without_reading_revocations(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


# --- secrecy ---------------------------------------------------------------------------------------------------------------


async def test_tokens_and_their_ids_are_not_logged(make_bus: Callable[[], Bus]) -> None:
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
    assert "control_event_failed" in written.getvalue()
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


async def test_disconnect_and_revoke_log_the_api_key_name(capsys: pytest.CaptureFixture[str]) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with serving() as server:
        for path, body in (("users/hal/disconnect", {"reason": "bye"}), ("tokens/revoke", {"jti": "t-1"})):
            async with server.http.post(f"{server.url}/api/v1/{path}", json=body, headers=headers) as response:
                assert response.status == 200
    logged = capsys.readouterr().out
    for part in ("disconnect", "by=tests", "user=hal", "revoke_token"):
        assert part in logged, logged
