"""`POST /poll`: long polls of one session, at any node (docs/streams.md)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from service.adapters.memory.broker import MemoryBroker
from service.core.channel import ChannelKey
from service.core.identity import Identity
from service.core.receipt import Receipt
from service.errors import ErrorCode, ServiceError
from service.protocol.close import CloseCode
from service.realtime.cluster.receipts import Receipts
from service.realtime.cluster.revocations import EFFECTIVE_WITHIN
from tests.integration.cluster import cluster
from tests.support.clock import FakeClock
from tests.support.exported import exported
from tests.support.harness import API_KEY, DEADLINE, Running, eventually, passes, serving, token
from tests.support.http_wire import open_http
from tests.support.raw import connected
from tests.support.shared_broker import Bus
from tests.support.streams import Poller, authorization, refusal, stream


async def publish(server: Running, text: str, channel: str = "room:1") -> None:
    await server.publish(channel, {"type": "chat.message", "data": {"text": text}})


async def pin(server: Running, slot: str, text: str) -> None:
    await server.publish("room:1", {"type": "chat.pinned", "data": {"slot": slot, "text": text}, "key": slot})


async def command(server: Running, path: str, body: dict[str, Any]) -> None:
    async with server.http.post(
        f"{server.url}/api/v1/users/ann/{path}", json=body, headers={"Authorization": f"Bearer {API_KEY}"}
    ) as response:
        assert response.status == 200, await response.text()


def texts(messages: list[dict[str, Any]]) -> list[str]:
    """The texts of the chat messages, also of those in `subscribed`."""
    found: list[str] = []
    for message in messages:
        events = message["events"] if message["type"] == "subscribed" else [message]
        found += [event["data"]["text"] for event in events if event["type"] == "chat.message"]
    return found


async def waiting(server: Running, count: int = 1) -> None:
    """Waits until this many polls wait at the server, and all their channels are live."""
    node = server.service.node
    await eventually(lambda: sum(one.session.is_ready for one in node.streams.registry) == count)


async def test_first_poll_answers_at_once_and_the_next_waits_for_an_event(server: Running) -> None:
    poller = Poller()
    first = await poller.poll(server, "room:1", "room:2")
    assert [message["type"] for message in first] == ["welcome", "subscribed", "subscribed"]
    polling = asyncio.ensure_future(poller.poll(server))
    await waiting(server)
    await publish(server, "hi")
    assert texts(await polling) == ["hi"]
    await server.at_rest()


async def test_poll_without_an_event_ends_after_its_wait(server: Running) -> None:
    poller = Poller()
    await poller.poll(server, "room:1")
    assert await poller.poll(server, wait=0.01) == []
    assert await poller.poll(server, wait=0) == []
    assert poller.receipt is not None


async def test_response_that_nobody_reads_is_counted_and_cut_after_the_stall() -> None:
    async with serving(outbox={"stall": 0.5}) as server:
        poller = Poller()
        await poller.poll(server, "room:1")
        for _ in range(12):
            await publish(server, "x" * 50_000)
        gone = asyncio.Event()
        wire = await open_http(urlsplit(server.url).port or 0, print, print, gone.set, receive_buffer=4096)
        try:
            wire.read(False)
            wire.request("POST", "/poll", bearer=token("ann"), body={"receipt": poller.receipt})
            budget = server.service.node.streams.budget
            await eventually(lambda: budget.used > 500_000, lambda: budget.used)
            await eventually(lambda: exported(server.service.metrics, "slow_consumers_total") == 1)
            assert budget.used == 0
            wire.read(True)
            async with asyncio.timeout(DEADLINE):
                await gone.wait()
        finally:
            wire.abort()
        await server.at_rest()


async def test_poll_that_waits_through_a_ping_ends_by_itself_and_stops_no_check() -> None:
    async with serving(deadlines={"heartbeat": 0.1}) as server:
        poller = Poller()
        await poller.poll(server, "room:1")
        assert await poller.poll(server, wait=0.5) == []
        # The check that sends pings also announces expiries.
        late = Poller(headers=authorization(ttl=50))
        await late.poll(server, "room:1")
        [expiring] = await late.poll(server, wait=5)
        assert expiring["type"] == "expiring"


async def test_poll_gets_what_came_between_two_polls_once_and_in_order(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        servers = [member.server for member in nodes.members]
        poller = Poller()
        await poller.poll(servers[0], "room:1", "room:2")
        got: list[str] = []
        for number in range(12):
            await publish(servers[number % 2], f"{number}a")
            await publish(servers[number % 2], f"{number}b")
            while len(got) < 2 * number + 2:
                got += texts(await poller.poll(servers[(number // 2) % 2]))
        assert got == [f"{number}{letter}" for number in range(12) for letter in "ab"]
        assert await poller.poll(servers[0], wait=0) == []


async def test_lost_response_is_repeated_by_the_same_receipt(server: Running) -> None:
    poller = Poller()
    await poller.poll(server, "room:1")
    receipt = poller.receipt
    await publish(server, "a")
    for _ in range(2):
        poller.receipt = receipt
        assert texts(await poller.poll(server)) == ["a"]


async def test_changed_state_comes_with_the_next_poll_and_only_once(server: Running) -> None:
    await pin(server, "a", "1")
    poller = Poller()
    _, subscribed = await poller.poll(server, "room:1")
    assert [event["data"]["text"] for event in subscribed["state"]] == ["1"]
    assert await poller.poll(server, wait=0) == []
    await pin(server, "a", "2")
    [subscribed] = await poller.poll(server)
    assert [event["data"]["text"] for event in subscribed["state"]] == ["2"]
    polling = asyncio.ensure_future(poller.poll(server))
    await waiting(server)
    await pin(server, "b", "3")
    [pinned] = await polling
    assert (pinned["type"], pinned["data"]["text"]) == ("chat.pinned", "3")
    assert await poller.poll(server, wait=0) == []


async def test_poll_of_many_channels_reads_all_positions_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str) -> None:
        real = getattr(MemoryBroker, name)

        async def call(self: MemoryBroker, *arguments: Any) -> Any:
            calls.append(name)
            return await real(self, *arguments)

        monkeypatch.setattr(MemoryBroker, name, call)

    async with serving() as server, server.client("ben") as ben:
        channels = [f"room:{number}" for number in range(20)]
        for channel in channels:  # so that the node is subscribed already
            await ben.subscribe(channel)
        poller = Poller()
        await poller.poll(server, *channels)
        counted("snapshot")
        counted("stream_heads")
        assert await poller.poll(server, wait=0) == []
        assert calls == [], "the rooms know their heads"
        for channel in channels[:3]:
            await ben.ask("unsubscribe", channel=channel)
        assert await poller.poll(server, wait=0) == []
        assert calls == ["stream_heads"]


async def test_replayed_receipts_pay_for_every_channel_that_is_read() -> None:
    limits = {"user_rate": {"per_second": 0.1, "burst": 60}, "connections_per_user": 1}
    async with serving(limits={**limits, "subscriptions": 20}) as server:
        poller = Poller()
        channels = [f"room:{number}" for number in range(20)]
        await poller.poll(server, *channels)
        receipt = poller.receipt
        for channel in channels:
            await publish(server, "news", channel)
        for _ in range(2):
            poller.receipt = receipt
            assert len(texts(await poller.poll(server))) == 20
        for _ in range(2):
            body = {"receipt": receipt}
            status, problem = await refusal(server, "POST", "/poll", json=body, headers=poller.headers)
            assert (status, problem["code"], problem["details"]["scope"]) == (429, "rate_limited", "user")
        await server.at_rest()


async def test_poll_pays_for_the_positions_of_its_channels() -> None:
    async with serving(limits={"user_rate": {"per_second": 0.1, "burst": 20}, "subscriptions": 64}) as server:
        poller = Poller()
        await poller.poll(server, *(f"room:{number}" for number in range(64)))
        receipt = poller.receipt
        for _ in range(4):
            assert await poller.poll(server, wait=0) == []
        body = {"receipt": receipt, "wait": 0}
        status, problem = await refusal(server, "POST", "/poll", json=body, headers=poller.headers)
        assert (status, problem["code"], problem["details"]["scope"]) == (429, "rate_limited", "user")


async def test_session_goes_on_with_as_many_channels_as_the_settings_allow() -> None:
    channels = [f"room:{number:05d}{'x' * 100}" for number in range(600)]
    async with serving(limits={"subscriptions": len(channels)}) as server:
        poller = Poller()
        await poller.poll(server, *channels)
        assert len(poller.receipt or "") > 65_536
        assert await poller.poll(server, wait=0) == []
        event = {"type": "chat.message", "channel": channels[-1], "id": "m-1", "data": {"text": "hi"}}
        emitted = {**event, "receipt": poller.receipt}
        async with server.http.post(f"{server.url}/emit", json=emitted, headers=authorization()) as response:
            assert response.status == 200
        assert texts(await poller.poll(server)) == ["hi"]


async def test_expiry_is_announced_in_one_poll_for_each_token(server: Running) -> None:
    poller = Poller(headers=authorization(ttl=50))
    await poller.poll(server, "room:1")
    [expiring] = await poller.poll(server)
    assert expiring["type"] == "expiring"
    assert await poller.poll(server, wait=1.5) == []  # the node looks at the expiry every half a second
    poller.headers = authorization(ttl=55)
    [expiring] = await poller.poll(server)
    assert expiring["type"] == "expiring"
    assert await poller.poll(server, wait=0) == []


@pytest.mark.parametrize("call", ["subscribe", "stream_heads", "snapshot"])
async def test_poll_during_an_outage_says_when_to_repeat_it(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    async def away(self: MemoryBroker, *arguments: Any) -> Any:
        raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "away")

    async with serving() as server:
        poller = Poller()
        await poller.poll(server, "room:1", "room:2")
        await publish(server, "hi")
        if call == "subscribe":
            await server.at_rest()  # else the node is still subscribed
        with monkeypatch.context() as outage:
            outage.setattr(MemoryBroker, call, away)
            body = {"receipt": poller.receipt}
            async with server.http.post(f"{server.url}/poll", json=body, headers=poller.headers) as response:
                assert (response.status, (await response.json())["code"]) == (503, "broker_unavailable")
                assert int(response.headers["Retry-After"]) >= 1
        await server.at_rest()
        assert texts(await poller.poll(server)) == ["hi"]


async def test_channels_are_added_and_dropped_in_one_session(server: Running) -> None:
    poller = Poller()
    await poller.poll(server, "room:1", "room:2")
    [added] = await poller.poll(server, "room:2", "room:3")
    assert (added["type"], added["channel"]) == ("subscribed", "room:3")
    await publish(server, "dropped", "room:1")
    await publish(server, "kept", "room:2")
    assert texts(await poller.poll(server)) == ["kept"]


async def test_user_without_history_gets_what_came_between_two_polls(server: Running) -> None:
    grants = [{"channel": "room:*", "rights": ["subscribe"]}]
    poller = Poller(headers=authorization(grants=grants))
    await poller.poll(server, "room:1")
    await publish(server, "live")
    assert texts(await poller.poll(server)) == ["live"]
    other = Poller(headers=authorization(grants=grants))
    old = {"channel": "room:1", "since": {"epoch": "0123456701234567890ab", "offset": 0}}
    _, subscribed = await other.poll(server, old)
    assert (subscribed["recovered"], subscribed["events"]) == (False, [])


# --- the session ------------------------------------------------------------------------------------------------------


async def test_user_stays_present_between_polls_and_leaves_after_the_lease() -> None:
    clock = FakeClock(time.time())
    async with serving(clock=clock) as server, stream(server, "room:1", user="ben") as ben:
        await ben.until("subscribed")
        poller = Poller(headers=authorization(ttl=7200))
        await poller.poll(server, "room:1")
        await ben.until("presence.joined", data={"user": "ann"})
        for _ in range(3):
            await passes(clock, 15)
            await poller.poll(server, wait=0)
        await publish(server, "still here")
        while (message := await ben.receive())["type"] != "chat.message":
            assert message["type"] == "receipt"
        await passes(clock, 31)
        await ben.until("presence.left", data={"user": "ann"})


async def test_presence_goes_from_node_to_node_with_the_polls(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, presence={"ttl": 3}) as nodes:
        one, other = [member.server for member in nodes.members]
        async with one.client("ben") as ben:
            await ben.subscribe("room:1")
            poller = Poller()
            await poller.poll(one, "room:1")
            for server in (other, one, other):
                await poller.poll(server, wait=1.0)
            reply = await ben.ask("presence", channel="room:1")
            assert sorted(member["user"] for member in reply["presence"]["members"]) == ["ann", "ben"]
            assert [one["connections"] for one in reply["presence"]["members"]] == [1, 1]
            seen = [message["type"] for message in ben.received]
            assert "presence.left" not in seen
            if one.service.node.admission.quota.is_shared:
                await ben.until("presence.left", data={"user": "ann"})


async def test_session_counts_once_under_the_caps() -> None:
    async with serving(limits={"connections_per_user": 1}) as server:
        poller = Poller()
        await poller.poll(server, "room:1")
        receipt = poller.receipt
        first = asyncio.ensure_future(poller.poll(server))
        await waiting(server)
        second = Poller()
        second.receipt = receipt
        again = asyncio.ensure_future(second.poll(server))
        assert await first == []
        await waiting(server)
        body = {"subscriptions": [{"channel": "room:1"}]}
        status, problem = await refusal(server, "POST", "/poll", json=body, headers=authorization())
        assert (status, problem["code"]) == (429, "too_many_connections")
        await publish(server, "hi")
        assert texts(await again) == ["hi"]
        await server.at_rest()


async def refused_at(server: Running, code: str) -> None:
    body = {"subscriptions": [{"channel": "room:1"}]}
    status, problem = await refusal(server, "POST", "/poll", json=body, headers=authorization())
    assert problem["code"] == code, (status, problem)


async def status_of_poll(server: Running, poller: Poller) -> int:
    body = {"receipt": poller.receipt, "wait": 0}
    async with server.http.post(f"{server.url}/poll", json=body, headers=poller.headers) as response:
        return response.status


async def test_session_counts_between_two_polls_until_its_lease_ends() -> None:
    clock = FakeClock(time.time())
    async with serving(clock=clock, limits={"connections_per_user": 1}) as server:
        poller = Poller(headers=authorization(ttl=7200))
        await poller.poll(server, "room:1")
        for _ in range(3):
            await passes(clock, 25)
            await refused_at(server, "too_many_connections")
            assert await poller.poll(server, wait=0) == []
        assert await server.metric("poll_sessions") == 1
        await passes(clock, 30)
        other = Poller()
        await other.poll(server, "room:1")
        receipt = {"receipt": poller.receipt}
        status, problem = await refusal(server, "POST", "/poll", json=receipt, headers=poller.headers)
        assert (status, problem["code"]) == (429, "too_many_connections"), "it has lost its place to another"
        await passes(clock, 31)
        assert await server.metric("poll_sessions") == 0


async def test_session_counts_once_over_all_nodes(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, limits={"connections_per_user": 2}) as nodes:
        one, other = [member.server for member in nodes.members]
        first, second = Poller(), Poller()
        await first.poll(one, "room:1")
        await second.poll(other, "room:1")
        for server in (other, one, other, other, one):
            assert await first.poll(server, wait=0) == []
            assert await second.poll(server, wait=0) == []
            if one.service.node.admission.quota.is_shared:
                await refused_at(one, "too_many_connections")
                await refused_at(other, "too_many_connections")


async def test_receipt_shown_at_two_nodes_at_once_has_one_poll(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, limits={"connections_per_user": 1}) as nodes:
        one, other = [member.server for member in nodes.members]
        if not one.service.node.admission.quota.is_shared:
            return
        first, second = Poller(), Poller()
        await first.poll(one, "room:1")
        second.receipt = first.receipt
        at_one = asyncio.ensure_future(first.poll(one))
        await waiting(one)
        at_other = asyncio.ensure_future(second.poll(other))
        assert await at_one == [], "the session goes on at the other node"
        await waiting(other)
        await eventually(lambda: len(one.service.node.streams.registry) == 0)
        await publish(one, "hi")
        assert texts(await at_other) == ["hi"]


async def test_session_that_the_cap_has_closed_between_two_polls_stays_closed(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, limits={"connections_per_user": 1, "on_user_cap": "replace"}) as nodes:
        one, other = [member.server for member in nodes.members]
        replaced = Poller()
        await replaced.poll(one, "room:1")
        newest = Poller()
        await newest.poll(one, "room:1")
        for server in (one, other):
            async with asyncio.timeout(EFFECTIVE_WITHIN):
                while await status_of_poll(server, replaced) != 403:  # noqa: ASYNC110  # a node has no event to wait for
                    await asyncio.sleep(0.05)
        assert await newest.poll(other, wait=0) == []
        if one.service.node.admission.quota.is_shared:
            async with other.client("ann"):
                await eventually(
                    lambda: all(not each.transport.may_continue for each in other.service.node.streams.registry)
                )


async def test_new_token_of_a_session_changes_its_rights(server: Running) -> None:
    async with server.client("ben") as ben:
        await ben.subscribe("room:1")
        poller = Poller()
        await poller.poll(server, "room:1", "room:2")
        poller.headers = authorization(grants=[{"channel": "room:1", "rights": ["subscribe"]}])
        [ended] = await poller.poll(server, wait=0)
        assert (ended["type"], ended["channel"], ended["code"]) == ("unsubscribed", "room:2", "forbidden")
        polling = asyncio.ensure_future(poller.poll(server))
        await waiting(server)
        async with server.client("zoe") as zoe:
            await zoe.subscribe("room:1")  # which this token may not see
        await publish(server, "hi")
        assert [message["type"] for message in await polling] == ["chat.message"]


async def test_poll_from_another_address_counts_there() -> None:
    async with serving(limits={"connections_per_ip": 1}, proxy={"hops": 1}) as server:
        poller = Poller(headers=authorization() | {"X-Forwarded-For": "192.0.2.1"})
        await poller.poll(server, "room:1")
        poller.headers = authorization() | {"X-Forwarded-For": "192.0.2.2"}
        assert await poller.poll(server, wait=0) == []
        for address, code in (("192.0.2.2", "too_many_connections"), ("192.0.2.1", "")):
            other = Poller(user="ben", headers=authorization("ben") | {"X-Forwarded-For": address})
            if code:
                body = {"subscriptions": [{"channel": "room:1"}]}
                status, problem = await refusal(server, "POST", "/poll", json=body, headers=other.headers)
                assert (status, problem["code"]) == (429, code)
            else:
                await other.poll(server, "room:1")


# --- what the server subscribes to ------------------------------------------------------------------------------------


async def subscribe_by_backend(server: Running, channel: str) -> None:
    await command(server, "subscribe", {"channel": channel})


async def test_poll_brings_the_last_events_that_it_asks_for(server: Running) -> None:
    for number in range(5):
        await publish(server, str(number))
    poller = Poller()
    _, subscribed = await poller.poll(server, {"channel": "room:1", "tail": 2})
    assert [event["data"]["text"] for event in subscribed["tail"]] == ["3", "4"]
    assert await poller.poll(server, wait=0) == []


async def test_token_subscribes_a_polling_client_to_its_channels(server: Running) -> None:
    poller = Poller(headers=authorization(channels=["room:7", "secret:1"]))
    first = await poller.poll(server)
    assert [message["type"] for message in first] == ["welcome", "error", "subscribed"]
    assert (first[1]["details"]["channel"], first[2]["channel"]) == ("secret:1", "room:7")
    await publish(server, "hi", "room:7")
    assert texts(await poller.poll(server)) == ["hi"]


async def test_backend_subscribes_a_waiting_and_an_absent_poll(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        one, other = [member.server for member in nodes.members]
        grants = [{"channel": "room:1", "rights": ["subscribe"]}]
        poller = Poller(headers=authorization(grants=grants))
        await poller.poll(one, "room:1")
        polling = asyncio.ensure_future(poller.poll(one))
        await waiting(one)
        await subscribe_by_backend(other, "room:8")
        [subscribed] = await polling
        assert (subscribed["type"], subscribed["channel"]) == ("subscribed", "room:8")
        await subscribe_by_backend(other, "room:9")
        await publish(other, "between", "room:9")
        messages: list[dict[str, Any]] = []
        while not messages:
            messages = await poller.poll(one)
        assert {message["channel"] for message in messages} == {"room:9"}
        for server in (other, one):  # the receipt has the rights that the backend has granted
            await publish(server, "granted", "room:8")
            assert texts(await poller.poll(server)) == ["granted"]
        await command(one, "unsubscribe", {"channel": "room:8"})
        [ended] = await poller.poll(other)
        assert (ended["type"], ended["channel"], ended["code"]) == ("unsubscribed", "room:8", "removed")


async def test_poll_receipt_publishes_and_stream_receipt_polls_not(server: Running) -> None:
    poller = Poller()
    await poller.poll(server, "room:1")
    event = {
        "type": "chat.message",
        "channel": "room:1",
        "id": "m-1",
        "data": {"text": "mine"},
        "receipt": poller.receipt,
    }
    async with server.http.post(f"{server.url}/emit", json=event, headers=authorization()) as response:
        assert (await response.json())["offset"] == 1
    assert texts(await poller.poll(server)) == ["mine"]
    async with stream(server, "room:1") as opened:
        body = {"receipt": opened.receipt}
        status, problem = await refusal(server, "POST", "/poll", json=body, headers=authorization())
        assert (status, problem["code"]) == (403, "invalid_receipt")


async def test_unsubscribe_disconnect_and_revoke_end_a_waiting_poll(server: Running) -> None:
    poller = Poller()
    await poller.poll(server, "room:1", "room:2")
    polling = asyncio.ensure_future(poller.poll(server))
    await waiting(server)
    await command(server, "unsubscribe", {"channel": "room:1"})
    [message] = await polling
    assert (message["type"], message["channel"], message["code"]) == ("unsubscribed", "room:1", "removed")
    await publish(server, "unseen", "room:1")
    polling = asyncio.ensure_future(poller.poll(server))
    await waiting(server)
    last = poller.receipt
    await command(server, "disconnect", {"reason": "bye"})
    assert await polling == [{"type": "closed", "code": 4403, "reason": "bye"}]
    assert poller.receipt is None
    status, problem = await refusal(server, "POST", "/poll", json={"receipt": last}, headers=authorization())
    assert (status, problem["code"]) == (403, "invalid_receipt")


async def test_unsubscribe_and_disconnect_between_two_polls_are_known_at_every_node(
    make_bus: Callable[[], Bus],
) -> None:
    async with cluster(make_bus) as nodes:
        one, other = [member.server for member in nodes.members]
        poller = Poller()
        await poller.poll(one, "room:1", "room:2")
        await command(one, "unsubscribe", {"channel": "room:1"})
        [message] = await poller.poll(other)
        assert (message["type"], message["channel"], message["code"]) == ("unsubscribed", "room:1", "removed")
        await command(one, "disconnect", {})
        for server in (one, other):
            status, problem = await refusal(
                server, "POST", "/poll", json={"receipt": poller.receipt}, headers=authorization()
            )
            assert (status, problem["code"]) == (403, "invalid_receipt")


async def test_receipt_of_a_replaced_session_ends_at_once_and_soon_at_every_node(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, limits={"connections_per_user": 1, "on_user_cap": "replace"}) as nodes:
        one, other = [member.server for member in nodes.members]
        async with stream(one, "room:1") as replaced, stream(one, "room:1") as newest:
            assert (await replaced.closed())["code"] == 4409

            async def emit(server: Running, receipt: str) -> int:
                body = {"type": "chat.message", "channel": "room:1", "id": "m", "data": {"text": "hi"}}
                async with server.http.post(
                    f"{server.url}/emit", json={**body, "receipt": receipt}, headers=authorization()
                ) as response:
                    return response.status

            assert await emit(one, replaced.receipt) == 403
            async with asyncio.timeout(EFFECTIVE_WITHIN):
                while await emit(other, replaced.receipt) != 403:  # noqa: ASYNC110  # another node has no event to wait for
                    await asyncio.sleep(0.05)
            assert [await emit(server, newest.receipt) for server in (one, other)] == [200, 200]


async def test_drain_ends_polls_and_the_session_goes_on_at_another_node(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        one, other = [member.server for member in nodes.members]
        poller = Poller()
        await poller.poll(one, "room:1")
        polling = asyncio.ensure_future(poller.poll(one))
        await waiting(one)
        draining = asyncio.ensure_future(one.service.node.lifecycle.drain())
        assert {message["type"] for message in await polling} <= {"reconnect", "closed"}
        await draining
        status, problem = await refusal(one, "POST", "/poll", json={"receipt": poller.receipt}, headers=authorization())
        assert (status, problem["code"]) == (503, "draining")
        await publish(other, "hi")
        assert texts(await poller.poll(other)) == ["hi"]


class DelayedLeave:
    """Delays the end of the last subscription to a channel at the broker."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started, self.may_end = asyncio.Event(), asyncio.Event()
        unsubscribe = MemoryBroker.unsubscribe

        async def delayed(broker: MemoryBroker, channel: ChannelKey) -> None:
            self.started.set()
            await self.may_end.wait()
            await unsubscribe(broker, channel)

        monkeypatch.setattr(MemoryBroker, "unsubscribe", delayed)


