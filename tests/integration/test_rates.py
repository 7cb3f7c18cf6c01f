"""Rates that agree with each other: reconnects of many channels, what leaving costs, batches, and what clients are told."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import pytest

from service.core.limits import Limits
from tests.support.clock import FakeClock
from tests.support.harness import Client, Running, serving
from tests.support.raw import ask, bearer, text, upgraded

NEVER = 0.0001
"""Tokens a second: none, for as long as a test runs."""


def rate(burst: int, per_second: float = NEVER) -> dict[str, Any]:
    return {"per_second": per_second, "burst": burst}


def subscribes(channels: list[str]) -> list[dict[str, Any]]:
    return [{"type": "subscribe", "id": channel, "channel": channel} for channel in channels]


async def send_in_batches(client: Client, messages: list[dict[str, Any]]) -> None:
    for start in range(0, len(messages), Limits().batch):
        await client.raw(json.dumps(messages[start : start + Limits().batch]))


async def answers(client: Client, count: int) -> Counter[str]:
    """The next so many answers to subscribes: types, or codes of errors."""
    found: Counter[str] = Counter()
    while found.total() < count:
        message = await client.receive()
        if message["type"] in ("subscribed", "error"):
            found[message.get("code", message["type"])] += 1
    return found


class TestReconnect:
    @pytest.mark.parametrize(("tabs", "channels"), [(3, 67), (4, 100), (8, 128), (32, 16)])
    async def test_all_tabs_of_a_user_resubscribe_within_the_rate(self, tabs: int, channels: int) -> None:
        names = [f"room:{number}" for number in range(channels)]
        async with serving() as server, AsyncExitStack() as open_:
            clients = [
                await open_.enter_async_context(server.client("ann", ready=False, grants=["room:*"]))
                for _ in range(tabs)
            ]
            for client in clients:
                await send_in_batches(client, [*subscribes(names), {"type": "ready"}])
            for client in clients:
                assert await answers(client, channels) == {"subscribed": channels}
            assert await server.metric("subscriptions") == tabs * channels

    async def test_many_users_behind_one_address_resubscribe_within_the_rate(self) -> None:
        users, names = 20, [f"room:{number}" for number in range(60)]
        async with serving() as server, AsyncExitStack() as open_:
            clients = [
                await open_.enter_async_context(server.client(f"u{number}", ready=False, grants=["room:*"]))
                for number in range(users)
            ]
            for client in clients:
                await send_in_batches(client, [{"type": "ready"}, *subscribes(names)])
            for client in clients:
                assert await answers(client, len(names)) == {"subscribed": len(names)}

    async def test_messages_do_not_use_the_subscribe_budget(self) -> None:
        async with serving(limits={"connection_rate": rate(3)}) as server, server.client(ready=False) as ann:
            await ann.raw(json.dumps([{"type": "ping"}] * 4))
            await ann.until("error", code="rate_limited")
            await send_in_batches(ann, [*subscribes([f"room:{n}" for n in range(128)]), {"type": "ready"}])
            assert await answers(ann, 128) == {"subscribed": 128}


class TestMembership:
    """Of two subscribes, over all time."""

    tight: ClassVar = {"connection_rate": rate(2), "subscriptions": 2}

    async def test_ready_is_never_refused(self) -> None:
        async with serving(limits=self.tight) as server, server.client(ready=False) as ann:
            await ann.raw(json.dumps([*subscribes(["room:1"]), {"type": "ping"}, {"type": "ping"}, {"type": "ready"}]))
            assert (await ann.until("subscribed"))["channel"] == "room:1"

    async def test_second_ready_costs_a_message(self) -> None:
        async with serving(limits=self.tight) as server, server.client(ready=False) as ann:
            await ann.raw(json.dumps([{"type": "ready"}] * 4))
            await ann.expect("error", code="rate_limited")

    async def test_unsubscribe_is_never_refused_for_a_rate(self) -> None:
        async with serving(limits=self.tight, deadlines={"presence_leave": 0}) as server, server.client("ann") as ann:
            await ann.subscribe("room:1")
            await ann.raw(json.dumps([{"type": "ping"}] * 3))
            await ann.until("error", code="rate_limited")
            await ann.send(type="unsubscribe", id="u", channel="room:1")
            await ann.expect("unsubscribed", id="u", code="requested")
            assert await server.metric("subscriptions") == 0

    async def test_unsubscribe_without_a_subscription_costs_a_message(self) -> None:
        async with serving(limits=self.tight) as server, server.client() as ann:
            codes = [(await ann.ask("unsubscribe", channel="room:1"))["code"] for _ in range(3)]
            assert codes == ["not_subscribed", "not_subscribed", "rate_limited"]

    async def test_subscribe_rate_bounds_churn(self) -> None:
        async with serving(limits=self.tight) as server, server.client() as ann:
            for _ in range(2):
                assert (await ann.ask("subscribe", channel="room:1"))["type"] == "subscribed"
                assert (await ann.ask("unsubscribe", channel="room:1"))["type"] == "unsubscribed"
            refused = await ann.ask("subscribe", channel="room:1")
            assert (refused["code"], refused["details"]["scope"]) == ("rate_limited", "connection")
            assert (await ann.ask("ping"))["type"] == "pong", "messages have a budget of their own"
            assert await server.metric("rate_limited_total", scope="connection_subscribes") == 1

    @pytest.mark.parametrize("scope", ["user", "ip", "tenant"])
    async def test_shared_rates_bound_the_churn_of_many_connections(self, scope: str) -> None:
        connections = {"ip": "connections_per_ip", "user": "connections_per_user", "tenant": "connections_per_tenant"}
        limits = {"subscriptions": 2, connections[scope]: 2, f"{scope}_rate": rate(1)}
        async with serving(limits=limits) as server:
            for _ in range(2):
                async with server.client() as ann:
                    assert await churn(ann, 2) == {"subscribed": 2}
                await server.at_rest()
            async with server.client() as ann:
                assert await churn(ann, 1) == {"rate_limited": 1}
                assert await server.metric("rate_limited_total", scope=f"{scope}_subscribes") == 1


async def churn(client: Client, times: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for number in range(times):
        reply = await client.ask("subscribe", channel=f"room:{number}")
        found[reply.get("code", reply["type"])] += 1
        await client.ask("unsubscribe", channel=f"room:{number}")
    return found


class TestAddressChannels:
    """`?channels=` costs what the subscribes would: of two connections with two channels each, and then never again."""

    limits: ClassVar = {"subscriptions": 2, "connections_per_user": 2, "user_rate": rate(1)}
    target = "/ws?channels=room:1,room:2"

    async def exhaust(self, server: Running) -> None:
        for _ in range(2):
            assert (await ask(server, self.target, bearer())).status == 101
        await server.at_rest()

    async def test_reconnects_with_channels_are_bounded(self) -> None:
        async with serving(limits=self.limits) as server:
            await self.exhaust(server)
            refused = await ask(server, self.target, bearer())
            assert (refused.status, refused.code) == (429, "rate_limited")
            assert refused.problem["details"]["scope"] == "user"
            assert int(refused.headers["retry-after"]) >= 1
            assert await server.metric("rate_limited_total", scope="user_subscribes") == 1
            assert (await ask(server, "/ws", bearer())).status == 101, "without channels it costs nothing"
            assert (await ask(server, self.target, bearer(user="ben"))).status == 101

    async def test_plain_request_gets_the_refusal_and_costs_nothing(self) -> None:
        async with serving(limits=self.limits) as server:
            for _ in range(5):
                assert (await ask(server, self.target, bearer(), upgrade=False)).code == "upgrade_required"
            await self.exhaust(server)
            assert (await ask(server, self.target, bearer(), upgrade=False)).code == "rate_limited"

    async def test_refused_upgrade_costs_nothing(self) -> None:
        async with serving(limits=self.limits) as server:
            for _ in range(5):
                bad = bearer() | {"Sec-WebSocket-Key": "short"}
                assert (await ask(server, self.target, bad)).code == "invalid_request"
            await self.exhaust(server)

    async def test_channels_in_the_address_and_subscribes_share_a_budget(self) -> None:
        async with (
            serving(limits={"subscriptions": 2, "connection_rate": rate(1)}) as server,
            upgraded(server, "ann", target=self.target) as ann,
        ):
            ann.write(text(type="unsubscribe", id="u", channel="room:1"))
            assert (await ann.message())["type"] == "unsubscribed"
            ann.write(text(type="subscribe", id="s", channel="room:1"))
            assert (await ann.message())["code"] == "rate_limited"


class TestRefusals:
    async def test_batch_above_the_rate_is_one_violation(self) -> None:
        limits = {"connection_rate": rate(1), "rate_violations": 2}
        async with serving(limits=limits) as server, server.client(ready=False) as ann:
            for _ in range(2):
                await ann.raw(json.dumps([{"type": "ping"}] * 100))
            for _ in range(200):
                await ann.receive()
            assert await server.metric("connections") == 1
            await ann.raw(json.dumps([{"type": "ping"}] * 100))
            assert await ann.closed() == 4429

    async def test_refused_messages_of_a_batch_get_different_retry_times(self) -> None:
        limits = {"connection_rate": rate(20, per_second=10)}
        async with serving(limits=limits) as server, server.client(ready=False) as ann:
            await ann.raw(json.dumps([{"type": "ping", "id": str(number)} for number in range(30)]))
            told = [
                m["details"]["retry_after"] for m in [await ann.receive() for _ in range(30)] if m["type"] == "error"
            ]
            assert len(told) >= 9
            assert max(told) > 5 * min(told), "they come back one after the other, not all at once"

    async def test_refusal_by_a_shared_rate_is_no_violation(self) -> None:
        limits = {"user_rate": rate(1), "connection_rate": rate(50), "rate_violations": 2}
        async with serving(limits=limits) as server, server.client(ready=False) as ann:
            await ann.silence()
            for _ in range(40):
                assert (await ann.ask("ping"))["details"]["scope"] == "user"
            assert await server.metric("connections") == 1

    @pytest.mark.parametrize("scope", ["user", "ip", "tenant"])
    async def test_connection_above_every_rate_is_closed_by_a_shared_rate_too(self, scope: str) -> None:
        limits = {f"{scope}_rate": rate(1), "connection_rate": rate(5), "rate_violations": 2}
        async with serving(limits=limits) as server, server.client(ready=False) as ann:
            for _ in range(10):
                await ann.send(type="ping")
            assert await ann.closed() == 4429

    async def test_refused_message_costs_nothing(self) -> None:
        """The tenant's budget is used up by others; the connection's is whole when that has passed."""
        limits = {"tenant_rate": rate(1, per_second=2), "connection_rate": rate(2)}
        clock = FakeClock(time.time())
        async with serving(limits=limits, clock=clock) as server, server.client(ready=False) as ann:
            await ann.silence()
            refused = await ann.ask("ping")
            assert refused["details"]["scope"] == "tenant"
            clock.advance(refused["details"]["retry_after"])
            assert (await ann.ask("ping"))["type"] == "pong"


async def test_welcome_lists_every_limit_of_a_client() -> None:
    limits = {
        "subscriptions": 10,
        "calls": 5,
        "connections_per_user": 3,
        "connections_per_ip": 7,
        "rate_violations": 4,
        "connection_rate": {"per_second": 1, "burst": 2},
        "user_rate": {"per_second": 3, "burst": 4},
        "ip_rate": {"per_second": 5, "burst": 600},
        "connect_rate_per_ip": {"per_second": 8, "burst": 9},
    }
    async with serving(limits=limits, auth={"anonymous": True}) as server, server.client() as ann:
        told = ann.welcome["limits"]
        assert told == {
            "message": 65_536,
            "batch": 100,
            "subscriptions": 10,
            "calls": 5,
            "rate": 1.0,
            "burst": 2,
            "subscribe_rate": 1.0,
            "subscribe_burst": 10,
            "violations": 4,
            "user": {"connections": 3, "rate": 3.0, "burst": 4, "subscribe_rate": 3.0, "subscribe_burst": 30},
            "address": {
                "connections": 7,
                "rate": 5.0,
                "burst": 600,
                "subscribe_rate": 5.0,
                "subscribe_burst": 600,
                "connect_rate": 8.0,
                "connect_burst": 9,
            },
        }
        async with upgraded(server, None) as stranger:
            stranger.write(text(type="hello"))
            assert "user" not in (await stranger.message())["limits"]
