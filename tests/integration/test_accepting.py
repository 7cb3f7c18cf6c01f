"""The accept rate of a node: how many upgrades per second, which ones count, and how a crowd reconnects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.support.clock import FakeClock
from tests.support.harness import DEADLINE, Running, eventually, serving, token
from tests.support.raw import HANDSHAKE, Answer, ask, connected, upgraded


def accepting(burst: int, per_second: float = 0.01) -> dict[str, Any]:
    return {"accept_rate": {"per_second": per_second, "burst": burst}}


def bearer(user: str = "ann") -> dict[str, str | None]:
    return {"Authorization": f"Bearer {token(user)}"}


def statuses(answers: Iterable[Answer]) -> list[int]:
    return [answer.status for answer in answers]


async def test_upgrade_above_the_accept_rate_gets_retry_after() -> None:
    clock = FakeClock(time.time())
    async with (
        serving(clock=clock, rollout=accepting(2, 0.5)) as server,
        upgraded(server, "ann"),
        upgraded(server, "ben"),
    ):
        refused = [await ask(server, "/ws", bearer()) for _ in range(3)]
        assert statuses(refused) == [503] * 3
        assert [answer.code for answer in refused] == ["overloaded"] * 3
        assert [answer.problem["details"]["retry_after"] for answer in refused] == [2.0, 4.0, 6.0]
        assert [answer.headers["retry-after"] for answer in refused] == ["2", "4", "6"]
        assert all(answer.problem["retryable"] for answer in refused)
        assert {answer.headers["connection"] for answer in refused} == {"close"}, "who is sent away costs no more"
        assert await server.metric("limit_hits_total", limit="accept_rate") == 3
        assert await server.metric("upgrade_refusals_total", reason="overloaded", cause="service", door="upgrade") == 3
        clock.advance(2.0)
        async with upgraded(server, "cid"):
            assert await server.metric("connections") == 3


@pytest.mark.alone
async def test_accept_rate_falls_on_a_slow_node_and_recovers() -> None:
    clock = FakeClock(time.time())
    rollout = {**accepting(4, 4.0), "accept_max_lag": 0.1}
    async with serving(clock=clock, rollout=rollout) as server, AsyncExitStack() as open_:
        observe = server.service.node.admission.upgrades.observe_lag
        assert await server.metric("accept_rate") == 4
        observe(0.5)
        assert await server.metric("accept_rate") == 2
        for user in ("ann", "ben"):
            await open_.enter_async_context(upgraded(server, user))
        refused = await ask(server, "/ws", bearer("cid"))
        assert (refused.code, refused.problem["details"]["retry_after"]) == ("overloaded", 0.5)
        for _ in range(5):
            clock.advance(1.0)
            observe(0.0)
        assert await server.metric("accept_rate") == 4
        for user in ("cid", "dan", "eve", "fay"):
            await open_.enter_async_context(upgraded(server, user))
        assert (await ask(server, "/ws", bearer("gus"))).code == "overloaded", "the setting is the ceiling"


async def test_accept_rate_falls_with_loop_lag() -> None:
    async with serving(rollout={"accept_max_lag": 0.05}) as server:
        upgrades, ceiling = (
            server.service.node.admission.upgrades,
            server.service.node.bounds.rollout.accept_rate.per_second,
        )
        await eventually(lambda: upgrades.per_second == ceiling)  # a busy machine delays the loop, too
        time.sleep(0.4)  # noqa: ASYNC251  # blocks the event loop on purpose
        await eventually(lambda: upgrades.per_second < ceiling)
        assert await server.metric("accept_rate") < ceiling


async def test_plain_get_takes_nothing_from_the_accept_rate() -> None:
    async with serving(rollout=accepting(1)) as server:
        for _ in range(5):
            assert (await ask(server, "/ws", bearer(), upgrade=False)).code == "upgrade_required"
        async with upgraded(server):
            plain = await ask(server, "/ws", bearer() | {"Origin": "http://service.example"}, upgrade=False)
            assert (plain.status, plain.code) == (503, "overloaded")
            assert 1 <= int(plain.headers["retry-after"]) <= 60
            assert plain.headers["access-control-expose-headers"] == "Retry-After", "or a page could not read it"


async def test_browser_s_refused_upgrade_and_plain_get_take_one_place() -> None:
    clock = FakeClock(time.time())
    async with serving(clock=clock, rollout=accepting(1, 0.5)) as server, upgraded(server):
        waits = []
        for _ in range(2):
            for upgrade in (True, False):
                answer = await ask(server, "/ws", bearer() | {"Origin": "http://service.example"}, upgrade=upgrade)
                waits.append(answer.problem["details"]["retry_after"])
        assert waits == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    "fault",
    [
        {"Authorization": "Bearer x.y.z"},
        {"Origin": "https://evil.example"},
        {"Sec-WebSocket-Protocol": "tidewire.v2"},
        {"Sec-WebSocket-Key": "short"},
    ],
    ids=["token", "origin", "version", "key"],
)
async def test_upgrade_refused_for_another_reason_takes_nothing_from_the_accept_rate(
    fault: dict[str, str | None],
) -> None:
    async with serving(rollout=accepting(1)) as server:
        for _ in range(5):
            assert (await ask(server, "/ws", bearer() | fault)).status in (400, 401, 403)
        async with upgraded(server):
            assert (await ask(server, "/ws", bearer() | fault)).status in (400, 403, 503)


@pytest.mark.parametrize(
    "limits",
    [{"connect_rate_per_ip": {"per_second": 0.001, "burst": 3}}, {"connections_per_ip": 3}],
    ids=["rate", "connections"],
)
async def test_accept_rate_cannot_be_used_up_by_one_address(limits: dict[str, Any]) -> None:
    async with serving(limits=limits, rollout=accepting(4)) as server, AsyncExitStack() as crowd:
        for _ in range(20):
            raw = await crowd.enter_async_context(connected(server))
            answer = await raw.request(headers=HANDSHAKE | {"Authorization": f"Bearer {token()}"})
            assert answer.status in (101, 429)
        answer = await ask(server, "/ws", bearer("ben"), source="127.0.0.2")
        assert answer.status == 101


async def test_crowd_connects_at_the_accept_rate_with_few_retries() -> None:
    crowd, rate, burst = 150, 100.0, 30
    limits = {"connections_per_user": 1_000, "connect_rate_per_ip": {"per_second": 10_000, "burst": 10_000}}
    async with serving(limits=limits, rollout=accepting(burst, rate)) as server, AsyncExitStack() as open_:
        begun = time.monotonic()
        asked = await asyncio.wait_for(
            asyncio.gather(*(come_in(server, open_, f"u{number}") for number in range(crowd))), DEADLINE
        )
        took = time.monotonic() - begun
        assert took >= (crowd - burst) / rate, "no faster than the rate"
        assert sum(asked) <= 4 * crowd
        assert await server.metric("connections") == crowd
        assert await server.metric("limit_hits_total", limit="accept_rate") == sum(asked) - crowd


async def come_in(server: Running, open_: AsyncExitStack, user: str) -> int:
    """Retries until accepted, each time after the given pause; returns the number of tries."""
    asked = 0
    while True:
        raw = await open_.enter_async_context(connected(server))
        asked += 1
        answer = await raw.request(headers=HANDSHAKE | {"Authorization": f"Bearer {token(user)}"})
        if answer.status == 101:
            return asked
        await asyncio.sleep(answer.problem["details"]["retry_after"])  # the pause it was given
