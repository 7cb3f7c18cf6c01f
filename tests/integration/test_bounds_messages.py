"""Bounds on what a connection sends: sizes, batches, subscriptions, rates, floods. Nobody else may notice."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from tests.support.clock import FakeClock
from tests.support.harness import DEADLINE, Client, Running, serving, token
from tests.support.raw import (
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    ask,
    bearer,
    frame,
    text,
    upgraded,
)

TIGHT = {"per_second": 0.001, "burst": 3}
"""Three messages, and then no more for as long as a test runs."""


@asynccontextmanager
async def bystander(server: Running) -> AsyncIterator[Client]:
    """Somebody else, who is still served in the end; after that nothing is left of anyone."""
    async with server.client("bystander", grants=["room:*"]) as client:
        await client.subscribe("room:bystander")
        yield client
        reply = await client.ask("chat.message", channel="room:bystander", data={"text": "still here"})
        assert reply["type"] == "ack"
    await server.at_rest()


@asynccontextmanager
async def at_rest_after(service: AbstractAsyncContextManager[Running]) -> AsyncIterator[Running]:
    """The service; in the end nothing is left of anyone."""
    async with service as server:
        yield server
        await server.at_rest()


def padded(size: int) -> str:
    """A ping of exactly so many bytes."""
    ping = '{"type":"ping","id":"k"}'
    return ping + " " * (size - len(ping))


class TestSize:
    async def test_message_at_the_size_limit_is_accepted(self) -> None:
        async with serving() as server, bystander(server), server.client() as ann:
            await ann.raw(padded(65_536))
            await ann.expect("pong", id="k")
            assert await server.metric("limit_hits_total", limit="message_bytes") == 0

    async def test_message_above_the_size_limit_closes_the_connection(self) -> None:
        async with serving() as server, bystander(server):
            async with server.client() as ann:
                await ann.raw(padded(65_537))
                assert await ann.closed() == 1009
            await _until(server, "limit_hits_total", 1, limit="message_bytes")
            await _until(server, "closes_total", 1, code="1009")

    async def test_message_above_the_size_limit_before_hello_closes_the_connection(self) -> None:
        async with serving() as server, bystander(server):
            ann = await Client.open(server, hello=False)
            await ann.raw(padded(65_537))
            assert await ann.closed() == 1009
            await _until(server, "limit_hits_total", 1, limit="message_bytes")

    async def test_size_limit_is_a_setting_and_in_welcome(self) -> None:
        async with serving(limits={"message_bytes": 2048}) as server, server.client() as ann:
            assert ann.welcome["limits"]["message"] == 2048
            await ann.raw(padded(2048))
            await ann.expect("pong")
            await ann.raw(padded(2049))
            assert await ann.closed() == 1009

    async def test_frame_header_above_the_limit_closes_the_connection(self) -> None:
        async with serving() as server, bystander(server), upgraded(server) as raw:
            raw.write(bytes([0x81, 0xFF]) + (1 << 62).to_bytes(8, "big") + b"\1\2\3\4")
            assert await raw.close_code() == 1009
            await raw.gone()

    @pytest.mark.parametrize("size", [1, 1000])
    async def test_endless_fragments_are_cut(self, size: int) -> None:
        async with serving(limits={"message_bytes": 4096}) as server, bystander(server), upgraded(server) as raw:
            raw.write(frame(TEXT, b"x" * size, fin=False))
            for _ in range(4096 // size + 1):
                raw.write(frame(CONTINUATION, b"x" * size, fin=False))
            assert await raw.close_code() == 1009
            await raw.gone()
            await _until(server, "limit_hits_total", 1, limit="message_bytes")

    async def test_fragmented_message_counts_as_a_whole(self) -> None:
        async with serving() as server, upgraded(server) as raw:
            message = padded(65_536).encode()
            raw.write(frame(TEXT, message[:40_000], fin=False))
            raw.write(frame(PING, b"between"))
            raw.write(frame(CONTINUATION, message[40_000:]))
            assert await raw.receive() == (PONG, b"between")
            assert await raw.message() == {"type": "pong", "id": "k"}


class TestBatch:
    async def test_batch_at_the_limit_is_handled(self) -> None:
        async with serving(limits={"batch": 3}) as server, bystander(server), server.client() as ann:
            assert ann.welcome["limits"]["batch"] == 3
            await ann.raw(json.dumps([{"type": "ping", "id": str(number)} for number in range(3)]))
            assert [(await ann.receive())["id"] for _ in range(3)] == ["0", "1", "2"]

    async def test_batch_above_the_limit_is_refused_whole(self) -> None:
        async with serving(limits={"batch": 3}) as server, bystander(server), server.client() as ann:
            await ann.raw(json.dumps([{"type": "ping", "id": str(number)} for number in range(4)]))
            await ann.expect("error", code="invalid_message")
            await ann.silence()
            assert await server.metric("limit_hits_total", limit="batch") == 1

    async def test_batch_with_hello_is_bounded(self) -> None:
        async with serving(limits={"batch": 3}) as server, bystander(server):
            ann = await Client.open(server, hello=False)
            hello = {"type": "hello", "token": token()}
            await ann.raw(json.dumps([hello, *[{"type": "ping"}] * 3]))
            await ann.expect("error", code="invalid_message")
            assert await ann.closed() == 4400
            assert await server.metric("limit_hits_total", limit="batch") == 1

    async def test_empty_batch_is_malformed(self) -> None:
        async with serving() as server, server.client() as ann:
            await ann.raw("[]")
            await ann.expect("error", code="malformed")
            other = await Client.open(server, hello=False)
            await other.raw("[]")
            await other.expect("error", code="malformed")
            assert await other.closed() == 4400


async def test_subscriptions_are_bounded() -> None:
    async with serving(limits={"subscriptions": 2}) as server, bystander(server), server.client() as ann:
        assert ann.welcome["limits"]["subscriptions"] == 2
        await ann.subscribe("room:1")
        await ann.subscribe("room:2")
        refused = await ann.ask("subscribe", channel="room:3")
        assert (refused["code"], refused["details"]) == ("too_many_subscriptions", {"limit": 2})
        assert (await ann.ask("subscribe", channel="room:2"))["code"] == "already_subscribed"
        assert await server.metric("limit_hits_total", limit="subscriptions") == 1
        assert await server.metric("subscriptions") == 3, "ann's two and the bystander's"
        await ann.ask("unsubscribe", channel="room:1")
        await ann.subscribe("room:3")


async def test_many_subscribes_cost_no_more_than_the_limit() -> None:
    free = {"per_second": 1e6, "burst": 1_000_000}
    limits = dict.fromkeys(("connection_rate", "user_rate", "ip_rate", "tenant_rate"), free)
    async with serving(limits=limits) as server, bystander(server), server.client() as ann:
        refused = 0
        for start in range(0, 10_000, 100):
            names = range(start, start + 100)
            await ann.raw(json.dumps([{"type": "subscribe", "id": f"{n}", "channel": f"room:{n}"} for n in names]))
            replies = 0
            while replies < 100:
                message = await ann.receive()
                replies += message["type"] in ("subscribed", "error")
                refused += message.get("code") == "too_many_subscriptions"
        assert refused == 10_000 - 128
        assert await server.metric("subscriptions") == 129
        assert await server.metric("channels") == 129


class TestRate:
    @pytest.mark.parametrize("scope", ["connection", "user", "ip", "tenant"])
    async def test_message_above_the_rate_is_refused_with_the_wait(self, scope: str) -> None:
        async with at_rest_after(serving(limits={f"{scope}_rate": TIGHT})) as server, server.client(ready=False) as ann:
            for number in range(3):
                await ann.send(type="ping", id=str(number))
                await ann.expect("pong", id=str(number))
            await ann.send(type="ping", id="late")
            error = await ann.expect("error", code="rate_limited", id="late", retryable=True)
            assert error["details"]["scope"] == scope
            assert 0 < error["details"]["retry_after"] <= 1250, "the wait, and up to a quarter more by chance"
            assert await server.metric("rate_limited_total", scope=scope) == 1
            assert await server.metric("connections") == 1, "a little above the rate is no reason to close"

    async def test_rate_of_a_connection_is_its_own(self) -> None:
        async with (
            serving(limits={"connection_rate": {"per_second": 0.001, "burst": 5}}) as server,
            server.client("ann", ready=False) as ann,
            server.client("ann", ready=False) as tab,
        ):
            for _ in range(6):
                await ann.send(type="ping")
            await ann.until("error", code="rate_limited")
            await tab.silence()

    async def test_rate_of_a_user_counts_all_its_connections(self) -> None:
        async with (
            serving(limits={"user_rate": TIGHT}) as server,
            server.client("ann", ready=False) as ann,
            server.client("ann", ready=False) as tab,
            server.client("ann", ready=False, tenant="other") as namesake,
            server.client("ben", ready=False) as ben,
        ):
            await ann.silence()
            await tab.silence()
            await ann.silence()
            for client in (ann, tab):
                await client.send(type="ping", id="late")
                await client.expect("error", code="rate_limited", id="late")
            await ben.silence()
            await namesake.silence()

    async def test_rate_of_a_tenant_is_its_own(self) -> None:
        async with (
            serving(limits={"tenant_rate": TIGHT}) as server,
            server.client("ann", ready=False) as ann,
            server.client("ben", ready=False) as ben,
            server.client("ann", ready=False, tenant="other") as other,
        ):
            await ann.silence()
            await ben.silence()
            await ann.silence()
            await ben.send(type="ping", id="late")
            await ben.expect("error", code="rate_limited", id="late")
            await other.silence()

    async def test_rate_of_an_address_is_its_own(self) -> None:
        async with serving(limits={"ip_rate": TIGHT}, proxy={"hops": 1}) as server:
            near = {"X-Forwarded-For": "192.0.2.1", "Authorization": f"Bearer {token('ann')}"}
            far = {"X-Forwarded-For": "192.0.2.2", "Authorization": f"Bearer {token('ben')}"}
            async with (
                server.client(hello=False, ready=False, headers=near) as ann,
                server.client(hello=False, ready=False, headers=far) as ben,
            ):
                for _ in range(3):
                    await ann.silence()
                await ann.send(type="ping", id="late")
                await ann.expect("error", code="rate_limited", id="late")
                await ben.silence()

    async def test_rate_of_a_connection_recovers_with_time(self) -> None:
        clock = FakeClock(time.time())
        limits = {"connection_rate": {"per_second": 2, "burst": 1}}
        async with serving(limits=limits, clock=clock) as server, server.client(ready=False) as ann:
            await ann.send(type="ping", id="1")
            await ann.expect("pong", id="1")
            await ann.send(type="ping", id="2")
            assert 0.5 <= (await ann.expect("error", id="2"))["details"]["retry_after"] <= 0.625
            clock.advance(0.5)
            await ann.send(type="ping", id="3")
            await ann.expect("pong", id="3")

    async def test_each_message_of_a_batch_counts(self) -> None:
        async with serving(limits={"connection_rate": TIGHT}) as server, server.client(ready=False) as ann:
            await ann.raw(json.dumps([{"type": "ping", "id": str(number)} for number in range(5)]))
            kinds = [(await ann.receive())["type"] for _ in range(5)]
            assert kinds == ["pong"] * 3 + ["error"] * 2

    @pytest.mark.parametrize("junk", ["{", "[", "[]", '[{"type":"ping"}', "x" * 100, '{"type":"nonsense"}', b"\0"])
    async def test_invalid_message_counts_for_the_rate(self, junk: str | bytes) -> None:
        limits = {"connection_rate": TIGHT, "rate_violations": 2}
        async with serving(limits=limits) as server, bystander_of_own_rate(server), server.client(ready=False) as ann:
            for _ in range(6):
                await (ann.raw(junk) if isinstance(junk, str) else ann.ws.send_bytes(junk))
            assert await ann.closed() == 4429
            codes = [message["code"] for message in ann.received]
            assert codes[3:] == ["rate_limited"] * 3
            assert "rate_limited" not in codes[:3]

    async def test_client_that_keeps_sending_above_the_rate_is_closed(self) -> None:
        async with serving(limits={"connection_rate": TIGHT, "rate_violations": 5}) as server:
            async with server.client(ready=False) as ann:
                for _ in range(3 + 5):
                    await ann.send(type="ping")
                for _ in range(3 + 5):
                    await ann.receive()
                assert await server.metric("connections") == 1, "exactly the violations that are let pass"
                await ann.send(type="ping")
                assert await ann.closed() == 4429
            await server.at_rest()
            assert await server.metric("closes_total", code="4429") == 1
            assert await server.metric("rate_limited_total", scope="connection") == 6
            assert await server.metric("errors_total", code="rate_limited") == 6

    async def test_messages_behind_hello_count(self) -> None:
        async with serving(limits={"connection_rate": TIGHT}) as server:
            ann = await Client.open(server, hello=False)
            batch: list[dict[str, Any]] = [{"type": "hello", "token": token()}]
            await ann.raw(json.dumps(batch + [{"type": "ping"}] * 4))
            assert [(await ann.receive())["type"] for _ in range(5)] == ["welcome", "pong", "pong", "pong", "error"]
            await ann.close()


@asynccontextmanager
async def bystander_of_own_rate(server: Running) -> AsyncIterator[None]:
    """Another connection, which has its own three messages left."""
    async with server.client("bystander", ready=False) as other:
        yield
        await other.silence()


class TestFlood:
    @pytest.mark.parametrize("opcode", [PING, PONG], ids=["ping", "pong"])
    async def test_control_frame_flood_closes_the_connection(self, opcode: int) -> None:
        limits = {"connection_rate": {"per_second": 5, "burst": 20}}
        async with serving(limits=limits) as server, server.client("bystander") as other, upgraded(server) as raw:
            for _ in range(40):
                raw.write(frame(opcode, b"x"))
            pongs = 0
            while (received := await raw.receive())[0] != CLOSE:
                assert received == (PONG, b"x")
                pongs += 1
            assert int.from_bytes(received[1][:2], "big") == 4429
            assert 20 * (opcode == PING) <= pongs <= 25
            raw.write(frame(CLOSE, received[1][:2]))
            await raw.gone()
            await other.silence()
            await other.close()
            await server.at_rest()
            assert await server.metric("rate_limited_total", scope="connection") == 1
            assert await server.metric("closes_total", code="4429") == 1

    async def test_control_frame_flood_before_hello_closes_the_connection(self) -> None:
        limits = {"connection_rate": {"per_second": 5, "burst": 20}}
        async with serving(limits=limits) as server, upgraded(server, None) as raw:
            for _ in range(40):
                raw.write(frame(PING, b"x"))
            assert await raw.close_code() == 4429
            raw.write(frame(CLOSE, (4429).to_bytes(2, "big")))
            await raw.gone()
            await server.at_rest()

    async def test_flooding_client_that_ignores_the_close_is_cut(self) -> None:
        limits = {"connection_rate": {"per_second": 5, "burst": 20}}
        async with serving(limits=limits, outbox={"close_grace": 0.2}) as server, upgraded(server) as raw:
            for _ in range(40):
                raw.write(frame(PING, b"x"))
            assert await raw.close_code() == 4429
            await raw.gone()
            await server.at_rest()

    async def test_pings_at_the_rate_are_answered(self) -> None:
        async with serving() as server, upgraded(server) as raw:
            for number in range(50):
                raw.write(frame(PING, str(number).encode()))
                assert await raw.receive() == (PONG, str(number).encode())

    async def test_flood_of_refused_upgrades_stops_at_the_rate(self) -> None:
        async with serving(limits={"connect_rate_per_ip": {"per_second": 0.001, "burst": 10}}) as server:
            async with server.client("bystander") as other:
                codes = [(await ask(server, "/ws", bearer("x.y.z"))).code for _ in range(12)]
                codes.append((await ask(server, "/tickets", upgrade=False, method="POST")).code)
                assert codes == ["invalid_token"] * 9 + ["rate_limited"] * 4
                await other.silence()
            await server.at_rest()
            assert await server.metric("rate_limited_total", scope="connect") == 4


@pytest.mark.alone
async def test_flooding_client_does_not_slow_others() -> None:
    """Messages, junk and pings at once, from many connections; the bystander's ping is answered in time."""
    async with serving(limits={"rate_violations": 2}) as server, server.client("bystander") as other:

        async def flood() -> None:
            async with upgraded(server, "eve") as raw:
                for _ in range(200):
                    raw.write(text(type="ping") + frame(PING) + frame(TEXT, b"{"))
                assert await raw.close_code() == 4429
                await raw.gone()

        floods = asyncio.gather(*(flood() for _ in range(10)))
        for _ in range(20):
            await asyncio.wait_for(other.silence(), 5)
        await floods
        await other.close()
        await server.at_rest()


async def _until(server: Running, name: str, value: float, **labels: str) -> None:
    """Waits for a counter that moves when a connection has ended."""
    async with asyncio.timeout(DEADLINE):
        while await server.metric(name, **labels) != value:
            pass