async def test_poll_of_a_session_that_still_leaves_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check, leave = Receipts.check, DelayedLeave(monkeypatch)

    def checked(receipts: Receipts, receipt: str, identity: Identity) -> Receipt:
        leave.may_end.set()  # too late for a poll that does not wait
        return check(receipts, receipt, identity)

    monkeypatch.setattr(Receipts, "check", checked)
    async with serving() as server:
        poller = Poller()
        await poller.poll(server, "room:1")
        [held] = server.service.node.streams.registry
        held.close(CloseCode.RESTART, "as for rebalancing")
        await leave.started.wait()
        await poller.poll(server, wait=0)
        names = ("connections", "poll_sessions", "subscriptions", "channels")
        assert [await server.metric(name) for name in names] == [1, 1, 1, 1]
        await server.at_rest()


async def test_backend_subscribes_no_session_that_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    leave = DelayedLeave(monkeypatch)
    async with serving() as server:
        poller = Poller()
        await poller.poll(server, "room:1")
        [held] = server.service.node.streams.registry
        held.transport.abort()  # as if another node had taken it
        await leave.started.wait()
        await command(server, "subscribe", {"channel": "room:2"})
        leave.may_end.set()
        await server.at_rest()


@pytest.mark.parametrize("transport", ["parked poll", "poll whose client has left", "session between two polls"])
async def test_drain_ends_sessions_of_polls(transport: str) -> None:
    async with serving() as server:
        poller = Poller()
        await poller.poll(server, "room:1")
        polling = asyncio.ensure_future(poller.poll(server))
        await waiting(server)
        if transport == "session between two polls":
            await publish(server, "hi")
            await polling
        elif transport == "poll whose client has left":
            polling.cancel()
        await server.service.node.lifecycle.drain()
        await asyncio.wait([polling])
        assert await server.metric("drain_timeouts_total") == 0
        names = ("connections", "poll_sessions", "polls", "subscriptions", "channels")
        await eventually(lambda: [exported(server.service.metrics, name) for name in names] == [0, 0, 0, 0, 0])


