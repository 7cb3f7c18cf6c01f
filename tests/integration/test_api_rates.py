"""Rates of the backend API: per key, per address, and for invalid keys."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support.api_client import ask
from tests.support.clock import FakeClock
from tests.support.harness import API_KEY, OTHER_API_KEY, serving

NEVER = 0.0001
"""A rate of almost nothing, for as long as a test runs."""
EVENT = {"type": "chat.message", "data": {"text": "x"}}


def limits(scope: str, burst: int, per_second: float = NEVER) -> dict[str, Any]:
    return {f"api_rate_per_{scope}": {"per_second": per_second, "burst": burst}}


async def test_key_rate_refuses_only_that_key() -> None:
    async with serving(limits=limits("key", 3)) as server:
        for _ in range(3):
            assert (await ask(server, "POST", "/channels/room:1/events", EVENT)).status == 200
        refused = await ask(server, "POST", "/channels/room:1/events", EVENT)
        details = refused.refused(429, "rate_limited")
        assert details["scope"] == "key"
        assert details["retry_after"] > 0
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert (await ask(server, "GET", "/channels", key=OTHER_API_KEY)).status == 200
        assert await server.metric("rate_limited_total", scope="api_key") == 1
        route = "/api/v1/channels/{channel}/events"
        assert await server.metric("api_requests_total", route=route, method="POST", status="429") == 1
        assert await server.metric("publishes_total", delivery="durable", outcome="accepted") == 3


async def test_address_rate_refuses_any_key_and_none() -> None:
    async with serving(limits=limits("ip", 2)) as server:
        assert (await ask(server, "GET", "/channels")).status == 200
        assert (await ask(server, "GET", "/channels", key=OTHER_API_KEY)).status == 200
        for key in (API_KEY, OTHER_API_KEY, "wrong", None):
            assert (await ask(server, "GET", "/channels", key=key)).refused(429, "rate_limited")["scope"] == "ip"
        (await ask(server, "GET", "/openapi.json", key=None)).refused(429, "rate_limited")
        assert await server.metric("rate_limited_total", scope="api_ip") == 5


async def test_address_rate_behind_proxies_counts_clients() -> None:
    async with serving(limits=limits("ip", 1), proxy={"hops": 1}) as server:
        for address in ("192.0.2.1", "192.0.2.2"):
            near = {"X-Forwarded-For": address}
            assert (await ask(server, "GET", "/channels", headers=near)).status == 200
            (await ask(server, "GET", "/channels", headers=near)).refused(429, "rate_limited")


@pytest.mark.parametrize("key", ["wrong", None])
async def test_invalid_keys_are_refused_after_a_few_tries(key: str | None) -> None:
    async with serving(clock=FakeClock(time.time())) as server:
        statuses = [(await ask(server, "GET", "/channels", key=key)).status for _ in range(110)]
        assert statuses == [401] * 100 + [429] * 10
        assert await server.metric("rate_limited_total", scope="api_ip") == 10


async def test_invalid_keys_with_a_small_burst_get_that_many_tries() -> None:
    async with serving(limits=limits("ip", 3)) as server:
        statuses = [(await ask(server, "GET", "/channels", key="wrong")).status for _ in range(5)]
        assert statuses == [401] * 3 + [429] * 2


async def test_request_refused_for_its_key_costs_the_address_nothing() -> None:
    async with serving(limits={**limits("key", 1), **limits("ip", 3)}) as server:
        assert (await ask(server, "GET", "/channels")).status == 200
        for _ in range(5):
            assert (await ask(server, "GET", "/channels")).refused(429, "rate_limited")["scope"] == "key"
        assert (await ask(server, "GET", "/channels", key=OTHER_API_KEY)).status == 200


async def test_key_rate_recovers_with_time() -> None:
    clock = FakeClock(time.time())
    async with serving(limits=limits("key", 1, per_second=2), clock=clock) as server:
        assert (await ask(server, "GET", "/channels")).status == 200
        assert 0.5 <= (await ask(server, "GET", "/channels")).refused(429, "rate_limited")["retry_after"] <= 0.625
        clock.advance(0.5)
        assert (await ask(server, "GET", "/channels")).status == 200
