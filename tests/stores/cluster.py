"""A Redis Cluster of six nodes: three masters, each with a replica."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import combinations, pairwise
from typing import Any

import hiredis

from tests.stores.process import HOST, Group, ServerFailedError, free_port, until
from tests.stores.redis_server import Flavour, RedisServer

FAILOVER = 30.0
"""Seconds for a failover."""
_GIVEN_UP = 6.0
"""Seconds after which a node gives up a requested failover, for example without enough votes."""
_MASTERS = 3
_SLOTS = 16_384


class ClusterNode(RedisServer):
    """A server that can be a node of a Cluster."""

    bus = 0
    """The port of the cluster bus."""

    def _prepare(self) -> None:
        self.bus = free_port()
        super()._prepare()

    def _settings(self) -> list[str]:
        return [
            *super()._settings(),
            "cluster-enabled yes",
            "cluster-config-file nodes.conf",
            "cluster-node-timeout 2000",
            f"cluster-port {self.bus}",
            f"cluster-announce-ip {HOST}",
            # CLUSTER SLOTS lists a replica once it has received a ping: by default ten seconds after its start.
            "repl-ping-replica-period 1",
        ]

    async def id(self) -> str:
        """Returns its id in the Cluster."""
        return str(await self.command("CLUSTER", "MYID"))

    async def shards(self) -> list[tuple[int, int, tuple[int, ...]]]:
        """Returns the slots as this node sees them: first, last, ports with the master's first."""
        slots: list[list[Any]] = await self.command("CLUSTER", "SLOTS")
        return sorted((first, last, tuple(int(node[1]) for node in nodes)) for first, last, *nodes in slots)


class Cluster(Group):
    """Six `nodes`: the first three start as masters, the others as their replicas in the same order.

    A node that is silent for two seconds counts as failed.
    """

    def __init__(
        self, flavour: Flavour = "redis", *, password: str | None = None, config: Mapping[str, str | int] | None = None
    ) -> None:
        super().__init__()
        self.nodes = [ClusterNode(flavour, password=password, config=config) for _ in range(2 * _MASTERS)]

    @property
    def url(self) -> str:
        """The setting `broker.url`."""
        return f"redis+cluster://{','.join(f'{HOST}:{node.port}' for node in self.nodes)}"

    @property
    def awake(self) -> list[ClusterNode]:
        """The nodes that answer."""
        return [node for node in self.nodes if node.awake]

    async def master_of(self, key: str) -> ClusterNode:
        """Returns the master of a key, as the first node that answers sees it."""
        return (await self._shard_of(key))[0]

    async def replicas_of(self, key: str) -> list[ClusterNode]:
        """Returns the replicas of a key's master."""
        return (await self._shard_of(key))[1:]

    async def failover(self, key: str) -> ClusterNode:
        """Promotes a replica of a healthy master without loss. Returns the new master."""
        before, replica, *_ = await self._shard_of(key)
        asked = float("-inf")

        async def other() -> bool:
            nonlocal asked
            if time.monotonic() - asked > _GIVEN_UP:
                with suppress(hiredis.ReplyError):  # it is the master by now
                    await replica.command("CLUSTER", "FAILOVER")
                asked = time.monotonic()
            return await self._agree() and await self.master_of(key) is not before

        await until(other, f"another node than port {before.port} takes {key} over", within=FAILOVER)
        return await self.master_of(key)

    async def promoted(self, key: str, before: ClusterNode) -> ClusterNode:
        """Returns the master of a key once all nodes agree that it is not `before`, and take commands."""

        async def other() -> bool:
            return await self._agree() and await self.master_of(key) is not before

        await until(other, f"another node than port {before.port} has {key}", within=FAILOVER)
        return await self.master_of(key)

    async def settled(self) -> None:
        """Returns when the running nodes agree on all slots, take commands, are connected, and replicas follow."""

        async def followed() -> bool:
            awake = self.awake
            views = await asyncio.gather(*(node.shards() for node in awake))
            known = all(
                {node.port for node in awake} <= {port for *_, ports in view for port in ports} for view in views
            )
            return known and await self._agree() and all(await asyncio.gather(*(_follows(node) for node in awake)))

        await until(followed, "the nodes of the Cluster agree and replicas follow", within=FAILOVER)

    async def _build(self) -> None:
        await self._launch(*self.nodes)
        masters, replicas = self.nodes[:_MASTERS], self.nodes[_MASTERS:]
        # With equal config epochs, which masters have at first, no replica gets the votes for a failover.
        for epoch, node in enumerate(self.nodes, start=1):
            await node.command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        bounds = [_SLOTS * number // _MASTERS for number in range(_MASTERS + 1)]
        for node, (first, end) in zip(masters, pairwise(bounds), strict=True):
            await node.command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        # All pairs: by gossip, one pair would do, a second later.
        for node, other in combinations(self.nodes, 2):
            await node.command("CLUSTER", "MEET", HOST, other.port, other.bus)
        await until(self._all_met, "the nodes of the Cluster know each other")
        for master, replica in zip(masters, replicas, strict=True):
            await replica.command("CLUSTER", "REPLICATE", await master.id())
        await self.settled()

    async def _all_met(self) -> bool:
        """Whether every node is connected to every other."""
        for node in self.nodes:
            lines = str(await node.command("CLUSTER", "NODES")).splitlines()
            others = [line.split() for line in lines if "myself" not in line.split()[2]]
            if len(others) != len(self.nodes) - 1 or not all(
                "handshake" not in flags and link == "connected" for _, _, flags, _, _, _, _, link, *_ in others
            ):
                return False
        return True

    async def _agree(self) -> bool:
        infos = await asyncio.gather(*(node.command("CLUSTER", "INFO") for node in self.awake))
        if not all("cluster_state:ok" in info for info in infos):
            return False
        views = await asyncio.gather(*(node.shards() for node in self.awake))
        masters = [[(first, last, ports[0]) for first, last, ports in view] for view in views]
        return all(view == masters[0] for view in masters)

    async def _shard_of(self, key: str) -> list[ClusterNode]:
        node = self.awake[0]
        slot = await node.command("CLUSTER", "KEYSLOT", key)
        for first, last, ports in await node.shards():
            if first <= slot <= last:
                return [self._node(port) for port in ports]
        raise ServerFailedError(f"no node has slot {slot}")

    def _node(self, port: int) -> ClusterNode:
        return next(node for node in self.nodes if node.port == port)


async def _follows(node: ClusterNode) -> bool:
    role = await node.command("ROLE")
    return bool(role[0] == "master" or role[3] == "connected")
