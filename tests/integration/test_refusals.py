"""Clients that are refused are counted at every door, with whose part it is."""

from __future__ import annotations

import pytest

from tests.support.harness import Client, Running, serving
from tests.support.raw import HANDSHAKE, ask, bearer, connected


async def refusals(server: Running, reason: str, cause: str, door: str) -> float:
    return await server.metric("upgrade_refusals_total", reason=reason, cause=cause, door=door)


async def test_bad_token_in_hello_is_counted(server: Running) -> None:
    client = await Client.open(server, hello=False)
    await client.send(type="hello", token="x.y.z")
    assert await client.closed() == 4401
    assert await refusals(server, "invalid_token", "client", "hello") == 1
    assert await server.metric("refused_addresses") == 1


async def test_bad_token_for_a_ticket_is_counted(server: Running) -> None:
    for headers, reason in (({}, "unauthenticated"), ({"Authorization": "Bearer x.y.z"}, "invalid_token")):
        answer = await ask(server, "/tickets", headers, upgrade=False, method="POST")
        assert (answer.status, answer.code) == (401, reason)
        assert await refusals(server, reason, "client", "ticket") == 1
    assert await server.metric("refused_addresses") == 1, "of one address, however often"


async def test_clients_behind_a_proxy_are_counted_by_their_own_addresses() -> None:
    async with serving(proxy={"hops": 1}) as server:
        for number in range(3):
            headers = {"Authorization": "Bearer x.y.z", "X-Forwarded-For": f"192.0.2.{number}"}
            assert (await ask(server, "/ws", headers)).status == 401
        assert await server.metric("refused_addresses") == 3


async def test_fault_of_the_service_is_counted(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault for the test")

    monkeypatch.setattr(server.service.node.cluster.authenticator, "authenticate_now", broken)
    assert (await ask(server, "/ws", bearer())).status == 500
    assert await refusals(server, "internal", "service", "upgrade") == 1
    async with connected(server) as raw:  # an upgrade behind another request, which aiohttp reads
        await raw.request("/healthz", {}, "GET")
        answer = await raw.request("/ws", {name: value for name, value in (HANDSHAKE | bearer()).items() if value})
        assert answer.status == 500
    assert await refusals(server, "internal", "service", "upgrade") == 2
    assert await server.metric("refused_addresses") == 0
