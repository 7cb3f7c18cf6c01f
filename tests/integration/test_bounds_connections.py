"""Caps on connections, and whose connections they count."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from tests.support.harness import Client, Running, eventually, serving, token
from tests.support.raw import CLOSE, ask, bearer, frame, upgraded


async def scope_of_refusal(server: Running, headers: dict[str, str | None] | None = None) -> str:
    """The cap that one upgrade more would meet; empty if none."""
    answer = await ask(server, "/ws", bearer() | (headers or {}), upgrade=False)
    if answer.status == 426:
        return ""
    assert (answer.status, answer.code) == (429, "too_many_connections")
    return str(answer.problem["details"]["scope"])


@pytest.mark.parametrize("cap", ["connections", "connections_per_ip", "connections_per_tenant", "connections_per_user"])
async def test_cap_holds_and_a_close_frees_a_place(cap: str) -> None:
    async with serving(limits={cap: 2}) as server:
        for _ in range(3):
            async with server.client() as ann, server.client():
                hits = await server.metric("limit_hits_total", limit=cap)
                assert await scope_of_refusal(server) == cap
                assert await server.metric("limit_hits_total", limit=cap) == hits + 1
                await ann.silence()
            await server.at_rest()


@pytest.mark.parametrize("cap", ["connections_per_tenant", "connections_per_user"])
async def test_cap_reached_at_hello_closes_with_the_reason(cap: str) -> None:
    async with serving(limits={cap: 1}) as server, server.client() as ann:
        late = await Client.open(server, hello=False)
        await late.send(type="hello", token=token())
        error = await late.expect("error", code="too_many_connections", retryable=True)
        assert error["details"]["scope"] == cap
        assert await late.closed() == 4429
        await ann.silence()
        await ann.close()
        await server.at_rest()


async def test_cap_counts_the_connections_of_its_scope() -> None:
    """A user is of a tenant; another one's connections, and another tenant's, are not his."""
    async with serving(limits={"connections_per_user": 1, "connections_per_tenant": 2}) as server:
        async with server.client("ann"), server.client("ann", tenant="other"), server.client("ben"):
            assert await scope_of_refusal(server, bearer(user="ann")) == "connections_per_tenant"
            assert await scope_of_refusal(server, bearer(user="ann", tenant="other")) == "connections_per_user"
            assert await scope_of_refusal(server, bearer(user="ben", tenant="other")) == ""
        await server.at_rest()


async def test_anonymous_connections_count_for_no_user() -> None:
    async with serving(limits={"connections_per_user": 1}, auth={"anonymous": True}) as server:
        async with AsyncExitStack() as crowd:
            for _ in range(3):
                client = await Client.open(server, hello=False)
                crowd.push_async_callback(client.close)
                await client.send(type="hello")
                assert (await client.expect("welcome"))["user"] == ""
        await server.at_rest()


async def test_simultaneous_connections_do_not_exceed_the_cap() -> None:
    async with serving(limits={"connections_per_ip": 5}) as server:
        async with AsyncExitStack() as crowd:

            async def come() -> bool:
                try:
                    await crowd.enter_async_context(upgraded(server, "ann"))
                except AssertionError:
                    return False
                return True

            arrivals = await asyncio.gather(*(come() for _ in range(40)))
            assert sum(arrivals) == 5
            assert await server.metric("connections") == 5
        await server.at_rest()
        assert await scope_of_refusal(server) == ""


class TestReplace:
    async def test_newer_session_closes_the_oldest(self) -> None:
        async with serving(limits={"connections_per_user": 2, "on_user_cap": "replace"}) as server:
            async with server.client("ben") as ben:
                first, second = await Client.open(server), await Client.open(server)
                third = await Client.open(server)
                assert await first.closed() == 4409
                fourth = await Client.open(server, hello=False, headers={"Authorization": f"Bearer {token()}"})
                assert await second.closed() == 4409
                for alive in (third, fourth, ben):
                    await alive.silence()
                assert await server.metric("closes_total", code="4409") == 2
                assert await server.metric("connections") == 3
                for client in (third, fourth):
                    await client.close()
            await server.at_rest()

    async def test_session_that_ignores_the_close_is_replaced(self) -> None:
        async with serving(
            limits={"connections_per_user": 1, "on_user_cap": "replace", "connections": 2}, outbox={"close_grace": 0.2}
        ) as server:
            async with upgraded(server) as old, server.client() as new:
                assert await old.close_code() == 4409
                await old.gone()
                await new.silence()
            await server.at_rest()

    async def test_many_sessions_of_a_user_end_at_the_cap(self) -> None:
        async with serving(limits={"connections_per_user": 3, "on_user_cap": "replace"}) as server:
            clients = await asyncio.gather(*(Client.open(server) for _ in range(20)), return_exceptions=True)
            node = server.service.node
            await eventually(lambda: len(node.streams.registry.of_user("default", "ann")) == 3)
            for client in clients:
                if isinstance(client, Client):
                    await client.close()
            await server.at_rest()
            assert await server.metric("closes_total", code="4409") == 17


class TestPending:
    async def test_pending_connections_are_bounded_and_freed_at_the_deadline(self) -> None:
        async with serving(limits={"pending": 2}, deadlines={"hello": 60}) as server:
            async with server.client() as ann:
                one, two = await Client.open(server, hello=False), await Client.open(server, hello=False)
                assert await server.metric("pending_connections") == 2
                assert await scope_of_refusal(server) == "pending"
                assert await server.metric("limit_hits_total", limit="pending") == 1
                server.hello_is_late()
                assert (await one.closed(), await two.closed()) == (4408, 4408)
                assert await scope_of_refusal(server) == ""
                await ann.silence()
            await server.at_rest()

    async def test_pending_connection_that_says_hello_frees_a_place(self) -> None:
        async with serving(limits={"pending": 1}) as server:
            async with server.client() as ann, server.client("ben") as ben:
                assert await server.metric("pending_connections") == 0
                await ann.silence()
                await ben.silence()
            await server.at_rest()

    async def test_connections_without_hello_are_all_closed(self) -> None:
        count = 100
        # The bystander reads nothing meanwhile, so it answers no ping.
        deadlines = {"hello": 60, "heartbeat": 600}
        async with serving(limits={"pending": count, "connections_per_ip": count + 1}, deadlines=deadlines) as server:
            async with server.client("bystander") as bystander, AsyncExitStack() as crowd:
                arrivals = (crowd.enter_async_context(upgraded(server, None)) for _ in range(count))
                silent = await asyncio.gather(*arrivals)
                assert await server.metric("pending_connections") == count
                assert await scope_of_refusal(server) in ("pending", "connections_per_ip")
                server.hello_is_late()

                async def ending(index: int) -> int:
                    raw = silent[index]
                    message = json.loads((await raw.receive())[1])
                    assert (message["type"], message["code"]) == ("error", "deadline")
                    code = await raw.close_code()
                    if index % 2:  # the other half never answers, and is cut
                        raw.write(frame(CLOSE, code.to_bytes(2, "big")))
                    await raw.gone()
                    return code

                assert set(await asyncio.gather(*(ending(index) for index in range(count)))) == {4408}
                await bystander.silence()
                await eventually(lambda: server.service.node.admission.slots.total == 1)
                assert await server.metric("limit_hits_total", limit="hello_deadline") == count
                assert await server.metric("closes_total", code="4408") == count
            await server.at_rest()


ADDRESSES = [
    # hops, X-Forwarded-For, counts as
    (0, "203.0.113.9", "127.0.0.1"),
    (0, None, "127.0.0.1"),
    (1, None, "127.0.0.1"),
    (1, "", "127.0.0.1"),
    (1, "nonsense", "127.0.0.1"),
    (1, "203.0.113.9", "203.0.113.9"),
    (1, "203.0.113.9:4711", "203.0.113.9"),
    (1, "spoofed, 203.0.113.9", "203.0.113.9"),
    (1, "198.51.100.1, 203.0.113.9", "203.0.113.9"),
    (1, "198.51.100.1,203.0.113.9 ", "203.0.113.9"),
    (2, "203.0.113.9", "127.0.0.1"),
    (2, "203.0.113.9, 10.0.0.1", "203.0.113.9"),
    (2, "198.51.100.1, 203.0.113.9, 10.0.0.1", "203.0.113.9"),
    (2, "198.51.100.1, nonsense, 10.0.0.1", "127.0.0.1"),
    (1, "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    (1, "[2001:db8:1:2::7]", "2001:db8:1:2::/64"),
    (1, "[2001:db8:1:2::8]:4711", "2001:db8:1:2::/64"),
    (1, "2001:DB8:1:2::9", "2001:db8:1:2::/64"),
    (1, "::ffff:203.0.113.9", "203.0.113.9"),
    (1, "[::ffff:203.0.113.9]:80", "203.0.113.9"),
    (1, "fe80::1%eth0", "fe80::/64"),
    (1, "203.0.113.9\r\nX-Forwarded-For: 203.0.113.10", "203.0.113.10"),
]


@pytest.mark.parametrize(("hops", "forwarded", "counts_as"), ADDRESSES)
async def test_client_address_is_taken_from_trusted_proxies(hops: int, forwarded: str | None, counts_as: str) -> None:
    async with serving(proxy={"hops": hops}) as server:
        headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
        async with upgraded(server, "ann", **headers):
            (connection,) = server.service.node.streams.registry
            assert connection.slot.network == counts_as
        await server.at_rest()


async def test_cap_of_an_address_counts_the_client_behind_the_proxy() -> None:
    async with (
        serving(limits={"connections_per_ip": 1}, proxy={"hops": 1}) as server,
        upgraded(server, "ann", **{"X-Forwarded-For": "198.51.100.1, 2001:db8::1"}),
    ):
        for spoof in ("", "2001:db8::99, ", "203.0.113.5, 203.0.113.6, "):
            same = f"{spoof}2001:db8:0:0:ffff::2"
            assert await scope_of_refusal(server, {"X-Forwarded-For": same}) == "connections_per_ip"
        for other in ("2001:db8:0:1::1", "203.0.113.5", "2001:db8::1, 203.0.113.5"):
            assert await scope_of_refusal(server, {"X-Forwarded-For": other}) == ""


async def test_forwarded_address_is_ignored_without_a_trusted_proxy() -> None:
    async with serving(limits={"connections_per_ip": 1}) as server, upgraded(server, "ann"):
        for number in range(5):
            spoof = f"203.0.113.{number}"
            spoofed: dict[str, str | None] = {"X-Forwarded-For": spoof, "X-Real-IP": spoof, "CF-Connecting-IP": spoof}
            spoofed["Forwarded"] = f"for={spoof}"
            assert await scope_of_refusal(server, spoofed) == "connections_per_ip"
        answer = await ask(server, "/ws", bearer(), upgrade=False, source="127.0.0.2")
        assert answer.status == 426, "really another address"


async def test_rate_of_an_address_counts_the_client_behind_the_proxy() -> None:
    limits = {"connect_rate_per_ip": {"per_second": 0.001, "burst": 2}}
    async with serving(limits=limits, proxy={"hops": 1}) as server:
        near: dict[str, str | None] = {"X-Forwarded-For": "203.0.113.9"}
        far: dict[str, str | None] = {"X-Forwarded-For": "203.0.113.9, 198.51.100.1"}
        codes = [(await ask(server, "/ws", bearer() | near, upgrade=False)).code for _ in range(3)]
        assert codes == ["upgrade_required", "upgrade_required", "rate_limited"]
        assert (await ask(server, "/tickets", bearer() | near, upgrade=False, method="POST")).code == "rate_limited"
        assert (await ask(server, "/tickets", bearer() | far, upgrade=False, method="POST")).status == 201


async def test_tracked_addresses_are_bounded() -> None:
    """Each client makes up an address; the service remembers the rates of the last few, and counts none that has left."""
    limits = {
        "tracked": 10,
        "connect_rate_per_ip": {"per_second": 0.001, "burst": 2},
    }  # so slow that none is full again
    async with serving(limits=limits, proxy={"hops": 1}) as server:
        for number in range(50):
            headers: dict[str, str | None] = {"X-Forwarded-For": f"2001:db8:0:{number:x}::1"}
            await ask(server, "/ws", bearer() | headers, upgrade=False)
        assert server.service.node.admission.requests.tracked == 10
        await server.at_rest()


async def test_quiet_address_is_evicted() -> None:
    limits = {"connect_rate_per_ip": {"per_second": 100, "burst": 2}}
    async with serving(limits=limits) as server:
        await ask(server, "/ws", bearer(), upgrade=False)
        requests = server.service.node.admission.requests
        await eventually(lambda: not requests.tracked, lambda: requests.tracked)


async def test_tickets_are_bounded() -> None:
    async with serving(limits={"tracked": 3}) as server:
        for _ in range(3):
            assert (await ask(server, "/tickets", bearer(), upgrade=False, method="POST")).status == 201
        answer = await ask(server, "/tickets", bearer(), upgrade=False, method="POST")
        assert (answer.status, answer.code) == (503, "overloaded")
        assert "retry-after" in answer.headers
