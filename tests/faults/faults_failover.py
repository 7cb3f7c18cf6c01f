"""What happens to a replicated store: its master dies, and a replica takes over, up to date or not; a Cluster loses a shard."""

from __future__ import annotations

from time import monotonic

from tests.faults.scenario import Arena, scenario
from tests.faults.stage import Stage
from tests.stores.cluster import Cluster
from tests.stores.sentinels import Sentinels

AGAIN = 30.0
"""Seconds after a master's death until everyone publishes again."""


@scenario("sentinel-failover", topology="sentinel")
async def a_master_dies(arena: Arena) -> None:
    """kill -9 of the master: everyone publishes again within 30 s, on the promoted replica, in a new epoch."""
    report = arena.report
    async with Sentinels(arena.flavour) as store, arena.stage(store.url, store.url) as stage:
        await stage.calm(arena.size.calm)
        master, moment = await store.master(), monotonic()
        master.kill()
        await _over(stage, moment)
        report.tell("master killed, replica promoted")
        await stage.calm(arena.size.calm)


async def _over(stage: Stage, moment: float) -> None:
    seconds = await stage.publishing(moment, 2 * AGAIN)
    stage.report.recovered(seconds, within=AGAIN)
    stage.report.expect(await stage.caught_up(moment, 3 * AGAIN) is not None, "clients did not catch up")
    books = await stage.crowd.seen()
    rough = {what: count for what, count in books.tally(moment).items() if what.startswith("closed")}
    stage.report.expect(not rough, f"clients saw {rough}")


@scenario("lagging-failover", topology="sentinel")
async def a_replica_that_lags_takes_over(arena: Arena) -> None:
    """Link cut, five publishes, master killed, replica promoted, five others: nobody is told `recovered: true`."""
    report = arena.report
    traffic = {"clients": 24, "channels": 2, "traffic": False}
    async with Sentinels(arena.flavour) as store, arena.stage(store.url, store.url, **traffic) as stage:
        await _five(stage)
        report.expect(await stage.caught_up(monotonic(), 5) is not None, "clients lack the first five")
        (replica,) = await store.replicas()
        await store.cut(replica)
        await _five(stage)
        before = dict(stage.log.newest)
        report.expect(await stage.caught_up(monotonic(), 5) is not None, "clients lack the second five")
        resumed = (await stage.crowd.seen()).resumed
        away = stage.near.on(stage.ports[1])
        for client in away:
            client.abort()
        master, moment = await store.master(), monotonic()
        master.kill()
        await store.promoted(master)
        await _five(stage)
        for client in away:
            client.come_back()
        report.recovered(await stage.caught_up(moment, 2 * AGAIN), within=AGAIN)
        (one, old), new = next(iter(before.items())), stage.log.newest
        report.tell(
            f"position {old.offset} became {new[one].offset}, {len(away)} clients away and {24 - len(away)} there"
        )
        report.expect(
            all(new[key].epoch != was.epoch for key, was in before.items()), "an epoch went on after the failover"
        )
        books = await stage.crowd.seen()
        report.expect(books.resumed == resumed, f"{books.resumed - resumed} clients were told recovered:true")
        told = books.seen("recovered false", moment)
        report.expect(told >= 24, f"only {told} of 24 clients were told recovered:false")


async def _five(stage: Stage) -> None:
    """Five events in every channel of every tenant."""
    backends = {publisher.tenant: publisher for publisher in reversed(stage.desk.publishers)}
    for _ in range(5):
        for publisher in backends.values():
            for channel in stage.channels:
                await publisher.publish(channel)


@scenario("cluster-master-kill", topology="cluster")
async def a_shard_loses_its_master(arena: Arena) -> None:
    """Six nodes, one of three masters killed: its channels publish again within 30 s, the others go on."""
    report = arena.report
    async with Cluster(arena.flavour) as store, arena.stage(store.url, store.url, channels=12) as stage:
        await stage.calm(arena.size.calm)
        key = stage.channels[0]
        master, moment = await store.master_of(key), monotonic()
        master.kill()
        await _over(stage, moment)
        report.tell("one of three masters killed, its replica promoted")
        await stage.calm(arena.size.calm)
