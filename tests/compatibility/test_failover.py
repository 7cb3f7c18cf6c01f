"""Nodes of both ages lose the master of a Sentinel installation: they begin the same epoch, and lose nothing unannounced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from tests.compatibility.test_clients_and_servers import CONTRACT
from tests.faults.report import Report
from tests.faults.stage import Stage, seconds_until
from tests.stores.sentinels import Sentinels
from tests.support.files import as_many_as_may_be

pytestmark = [pytest.mark.faults, pytest.mark.slow]

GOES_ON = 60.0
"""Seconds after the master's death in which all clients have everything again."""


@pytest.fixture(autouse=True)
def _enough_files() -> Iterator[None]:
    with as_many_as_may_be():
        yield


async def test_failover_begins_one_epoch_for_nodes_of_both_ages(old_checkout: Path) -> None:
    report = Report("failover", "redis sentinel", 1)
    async with Sentinels("redis") as store:
        settings = {"CONTRACT": str(CONTRACT)}
        stage = Stage(
            report,
            [store.url, store.url],
            clients=24,
            rate=30,
            channels=3,
            settings=settings,
            transports=("websocket", "websocket", "stream", "poll"),
            publishers=("api", "emit", "websocket"),
        )
        stage.nodes[0].checkout = old_checkout
        async with stage:
            master, moment = await store.master(), monotonic()
            before = dict(stage.log.newest)
            master.kill()
            await store.promoted(master)
            assert await stage.healed(moment, GOES_ON) is not None, "nothing went on after the failover"

            async def is_new() -> bool:
                return all(stage.log.newest[key].epoch != top.epoch for key, top in before.items())

            # A channel may have had no publish since the failover.
            assert await seconds_until(is_new, monotonic(), GOES_ON) is not None, "a channel has its old epoch"
            books = await stage.crowd.seen()
            assert books.seen("recovered false", moment) >= 24
            # Streams and polls find no such path at the old node, and go to the other one.
            assert {client.transport.name for client in stage.near.on(stage.ports[0])} == {"websocket"}
    assert not report.failures
    assert report.counts.clean, report.counts
