"""A broker that fails: whoever asked is told and may try again; nobody else notices; nothing is left half done."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from service.errors import ErrorCode, ServiceError
from tests.support.brokers import FaultyBroker
from tests.support.harness import Running, serving


def away() -> ServiceError:
    return ServiceError(ErrorCode.BROKER_UNAVAILABLE, "the broker does not answer")


def nothing_held(server: Running, user: str) -> None:
    node = server.service.node
    (connection,) = node.streams.registry.of_user("default", user)
    assert connection.session.subscriptions == ()
    assert all(not room.has_member(connection) for room in node.streams.hub.rooms())


@pytest.mark.parametrize("method", ["subscribe", "snapshot"])
async def test_failed_subscribe_is_rolled_back_and_can_be_repeated(method: str) -> None:
    broker = FaultyBroker()
    async with serving(broker=broker, deadlines={"presence_leave": 0.01}) as server, server.client() as ann:
        broker.faults[method] = away()
        reply = await ann.ask("subscribe", channel="room:1")
        assert (reply["code"], reply["retryable"]) == ("broker_unavailable", True)
        nothing_held(server, "ann")
        assert not list(server.service.node.streams.hub.rooms())
        assert await server.metric("subscriptions") == 0
        broker.faults.clear()
        await ann.subscribe("room:1")
        assert await server.metric("subscriptions") == 1
        await server.publish("room:1", {"type": "chat.message", "data": {"text": "here"}})
        await ann.until("chat.message", offset=1)


async def test_failed_subscribe_keeps_the_other_subscriptions() -> None:
    broker = FaultyBroker()
    async with serving(broker=broker) as server, server.client("ann") as ann, server.client("ben") as ben:
        await ann.subscribe("room:1")
        broker.faults["snapshot"] = away()
        assert (await ben.ask("subscribe", channel="room:1"))["code"] == "broker_unavailable"
        broker.faults.clear()
        await server.publish("room:1", {"type": "chat.message", "data": {"text": "here"}})
        await ann.until("chat.message", offset=1)
        await ben.silence()


async def test_failed_publish_can_be_repeated_with_its_id() -> None:
    broker = FaultyBroker()
    async with serving(broker=broker) as server, server.client() as ann:
        await ann.subscribe("room:1")
        message = {"type": "chat.message", "id": "m", "channel": "room:1", "data": {"text": "x"}}
        broker.faults["publish"] = away()
        await ann.send(**message)
        error = await ann.until("error", id="m")
        assert (error["code"], error["retryable"]) == ("broker_unavailable", True)
        broker.faults.clear()
        await ann.send(**message)
        assert await ann.until("ack") == {"type": "ack", "id": "m", "offset": 1}


async def test_ready_continues_when_one_channel_cannot_be_read() -> None:
    broker = FaultyBroker()
    async with serving(broker=broker) as server, server.client(ready=False) as ann:
        await ann.send(type="subscribe", id="1", channel="room:1")
        await ann.send(type="subscribe", id="2", channel="room:2")
        await ann.silence()
        broker.faults["snapshot"] = away()
        await ann.send(type="ready")
        refused = [await ann.expect("error", code="broker_unavailable") for _ in range(2)]
        assert [error["id"] for error in refused] == ["1", "2"]
        nothing_held(server, "ann")
        broker.faults.clear()
        await ann.subscribe("room:1")


async def test_second_ready_retries_after_an_internal_error() -> None:
    broker = FaultyBroker()
    async with serving(broker=broker) as server, server.client(ready=False) as ann:
        await ann.send(type="subscribe", id="s", channel="room:1")
        await ann.silence()
        broker.faults["snapshot"] = RuntimeError("a bug")
        await ann.send(type="ready")
        await ann.expect("error", code="internal")
        broker.faults.clear()
        await ann.send(type="ready")
        await ann.expect("subscribed", id="s")


async def test_failed_broker_unsubscribe_frees_the_room() -> None:
    broker = FaultyBroker()
    async with serving(broker=broker) as server, server.client() as ann:
        await ann.subscribe("room:1")
        broker.faults["unsubscribe"] = away()
        with capture_logs() as logs:
            assert (await ann.ask("unsubscribe", channel="room:1"))["type"] == "unsubscribed"
        assert ("broker_unsubscribe_failed", "broker_unavailable") in [(e["event"], e.get("code")) for e in logs]
        assert not list(server.service.node.streams.hub.rooms())
        broker.faults.clear()
        await ann.subscribe("room:1")


async def test_internal_error_has_an_incident_and_keeps_the_connection(
    capsys: pytest.CaptureFixture[str],
) -> None:
    broker = FaultyBroker()
    async with serving(broker=broker) as server, server.client() as ann:
        broker.faults["subscribe"] = RuntimeError("a bug")
        reply = await ann.ask("subscribe", channel="room:1")
        assert (reply["code"], reply["retryable"]) == ("internal", True)
        assert reply["details"]["incident"]
        assert "a bug" not in str(reply)
        broker.faults.clear()
        await ann.subscribe("room:1")
    assert reply["details"]["incident"] in capsys.readouterr().out
