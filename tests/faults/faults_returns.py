"""What happens when a store comes back as somebody else, or older: no process ends, and no data looks wrong."""

from __future__ import annotations

import asyncio
from time import monotonic

from tests.faults.faults_redis import AGAIN
from tests.faults.scenario import Arena, scenario
from tests.stores.process import until
from tests.stores.redis_server import RedisServer
from tests.support.proxy import Proxy


async def _synced(master: RedisServer, replica: RedisServer) -> None:
    async def caught_up() -> bool:
        role = await replica.command("ROLE")
        return bool(role[3] == "connected" and role[4] >= (await master.command("ROLE"))[1])

    await until(caught_up, "the replica has what the master has")


@scenario("master-returns", quick=True)
async def an_address_leads_to_a_replica_for_a_while(arena: Arena) -> None:
    """One address leads to M, to its promoted replica R, to M again, which never stopped: who was away is told, too."""
    report, seconds = arena.report, 2.0 if arena.quick else 5.0
    replica = RedisServer(arena.flavour)
    async with RedisServer(arena.flavour) as master:
        replica.follow(master)
        async with replica:
            link = Proxy(master.port)
            address = f"redis://127.0.0.1:{await link.start()}"
            try:
                async with arena.stage(address, address) as stage:
                    await stage.calm(arena.size.calm)
                    await _synced(master, replica)
                    away = stage.near.on(stage.ports[1])
                    for client in away:
                        client.abort()
                    await replica.command("REPLICAOF", "NO", "ONE")
                    moment = monotonic()
                    for server in (replica, master):
                        link.cut()
                        link.lead_to(server.port)
                        link.heal()
                        if server is replica:
                            await stage.publishing(monotonic(), within=AGAIN)
                            await stage.calm(seconds)
                    back = monotonic()
                    await stage.publishing(back, within=AGAIN)
                    for client in away:
                        client.come_back()
                    report.recovered(await stage.healed(back, 2 * AGAIN), within=AGAIN)
                    report.tell(f"{len(away)} clients away while a replica stood in for {seconds:g} s")
                    told = (await stage.crowd.seen()).seen("recovered false", moment)
                    report.expect(told >= len(away), f"only {told} clients were told recovered:false")
                    await stage.calm(arena.size.calm)
            finally:
                await link.close()


@scenario("channel-put-back", quick=True)
async def channels_are_put_back(arena: Arena) -> None:
    """DUMP of every channel's keys, 2 s later RESTORE, with publishers at work: offsets are given twice, and all are told."""
    report = arena.report
    async with RedisServer(arena.flavour) as server, arena.stage(server.url, server.url) as stage:
        await stage.calm(arena.size.calm)
        dumps: dict[str, str] = {}
        for part in ("meta", "stream"):
            for key in await server.keys(f"*:{{?*:?*}}:{part}"):
                if (dump := await server.command("DUMP", key)) is not None:
                    dumps[key] = dump
        away = stage.near.on(stage.ports[1])
        for client in away:
            client.abort()
        await stage.calm(2.0)
        moment = monotonic()
        await asyncio.gather(*(_restore(server, key, dump) for key, dump in dumps.items()))
        for client in away:
            client.come_back()
        report.recovered(await stage.healed(monotonic(), 2 * AGAIN), within=AGAIN)
        report.tell(f"{len(dumps)} keys put back as they were 2 s before, {len(away)} clients away")
        told = (await stage.crowd.seen()).seen("recovered false", moment)
        report.expect(told > 0, "nobody was told recovered:false: the scenario tested nothing")
        await stage.calm(arena.size.calm)


async def _restore(server: RedisServer, key: str, dump: str) -> None:
    await server.command("RESTORE", key, 0, dump.encode("utf-8", "surrogateescape"), "REPLACE")