async def test_poll_whose_body_arrives_after_the_drain_began_is_refused(server: Running) -> None:
    poller = Poller()
    await poller.poll(server, "room:1")
    body = json.dumps({"receipt": poller.receipt}).encode()
    async with connected(server) as raw:
        raw.write(
            f"POST /poll HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\nExpect: 100-continue\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await server.service.node.lifecycle.drain()
        raw.write(body)
        assert (await raw.answer()).code == "draining"


async def test_polls_of_one_session_at_once_leave_one_that_the_backend_can_end(server: Running) -> None:
    poller = Poller()
    await poller.poll(server, "room:1")
    receipt = poller.receipt
    others = [Poller() for _ in range(8)]
    await asyncio.gather(*(other.poll(server, "room:2") for other in others))  # opens their connections
    for other in others:
        other.receipt = receipt
    polling = {asyncio.ensure_future(poller.poll(server))}
    await waiting(server)
    polling |= {asyncio.ensure_future(other.poll(server)) for other in others}
    await eventually(lambda: sum(not one.done() for one in polling) == 1)
    assert [await server.metric(name) for name in ("polls", "poll_sessions", "connections")] == [1, 9, 9]
    await command(server, "disconnect", {"reason": "bye"})
    messages = [await one for one in polling]
    assert messages.count([{"type": "closed", "code": 4403, "reason": "bye"}]) == 1
    await server.at_rest()
    assert await server.metric("connections") == 0


async def test_stream_without_channels_stays_in_the_reach_of_the_backend() -> None:
    clock = FakeClock(time.time())
    headers = authorization(ttl=7200)
    async with serving(clock=clock) as server, stream(server, "room:1", headers=headers) as opened:
        await command(server, "unsubscribe", {"channel": "room:1"})
        await opened.until("unsubscribed")
        await passes(clock, 120)
        receipt = (await opened.until("receipt"))["receipt"]
        body = {"receipt": receipt, "subscriptions": [{"channel": "room:2"}], "wait": 0}
        status, problem = await refusal(server, "POST", "/poll", json=body, headers=headers)
        assert (status, problem["code"]) == (403, "invalid_receipt")
        await command(server, "disconnect", {})
        assert (await opened.closed())["code"] == 4403


async def test_client_that_leaves_ends_its_poll(server: Running) -> None:
    poller = Poller()
    await poller.poll(server, "room:1")
    polling = asyncio.ensure_future(poller.poll(server))
    await waiting(server)
    assert await server.metric("polls") == 1
    polling.cancel()
    await server.at_rest()
    assert await server.metric("polls") == 0


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"subscriptions": {}}, 400, "invalid_message"),
        ({"subscriptions": [{"channel": "room:1"}], "wait": 21}, 400, "invalid_message"),
        ({"subscriptions": [{"channel": "nowhere:1"}]}, 404, "unknown_channel"),
        ({"subscriptions": [{"channel": "inbox:ben"}]}, 403, "forbidden"),
        ({"receipt": "v1.e30=.c2ln"}, 403, "invalid_receipt"),
    ],
)
async def test_body_of_a_poll_is_checked(server: Running, body: dict[str, Any], status: int, code: str) -> None:
    found, problem = await refusal(server, "POST", "/poll", json=body, headers=authorization())
    assert (found, problem["code"]) == (status, code)
    await server.at_rest()


async def test_session_without_channels_begins_and_adds_one(server: Running) -> None:
    poller = Poller()
    [welcome] = await poller.poll(server, wait=0)
    assert welcome["type"] == "welcome"
    assert await poller.poll(server, wait=0) == []
    [subscribed] = await poller.poll(server, "room:1")
    assert subscribed["channel"] == "room:1"


async def test_right_that_has_ended_ends_the_channel_in_the_next_poll(server: Running) -> None:
    poller = Poller()
    await poller.poll(server, "room:1", "room:2")
    poller.headers = authorization(grants=["room:2"])
    [message] = await poller.poll(server)
    assert (message["type"], message["channel"], message["code"]) == ("unsubscribed", "room:1", "forbidden")


async def test_polls_cost_the_rate_of_the_user() -> None:
    async with serving(limits={"user_rate": {"per_second": 0.001, "burst": 3}}) as server:
        poller = Poller()
        await poller.poll(server, "room:1")
        for _ in range(2):
            await poller.poll(server, wait=0)
        body = {"receipt": poller.receipt}
        status, problem = await refusal(server, "POST", "/poll", json=body, headers=authorization())
        assert (status, problem["code"]) == (429, "rate_limited")
