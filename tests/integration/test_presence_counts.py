"""Backends count the users of many channels in one call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.stores import STORES, broker_of
from tests.support.api_client import ask
from tests.support.harness import API_KEY, OTHER_API_KEY, Running, serving


@pytest_asyncio.fixture(params=STORES)
async def stored(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """A service on each kind of store."""
    async with broker_of(request.param) as broker, serving(broker_settings=broker) as running:
        yield running


async def counts(server: Running, *channels: str, key: str = API_KEY) -> list[tuple[str, int]]:
    answer = await ask(server, "POST", "/presence/counts", {"channels": list(channels)}, key=key)
    assert answer.status == 200, answer.body
    return [(one["channel"], one["count"]) for one in answer.body["counts"]]


async def test_counts_have_the_order_of_the_request(stored: Running) -> None:
    async with stored.client("ann") as ann, stored.client("ben") as ben, stored.client("ben") as tab:
        await ann.subscribe("room:2")
        for client in (ben, tab):
            await client.subscribe("room:2")
            await client.subscribe("room:1")
        found = await counts(stored, "room:1", "room:2", "room:3", "room:1")
        assert found == [("room:1", 1), ("room:2", 2), ("room:3", 0), ("room:1", 1)]
        assert await counts(stored, "room:1", key=OTHER_API_KEY) == [("room:1", 0)]  # of its tenant, another channel


@pytest.mark.parametrize(
    ("channels", "status", "code", "path"),
    [
        (["room:1", "board:1"], 409, "no_presence", "$.channels[1]"),
        (["room:1", "room:1", "nowhere"], 404, "unknown_channel", "$.channels[2]"),
        (["a b"], 400, "invalid_channel", "$.channels[0]"),
        ([], 400, "invalid_message", "$.channels"),
        (["room:1"] * 1001, 400, "invalid_message", "$.channels"),
    ],
)
async def test_counts_of_a_wrong_channel_are_refused(
    server: Running, channels: list[str], status: int, code: str, path: str
) -> None:
    answer = await ask(server, "POST", "/presence/counts", {"channels": channels})
    assert answer.refused(status, code)["path"] == path


async def test_counts_of_many_channels_cost_more_requests() -> None:
    limits: dict[str, Any] = {"api_rate_per_key": {"per_second": 0.001, "burst": 5}}
    async with serving(limits=limits) as server:
        assert len(await counts(server, *["room:1"] * 300)) == 300  # one request, and three more
        assert len(await counts(server, "room:1")) == 1
        answer = await ask(server, "POST", "/presence/counts", {"channels": ["room:1"]})
        assert answer.refused(429, "rate_limited")["scope"] == "key"
