"""Which Redis servers there are: one, the master that the Sentinels name, or the masters of a Cluster."""

from __future__ import annotations

from service.adapters.redis.address import Topology
from service.adapters.redis.config import RedisConfig
from service.adapters.redis.connections.cluster import ClusterSlots, tag_in_slot
from service.adapters.redis.connections.connector import Connector
from service.adapters.redis.connections.errors import Endpoint
from service.adapters.redis.connections.sentinel import SentinelDiscovery


class Servers:
    """Finds the server for each key."""

    def __init__(self, config: RedisConfig, connector: Connector) -> None:
        self._config = config
        self._sentinel = SentinelDiscovery(config, connector)
        self.cluster = ClusterSlots(config, connector)
        """The slots; without any unless `is_cluster`."""

    @property
    def is_cluster(self) -> bool:
        """Whether channels live on different servers."""
        return self._config.address.topology is Topology.CLUSTER

    async def master(self) -> Endpoint:
        """Returns the only server, or the master that the Sentinels name. Raises NoServerError."""
        if self._config.address.topology is Topology.STANDALONE:
            return self._config.address.hosts[0]
        return await self._sentinel.master()

    def term_key(self, endpoint: Endpoint | None) -> str | None:
        """Where a server keeps its term: in a Cluster in its first slot; None if it has no slot."""
        prefix = self._config.prefix
        if endpoint is None:
            return f"{prefix}:reign"
        slot = self.cluster.first_slot_of(endpoint)
        return None if slot is None else f"{prefix}:reign:{{{tag_in_slot(slot)}}}"

    async def close(self) -> None:
        """Cancels queries that run."""
        await self._sentinel.close()
        await self.cluster.close()
