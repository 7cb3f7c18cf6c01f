"""Nodes of both ages share a Redis Cluster: an update and a rollback, one node after the other, under traffic."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.compatibility.player import Player, playing
from tests.compatibility.revisions import CHECKOUT, NEW_CLIENT, OLD_CLIENT
from tests.compatibility.test_clients_and_servers import CONTRACT
from tests.faults.node import Node
from tests.faults.report import Report
from tests.faults.stage import Stage
from tests.stores.cluster import Cluster
from tests.stores.redis_server import RedisServer
from tests.support.files import as_many_as_may_be

pytestmark = [pytest.mark.faults, pytest.mark.slow]

CHANNEL = "hall:players"
DRAINED = 35.0
"""Seconds from SIGTERM to the exit."""
GOES_ON = 60.0
"""Seconds after a restart in which all clients have everything again."""


@pytest.fixture(autouse=True)
def _enough_files() -> Iterator[None]:
    with as_many_as_may_be():
        yield


async def replace(stage: Stage, node: Node, folder: Path) -> None:
    """Drains a node, and starts the service of another folder in its place."""
    node.signal(signal.SIGTERM)
    assert await node.wait(DRAINED) == 0
    node.checkout = folder
    await node.start()
    assert await stage.healed(monotonic(), GOES_ON) is not None, "nothing went on after a restart"


async def check_players(players: list[Player]) -> None:
    """Each event that a player published was heard by both, once and in order."""
    acknowledged = [event for player in players for event in (await player.ask("stop"))["acknowledged"]]
    assert acknowledged
    top = max(offset for _, offset in acknowledged)
    heard: list[dict[str, Any]] = [await player.ask(f"until {top}") for player in players]
    for found in heard:
        assert found["troubles"] == []
        assert found["welcomes"] > 1, "no restart ended its connection"
        offsets = [offset for _, offset, _ in found["heard"]]
        assert offsets == list(range(1, len(acknowledged) + 1))
        assert sorted(map(tuple, acknowledged)) == sorted((id_, offset) for id_, offset, _ in found["heard"])


async def test_update_and_rollback_lose_and_repeat_nothing(old_checkout: Path) -> None:
    """Two old nodes become new ones, then one of them old again: every mix, with clients of both ages on both nodes."""
    report = Report("rolling-update", "redis Cluster", 1)
    async with Cluster() as store:
        stage = Stage(
            report, [store.url, store.url], clients=24, rate=30, channels=3, settings={"CONTRACT": str(CONTRACT)}
        )
        first, second = stage.nodes
        first.checkout = second.checkout = old_checkout
        async with (
            stage,
            playing(OLD_CLIENT, first.port, CHANNEL, "old") as old,
            playing(NEW_CLIENT, second.port, CHANNEL, "new") as new,
        ):
            for player in (old, new):
                await player.ask("start")
            await replace(stage, first, CHECKOUT)
            await replace(stage, second, CHECKOUT)
            await replace(stage, first, old_checkout)
            await check_players([old, new])
    assert not report.failures
    counts = report.counts
    assert counts.clean, counts
    assert counts.announced == 0


async def test_streams_and_polls_go_on_at_the_new_nodes_of_an_update(old_checkout: Path) -> None:
    """An old node has no such paths, so their clients move from one new node to the other."""
    report = Report("rolling-update", "valkey", 1)
    async with RedisServer("valkey") as store:
        settings = {"CONTRACT": str(CONTRACT)}
        stage = Stage(
            report,
            [store.url, store.url],
            clients=16,
            rate=20,
            channels=2,
            settings=settings,
            transports=("stream", "sse", "poll", "websocket"),
            publishers=("emit", "api"),
        )
        first, second = stage.nodes
        first.checkout = old_checkout
        async with stage:
            await replace(stage, first, CHECKOUT)
            await replace(stage, second, old_checkout)
            books = await stage.crowd.seen()
            assert set(books.resumed_by) == {"stream", "sse", "poll", "websocket"}
    assert not report.failures
    assert report.counts.clean, report.counts
    assert report.counts.announced == 0
